/* NVIDIA's driver as far as we call it: types and order of arguments as in cuda.h of CUDA 12 and 13. A device's addresses
   are the host's plus a distance, so that whoever follows one on the host falls; a context must be current. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long CUdeviceptr;
typedef struct {
  size_t srcXInBytes, srcY, srcZ, srcLOD;
  int srcMemoryType;
  const void *srcHost;
  CUdeviceptr srcDevice;
  void *srcArray, *reserved0;
  size_t srcPitch, srcHeight;
  size_t dstXInBytes, dstY, dstZ, dstLOD;
  int dstMemoryType;
  void *dstHost;
  CUdeviceptr dstDevice;
  void *dstArray, *reserved1;
  size_t dstPitch, dstHeight;
  size_t WidthInBytes, Height, Depth;
} CUDA_MEMCPY3D;

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201 };
static const CUdeviceptr kFar = 1ull << 46;
static int context, stream, devices = 1;
static _Thread_local void *current;
int live_allocations, live_streams;

static char *near(CUdeviceptr there) { return (char *)(there - kFar); }
static int ready(void *on) { return current != &context ? NO_CONTEXT : on != &stream ? INVALID : OK; }

void set_devices(int count) { devices = count; }
int cuInit(unsigned flags) { return flags ? INVALID : devices ? OK : 100; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGetCount(int *count) { return *count = devices, OK; }
int cuDeviceGet(int *device, int ordinal) { return ordinal < devices ? (*device = 40 + ordinal, OK) : 101; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, length, "NVIDIA No %d", device), OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  return device < 40 || (attribute != 75 && attribute != 76) ? INVALID : (*value = attribute == 75 ? 9 : 1, OK);
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return device < 40 ? INVALID : (*bytes = 5ull << 30, OK); }
int cuDevicePrimaryCtxRetain(void **made, int device) { return device < 40 ? INVALID : (*made = &context, OK); }
int cuCtxSetCurrent(void *made) { return current = made, OK; }
int cuStreamCreate(void **made, unsigned flags) {
  return current != &context || flags != 1 ? INVALID : (*made = &stream, ++live_streams, OK);
}
int cuStreamSynchronize(void *on) { return ready(on); }
int cuStreamDestroy_v2(void *on) { return on == &stream ? (--live_streams, OK) : INVALID; }
int cuMemAlloc_v2(CUdeviceptr *made, size_t bytes) {
  if (current != &context) return NO_CONTEXT;
  if (!bytes || bytes > 1ull << 30) return bytes ? OUT_OF_MEMORY : INVALID;
  *made = (CUdeviceptr)(size_t)memset(malloc(bytes), 0xAB, bytes) + kFar;
  return ++live_allocations, OK;
}
int cuMemFree_v2(CUdeviceptr there) { return free(near(there)), --live_allocations, OK; }
int cuMemsetD8Async(CUdeviceptr there, unsigned char value, size_t bytes, void *on) {
  return ready(on) ? ready(on) : (memset(near(there), value, bytes), OK);
}
int cuMemcpyHtoDAsync_v2(CUdeviceptr there, const void *here, size_t bytes, void *on) {
  return ready(on) ? ready(on) : (memcpy(near(there), here, bytes), OK);
}
int cuMemcpyDtoHAsync_v2(void *here, CUdeviceptr there, size_t bytes, void *on) {
  return ready(on) ? ready(on) : (memcpy(here, near(there), bytes), OK);
}
int cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *c, void *on) {
  if (ready(on) || c->srcMemoryType != 2 || c->dstMemoryType != 2) return INVALID;
  if (c->srcXInBytes || c->srcY || c->srcZ || c->srcLOD || c->dstXInBytes || c->dstY || c->dstZ || c->dstLOD) return INVALID;
  if (c->reserved0 || c->reserved1 || c->srcPitch < c->WidthInBytes || c->srcHeight < c->Height) return INVALID;
  for (size_t plane = 0; plane < c->Depth; ++plane)
    for (size_t line = 0; line < c->Height; ++line)
      memcpy(near(c->dstDevice) + (plane * c->dstHeight + line) * c->dstPitch,
             near(c->srcDevice) + (plane * c->srcHeight + line) * c->srcPitch, c->WidthInBytes);
  return OK;
}
int cuGetErrorString(int status, const char **said) {
  return *said = status == OUT_OF_MEMORY ? "out of memory" : status == NO_CONTEXT ? "invalid device context" : "invalid argument", OK;
}
