// Device code of the kernels whose maps' features neighbouring threads, the lanes of a map, sum in registers.
#pragma once

#include "forms.h"

namespace nnrelief {

// Half of the sums goes to the lane `offset` away, which has the other half's from here: both are summed. `upper`:
// which half stays.
template <int N>
__device__ __forceinline__ void share(float* x, bool upper, int offset) {
  constexpr int half = (N + 1) / 2;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float high = i + half < N ? x[i + half] : 0;
    x[i] = (upper ? high : x[i]) + __shfl_xor_sync(kAll, upper ? x[i] : high, offset);
  }
}

// Of N sums over all lanes of a map, every four lanes get a quarter each into the first (N + 3) / 4 places of x;
// there, place i holds sum `sum_at<N>(i, lane)`, or none where that is -1.
template <int N>
__device__ __forceinline__ void share_out(float* x, int lane, int lanes) {
  share<N>(x, lane & 1, 1);
  share<(N + 1) / 2>(x, lane & 2, 2);
#pragma unroll 1
  for (int offset = 4; offset < lanes; offset *= 2)
#pragma unroll
    for (int i = 0; i < (N + 3) / 4; ++i) x[i] += __shfl_xor_sync(kAll, x[i], offset);
}
template <int N>
__device__ __forceinline__ int sum_at(int i, int lane) {
  constexpr int half = (N + 1) / 2;
  const int within = (lane & 2 ? (N + 3) / 4 : 0) + i, sum = (lane & 1 ? half : 0) + within;
  return within < half && sum < N ? sum : -1;
}

// The norms of a block's samples, whose features `add_features(place, n, used)` adds to f.g: all lanes of a warp at
// once, those without a sample with zeros.
template <int TAPS, class Call>
__device__ __forceinline__ void score_samples(const Conv& c, const CudaPlan& p, const Features& f, int lanes,
                                              const Partial& partial, const Call& add_features) {
  const Block block(c.channels);
  const int64_t end = part_end(p.parts, block.part, c.samples), begin = block.part * p.parts.size;
  f.start(c);
  bool bad = false;
  for (int64_t first = begin; first < end; first += f.samples) {
    f.clear();
    for (int i = threadIdx.x; i < f.count * f.samples; i += kThreads) f.g[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int turn = 0; turn < f.samples && first + turn < end; turn += kThreads / lanes) {
      const int place = turn + threadIdx.x / lanes;
      const int64_t n = first + place;
      const uint32_t low = add_features(place, block.index * c.acts_c + (n < end ? n : first) * c.acts_n, n < end);
      if (low < kSmallBits - 1) atomicOr(f.small + place, 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < f.count * f.samples; i += kThreads)
      atomicMax(f.most + i % f.samples, __float_as_uint(f.g[i]));
    __syncthreads();
    bad = f.judge() || bad;
    __syncthreads();
    bad = add_norms<TAPS>(c, f, Member(c, block.index).kernels, first > begin, partial.sums) || bad;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) partial.flags[blockIdx.x] = bad;
}

}  // namespace nnrelief
