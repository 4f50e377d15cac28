/* A host that loads the library as a plugin is loaded, its symbols and Python's not global, twice: plugin LIBRARY COPY
 * BUNDLE. Each answer is a line "status message". */
#include <dlfcn.h>
#include <stdio.h>

#include "isnet.h"

static unsigned char pixels[9 * 13 * 3], map[9 * 13];

static void answer(int status, const char *error) { printf("%d %s\n", status, status ? error : ""); }

static void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        answer(-99, dlerror());
    }
    return library;
}

int main(int count, char **arguments) {
    char error[ISNET_ERROR] = "";
    isnet *handles[2] = {NULL, NULL};
    for (int i = 0; i < 2 && count == 4; i++) {
        int (*begin)(const char *, char *);
        isnet *(*open_bundle)(const char *, const char *, const char *, int, char *);
        int (*segment)(isnet *, const unsigned char *, int, int, size_t, const char *, void *, size_t, char *);
        void *library = load(arguments[1 + i]);
        *(void **)&begin = dlsym(library, "isnet_start");
        *(void **)&open_bundle = dlsym(library, "isnet_open");
        *(void **)&segment = dlsym(library, "isnet_segment");
        answer(begin(NULL, error), error);
        handles[i] = open_bundle(arguments[3], NULL, NULL, 1, error);
        answer(handles[i] ? 0 : -1, error);
        /* Of the first copy, through either: they share one Python. */
        answer(segment(handles[0], pixels, 9, 13, 0, "rgb", map, 0, error), error);
        answer(dlclose(library), "");
    }
    answer(handles[0] != handles[1], "two handles");
    return 0;
}
