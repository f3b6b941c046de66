// What device code asks of its surroundings: the CUDA compiler's, or those of an emulator on the host (tests/emulator).
// Elsewhere, HOST_DEVICE alone, for the index maths that all sources share.
#pragma once

#if defined(__CUDACC__)

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#define HOST_DEVICE __host__ __device__

namespace nnrelief {

// Dynamic shared memory, the same for every kernel.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ int4 memory[];
  return reinterpret_cast<T*>(memory);
}

__device__ inline float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// sqrt(x) of 0 and normal numbers, to a relative error of 2^-23, without the slow path that CUDA's own has.
__device__ inline float root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Queues a kernel on a stream (a cudaStream_t); an error names it.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, void* stream,
            A... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error));
}

}  // namespace nnrelief

#elif defined(NNRELIEF_EMULATOR)

#include NNRELIEF_EMULATOR

#else

#define HOST_DEVICE

#endif
