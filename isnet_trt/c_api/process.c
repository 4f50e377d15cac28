/* Python in this process: started or found, its lock taken per call, and its end. */
#include "internal.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef ISNET_PYTHON
#define ISNET_PYTHON "" /* the interpreter that the library was built for */
#endif
#if PY_VERSION_HEX < 0x030D0000
#define Py_IsFinalizing _Py_IsFinalizing
#endif
#define STRING(value) #value
#define TEXT(value) STRING(value)
#define PYTHON_VERSION TEXT(PY_MAJOR_VERSION) "." TEXT(PY_MINOR_VERSION)

enum { UNSTARTED, STARTED, ENDED };

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static atomic_int state = UNSTARTED;
static atomic_int running;     /* calls that are, or are about to be, inside Python */
static atomic_long owner;      /* the process that called isnet_start */
static atomic_int attached;    /* whether Python calls `at_end` and `in_child` */
static atomic_int owns_python; /* whether Python was started here, not by the host */
static _Atomic(PyObject *) python_call; /* isnet_trt.embed.call */
static char failure[ISNET_ERROR];       /* why Python did not start: it cannot be tried twice */

void copy_text(char *to, size_t capacity, const char *text) {
    size_t length = strlen(text);
    if (length >= capacity) {
        for (length = capacity - 1; length && (text[length] & 0xC0) == 0x80; length--) {
        }
    }
    memcpy(to, text, length);
    to[length] = 0;
}

int fail(int status, char *error, const char *format, ...) {
    char text[2 * ISNET_ERROR];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (error) {
        copy_text(error, ISNET_ERROR, text);
    }
    return status;
}

/* In a child of fork() Python's lock may be held by a thread that is not there: nothing of Python is touched. */
static int check_process(char *error) {
    long process = atomic_load(&owner);
    if (process && process != (long)getpid()) {
        return fail(ISNET_FORKED, error,
                    "this process was forked from process %ld after isnet_start: Python cannot run in it. Fork before "
                    "isnet_start, or start programs with posix_spawn or exec",
                    process);
    }
    return ISNET_OK;
}

int fail_with_exception(char *error) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    int status = !type                                                          ? ISNET_FAILED
                 : PyErr_GivenExceptionMatches(type, PyExc_MemoryError)       ? ISNET_NO_MEMORY
                 : PyErr_GivenExceptionMatches(type, PyExc_KeyboardInterrupt) ? ISNET_INTERRUPTED
                                                                              : ISNET_FAILED;
    PyObject *text = value ? PyObject_Str(value) : NULL;
    const char *message = text ? PyUnicode_AsUTF8(text) : NULL;
    fail(status, error, "%s: %s", type ? ((PyTypeObject *)type)->tp_name : "error", message ? message : "");
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return status;
}

static void lock_python(visit *visit) {
    visit->lock = PyGILState_Ensure();
    PyErr_Fetch(&visit->type, &visit->value, &visit->trace);
}

static void unlock_python(visit *visit) {
    PyErr_Restore(visit->type, visit->value, visit->trace);
    PyGILState_Release(visit->lock);
}

static void end_calls(long milliseconds) {
    const struct timespec millisecond = {0, 1000000};
    atomic_store(&state, ENDED);
    while (atomic_load(&running) && milliseconds--) {
        nanosleep(&millisecond, NULL);
    }
}

/* Called by exit(), before the libraries that a call uses destroy what is theirs. The wait has an end, since exit() may
 * itself have been called inside a call, by a signal handler of the host. */
static void at_exit(void) {
    if (atomic_load(&owner) == (long)getpid()) {
        end_calls(5000);
    }
}

void wait_at_exit(void) { atexit(at_exit); }

/* What C++ destroys thread_local objects with; a C library without C++ may lack it. */
extern int __cxa_thread_atexit_impl(void (*function)(void *), void *argument, void *library) __attribute__((weak));
extern void *__dso_handle;

static void at_exit_of_main_thread(void *none) {
    (void)none;
    at_exit();
}

/* Libraries register functions for exit() whenever they first need one, ONNX Runtime while it creates its first session:
 * they run before an `at_exit` that was registered earlier. exit() destroys the thread_local objects of the thread that
 * calls it before it runs any of them (C++ standard, [support.start.term]); for the main thread nothing else does. */
static void watch_main_thread(void) {
    static _Thread_local int watched;
    if (!watched && __cxa_thread_atexit_impl && syscall(SYS_gettid) == getpid()) {
        __cxa_thread_atexit_impl(at_exit_of_main_thread, NULL, &__dso_handle);
    }
    watched = 1;
}

/* The count goes up before the state is read, and `at_end` sets the state before it reads the count: Python ends
 * either after this call or before it, never meanwhile. */
