// Device code: reading |x| of any dtype, powers of two that keep squares in range, sums over the threads of a block.
#pragma once

#include "conv_cuda.h"

namespace nnrelief {

constexpr unsigned kAll = 0xffffffffu;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Elements that are read as one.
template <class S, int COUNT>
struct alignas(sizeof(S) * COUNT) Vector {
  S x[COUNT];
};

__device__ inline float magnitude(float x) { return fabsf(x); }
__device__ inline double magnitude(double x) { return fabs(x); }
__device__ inline float magnitude(Half x) { return half_value(x.bits & 0x7fff); }
__device__ inline float magnitude(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits & 0x7fff) << 16); }

// |x| of neighbours, two bfloat16 to a word.
template <class S, int COUNT>
__device__ __forceinline__ void magnitudes(const Vector<S, COUNT>& some, float* x) {
  if constexpr (std::is_same_v<S, BFloat16> && COUNT % 2 == 0) {
    uint32_t words[COUNT / 2];
    memcpy(words, &some, sizeof(words));
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      const uint32_t both = words[i / 2] & 0x7fff7fff;
      x[i] = __uint_as_float(both << 16);
      x[i + 1] = __uint_as_float(both & 0xffff0000);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = magnitude(some.x[i]);
  }
}

// Calls with a value of the elements' type, on the host; few kernels are made for float64, and those ask for it first.
template <class Call>
void by_type(Dtype type, const Call& call) {
  switch (type) {
    case Dtype::f16:
      return call(Half{});
    case Dtype::bf16:
      return call(BFloat16{});
    default:
      return call(float{});
  }
}

// |x| of element `i`, where the dtype is known at run time alone.
template <class T>
__device__ T magnitude_at(const void* x, Dtype type, int64_t i) {
  switch (type) {
    case Dtype::f16:
      return magnitude(static_cast<const Half*>(x)[i]);
    case Dtype::bf16:
      return magnitude(static_cast<const BFloat16*>(x)[i]);
    case Dtype::f32:
      return magnitude(static_cast<const float*>(x)[i]);
    default:
      return static_cast<T>(magnitude(static_cast<const double*>(x)[i]));
  }
}

// Places are divided in 32 bits, which every count of one map's pixels fits (plan_cuda.cpp): 64-bit division calls a
// function, and its stack frame spills registers. Offsets have 64 bits.
struct Place {
  int64_t at[3];

  __device__ Place(uint32_t i, const int64_t* size) {
    const uint32_t width = size[2], height = size[1], row = i / width;
    at[0] = row / height;
    at[1] = row % height;
    at[2] = i % width;
  }
  __device__ int64_t offset(const int64_t* stride) const {
    return at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2];
  }
};

// One of the blocks of a part; the parts' blocks lie one behind the other in the grid.
struct Block {
  int64_t part, index;

  __device__ explicit Block(int64_t blocks)
      : part(blockIdx.x / static_cast<uint32_t>(blocks)), index(blockIdx.x % static_cast<uint32_t>(blocks)) {}
};

__device__ inline int64_t part_end(Parts parts, int64_t part, int64_t all) {
  const int64_t end = (part + 1) * parts.size;
  return end < all ? end : all;
}

// A channel's group, its place there, and where the kernel of the group's filter 0 starts in the weight.
struct Member {
  int64_t per_group, group, index, kernels;

  __device__ Member(const Conv& c, int64_t ch)
      : per_group(static_cast<uint32_t>(c.channels) / static_cast<uint32_t>(c.groups)),
        group(static_cast<uint32_t>(ch) / static_cast<uint32_t>(per_group)),
        index(ch - group * per_group),
        kernels(group * c.filters * c.weight_j + index * c.weight_c) {}
};

// The largest power of two not above `peak`, and its inverse; 1 where peak is 0, subnormal, NaN or infinite.
__device__ inline double power_of_two(double peak, double& inverse) {
  const uint64_t exponent = static_cast<uint64_t>(__double_as_longlong(peak)) >> 52;
  if (exponent == 0 || exponent >= 2046) return inverse = 1;
  inverse = __longlong_as_double(static_cast<long long>((2046 - exponent) << 52));
  return __longlong_as_double(static_cast<long long>(exponent << 52));
}

// sqrt(y) by Newton's method: CUDA's own calls a function, and its stack frame spills registers. The half of y's
// exponent is taken out first, so that rsqrtf sees [1, 4).
__device__ inline double root(double y) {
  const int64_t half = (((__double_as_longlong(y) >> 52) & 2047) - 1023) >> 1;
  const double scaled = y * __longlong_as_double((1023 - 2 * half) << 52);
  double z = rsqrtf(static_cast<float>(scaled));
  z *= 1.5 - 0.5 * scaled * z * z;
  z *= 1.5 - 0.5 * scaled * z * z;
  const double result = scaled * z * __longlong_as_double((1023 + half) << 52);
  return y >= 0x1p-1022 && y < HUGE_VAL ? result : y;
}

// x[0] + x[step] + ..., `count` of them in order, N of them on their way together.
template <int N>
__device__ __forceinline__ double strided_sum(const double* x, int64_t step, int64_t count) {
  double sum = 0;
#pragma unroll 1
  for (; count >= N; count -= N) {
    double some[N];
#pragma unroll
    for (int i = 0; i < N; ++i, x += step) some[i] = *x;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += some[i];
  }
#pragma unroll 1
  for (; count > 0; --count, x += step) sum += *x;
  return sum;
}

// The sum of every thread's x, on every thread; `memory` holds a number per warp.
__device__ inline double block_sum(double x, double* memory) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += memory[warp];
  return total;
}

}  // namespace nnrelief
