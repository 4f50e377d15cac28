/* One question to the library per run: probe QUESTION [ARGUMENT...]; each answer is a line "status message". */
#define _GNU_SOURCE
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "isnet.h"

extern char **environ;
static unsigned char pixels[9 * 13 * 4], map[2 * 9 * 13];

static int answer(int status, const char *error) {
    printf("%d %s\n", status, status ? error : "");
    return status;
}

static int start(const char *python) {
    char error[ISNET_ERROR] = "";
    int status = isnet_start(python, error);
    return status ? answer(status, error) : 0;
}

static isnet *open_bundle(const char *bundle) {
    isnet *handle = NULL;
    char error[ISNET_ERROR] = "";
    int status = isnet_open_with(bundle, NULL, &handle, error);
    if (status) {
        answer(status, error);
    }
    return handle;
}

static isnet_image an_image(void) {
    isnet_image image = ISNET_IMAGE;
    image.planes[0] = pixels, image.height = 9, image.width = 13, image.format = "rgb";
    return image;
}

static int segment(isnet *handle, const isnet_image *image, const isnet_labels *labels, const isnet_call *call) {
    char error[ISNET_ERROR] = "";
    return answer(isnet_segment_with(handle, image, labels, call, error), error);
}

static int segment_image(isnet *handle, isnet_image image) {
    isnet_labels labels = ISNET_LABELS;
    labels.data = map;
    return segment(handle, &image, &labels, NULL);
}

static void wrong_images(isnet *handle) {
    isnet_image image = an_image();
    image.planes[0] = NULL, segment_image(handle, image), image = an_image();
    image.pitches[0] = 38, segment_image(handle, image), image = an_image();
    image.height = 0, segment_image(handle, image), image = an_image();
    image.width = -13, segment_image(handle, image), image = an_image();
    image.height = image.width = 2147483647, segment_image(handle, image), image = an_image();
    image.format = NULL, segment_image(handle, image), image = an_image();
    image.format = "yuv", segment_image(handle, image), image = an_image();
    image.format = "nv12", segment_image(handle, image), image = an_image();
    image.device = "cuda:1", segment_image(handle, image), image = an_image();
    image.device = "gpu\377", segment_image(handle, image), image = an_image();
    image.planes[0] = map, segment_image(handle, image);
}

static void wrong_calls(isnet *handle) {
    isnet_image image = an_image();
    isnet_labels labels = ISNET_LABELS;
    isnet_call call = ISNET_CALL;
    segment(handle, NULL, &labels, NULL);
    segment(handle, &image, NULL, NULL);
    segment(handle, &image, &labels, NULL);
    labels.data = map, labels.pitch = 12;
    segment(handle, &image, &labels, NULL);
    labels.pitch = 0, call.preset = "best";
    segment(handle, &image, &labels, &call);
    call.preset = NULL, call.stream = map;
    segment(handle, &image, &labels, &call);
    segment(NULL, &image, &labels, NULL);
    segment((isnet *)map, &image, &labels, NULL);
}

static void wrong_sizes(isnet *handle) {
    struct {
        isnet_image image;
        char later[16];
    } newer = {an_image(), ""};
    newer.image.size = sizeof newer;
    isnet_labels labels = ISNET_LABELS;
    labels.data = map;
    segment(handle, &newer.image, &labels, NULL); /* fields that the library does not know, all unset */
    newer.later[3] = 1;
    segment(handle, &newer.image, &labels, NULL);
    newer.image.size = 0;
    segment(handle, &newer.image, &labels, NULL);
    memset(&newer.image.size, 0xFF, sizeof newer.image.size);
    segment(handle, &newer.image, &labels, NULL);
}

static void open_wrongly(const char *bundle) {
    char error[ISNET_ERROR] = "";
    isnet *handle = (isnet *)map;
    isnet_options options = ISNET_OPTIONS;
    answer(isnet_open_with(NULL, NULL, &handle, error), error);
    answer(isnet_open_with(bundle, NULL, NULL, error), error);
    answer(isnet_open_with("/nowhere/\377\xe2\x82\xac", NULL, &handle, error), error);
    printf("%s\n", handle ? "a handle" : "no handle");
    options.preset = "best", answer(isnet_open_with(bundle, &options, &handle, error), error);
    options.preset = NULL, options.engine = "caffe", answer(isnet_open_with(bundle, &options, &handle, error), error);
    options.engine = NULL, options.device = "cuda:x", answer(isnet_open_with(bundle, &options, &handle, error), error);
    options.device = "cuda:7", answer(isnet_open_with(bundle, &options, &handle, error), error);
    options.device = NULL, options.threads = -1, answer(isnet_open_with(bundle, &options, &handle, error), error);
    options.size = 8, answer(isnet_open_with(bundle, &options, &handle, error), error);
    answer(isnet_open_with("/nowhere", NULL, &handle, NULL), "no buffer for the message");
}

static void close_wrongly(const char *bundle) {
    isnet *handle = open_bundle(bundle);
    isnet_description description = ISNET_DESCRIPTION;
    isnet_class entry = ISNET_CLASS;
    char error[ISNET_ERROR] = "";
    answer(isnet_describe_class(handle, 3, &entry, error), error);
    answer(isnet_describe(handle, NULL, error), error);
    answer(isnet_close(NULL), "");
    answer(isnet_close(handle), "");
    answer(isnet_close(handle), "closed twice");
    answer(isnet_describe(handle, &description, error), error);
    segment_image(handle, an_image());
    printf("%zu\n", isnet_label_bytes(handle));
}

