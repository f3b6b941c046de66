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

// total += a product of 16 x 8 with 8 x 8 tf32 numbers, of which lanes hold the elements that forms_3x3.h says.
__device__ inline void add_product(float a0, float a1, float a2, float a3, float b0, float b1, float (&total)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(total[0]), "+f"(total[1]), "+f"(total[2]), "+f"(total[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
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
