/* Many calls from many threads that come and go: calls BUNDLE CALLS THREADS
 * A thread makes a fifth of its lane's calls and is replaced by another. Every second thread opens a segmenter of its
 * own, the others share one, which is closed and opened again meanwhile. Every tenth call is a wrong one, which must
 * fail as it should and change nothing; the label map of every other call must be the first one's, byte for byte, with
 * its padding. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "isnet.h"

enum { HEIGHT = 9, WIDTH = 13, PITCH = 48, LABEL_PITCH = 32, PADDING = 0xA5 };

static unsigned char image[HEIGHT * PITCH], expected[HEIGHT * LABEL_PITCH];
static const char *bundle;
static long life;
static atomic_long left, good, refused, closed, wrong;
static _Atomic(isnet *) shared;

static isnet *open_one(void) {
    isnet_options options = ISNET_OPTIONS;
    isnet *handle;
    char error[ISNET_ERROR];
    options.threads = 1;
    if (isnet_open_with(bundle, &options, &handle, error)) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    return handle;
}

static int segment(isnet *handle, unsigned char *labels, const char *preset, char *error) {
    isnet_image from = ISNET_IMAGE;
    isnet_labels to = ISNET_LABELS;
    isnet_call call = ISNET_CALL;
    from.planes[0] = image, from.pitches[0] = PITCH, from.height = HEIGHT, from.width = WIDTH, from.format = "bgr";
    to.data = labels, to.pitch = LABEL_PITCH, call.preset = preset;
    return isnet_segment_with(handle, &from, &to, &call, error);
}

static void complain(const char *what, int status, const char *error) {
    fprintf(stderr, "%s: status %d, %s\n", what, status, error);
    atomic_fetch_add(&wrong, 1);
}

static int one_call(isnet *handle, int is_shared, long number) {
    unsigned char labels[sizeof expected];
    char error[ISNET_ERROR] = "";
    memset(labels, PADDING, sizeof labels);
    if (number % 10 == 0) {
        int status = number % 20 ? segment(handle, labels, "best", error) : segment(NULL, labels, NULL, error);
        int due = number % 20 ? ISNET_BAD_ARGUMENT : ISNET_CLOSED;
        if (status != due && !(is_shared && status == ISNET_CLOSED)) {
            complain("a wrong call", status, error);
        }
        atomic_fetch_add(&refused, 1);
        return status;
    }
    int status = segment(handle, labels, NULL, error);
    if (status == ISNET_CLOSED && is_shared) {
        atomic_fetch_add(&closed, 1); /* another thread has closed the shared one */
    } else if (status || memcmp(labels, expected, sizeof labels)) {
        complain("a call", status, error);
    } else {
        atomic_fetch_add(&good, 1);
    }
    return status;
}

static void *live(void *argument) {
    int is_shared = argument != NULL;
    isnet *own = is_shared ? NULL : open_one(), *handle = is_shared ? atomic_load(&shared) : own;
    for (long i = 0; i < life; i++) {
        long number = atomic_fetch_sub(&left, 1);
        if (number <= 0) {
            break;
        }
        if (one_call(handle, is_shared, number) == ISNET_CLOSED && is_shared) {
            handle = atomic_load(&shared);
        }
        if (is_shared && i == life - 1) {
            isnet_close(atomic_exchange(&shared, open_one()));
        }
    }
    isnet_close(own);
    return NULL;
}

static void *lane(void *argument) {
    while (atomic_load(&left) > 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, live, argument);
        pthread_join(thread, NULL);
    }
    return NULL;
}

int main(int count, char **arguments) {
    char error[ISNET_ERROR];
    if (count != 4 || isnet_start(NULL, error)) {
        fprintf(stderr, "%s\n", count == 4 ? error : "usage: calls BUNDLE CALLS THREADS");
        return 2;
    }
    bundle = arguments[1];
    atomic_store(&left, atol(arguments[2]));
    int lanes = atoi(arguments[3]);
    life = atol(arguments[2]) / (5 * lanes) + 1;
    for (size_t i = 0; i < sizeof image; i++) {
        image[i] = (unsigned char)(i * i * 7 + i / 5);
    }
    memset(expected, PADDING, sizeof expected);
    atomic_store(&shared, open_one());
    int status = segment(atomic_load(&shared), expected, NULL, error);
    if (status) {
        complain("the first call", status, error);
        return 1;
    }
    pthread_t *threads = calloc((size_t)lanes, sizeof *threads);
    for (int i = 0; i < lanes; i++) {
        pthread_create(&threads[i], NULL, lane, i % 2 ? &left : NULL);
    }
    for (int i = 0; i < lanes; i++) {
        pthread_join(threads[i], NULL);
    }
    free(threads);
    isnet_close(atomic_load(&shared));
    printf("%ld good, %ld refused, %ld closed, %ld wrong\n", atomic_load(&good), atomic_load(&refused),
           atomic_load(&closed), atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
