/* A C program that segments pictures: service PYTHON BUNDLE PRESET THREADS PICTURE.ppm LABELS.pgm [DEVICE]
 * The picture lies in padded rows of B, G, R as a camera gives them. Every thread has a segmenter and labels of its
 * own; all must come to the same label map, which is written with one byte a pixel. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "isnet.h"

struct job {
    const char *bundle;
    isnet_options options;
    const unsigned char *image;
    int height, width;
    size_t pitch, labels_pitch;
    unsigned char *labels;
    int failed;
    char error[ISNET_ERROR];
};

static size_t aligned(size_t bytes) { return (bytes + 127) / 64 * 64; } /* at least 64 bytes of padding */

/* A binary PPM as B, G, R with padded rows. */
static unsigned char *read_ppm(const char *path, int *height, int *width, size_t *pitch) {
    FILE *file = fopen(path, "rb");
    int deepest = 0;
    if (!file || fscanf(file, "P6 %d %d %d", width, height, &deepest) != 3 || deepest != 255 || fgetc(file) == EOF) {
        return NULL;
    }
    *pitch = aligned(3 * (size_t)*width);
    unsigned char *image = malloc(*pitch * *height);
    for (int y = 0; image && y < *height; y++) {
        unsigned char *row = image + y * *pitch;
        if (fread(row, 3, *width, file) != (size_t)*width) {
            return NULL;
        }
        for (int x = 0; x < *width; x++) {
            unsigned char red = row[3 * x];
            row[3 * x] = row[3 * x + 2];
            row[3 * x + 2] = red;
        }
    }
    fclose(file);
    return image;
}

static void *work(void *argument) {
    struct job *job = argument;
    job->failed = 1;
    isnet *handle;
    if (isnet_open_with(job->bundle, &job->options, &handle, job->error)) {
        return NULL;
    }
    job->labels_pitch = aligned(isnet_label_bytes(handle) * job->width);
    job->labels = calloc(job->height, job->labels_pitch);
    job->failed = 0;
    for (int turn = 0; turn < 3 && !job->failed; turn++) {
        job->failed = isnet_segment(handle, job->image, job->height, job->width, job->pitch, "bgr", job->labels,
                                    job->labels_pitch, job->error);
    }
    isnet_close(handle);
    return NULL;
}

static int write_pgm(const char *path, const struct job *job) {
    FILE *file = fopen(path, "wb");
    if (!file) {
        return 1;
    }
    fprintf(file, "P5 %d %d 255\n", job->width, job->height);
    for (int y = 0; y < job->height; y++) {
        fwrite(job->labels + y * job->labels_pitch, 1, job->width, file);
    }
    return fclose(file);
}

int main(int count, char **arguments) {
    char error[ISNET_ERROR];
    struct job first = {.options = ISNET_OPTIONS};
    if (count != 7 && count != 8) {
        fprintf(stderr, "usage: %s PYTHON BUNDLE PRESET THREADS PICTURE.ppm LABELS.pgm [DEVICE]\n", arguments[0]);
        return 2;
    }
    first.bundle = arguments[2];
    first.options.preset = arguments[3];
    first.options.threads = 1; /* as many segmenters as threads: each takes one core */
    first.options.device = count == 8 ? arguments[7] : NULL;
    int threads = atoi(arguments[4]);
    first.image = read_ppm(arguments[5], &first.height, &first.width, &first.pitch);
    if (!first.image || threads < 1) {
        fprintf(stderr, "%s is no binary PPM of 8 bits, or %s is no number of threads\n", arguments[5], arguments[4]);
        return 2;
    }
    if (isnet_start(arguments[1], error)) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    struct job *jobs = calloc(threads, sizeof *jobs);
    pthread_t *workers = calloc(threads, sizeof *workers);
    for (int i = 0; i < threads; i++) {
        jobs[i] = first;
        pthread_create(&workers[i], NULL, work, &jobs[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(workers[i], NULL);
        if (jobs[i].failed) {
            fprintf(stderr, "%s\n", jobs[i].error);
            return 1;
        }
        if (memcmp(jobs[i].labels, jobs[0].labels, jobs[0].labels_pitch * first.height)) {
            fprintf(stderr, "thread %d has another label map than thread 0\n", i);
            return 1;
        }
    }
    printf("%d x %d pixels, %d threads, same label map\n", first.height, first.width, threads);
    return write_pgm(arguments[6], &jobs[0]);
}