int enter(visit *visit, char *error) {
    int status = check_process(error);
    if (status) {
        return status;
    }
    watch_main_thread();
    atomic_fetch_add(&running, 1);
    int now = atomic_load(&state);
    if (now == STARTED) {
        lock_python(visit);
        return ISNET_OK;
    }
    atomic_fetch_sub(&running, 1);
    return now == UNSTARTED ? fail(ISNET_NOT_STARTED, error, "Python does not run yet: call isnet_start first")
                            : fail(ISNET_ENDED, error, "this process is ending, or has ended its Python interpreter");
}

void leave(visit *visit) {
    unlock_python(visit);
    atomic_fetch_sub(&running, 1);
}

int call(PyObject *arguments, PyObject **result, char *error) {
    PyObject *answer = arguments ? PyObject_CallObject(atomic_load(&python_call), arguments) : NULL;
    int status = ISNET_OK;
    const char *message;
    PyObject *value;
    Py_XDECREF(arguments);
    if (!answer || !PyArg_ParseTuple(answer, "iyO", &status, &message, &value)) {
        status = fail_with_exception(error);
    } else if (status) {
        fail(status, error, "%s", message);
    } else if (result) {
        *result = value;
        Py_INCREF(value);
    }
    Py_XDECREF(answer);
    if (status == ISNET_INTERRUPTED) {
        PyErr_SetInterrupt(); /* the host's Python raises it again once this call has returned */
    }
    return status;
}

int call_locked(char *error, const char *format, ...) {
    visit visit;
    int status = enter(&visit, error);
    if (status) {
        return status;
    }
    va_list arguments;
    va_start(arguments, format);
    status = call(Py_VaBuildValue(format, arguments), NULL, error);
    va_end(arguments);
    leave(&visit);
    return status;
}

