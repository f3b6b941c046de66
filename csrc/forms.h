// Phase 2, device code: from the features of a block's samples to the sums of their norms. The squared norm of a
// feature map is a quadratic form, || |K_ij| * |x_ni| ||² = v'G v with v = vec|K_ij|; G's triangle lies in shared
// memory, doubled off the diagonal. Here for any kernel; forms_3x3.h has that of 3x3 kernels.
//
// Range. v is divided by the power of two at or below its peak; G is as it came, since |x| is read once. What float32
// may have lost is found afterwards. Squares of |x| >= 2^-30 and their products with squares of v >= 2^-25 of its peak
// are normal numbers. Where a map or a kernel holds something smaller, what vanished is below 2^-100, so a norm is
// trusted whose square is above 2^-80 (times the largest feature, if that is above 1). Features must stay below 2^100.
// A block with a norm that fails, or with a map that holds NaN or Inf, raises its flag, and finish_cuda.cu scores its
// maps in float64.
#pragma once

#include "magnitude.h"

namespace nnrelief {

constexpr uint32_t kSmallBits = 97u << 23;  // of 2^-30
constexpr float kSmallWeight = 0x1p-25f, kLargest = 0x1p100f, kLeast = 0x1p-80f;

// The running least of x > 0, as float32 bits less 1: 0 becomes the largest of them. `low` starts at 2^32 - 1.
__device__ __forceinline__ uint32_t lower(float x, uint32_t low) {
  const uint32_t bits = __float_as_uint(x) - 1;
  return bits < low ? bits : low;
}

// The greatest and the least of a kernel's elements.
struct Extremes {
  float peak = 0;
  uint32_t low = ~0u;

  __device__ __forceinline__ float look(float x) {
    peak = x > peak ? x : peak;
    low = lower(x, low);
    return x;
  }
};

// Which squares of a kernel's norms are trusted: all, those above a floor where the map holds something small, or those
// above the least.
enum class Trust : unsigned char { any, floor, least };

// Shared memory of a block that holds the features of `samples` samples, a multiple of 2.
struct Features {
  int taps, samples, row;
  float* g;         // [samples][row], zeros behind a sample's last feature
  uint32_t* small;  // [samples], whether a map holds 0 < |x| < 2^-30
  float* least;     // [samples], the least square to trust
  float* floor;     // [samples], the same where the map holds something small, else 0
  float* sums;      // [kThreads * kPerThread]
  int step;         // filters at once
  int32_t* tap;     // [taps], where a kernel's element lies in the weight
  double* scale;    // [step], what a kernel was divided by
  float* kernels;   // [taps][step], or forms [step][row] (forms_3x3.h)
  Trust* trust;     // [step]
  char* behind;

  // `per_kernel`: what a filter has in `kernels`.
  HOST_DEVICE Features(int taps, int samples, int step, int per_kernel, char* memory)
      : taps(taps), samples(samples), row(row_of(taps * (taps + 1) / 2)), step(step) {
    g = reinterpret_cast<float*>(memory);
    small = reinterpret_cast<uint32_t*>(g + row * samples);
    least = reinterpret_cast<float*>(small + samples);
    floor = least + samples;
    sums = floor + samples;
    tap = reinterpret_cast<int32_t*>(sums + kThreads * kPerThread);
    scale = reinterpret_cast<double*>(tap + (taps + 3) / 4 * 4);
    kernels = reinterpret_cast<float*>(scale + step);
    trust = reinterpret_cast<Trust*>(kernels + per_kernel * step);
    behind = reinterpret_cast<char*>(trust + step);  // a multiple of 8
  }

  // Whole loads of four, an odd number of them: neighbouring samples meet eight different groups of banks.
  HOST_DEVICE static constexpr int row_of(int features) { return 4 * ((features + 3) / 4 | 1); }
  HOST_DEVICE static constexpr int pair(int taps, int a, int b) { return a * taps - a * (a - 1) / 2 + b - a; }

