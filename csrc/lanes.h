// What the kernels share whose maps' features neighbouring threads, the lanes of a map, sum in registers.
#pragma once

#include "forms_3x3.h"

namespace nnrelief {

// The norms of a block's samples under 3x3 kernels, whose features `add_features(place, n, used)` adds to f.g: all
// lanes of a warp at once, those without a sample with zeros.
template <class Call>
__device__ __forceinline__ void score_samples(const Conv& c, const CudaPlan& p, const Features& f,
                                              const Partial& partial, const Call& add_features) {
  const Block block(c.channels);
  const int lanes = p.lanes;
  const int64_t end = part_end(p.parts, block.part, c.samples), begin = block.part * p.parts.size;
  f.start(c);
  bool bad = false;
  for (int64_t first = begin; first < end; first += f.samples) {
    f.clear();
    __syncthreads();
#pragma unroll 1
    for (int turn = 0; turn < f.samples && first + turn < end; turn += kThreads / lanes) {
      const int place = turn + threadIdx.x / lanes;
      const int64_t n = first + place;
      const uint32_t low = add_features(place, block.index * c.acts_c + (n < end ? n : first) * c.acts_n, n < end);
      if (low < kSmallBits - 1) atomicOr(f.small + place, 1u);
    }
    __syncthreads();
    bad = f.judge() || bad;
    __syncthreads();
    bad = add_norms_3x3(c, f, Member(c, block.index).kernels, first > begin, partial.sums) || bad;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) partial.flags[blockIdx.x] = bad;
}

}  // namespace nnrelief
