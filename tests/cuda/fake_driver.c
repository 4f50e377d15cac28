/* A libcuda.so.1 for tests: "device" memory is the host's, streams do their work at once, captured work is replayed.

It lets the real cuda-bindings, the real pycuda and the library's own look at the driver run without a GPU, so that the
calls are those that the libraries take. What is left over can be asked for (fake_left), and every kernel launch is kept
as a line of text (fake_log): the code of a module is the format of its kernels' parameters, a letter each of i (int32),
l (int64), f (float), p (pointer) and m (tensor map). Functions without a body answer CUDA_ERROR_NOT_SUPPORTED. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { size_t srcX, srcY; int srcType; const void *srcHost; uint64_t srcDevice; void *srcArray; size_t srcPitch;
                 size_t dstX, dstY; int dstType; void *dstHost; uint64_t dstDevice; void *dstArray; size_t dstPitch;
                 size_t width, height; } Copy2D;
typedef struct Op { int kind; uint64_t to, from; size_t size; int value; Copy2D rows; char *line; struct Op *next; } Op;
typedef struct { char format[64]; char entry[64]; int shared; } Function;
typedef struct { Op *first; } Graph;

static struct { int memory, staging, streams, events, graphs, modules; } left;
static char log_text[1 << 16];
static __thread uint64_t stack[64];
static __thread int depth;
static uint64_t capturing;
static Op *captured, **captured_end = &captured;

#define NEED_CONTEXT do { if (!depth) return 201; } while (0)
#define EXPORT(name) __attribute__((alias(#name)))

const char *fake_log(void) { return log_text; }
void fake_left(int *out) { memcpy(out, &left, sizeof left); }
int fake_depth(void) { return depth; }

static void run(const Op *op) {
  if (op->kind == 0) memmove((void *)op->to, (void *)op->from, op->size);
  if (op->kind == 1) memset((void *)op->to, op->value, op->size);
  if (op->kind == 2)
    for (size_t y = 0; y < op->rows.height; y++)
      memmove((char *)op->rows.dstDevice + y * op->rows.dstPitch, (char *)op->rows.srcDevice + y * op->rows.srcPitch,
              op->rows.width);
  if (op->kind == 3) strncat(log_text, op->line, sizeof log_text - strlen(log_text) - 1);
}

static int put(Op op, uint64_t stream) {
  NEED_CONTEXT;
  if (capturing && capturing == stream) {
    Op *kept = malloc(sizeof op);
    *kept = op;
    kept->next = NULL;
    *captured_end = kept;
    captured_end = &kept->next;
    return 0;
  }
  run(&op);
  return 0;
}

static int number(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
int cuInit(unsigned flags) { return number("FAKE_DRIVER_INIT", 0); }
int cuPointerGetAttribute(void *out, int attribute, uint64_t address) {
  NEED_CONTEXT;
  if (attribute != 9) return 801;
  return *(int *)out = 0;  /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */
}
int cuDriverGetVersion(int *version) { return *version = number("FAKE_DRIVER_VERSION", 13000), 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int index) { return *device = index, index ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "Fake GPU"), 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  return *value = which == 75 ? 8 : which == 76 ? 9 : which == 16 ? 4 : 1, 0;
}
int cuGetErrorString(int status, const char **text) {
  return *text = status == 2 ? "out of memory" : status == 201 ? "invalid device context" : "some error", 0;
}
int cuGetErrorName(int status, const char **text) { return *text = "CUDA_ERROR", 0; }
int cuDevicePrimaryCtxRetain(uint64_t *context, int device) { return *context = 0x1000, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent(uint64_t context) { return stack[depth++] = context, 0; }
int cuCtxPopCurrent(uint64_t *context) {
  NEED_CONTEXT;
  return *context = stack[--depth], 0;
}
int cuCtxGetCurrent(uint64_t *context) { return *context = depth ? stack[depth - 1] : 0, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuMemAlloc(uint64_t *address, size_t size) {
  NEED_CONTEXT;
  if (size > 1 << 28) return 2;
  return left.memory++, *address = (uint64_t)aligned_alloc(256, (size + 255) / 256 * 256), 0;
}
int cuMemFree(uint64_t address) {
  NEED_CONTEXT;
  return left.memory--, free((void *)address), 0;
}
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
  NEED_CONTEXT;
  return left.staging++, *address = aligned_alloc(256, (size + 255) / 256 * 256), 0;
}
int cuMemFreeHost(void *address) {
  NEED_CONTEXT;
  return left.staging--, free(address), 0;
}
int cuMemGetInfo(size_t *free_bytes, size_t *total) {
  NEED_CONTEXT;
  return *free_bytes = 1 << 20, *total = 1 << 28, 0;
}
int cuStreamCreate(uint64_t *stream, unsigned flags) {
  NEED_CONTEXT;
  return left.streams++, *stream = (uint64_t)malloc(8), flags == 1 ? 0 : 1;
}
int cuStreamDestroy(uint64_t stream) {
  NEED_CONTEXT;
  return left.streams--, free((void *)stream), 0;
}
int cuStreamSynchronize(uint64_t stream) {
  NEED_CONTEXT;
  return capturing ? 900 : 0;
}
int cuStreamWaitEvent(uint64_t stream, uint64_t event, unsigned flags) {
  NEED_CONTEXT;
  return event ? 0 : 400;
}
int cuEventCreate(uint64_t *event, unsigned flags) {
  NEED_CONTEXT;
  return left.events++, *event = (uint64_t)malloc(8), 0;
}
int cuEventDestroy(uint64_t event) {
  NEED_CONTEXT;
  return left.events--, free((void *)event), 0;
}
int cuEventRecord(uint64_t event, uint64_t stream) {
  NEED_CONTEXT;
  return event ? 0 : 400;
}
int cuEventSynchronize(uint64_t event) {
  NEED_CONTEXT;
  return event ? 0 : 400;
}
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t size, uint64_t stream) {
  return put((Op){.kind = 0, .to = to, .from = from, .size = size}, stream);
}
int cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, uint64_t stream) {
  return put((Op){.kind = 0, .to = to, .from = (uint64_t)from, .size = size}, stream);
}
int cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, uint64_t stream) {
  return put((Op){.kind = 0, .to = (uint64_t)to, .from = from, .size = size}, stream);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, uint64_t stream) {
  return put((Op){.kind = 1, .to = to, .value = value, .size = size}, stream);
}
int cuMemcpy2DAsync(const Copy2D *rows, uint64_t stream) {
  if (rows->srcType != 4 || rows->dstType != 4) return 1;
  return put((Op){.kind = 2, .rows = *rows}, stream);
}
int cuStreamBeginCapture(uint64_t stream, int mode) {
  NEED_CONTEXT;
  return capturing = stream, captured = NULL, captured_end = &captured, mode == 1 ? 0 : 1;
}
int cuStreamEndCapture(uint64_t stream, uint64_t *graph) {
  NEED_CONTEXT;
  Graph *made = malloc(sizeof *made);
  made->first = captured;
  return capturing = 0, left.graphs++, *graph = (uint64_t)made, 0;
}
int cuGraphInstantiateWithFlags(uint64_t *exec, uint64_t graph, unsigned long long flags) {
  Graph *made = malloc(sizeof *made);
  *made = *(Graph *)graph;
  return left.graphs++, *exec = (uint64_t)made, 0;
}
int cuGraphDestroy(uint64_t graph) { return left.graphs--, free((void *)graph), 0; }
int cuGraphExecDestroy(uint64_t graph) { return left.graphs--, free((void *)graph), 0; }
int cuGraphLaunch(uint64_t graph, uint64_t stream) {
  NEED_CONTEXT;
  for (Op *op = ((Graph *)graph)->first; op; op = op->next) run(op);
  return 0;
}
int cuModuleLoadData(uint64_t *module, const char *code) {
  NEED_CONTEXT;
  if (capturing) return 900;
  if (!memcmp(code, "\x7f" "ELF", 4)) return 200; /* this driver runs no real code */
  Function *made = calloc(1, sizeof *made);
  snprintf(made->format, sizeof made->format, "%s", code);
  return left.modules++, *module = (uint64_t)made, 0;
}
int cuModuleUnload(uint64_t module) {
  NEED_CONTEXT;
  return left.modules--, free((void *)module), 0;
}
int cuModuleGetFunction(uint64_t *function, uint64_t module, const char *name) {
  snprintf(((Function *)module)->entry, 64, "%s", name);
  return *function = module, 0;
}
int cuFuncSetAttribute(uint64_t function, int which, int value) {
  return ((Function *)function)->shared = value, which == 8 ? 0 : 1;
}

