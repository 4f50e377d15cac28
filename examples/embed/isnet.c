/* See isnet.h. The Python side is isnet_trt/embed.py; the interpreter's lock is taken per call and given back by
 * the engine while it computes, so that threads with a handle each work at the same time. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "isnet.h"

struct isnet {
    PyObject *segmenter;
    PyObject *segment;
    size_t label_bytes;
};

/* The pending Python exception as "Type: message". */
static void describe(char error[ISNET_ERROR]) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *words = text ? PyUnicode_AsUTF8(text) : NULL;
    snprintf(error, ISNET_ERROR, "%s: %s", type ? ((PyTypeObject *)type)->tp_name : "error", words ? words : "?");
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

int isnet_start(const char *python, char error[ISNET_ERROR]) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0; /* signals stay the program's */
    /* Python finds the environment, and with it isnet_trt, from the place of its interpreter. */
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, python);
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        snprintf(error, ISNET_ERROR, "Python does not start: %s", status.err_msg ? status.err_msg : "?");
        return -1;
    }
    PyEval_SaveThread();
    return 0;
}

static isnet *open_with(PyObject *module, const char *bundle, const char *preset, const char *engine, int threads) {
    isnet *handle = PyMem_Calloc(1, sizeof *handle);
    if (!handle) {
        PyErr_NoMemory();
        return NULL;
    }
    PyObject *bytes = NULL;
    handle->segment = PyObject_GetAttrString(module, "segment");
    handle->segmenter = PyObject_CallMethod(module, "open_segmenter", "sszi", bundle, preset, engine, threads);
    if (handle->segmenter) {
        bytes = PyObject_CallMethod(module, "label_bytes", "O", handle->segmenter);
    }
    if (!handle->segment || !bytes) {
        Py_XDECREF(handle->segment);
        Py_XDECREF(handle->segmenter);
        PyMem_Free(handle);
        return NULL;
    }
    handle->label_bytes = PyLong_AsSize_t(bytes);
    Py_DECREF(bytes);
    return handle;
}

isnet *isnet_open(const char *bundle, const char *preset, const char *engine, int threads, char error[ISNET_ERROR]) {
    PyGILState_STATE lock = PyGILState_Ensure();
    PyObject *module = PyImport_ImportModule("isnet_trt.embed");
    isnet *handle = module ? open_with(module, bundle, preset, engine, threads) : NULL;
    if (!handle) {
        describe(error);
    }
    Py_XDECREF(module);
    PyGILState_Release(lock);
    return handle;
}

size_t isnet_label_bytes(const isnet *handle) { return handle->label_bytes; }

int isnet_segment(isnet *handle, const unsigned char *image, int height, int width, size_t pitch, const char *order,
                  void *labels, size_t labels_pitch, char error[ISNET_ERROR]) {
    PyGILState_STATE lock = PyGILState_Ensure();
    PyObject *done = PyObject_CallFunction(handle->segment, "OKiiKsKK", handle->segmenter,
                                           (unsigned long long)(size_t)image, height, width, (unsigned long long)pitch,
                                           order, (unsigned long long)(size_t)labels, (unsigned long long)labels_pitch);
    if (!done) {
        describe(error);
    }
    int result = done ? 0 : -1;
    Py_XDECREF(done);
    PyGILState_Release(lock);
    return result;
}

void isnet_close(isnet *handle) {
    if (!handle) {
        return;
    }
    PyGILState_STATE lock = PyGILState_Ensure();
    Py_XDECREF(PyObject_CallMethod(handle->segmenter, "close", NULL));
    PyErr_Clear();
    Py_DECREF(handle->segment);
    Py_DECREF(handle->segmenter);
    PyMem_Free(handle);
    PyGILState_Release(lock);
}
