/* isnet_trt for C programs: open a bundle, segment images in the caller's memory. Python runs inside; this header does
 * not show it. Functions may be called from any thread. They return ISNET_OK or a negative isnet_status, and then leave
 * a message in `error` (always terminated; NULL if not wanted). docs/embedding.md describes the rest. */
#ifndef ISNET_H
#define ISNET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ISNET_API __attribute__((visibility("default")))
#define ISNET_ABI_VERSION 1 /* the number in the library's soname; it changes when compiled programs would break */
#define ISNET_ERROR 1024    /* bytes of a message; longer ones are cut */

typedef enum isnet_status {
    ISNET_OK = 0,
    ISNET_FAILED = -1,        /* an unforeseen exception inside Python: a bug, please report the message */
    ISNET_BAD_ARGUMENT = -2,  /* a NULL pointer, a pitch, a preset, a device, … that cannot be used */
    ISNET_BAD_IMAGE = -3,     /* the image cannot be segmented */
    ISNET_BAD_BUNDLE = -4,    /* the bundle is missing, damaged or too new */
    ISNET_NO_ENGINE = -5,     /* the engine cannot run here: library, version or GPU is missing */
    ISNET_ENGINE_FAILED = -6, /* the engine failed while it was loaded or used */
    ISNET_NO_MEMORY = -7,     /* the GPU or the host has too little free memory */
    ISNET_CLOSED = -8,        /* the handle was closed, or was never opened */
    ISNET_BAD_ABI = -9,       /* program, library and Python package do not fit together */
    ISNET_NO_PYTHON = -10,    /* Python does not start, or lacks isnet_trt or a package that it needs */
    ISNET_NOT_STARTED = -11,  /* isnet_start was not called */
    ISNET_ENDED = -12,        /* the host has ended its Python interpreter */
    ISNET_FORKED = -13,       /* this process was forked from the one that started Python or opened the handle */
    ISNET_INTERRUPTED = -14   /* a signal handler of the host's Python raised; Python is told again afterwards */
} isnet_status;

/* An open bundle; one call runs at a time, others wait: open one per worker thread. Not a pointer to memory: a handle
 * that was closed is recognised. */
typedef struct isnet isnet;

/* Structures begin with their size and grow at the end. Initialise them with the macro of the same name. */
typedef struct isnet_options {
    size_t size;
    const char *preset; /* NULL: "default"; or "ms-flip" */
    const char *engine; /* NULL: the bundle's own; or "onnxruntime" */
    const char *device; /* NULL: "auto"; or "cpu", "cuda", "cuda:1" */
    int64_t threads;    /* CPU threads of the engine and of the merge; 0: all cores */
} isnet_options;
#define ISNET_OPTIONS {sizeof(isnet_options), NULL, NULL, NULL, 0}

typedef struct isnet_image {
    size_t size;
    const void *planes[3]; /* 8-bit pixels in planes[0]; "nv12": Y, UV; "i420": Y, U, V. The others NULL: all planes
                              in planes[0], Y above the others, with one pitch ("i420": without padding) */
    size_t pitches[3];     /* bytes from row to row, 0: no padding */
    int32_t height, width; /* pixels */
    const char *format;    /* "rgb", "bgr", "rgba", "bgra", "nv12", "i420" */
    const char *device;    /* where the planes are; NULL: "cpu"; or "cuda", "cuda:1" */
    const char *matrix;    /* of nv12 and i420; NULL: "bt601"; or "bt709", "bt2020" */
    const char *range;     /* of nv12 and i420; NULL: "limited"; or "full" */
} isnet_image;
#define ISNET_IMAGE {sizeof(isnet_image), {NULL, NULL, NULL}, {0, 0, 0}, 0, 0, NULL, NULL, NULL, NULL}

typedef struct isnet_labels {
    size_t size;
    void *data;         /* height x width labels of the image, each of isnet_label_bytes() bytes */
    size_t pitch;       /* bytes from row to row, 0: no padding */
    const char *device; /* NULL: "cpu" */
} isnet_labels;
#define ISNET_LABELS {sizeof(isnet_labels), NULL, 0, NULL}

typedef struct isnet_call {
    size_t size;
    const void *stream; /* the caller's CUstream or cudaStream_t, NULL: none; the default stream is cudaStreamLegacy */
    const char *preset; /* NULL: that of isnet_options */
} isnet_call;
#define ISNET_CALL {sizeof(isnet_call), NULL, NULL}

typedef struct isnet_description {
    size_t size;
    size_t label_bytes; /* bytes of one label: 1, or 2 above 256 classes */
    size_t classes;
    char engine[64], device[64], recipe[128], precision[32], preset[128];
    char text[512]; /* what runs where, in one line */
} isnet_description;
#define ISNET_DESCRIPTION {sizeof(isnet_description), 0, 0, "", "", "", "", "", ""}

typedef struct isnet_class {
    size_t size;
    char name[256];
    unsigned char color[4]; /* red, green, blue, 255 */
} isnet_class;
#define ISNET_CLASS {sizeof(isnet_class), "", {0, 0, 0, 0}}

ISNET_API unsigned isnet_abi_version(void); /* of the library: ISNET_ABI_VERSION when it was compiled */
ISNET_API const char *isnet_version(void);  /* of the library, such as "0.1.0" */

/* Start Python and load isnet_trt, before anything else. `python` is the interpreter of the (virtual) environment that
 * has isnet_trt; NULL: the environment variable ISNET_TRT_PYTHON, else the one that the library was built for. Where
 * Python already runs in this process, that one is used. Later calls do nothing. The calling thread keeps no lock. */
ISNET_API int isnet_start(const char *python, char error[ISNET_ERROR]);
ISNET_API int isnet_start_abi(unsigned abi, const char *python, char error[ISNET_ERROR]);
#define isnet_start(python, error) isnet_start_abi(ISNET_ABI_VERSION, python, error)

/* Open a bundle; `options` may be NULL. On failure *handle is NULL. */
ISNET_API int isnet_open_with(const char *bundle, const isnet_options *options, isnet **handle,
                              char error[ISNET_ERROR]);
ISNET_API int isnet_describe(const isnet *handle, isnet_description *description, char error[ISNET_ERROR]);
ISNET_API int isnet_describe_class(const isnet *handle, size_t label, isnet_class *description,
                                   char error[ISNET_ERROR]);

/* Segment an image into a label map; `call` may be NULL. All memory stays the caller's, is used during the call only
 * and must not overlap. After a failure the content of the label map is undefined. */
ISNET_API int isnet_segment_with(isnet *handle, const isnet_image *image, const isnet_labels *labels,
                                 const isnet_call *call, char error[ISNET_ERROR]);

/* Give all memory back, after a call that is running; NULL is taken, a closed handle is ISNET_CLOSED. */
ISNET_API int isnet_close(isnet *handle);

/* Short forms without structures: host memory, the automatic device. isnet_open returns NULL on failure. */
ISNET_API isnet *isnet_open(const char *bundle, const char *preset, const char *engine, int threads,
                            char error[ISNET_ERROR]);
ISNET_API size_t isnet_label_bytes(const isnet *handle); /* 0 for a closed handle */
ISNET_API int isnet_segment(isnet *handle, const unsigned char *image, int height, int width, size_t pitch,
                            const char *order, void *labels, size_t labels_pitch, char error[ISNET_ERROR]);

#ifdef __cplusplus
}
#endif
#endif