/* A tensor map: its content is laid out as tests/tensor_maps.py reads it. cuTensorMapEncodeTiled refuses what the driver's
   documentation forbids: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html */
typedef struct { uint32_t magic, type, rank, swizzle; uint64_t address, sizes[5], strides[5]; uint32_t box[5]; } Map;
static const int item[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}, span[] = {0, 32, 64, 128};
int cuTensorMapEncodeTiled(void *target, int type, uint32_t rank, uint64_t address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
  Map map = {0x54454E53, type, rank, swizzle, address};
  if ((uint64_t)target % 64 || type < 0 || type > 12 || rank < 1 || rank > 5 || address % 16 || interleave) return 1;
  if (swizzle < 0 || swizzle > 3 || promotion < 0 || promotion > 3 || fill < 0 || fill > 1) return 1;
  for (uint32_t i = 0; i < rank; i++) {
    if (!sizes[i] || sizes[i] > 1ull << 32 || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8) return 1;
    map.sizes[i] = sizes[i], map.box[i] = box[i];
    if (i + 1 == rank) break;
    if (strides[i] % 16 || strides[i] >= 1ull << 40) return 1;
    if (strides[i] < sizes[i] * (i ? strides[i - 1] : item[type])) return 1;
    map.strides[i] = strides[i];
  }
  if (box[0] * item[type] % 16 || (swizzle && box[0] * item[type] > span[swizzle])) return 1;
  memset(target, 0, 128);
  return memcpy(target, &map, sizeof map), 0;
}
static const char *map_text(const void *parameter) {
  static __thread char text[256];
  const Map *map = parameter;
  int n = snprintf(text, sizeof text, "map:%x:%llx:%u:%u", map->magic == 0x54454E53 ? map->type : -1,
                   (unsigned long long)map->address, map->rank, map->swizzle);
  for (uint32_t i = 0; i < map->rank; i++)
    n += snprintf(text + n, sizeof text - n, ":%llu/%llu/%u", (unsigned long long)map->sizes[i],
                  (unsigned long long)map->strides[i], map->box[i]);
  return text;
}

