/* libisnet_trt: see isnet.h. The Python side is isnet_trt/embed.py, which keeps the open handles and turns exceptions
 * into statuses. Python's lock is taken per call and given back by the engine while it computes. */
#include "internal.h"

#include <stdatomic.h>

#define LARGEST_STRUCT 65536

static atomic_int opened_before;

/* Copy a structure of the caller, who may know fewer or more fields than this library. `least` is the size that the
 * structure had in the first version. */
static int take(void *own, size_t own_size, size_t least, const void *given, const char *name, char *error) {
    size_t size;
    if (!given) {
        return fail(ISNET_BAD_ARGUMENT, error, "%s is a NULL pointer", name);
    }
    memcpy(&size, given, sizeof size);
    if (size < least || size > LARGEST_STRUCT) {
        return fail(ISNET_BAD_ABI, error, "%s.size is %zu, at least %zu is expected: initialise it with the macro of "
                    "isnet.h, from the same version as the library (%s)", name, size, least, ISNET_VERSION);
    }
    for (size_t i = own_size; i < size; i++) {
        if (((const char *)given)[i]) {
            return fail(ISNET_BAD_ABI, error, "%s sets fields that this library (version %s) does not know: use the "
                        "library of the program's isnet.h", name, ISNET_VERSION);
        }
    }
    memcpy(own, given, size < own_size ? size : own_size);
    return ISNET_OK;
}

static unsigned long long number(const void *pointer) { return (uintptr_t)pointer; }

int isnet_open_with(const char *bundle, const isnet_options *options, isnet **handle, char error[ISNET_ERROR]) {
    isnet_options own = ISNET_OPTIONS;
    visit visit;
    PyObject *opened = NULL;
    unsigned long long opened_handle = 0;
    int new_library = 0;
    if (!handle || !bundle) {
        return fail(ISNET_BAD_ARGUMENT, error, "%s is a NULL pointer", bundle ? "handle" : "bundle");
    }
    *handle = NULL;
    int status = options ? take(&own, sizeof own, sizeof own, options, "isnet_options", error) : ISNET_OK;
    status = status ? status : enter(&visit, error);
    if (status) {
        return status;
    }
    status = call(Py_BuildValue("(syyyyL)", "open_segmenter", bundle, own.preset, own.engine, own.device,
                                (long long)own.threads), &opened, error);
    if (opened && !PyArg_ParseTuple(opened, "Kp", &opened_handle, &new_library)) {
        status = fail_with_exception(error);
    }
    Py_XDECREF(opened);
    *handle = (isnet *)(uintptr_t)opened_handle;
    if (opened_handle && (!atomic_exchange(&opened_before, 1) || new_library)) {
        wait_at_exit(); /* after the library's own functions for exit(), so that this one runs before them */
    }
    leave(&visit);
    return status;
}

isnet *isnet_open(const char *bundle, const char *preset, const char *engine, int threads, char error[ISNET_ERROR]) {
    isnet_options options = {sizeof options, preset, engine, NULL, threads};
    isnet *handle = NULL;
    isnet_open_with(bundle, &options, &handle, error);
    return handle;
}

/* Write a structure of which the caller may know fewer fields; its `size` stays the caller's. */
static void give(void *to, const void *own, size_t own_size) {
    size_t size;
    memcpy(&size, to, sizeof size);
    size_t known = size < own_size ? size : own_size;
    memcpy((char *)to + sizeof size, (const char *)own + sizeof size, known - sizeof size);
}

int isnet_describe(const isnet *handle, isnet_description *description, char error[ISNET_ERROR]) {
    isnet_description own;
    visit visit;
    PyObject *tuple = NULL;
    const char *text[6];
    Py_ssize_t label_bytes, classes;
    int status = take(&own, sizeof own, sizeof own, description, "isnet_description", error);
    status = status ? status : enter(&visit, error);
    if (status) {
        return status;
    }
    status = call(Py_BuildValue("(sK)", "describe", number(handle)), &tuple, error);
    if (tuple && !PyArg_ParseTuple(tuple, "nnyyyyyy", &label_bytes, &classes, text, text + 1, text + 2, text + 3,
                                   text + 4, text + 5)) {
        status = fail_with_exception(error);
    } else if (tuple) {
        own.label_bytes = (size_t)label_bytes;
        own.classes = (size_t)classes;
        copy_text(own.engine, sizeof own.engine, text[0]);
        copy_text(own.device, sizeof own.device, text[1]);
        copy_text(own.recipe, sizeof own.recipe, text[2]);
        copy_text(own.precision, sizeof own.precision, text[3]);
        copy_text(own.preset, sizeof own.preset, text[4]);
        copy_text(own.text, sizeof own.text, text[5]);
        give(description, &own, sizeof own);
    }
    Py_XDECREF(tuple);
    leave(&visit);
    return status;
}

int isnet_describe_class(const isnet *handle, size_t label, isnet_class *description, char error[ISNET_ERROR]) {
    isnet_class own;
    visit visit;
    PyObject *tuple = NULL;
    const char *name;
    int status = take(&own, sizeof own, sizeof own, description, "isnet_class", error);
    status = status ? status : enter(&visit, error);
    if (status) {
        return status;
    }
    status = call(Py_BuildValue("(sKK)", "describe_class", number(handle), (unsigned long long)label), &tuple, error);
    if (tuple && !PyArg_ParseTuple(tuple, "ybbb", &name, own.color, own.color + 1, own.color + 2)) {
        status = fail_with_exception(error);
    } else if (tuple) {
        copy_text(own.name, sizeof own.name, name);
        own.color[3] = 255;
        give(description, &own, sizeof own);
    }
    Py_XDECREF(tuple);
    leave(&visit);
    return status;
}

size_t isnet_label_bytes(const isnet *handle) {
    isnet_description description = ISNET_DESCRIPTION;
    return isnet_describe(handle, &description, NULL) ? 0 : description.label_bytes;
}

int isnet_segment_with(isnet *handle, const isnet_image *image, const isnet_labels *labels, const isnet_call *settings,
                       char error[ISNET_ERROR]) {
    isnet_image from;
    isnet_labels to;
    isnet_call how = ISNET_CALL;
    int status = take(&from, sizeof from, sizeof from, image, "isnet_image", error);
    status = status ? status : take(&to, sizeof to, sizeof to, labels, "isnet_labels", error);
    status = status || !settings ? status : take(&how, sizeof how, sizeof how, settings, "isnet_call", error);
    if (status) {
        return status;
    }
    return call_locked(error, "(sK(KKK)(KKK)iiyyyyKKyKy)", "segment", number(handle), number(from.planes[0]),
                       number(from.planes[1]), number(from.planes[2]), (unsigned long long)from.pitches[0],
                       (unsigned long long)from.pitches[1], (unsigned long long)from.pitches[2], from.height,
                       from.width, from.format, from.device, from.matrix, from.range, number(to.data),
                       (unsigned long long)to.pitch, to.device, number(how.stream), how.preset);
}

int isnet_segment(isnet *handle, const unsigned char *image, int height, int width, size_t pitch, const char *order,
                  void *labels, size_t labels_pitch, char error[ISNET_ERROR]) {
    isnet_image from = {sizeof from, {image, NULL, NULL}, {pitch, 0, 0}, height, width, order, NULL, NULL, NULL};
    isnet_labels to = {sizeof to, labels, labels_pitch, NULL};
    return isnet_segment_with(handle, &from, &to, NULL, error);
}

int isnet_close(isnet *handle) { return handle ? call_locked(NULL, "(sK)", "close", number(handle)) : ISNET_OK; }
