/* isnet_trt for C programs: a bundle is opened, pictures in the caller's memory become label maps in the caller's
 * memory. Python runs inside; nobody who includes this header sees it. Functions may be called from any thread.
 * On failure they return NULL or -1 and leave a message in `error` (always terminated). */
#ifndef ISNET_H
#define ISNET_H

#include <stddef.h>

#define ISNET_ERROR 1024 /* room for most messages; longer ones are cut */

typedef struct isnet isnet; /* an open bundle; one call at a time, others wait: open one per worker thread */

/* Start Python, once and before anything else. `python` is the interpreter of the (virtual) environment that has
 * isnet_trt. Afterwards the calling thread holds nothing of Python. */
int isnet_start(const char *python, char error[ISNET_ERROR]);

/* `preset` is "default" or "ms-flip", `engine` the bundle's own where NULL, `threads` 0 for all cores. */
isnet *isnet_open(const char *bundle, const char *preset, const char *engine, int threads, char error[ISNET_ERROR]);

/* Bytes of one label: 1, or 2 above 256 classes. */
size_t isnet_label_bytes(const isnet *handle);

/* 8-bit pixels, channels side by side in `order` ("rgb", "bgr", "rgba", "bgra"), or the planes of a decoder's surface,
 * Y above U and V ("nv12", or without padding "i420"); pitches in bytes, 0: no padding.
 * Both buffers stay the caller's, are used during the call only and must not overlap. */
int isnet_segment(isnet *handle, const unsigned char *image, int height, int width, size_t pitch, const char *order,
                  void *labels, size_t labels_pitch, char error[ISNET_ERROR]);

/* Give all memory back; NULL is taken. Not while another thread uses the handle. */
void isnet_close(isnet *handle);

#endif