static void describe(const char *bundle) {
    isnet *handle = open_bundle(bundle);
    isnet_description all = ISNET_DESCRIPTION;
    isnet_class entry = ISNET_CLASS;
    char error[ISNET_ERROR] = "";
    answer(isnet_describe(handle, &all, error), error);
    printf("%zu %zu|%s|%s|%s|%s|%s|%s\n", all.label_bytes, all.classes, all.engine, all.device, all.recipe,
           all.precision, all.preset, all.text);
    for (size_t label = 0; label < all.classes; label++) {
        answer(isnet_describe_class(handle, label, &entry, error), error);
        printf("%s %d %d %d %d\n", entry.name, entry.color[0], entry.color[1], entry.color[2], entry.color[3]);
    }
    isnet_close(handle);
}

/* What of the process a library must leave alone, as text. */
static void print_process(const char *title) {
    char folder[4096];
    sigset_t blocked;
    printf("%s locale %s folder %s rounding %d", title, setlocale(LC_ALL, NULL), getcwd(folder, sizeof folder),
           fegetround());
    mode_t mask = umask(0);
    umask(mask);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    printf(" umask %o handlers", (unsigned)mask);
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (!sigaction(number, NULL, &action)) {
            printf(" %p/%x/%d", (void *)(size_t)action.sa_handler, action.sa_flags, sigismember(&blocked, number));
        }
    }
    for (char **entry = environ; *entry; entry++) {
        printf(" %s", *entry);
    }
    printf("\n");
}

static void leave_alone(const char *bundle) {
    signal(SIGPIPE, SIG_DFL);
    setenv("PYTHONFAULTHANDLER", "1", 1);
    setenv("PYTHONUNBUFFERED", "1", 1);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    print_process("before");
    if (!start(NULL)) {
        isnet *handle = open_bundle(bundle);
        segment_image(handle, an_image());
        isnet_close(handle);
    }
    print_process("after");
    if (fork() == 0) { /* what stdout has not written yet must still be in its buffer, and is lost here */
        _exit(0);
    }
    wait(NULL);
}

static void fork_after_start(const char *bundle) {
    isnet *handle = open_bundle(bundle);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        segment_image(handle, an_image());
        answer(isnet_close(handle), "close in the child");
        start(NULL);
        fflush(stdout);
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    segment_image(handle, an_image());
    printf("%d\n", status);
}

static atomic_int opened;
static const char *bundle_of_the_thread;

static void *call_for_ever(void *bundle) {
    isnet_image image = an_image();
    isnet_labels labels = ISNET_LABELS;
    unsigned char own[9 * 13];
    isnet *handle = NULL;
    int status = isnet_open_with(bundle, NULL, &handle, NULL);
    labels.data = own;
    for (atomic_fetch_add(&opened, !status); !status;) {
        status = isnet_segment_with(handle, &image, &labels, NULL, NULL);
    }
    if (status != ISNET_ENDED) {
        answer(status, "while the process ends");
    }
    return NULL;
}

/* The program ends while threads are in calls, or some milliseconds after they began to open the bundle. */
static void leave_threads_behind(char *bundle, const char *milliseconds) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        pthread_create(&threads[i], NULL, call_for_ever, bundle);
    }
    while (!milliseconds && atomic_load(&opened) < 4) {
        usleep(1000);
    }
    usleep(milliseconds ? 1000 * atoi(milliseconds) : 50000);
}

static void *segment_afterwards(void *main_thread) {
    pthread_join(*(pthread_t *)main_thread, NULL);
    segment_image(open_bundle(bundle_of_the_thread), an_image());
    exit(0);
}

/* The main thread ends, the process does not. */
static void end_main_thread(const char *bundle) {
    static pthread_t main_thread, thread;
    bundle_of_the_thread = bundle, main_thread = pthread_self();
    segment_image(open_bundle(bundle), an_image());
    pthread_create(&thread, NULL, segment_afterwards, &main_thread);
    pthread_exit(NULL);
}

/* Memory that nobody frees, to see that the leak checker reports it. */
static void leak(void) {
    for (int i = 0; i < 10; i++) {
        void *volatile block = malloc(64);
        memset(block, i, 64);
    }
}

int main(int count, char **arguments) {
    const char *question = count > 1 ? arguments[1] : "", *first = count > 2 ? arguments[2] : NULL;
    char error[ISNET_ERROR] = "";
    if (!strcmp(question, "start")) {
        for (int i = 2; i < count; i++) {
            answer(isnet_start(arguments[i], error), error);
        }
    } else if (!strcmp(question, "versions")) {
        printf("%u %s\n", isnet_abi_version(), isnet_version());
        answer(isnet_start_abi(ISNET_ABI_VERSION + 1, NULL, error), error);
        answer(isnet_describe(NULL, &(isnet_description)ISNET_DESCRIPTION, error), error);
    } else if (!strcmp(question, "process")) {
        leave_alone(first);
    } else if (start(NULL)) {
        return 1;
    } else if (!strcmp(question, "calls")) {
        isnet *handle = open_bundle(first);
        wrong_images(handle);
        wrong_calls(handle);
        wrong_sizes(handle);
        segment_image(handle, an_image());
    } else if (!strcmp(question, "handles")) {
        open_wrongly(first);
        close_wrongly(first);
    } else if (!strcmp(question, "describe")) {
        describe(first);
    } else if (!strcmp(question, "open")) {
        open_bundle(first);
    } else if (!strcmp(question, "fork")) {
        fork_after_start(first);
    } else if (!strcmp(question, "leak")) {
        segment_image(open_bundle(first), an_image());
        leak();
    } else if (!strcmp(question, "end-main-thread")) {
        end_main_thread(first);
    } else if (!strcmp(question, "exit")) {
        leave_threads_behind(arguments[2], count > 3 ? arguments[3] : NULL);
    }
    return 0;
}
