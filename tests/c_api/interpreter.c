/* A host with a Python interpreter of its own: interpreter BUNDLE; each answer is a line "status message". */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "isnet.h"

static unsigned char pixels[9 * 13 * 3];
static isnet *handle;
static atomic_int ready;

static int answer(const char *title, int status, const char *error) {
    printf("%s: %d %s\n", title, status, status ? error : "");
    fflush(stdout);
    return status;
}

static int segment(char *error) {
    unsigned char labels[9 * 13];
    return isnet_segment(handle, pixels, 9, 13, 0, "rgb", labels, 0, error);
}

static void ask(const char *title) {
    char error[ISNET_ERROR] = "";
    answer(title, segment(error), error);
}

static void begin(void) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.program_name, getenv("ISNET_TRT_PYTHON"));
    Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
}

/* What holds for a thread that holds Python's lock and has an exception pending. */
static void with_lock(void) {
    PyErr_SetString(PyExc_KeyError, "the host's own");
    ask("with the lock");
    printf("pending: %d, lock: %d\n", PyErr_ExceptionMatches(PyExc_KeyError), PyGILState_Check());
    PyErr_Clear();
    raise(SIGINT);
    ask("interrupted");
    printf("raised in the host: %d\n", PyErr_CheckSignals() && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt));
    PyErr_Clear();
    ask("afterwards");
}

static void python_fails(void) {
    static const char *const functions[] = {
        "1 / 0", "exit(3)", "throw(MemoryError())",
        "throw(type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})())",
        "throw(RuntimeError('\\ud800'))", "throw(RecursionError('deep'))"};
    PyRun_SimpleString("import isnet_trt.embed as module\n"
                       "original = module.segment\n"
                       "def throw(error): raise error\n");
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        char code[256];
        snprintf(code, sizeof code, "module.segment = lambda *arguments: %s", functions[i]);
        PyRun_SimpleString(code);
        ask(functions[i]);
    }
    PyRun_SimpleString("module.segment = original");
    ask("restored");
}

static void *one_call(void *error) {
    return segment(error) ? error : NULL;
}

static void threads_come_and_go(void) {
    char error[ISNET_ERROR] = "";
    int failed = 0;
    PyRun_SimpleString("import gc, sys, threading\n"
                       "gc.collect()\n"
                       "before, blocks = len(threading._active), sys.getallocatedblocks()");
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < 500; i++) { /* a block that each call loses shows among those that caches keep */
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, one_call, error);
        pthread_join(thread, &result);
        failed += result != NULL;
    }
    Py_END_ALLOW_THREADS
    answer("threads", failed, error);
    PyRun_SimpleString("gc.collect()\n"
                       "blocks = sys.getallocatedblocks() - blocks\n"
                       "print('left:', len(threading._active) - before, flush=True)\n"
                       "print('blocks:', 'as before' if blocks < 400 else blocks, flush=True)");
}

static void fork_with_python(const char *bundle) {
    PyOS_BeforeFork();
    pid_t child = fork();
    if (child) {
        int status = 1;
        PyOS_AfterFork_Parent();
        waitpid(child, &status, 0);
        printf("child: %d\n", status);
        return;
    }
    char error[ISNET_ERROR] = "";
    PyOS_AfterFork_Child();
    ask("inherited");
    isnet *own = isnet_open(bundle, NULL, NULL, 1, error);
    answer("own", !own, error);
    handle = own;
    ask("own call");
    _exit(0);
}

static void *call_until_the_end(void *none) {
    char error[ISNET_ERROR] = "";
    int status;
    do {
        status = segment(error);
        atomic_fetch_add(&ready, 1);
    } while (!status);
    answer("thread at the end", status, error);
    return none;
}

int main(int count, char **arguments) {
    char error[ISNET_ERROR] = "";
    const char *bundle = count > 1 ? arguments[1] : "";
    pthread_t threads[3];
    begin();
    PyRun_SimpleString("import isnet_trt.embed as module; module.ABI += 1");
    answer("another package", isnet_start(NULL, error), error);
    PyRun_SimpleString("module.ABI -= 1");
    answer("start", isnet_start("/nowhere/python", error), error); /* Python runs already: the name is not needed */
    handle = isnet_open(bundle, NULL, NULL, 1, error);
    answer("open", !handle, error);
    with_lock();
    python_fails();
    threads_come_and_go();
    fork_with_python(bundle);

    PyThreadState *own = PyEval_SaveThread();
    ask("without the lock");
    for (int i = 0; i < 3; i++) {
        pthread_create(&threads[i], NULL, call_until_the_end, NULL);
    }
    while (atomic_load(&ready) < 6) {
        usleep(1000);
    }
    PyEval_RestoreThread(own);
    printf("finalised: %d\n", Py_FinalizeEx());
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    ask("afterwards");
    answer("close", isnet_close(handle), "");
    answer("start", isnet_start(NULL, error), error);
    answer("open", !isnet_open(bundle, NULL, NULL, 1, error), error);
    return 0;
}