/* Called by Python when it ends: no call begins any more, and those that run are waited for. */
static PyObject *at_end(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    Py_BEGIN_ALLOW_THREADS
    end_calls(-1);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Called by Python in a child that it forked itself, where it can go on. */
static PyObject *in_child(PyObject *self, PyObject *none) {
    (void)self, (void)none;
    atomic_store(&owner, (long)getpid());
    atomic_store(&running, 0);
    pthread_mutex_init(&starting, NULL);
    Py_RETURN_NONE;
}

static PyMethodDef hooks[] = {{"at_end", at_end, METH_NOARGS, NULL}, {"in_child", in_child, METH_NOARGS, NULL}};

static int attach(PyObject *module, PyObject *environment, char *error) {
    PyObject *ended = PyCFunction_New(&hooks[0], NULL), *forked = PyCFunction_New(&hooks[1], NULL);
    PyObject *arguments = ended && forked ? Py_BuildValue("(sOOO)", "attach", ended, forked, environment) : NULL;
    Py_XDECREF(ended);
    Py_XDECREF(forked);
    PyObject *function = PyObject_GetAttrString(module, "call");
    if (!function) {
        Py_XDECREF(arguments);
        return fail_with_exception(error);
    }
    atomic_store(&python_call, function); /* never given back: other threads may use it at once */
    return call(arguments, NULL, error);
}

/* A copy of os.environ where Python was started here, else None: a host's own Python may rely on what imports set. */
static PyObject *copy_environment(void) {
    PyObject *module = atomic_load(&owns_python) ? PyImport_ImportModule("os") : NULL;
    PyObject *variables = module ? PyObject_GetAttrString(module, "environ") : NULL;
    PyObject *copy = variables ? PyObject_CallMethod(variables, "copy", NULL) : NULL;
    Py_XDECREF(variables);
    Py_XDECREF(module);
    PyErr_Clear();
    return copy ? copy : Py_NewRef(Py_None);
}

static int check_module(PyObject *module, char *error) {
    PyObject *number = PyObject_GetAttrString(module, "ABI");
    long abi = number ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    PyErr_Clear();
    if (abi != ISNET_ABI_VERSION) {
        return fail(ISNET_BAD_ABI, error, "this library (version %s, ABI %d) does not fit the installed Python package "
                    "isnet_trt (ABI %ld): build it again with isnet-trt c-config --build",
                    ISNET_VERSION, ISNET_ABI_VERSION, abi);
    }
    return ISNET_OK;
}

static int fail_without_package(char *error) {
    char text[ISNET_ERROR];
    fail_with_exception(text);
    PyObject *prefix = PySys_GetObject("prefix");
    const char *place = prefix ? PyUnicode_AsUTF8(prefix) : NULL;
    PyErr_Clear();
    return fail(ISNET_NO_PYTHON, error, "%s; isnet_start needs the interpreter of an environment that has isnet_trt, "
                "of Python " PYTHON_VERSION ", for which this library was built. This process runs %s, which it cannot "
                "change any more", text, place ? place : "another one");
}

static int load(char *error) {
    PyObject *environment = copy_environment();
    PyObject *module = PyImport_ImportModule("isnet_trt.embed");
    int status = module ? check_module(module, error) : fail_without_package(error);
    if (!status && !atomic_exchange(&attached, 1)) {
        status = attach(module, environment, error);
        atomic_store(&attached, !status);
    }
    if (!status) {
        int before = UNSTARTED;
        atomic_compare_exchange_strong(&state, &before, STARTED);
    }
    Py_XDECREF(module);
    Py_DECREF(environment);
    return status;
}

/* Nothing of the host is changed: signal handlers, locale, buffering of stdio and argv stay as they are. */
static PyStatus start_interpreter(const char *python) {
    PyPreConfig early;
    PyPreConfig_InitPythonConfig(&early);
    early.configure_locale = 0;
    early.coerce_c_locale = 0;
    early.utf8_mode = 1;
    PyStatus status = Py_PreInitialize(&early);
    if (PyStatus_Exception(status)) {
        return status;
    }
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.faulthandler = 0;
    config.configure_c_stdio = 0;
    config.parse_argv = 0;
    config.pathconfig_warnings = 0;
    /* Python finds the environment, and with it isnet_trt, from the place of its interpreter. */
    status = PyConfig_SetBytesString(&config, &config.program_name, python);
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    return status;
}

/* Extension modules look for Python's symbols among the global ones, which those of a library opened with RTLD_LOCAL
 * (a plugin's) are not. */
static void publish_python(void) {
    Dl_info place;
    if (dladdr((void *)(uintptr_t)&Py_GetVersion, &place) && place.dli_fname) {
        dlopen(place.dli_fname, RTLD_LAZY | RTLD_GLOBAL | RTLD_NOLOAD);
    }
}

static int initialise(const char *python, char *error) {
    struct stat file;
    if (failure[0]) {
        return fail(ISNET_NO_PYTHON, error, "%s", failure);
    }
    const char *variable = getenv("ISNET_TRT_PYTHON");
    python = python && *python ? python : variable && *variable ? variable : ISNET_PYTHON;
    if (!*python) {
        return fail(ISNET_NO_PYTHON, error, "isnet_start: name the Python interpreter of an environment that has "
                    "isnet_trt, or set ISNET_TRT_PYTHON");
    }
    if (strchr(python, '/') && (stat(python, &file) || !S_ISREG(file.st_mode) || access(python, X_OK))) {
        return fail(ISNET_NO_PYTHON, error, "isnet_start: %s is not a program; name the Python interpreter of an "
                    "environment that has isnet_trt", python);
    }
    publish_python();
    PyStatus status = start_interpreter(python);
    if (PyStatus_Exception(status)) {
        fail(ISNET_NO_PYTHON, failure, "Python does not start: %s. Is %s a Python " PYTHON_VERSION ", for which this "
             "library was built, with its standard library, and is PYTHONHOME unset?",
             status.err_msg ? status.err_msg : "no reason given", python);
        return fail(ISNET_NO_PYTHON, error, "%s", failure);
    }
    atomic_store(&owns_python, 1);
    PyEval_SaveThread();
    return ISNET_OK;
}

unsigned isnet_abi_version(void) { return ISNET_ABI_VERSION; }

const char *isnet_version(void) { return ISNET_VERSION; }

static int check_versions(unsigned abi, char *error) {
    if (abi != ISNET_ABI_VERSION) {
        return fail(ISNET_BAD_ABI, error, "the program was compiled with an isnet.h of ABI %u, the library (version "
                    "%s) has ABI %d: compile it again with the library's header",
                    abi, ISNET_VERSION, ISNET_ABI_VERSION);
    }
    /* The host may have brought a Python of its own, whose symbols are then the ones in use. */
    if (strncmp(Py_GetVersion(), PYTHON_VERSION ".", sizeof PYTHON_VERSION)) {
        return fail(ISNET_BAD_ABI, error, "this process runs Python %s, the library was built for " PYTHON_VERSION
                    ": build it for this Python with isnet-trt c-config --build", Py_GetVersion());
    }
    return ISNET_OK;
}

int isnet_start_abi(unsigned abi, const char *python, char error[ISNET_ERROR]) {
    int status = check_versions(abi, error);
    status = status ? status : check_process(error);
    if (status || atomic_load(&state) == STARTED) {
        return status;
    }
    if (atomic_load(&state) == ENDED || (Py_IsInitialized() && Py_IsFinalizing())) {
        return fail(ISNET_ENDED, error, "this process has ended its Python interpreter; libraries that isnet_trt needs "
                    "cannot be loaded twice");
    }
    /* Only before there is an interpreter, so that nobody who holds its lock waits here. */
    pthread_mutex_lock(&starting);
    atomic_store(&owner, (long)getpid());
    status = Py_IsInitialized() ? ISNET_OK : initialise(python, error);
    pthread_mutex_unlock(&starting);
    if (!status) {
        visit visit;
        watch_main_thread();
        lock_python(&visit);
        status = load(error);
        unlock_python(&visit);
    }
    return status;
}

#undef isnet_start /* the header's macro checks the version of the header */
int isnet_start(const char *python, char error[ISNET_ERROR]) {
    return isnet_start_abi(ISNET_ABI_VERSION, python, error);
}