  __device__ void start(const Conv& c) const {
    for (int t = threadIdx.x; t < taps; t += kThreads) tap[t] = Place(t, c.kernel).offset(c.weight_x);
  }
  __device__ void clear() const {
    for (int i = threadIdx.x; i < samples * row / 4; i += kThreads) reinterpret_cast<Vector<float, 4>*>(g)[i] = {};
    for (int i = threadIdx.x; i < samples; i += kThreads) small[i] = 0;
  }
  // Once all features are there: what to trust. True where one is out of range. Products of two taps are at most the
  // larger of their squares, and stand here doubled.
  __device__ bool judge() const {
    bool bad = false;
    for (int i = threadIdx.x; i < samples; i += kThreads) {
      uint32_t most = 0;
#pragma unroll 1
      for (int a = 0, at = i * row; a < taps; at += taps - a, ++a) most = higher(g[at], most);
      const float largest = 2 * __uint_as_float(most);
      bad = bad || !(largest < kLargest);
      least[i] = kLeast * (largest > 1 ? largest : 1);
      floor[i] = small[i] ? least[i] : 0;
    }
    return bad;
  }
  // The running greatest of the bits of x >= 0, or NaN.
  __device__ static uint32_t higher(float x, uint32_t most) {
    const uint32_t bits = __float_as_uint(x);
    return bits > most ? bits : most;
  }
  // Sets kernel i's scale, and whose norms to trust; what its elements are to be multiplied with, 0 for none `used`.
  __device__ __forceinline__ float settle(int i, bool used, const Extremes& seen) const {
    const uint32_t found = __float_as_uint(seen.peak) >> 23, exponent = found < 1 ? 1 : found > 253 ? 253 : found;
    const float inverse = used ? __uint_as_float((254 - exponent) << 23) : 0, least = __uint_as_float(seen.low + 1);
    scale[i] = __longlong_as_double(static_cast<int64_t>(exponent + 1023 - 127) << 52);
    trust[i] = !used || !(seen.peak > 0) ? Trust::any : least * inverse < kSmallWeight ? Trust::least : Trust::floor;
    return inverse;
  }
  // out[block][first + i] = (again ? what it is : 0) + the sum of the norms under kernel i.
  __device__ __forceinline__ void store(const Conv& c, int first, int i, float sum, bool again, double* out) const {
    double& total = out[blockIdx.x * c.filters + first + i];
    if (first + i < static_cast<int>(c.filters)) total = (again ? total : 0) + sum * scale[i];
  }
};

// Calls with a value of the weight's type; float64 has other kernels.
template <class Call>
__device__ __forceinline__ void by_weight(const Conv& c, const Call& call) {
  if (c.weight_type == Dtype::f32)
    call(float{});
  else if (c.weight_type == Dtype::bf16)
    call(BFloat16{});
  else
    call(Half{});
}

// Kernels first, first + 1 ... of the channel whose first kernel starts at `weight`, side by side, each over the power
// of two at or below its peak.
template <class S>
__device__ __forceinline__ void load_kernels(const Conv& c, const Features& f, int64_t weight, int first) {
  for (int i = threadIdx.x; i < f.step; i += kThreads) {
    const bool used = first + i < c.filters;
    const S* kernel = static_cast<const S*>(c.weight) + weight + (used ? first + i : 0) * c.weight_j;
    Extremes seen;
#pragma unroll 1
    for (int t = 0; t < f.taps; ++t) f.kernels[t * f.step + i] = seen.look(magnitude(kernel[f.tap[t]]));
    const float inverse = f.settle(i, used, seen);
#pragma unroll 1
    for (int t = 0; t < f.taps; ++t) f.kernels[t * f.step + i] *= inverse;
  }
}

// sums[block][j] = (again ? what it is : 0) + sum over the samples of || |K_j| * |x| ||, for all filters j of the
// channel whose first kernel starts at `weight`. True where a norm cannot be trusted. J: filters of a thread.
template <int J>
__device__ __forceinline__ bool add_norms(const Conv& c, const Features& f, int64_t weight, bool again, double* sums) {
  const int lanes = f.step / J, lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;
  const int slots = kThreads / lanes, step = f.step;
  constexpr int N = 2;  // samples at once
  bool good = true;
  for (int first = 0; first < static_cast<int>(c.filters); first += step) {
    if (!again || c.filters > step)  // else those of the samples before are there
      by_weight(c, [&](auto w) { load_kernels<decltype(w)>(c, f, weight, first); });
    __syncthreads();

    float hard[J], soft[J];  // whether a square is trusted above the least, or above the floor
    bool any_hard = false;
#pragma unroll
    for (int i = 0; i < J; ++i) {
      const Trust trust = f.trust[i * lanes + lane];
      hard[i] = trust == Trust::least;
      soft[i] = trust == Trust::floor;
      any_hard = any_hard || trust == Trust::least;
    }

    float sum[J] = {};
#pragma unroll 1
    for (int n = N * slot; n < f.samples; n += N * slots) {
      const float* x = f.g + n * f.row;
      float q[N][J] = {};
#pragma unroll 1
      for (int a = 0; a < f.taps; ++a) {
        float row[N][J] = {};
#pragma unroll 1
        for (int b = a; b < f.taps; ++b, ++x) {
#pragma unroll
          for (int i = 0; i < J; ++i) {
            const float w = f.kernels[b * step + i * lanes + lane];
#pragma unroll
            for (int k = 0; k < N; ++k) row[k][i] += x[k * f.row] * w;
          }
        }
#pragma unroll
        for (int i = 0; i < J; ++i) {
          const float w = f.kernels[a * step + i * lanes + lane];
#pragma unroll
          for (int k = 0; k < N; ++k) q[k][i] += row[k][i] * w;
        }
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float floor = f.floor[n + k];
        if (any_hard || floor > 0) {
#pragma unroll
          for (int i = 0; i < J; ++i) good &= q[k][i] >= hard[i] * f.least[n + k] + soft[i] * floor;
        }
#pragma unroll
        for (int i = 0; i < J; ++i) sum[i] += root(q[k][i]);
      }
    }
    if (slots > 1) {
#pragma unroll
      for (int i = 0; i < J; ++i) f.sums[(slot * J + i) * lanes + lane] = sum[i];
      __syncthreads();
    }
    if (slot == 0) {
#pragma unroll
      for (int i = 0; i < J; ++i) {
#pragma unroll 1
        for (int s = 1; s < slots; ++s) sum[i] += f.sums[(s * J + i) * lanes + lane];
        f.store(c, first, i * lanes + lane, sum[i], again, sums);
      }
    }
    __syncthreads();
  }
  return !good;
}

// A thread has as few filters as it takes for all threads to have samples.
__device__ __forceinline__ bool add_norms(const Conv& c, const Features& f, int64_t weight, bool again, double* sums) {
  const int most = c.filters <= kFewFilters ? 1 : f.samples / 2 * f.step / kThreads;
  if (most < 2) return add_norms<1>(c, f, weight, again, sums);
  if (most < kPerThread) return add_norms<2>(c, f, weight, again, sums);
  return add_norms<kPerThread>(c, f, weight, again, sums);
}

}  // namespace nnrelief