int cuLaunchKernel(uint64_t function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, uint64_t stream, void **parameters, void **extra) {
  Function *kernel = (Function *)function;
  char line[1024];
  if (extra || (shared > 49152 && kernel->shared != (int)shared)) return 1;
  int n = snprintf(line, sizeof line, "%s %u,%u,%u %u,%u,%u %u:", kernel->entry, x, y, z, bx, by, bz, shared);
  for (const char *kind = kernel->format; *kind; kind++, parameters++) {
    if (*kind == 'i') n += snprintf(line + n, sizeof line - n, " %d", *(int32_t *)*parameters);
    if (*kind == 'l') n += snprintf(line + n, sizeof line - n, " %lld", *(long long *)*parameters);
    if (*kind == 'f') n += snprintf(line + n, sizeof line - n, " %g", *(float *)*parameters);
    if (*kind == 'm') n += snprintf(line + n, sizeof line - n, " %s", map_text(*parameters));
    if (*kind == 'p') n += snprintf(line + n, sizeof line - n, " %llx", *(unsigned long long *)*parameters);
  }
  snprintf(line + n, sizeof line - n, "\n");
  return put((Op){.kind = 3, .line = strdup(line)}, stream);
}

/* The names under which compiled programs ask for them (cuda.h). */
#define V2(name, ...) int name##_v2(__VA_ARGS__) EXPORT(name);
V2(cuCtxPushCurrent, uint64_t) V2(cuCtxPopCurrent, uint64_t *) V2(cuMemAlloc, uint64_t *, size_t)
V2(cuMemFree, uint64_t) V2(cuMemGetInfo, size_t *, size_t *) V2(cuStreamDestroy, uint64_t)
V2(cuEventDestroy, uint64_t)
V2(cuMemcpy2DAsync, const Copy2D *, uint64_t)

#define NONE(name) int name(void) { return 801; }
#include "fake_driver_rest.h"

int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
  void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (!strcmp(name, "cuGetProcAddress")) name = "cuGetProcAddress_v2"; /* what it is since CUDA 12 */
  *found = self ? dlsym(self, name) : dlsym(RTLD_DEFAULT, name);
  if (status) *status = *found ? 0 : 1;
  return *found ? 0 : 500;
}
int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
