/* What isnet.c takes from process.c: messages, and calls of isnet_trt/embed.py. */
#ifndef ISNET_INTERNAL_H
#define ISNET_INTERNAL_H
#define PY_SSIZE_T_CLEAN
#include <Python.h> /* first: it defines _GNU_SOURCE */

#include "isnet.h"

#ifndef ISNET_VERSION
#define ISNET_VERSION "unknown"
#endif

/* Python's lock for one call; an exception that the calling thread has pending is kept for it. */
typedef struct visit {
    PyGILState_STATE lock;
    PyObject *type, *value, *trace;
} visit;

/* Copy text, cut before a character of UTF-8 that does not fit. */
void copy_text(char *to, size_t capacity, const char *text);

/* Write a message of ISNET_ERROR bytes, where `error` is not NULL; return `status`. */
int fail(int status, char *error, const char *format, ...);

/* As `fail`, with status and message of the pending exception, which isnet_trt.embed.call did not catch. */
int fail_with_exception(char *error);

/* Take Python's lock for a call, which `leave` gives back; without ISNET_OK there is nothing to give back. */
int enter(visit *visit, char *error);
void leave(visit *visit);

/* isnet_trt.embed.call(arguments...), which gives (status, message, result). `arguments` is consumed. */
int call(PyObject *arguments, PyObject **result, char *error);

/* As `call`, for a caller without the lock and without a result. The arguments are those of Py_BuildValue. */
int call_locked(char *error, const char *format, ...);

/* Let exit() wait for calls before it runs what was registered for it earlier. */
void wait_at_exit(void);
#endif
