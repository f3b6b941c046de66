// The last step: adds what the parts left, in a fixed order, and scores again, from the feature maps themselves in
// float64, what float32 could not; the whole call where nothing came before (float64 inputs, the one map of
// "norm_of_mean" and "l1", kernels too large for a Gram matrix).
#include "magnitude.h"

namespace nnrelief {
namespace {

constexpr int kFilters = 4;  // at once in float64

// The largest |x| of one map: on every thread.
__device__ __forceinline__ double map_peak(const Conv& c, int64_t base, double* memory) {
  double peak = 0;
  for (int64_t i = threadIdx.x; i < c.pixels(); i += kThreads) {
    const double x = magnitude_at<double>(c.acts, c.acts_type, base + Place(i, c.size).offset(c.acts_x));
    peak = x > peak ? x : peak;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kAll, peak, offset);
    peak = other > peak ? other : peak;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = peak;
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) peak = memory[warp] > peak ? memory[warp] : peak;
  return peak;
}

// Powers of two that bring a kernel's elements and a map's near 1.
struct Scale {
  double back, inverse;
};

__device__ __forceinline__ Scale kernel_scale(const Conv& c, int64_t kernel) {
  double peak = 0;
  if (c.weight_type == Dtype::f64)
    for (int64_t a = 0; a < c.kernel[0]; ++a)
      for (int64_t b = 0; b < c.kernel[1]; ++b)
        for (int64_t e = 0; e < c.kernel[2]; ++e) {
          const int64_t tap = a * c.weight_x[0] + b * c.weight_x[1] + e * c.weight_x[2];
          const double v = magnitude_at<double>(c.weight, c.weight_type, kernel + tap);
          peak = v > peak ? v : peak;
        }
  Scale scale;
  scale.back = power_of_two(peak, scale.inverse);
  return scale;
}

// norms[j] += || |K_j| * |x| ||, or its sum of elements for "l1", for the map and the kernels that start at `base` and
// `kernel[j]`.
__device__ __forceinline__ void add_map_norms(const Conv& c, int64_t base, const int64_t* kernel, const Scale* scales,
                                              double* memory, double* norms) {
  const bool linear = c.variant == Variant::l1;
  Scale map{1, 1};
  if (c.acts_type == Dtype::f64 && c.variant == Variant::paper)
    map.back = power_of_two(map_peak(c, base, memory), map.inverse);
  double sums[kFilters] = {};
  for (int64_t i = threadIdx.x; i < c.positions(); i += kThreads) {
    const Place place(i, c.out);
    double y[kFilters] = {};
    for (int64_t a = 0; a < c.kernel[0]; ++a) {
      const int64_t d = c.source(0, place.at[0] * c.stride[0] + a * c.dilation[0] - c.before[0]);
      for (int64_t b = 0; b < c.kernel[1]; ++b) {
        const int64_t h = c.source(1, place.at[1] * c.stride[1] + b * c.dilation[1] - c.before[1]);
#pragma unroll 1
        for (int64_t e = 0; e < c.kernel[2]; ++e) {
          const int64_t w = c.source(2, place.at[2] * c.stride[2] + e * c.dilation[2] - c.before[2]);
          if (d < 0 || h < 0 || w < 0) continue;
          const double x =
              map.inverse *
              magnitude_at<double>(c.acts, c.acts_type, base + d * c.acts_x[0] + h * c.acts_x[1] + w * c.acts_x[2]);
          const int64_t tap = a * c.weight_x[0] + b * c.weight_x[1] + e * c.weight_x[2];
#pragma unroll
          for (int j = 0; j < kFilters; ++j) y[j] += x * magnitude_at<double>(c.weight, c.weight_type, kernel[j] + tap);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kFilters; ++j) {
      y[j] *= scales[j].inverse;
      sums[j] += linear ? y[j] : y[j] * y[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kFilters; ++j) {
    const double sum = block_sum(sums[j], memory);
    norms[j] += (linear ? sum : root(sum)) * map.back * scales[j].back;
  }
}

// A block has `wide` filters, a thread one of them. What float32 could not score is scored kFilters at a time.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    finish(Conv c, Parts parts, Partial partial, int64_t first, int64_t channels, uint32_t wide, T* out) {
  __shared__ double memory[kThreads / 32];
  __shared__ Scale scales[kFilters];
  const uint32_t filters = c.filters, blocks = (filters + wide - 1) / wide;
  const uint32_t local = blockIdx.x / blocks, begin = blockIdx.x % blocks * wide, j = begin + threadIdx.x;
  const bool used = threadIdx.x < wide && j < filters;
  const Member member(c, first + local);
  double norm = 0;
  bool bad = !partial.sums;
  for (int64_t part = threadIdx.x; !bad && part < parts.count; part += kThreads)
    bad = partial.flags[part * channels + local] != 0;
  bad = __syncthreads_or(bad);
  if (!bad && used) norm = strided_sum<8>(partial.sums + local * c.filters + j, channels * c.filters, parts.count);
#pragma unroll 1
  for (int64_t part = 0; bad && part < parts.count; ++part) {
    const int64_t at = part * channels + local;
    if (partial.sums && partial.flags[at] == 0) {
      if (used) norm += partial.sums[at * c.filters + j];
      continue;
    }
#pragma unroll 1
    for (uint32_t some = begin; some < begin + wide && some < filters; some += kFilters) {
      int64_t kernel[kFilters];
#pragma unroll
      for (int i = 0; i < kFilters; ++i)  // beyond the last filter: the last
        kernel[i] = member.kernels + (some + i < filters ? some + i : filters - 1) * c.weight_j;
      __syncthreads();
      if (threadIdx.x < kFilters)
        scales[threadIdx.x] = kernel_scale(
            c, member.kernels + (some + threadIdx.x < filters ? some + threadIdx.x : filters - 1) * c.weight_j);
      __syncthreads();
      double norms[kFilters] = {};
      for (int64_t n = part * parts.size; n < part_end(parts, part, c.samples); ++n)
        add_map_norms(c, n * c.acts_n + local * c.acts_c, kernel, scales, memory, norms);
#pragma unroll
      for (int i = 0; i < kFilters; ++i)
        if (j == some + i) norm += norms[i];
    }
  }
  if (used) out[(member.group * c.filters + j) * member.per_group + member.index] = static_cast<T>(norm);
}

}  // namespace

void queue_finish(const Conv& c, Parts parts, Partial partial, int64_t first, int64_t channels, bool wide, void* out,
                  void* stream) {
  const uint32_t filters = partial.sums ? kThreads : kFilters;
  const int64_t blocks = channels * ceil_div(c.filters, filters);
  if (wide)
    launch("finish", finish<double>, blocks, kThreads, 0, stream, c, parts, partial, first, channels, filters,
           static_cast<double*>(out));
  else
    launch("finish", finish<float>, blocks, kThreads, 0, stream, c, parts, partial, first, channels, filters,
           static_cast<float*>(out));
}

}  // namespace nnrelief
