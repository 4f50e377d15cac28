/* A C library with a camera's habits: it owns the buffers, rows are padded, pixels are B, G, R. It stands for any
 * library whose frames are to be segmented in place; examples/frames/frames.py drives it.
 * cc -std=c11 -O2 -shared -fPIC frames.c -o libframes.so */
#include <stdint.h>
#include <stdlib.h>

struct frame {
    const uint8_t *pixels; /* B, G, R */
    uint8_t *labels;       /* written by the segmenter */
    int32_t height, width;
    size_t pitch, labels_pitch;
};

static size_t padded(size_t bytes) { return (bytes + 255) / 128 * 128; }

/* Where the colours of a pixel come from; any picture would do. */
static uint8_t colour(int number, int y, int x, int channel) {
    return (uint8_t)((x * (3 + channel) + y * (5 - channel) + number * 40) / 2 + ((x / 16 + y / 12) % 5) * 37);
}

/* A frame of the camera; 0, or -1 without memory. */
int frame_open(struct frame *frame, int height, int width, int number) {
    frame->height = height;
    frame->width = width;
    frame->pitch = padded(3 * (size_t)width);
    frame->labels_pitch = padded(width);
    uint8_t *pixels = calloc(height, frame->pitch);
    frame->pixels = pixels;
    frame->labels = calloc(height, frame->labels_pitch);
    if (!pixels || !frame->labels) {
        return -1;
    }
    for (int y = 0; y < height; y++) {
        for (int i = 0; i < 3 * width; i++) {
            pixels[y * frame->pitch + i] = colour(number, y, i / 3, i % 3);
        }
    }
    return 0;
}

/* What the library does with a label map: how many pixels are of a class. */
size_t frame_count(const struct frame *frame, int class) {
    size_t count = 0;
    for (int y = 0; y < frame->height; y++) {
        for (int x = 0; x < frame->width; x++) {
            count += frame->labels[y * frame->labels_pitch + x] == class;
        }
    }
    return count;
}

void frame_close(struct frame *frame) {
    free((void *)frame->pixels);
    free(frame->labels);
}
