// 1x1 convolutions: sum over samples of ||x_ni|| per channel, in float64, which has the range for every square of a
// float32.
#include "magnitude.h"

namespace nnrelief {
namespace {

// Threads side by side on a map's pixels (`lanes` of them, a power of two up to a warp), read PIECE at a time.
template <class S, int PIECE>
__global__ void __launch_bounds__(kThreads) norms(Conv c, CudaPlan p, double* sums) {
  __shared__ double memory[kThreads];
  const Block block(c.channels);
  const int64_t ch = block.index, end = part_end(p.parts, block.part, c.samples);
  const int lanes = p.lanes, lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = kThreads / lanes;
  const int64_t pixels = c.pixels();
  double total = 0;
  for (int64_t first = block.part * p.parts.size; first < end; first += slots) {
    const int64_t n = first + slot;
    double sum[4] = {};
    if (n < end) {
      const S* x = static_cast<const S*>(c.acts) + n * c.acts_n + ch * c.acts_c;
      const auto add = [&](const Vector<S, PIECE>& some, double& to) {
        float value[PIECE];
        magnitudes(some, value);
#pragma unroll
        for (int k = 0; k < PIECE; ++k) to += static_cast<double>(value[k]) * value[k];
      };
      if (joined(c)) {
        const int64_t step = PIECE == 1 ? c.acts_x[2] : PIECE, count = pixels / PIECE;
        const auto piece = [&](int64_t i) { return *reinterpret_cast<const Vector<S, PIECE>*>(x + i * step); };
        int64_t i = lane;
        for (; i + 3 * lanes < count; i += 4 * lanes) {
#pragma unroll
          for (int k = 0; k < 4; ++k) add(piece(i + k * lanes), sum[k]);
        }
        for (; i < count; i += lanes) add(piece(i), sum[0]);
      } else {
        for (int64_t i = lane; i < pixels; i += lanes) {
          const double value = magnitude(x[Place(i, c.size).offset(c.acts_x)]);
          sum[0] += value * value;
        }
      }
    }
    double square = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int offset = lanes / 2; offset > 0; offset /= 2) square += __shfl_xor_sync(kAll, square, offset);
    total += root(square);
  }
  if (lane != 0) total = 0;
  total = block_sum(total, memory);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Channels that are neighbours in memory: a thread per channel, so that a warp reads whole lines.
template <class S>
__global__ void __launch_bounds__(kThreads, 8) neighbour_norms(Conv c, Parts parts, double* sums) {
  __shared__ double memory[kThreads];
  const Block block(ceil_div(c.channels, kWarp));
  const int64_t ch = block.index * kWarp + threadIdx.x % kWarp, end = part_end(parts, block.part, c.samples);
  double total = 0;
  if (ch < c.channels) {
    for (int64_t n = block.part * parts.size + threadIdx.x / kWarp; n < end; n += kThreads / kWarp) {
      const S* x = static_cast<const S*>(c.acts) + n * c.acts_n + ch * c.acts_c;
      double sum = 0;
      for (int64_t d = 0; d < c.size[0]; ++d)
        for (int64_t h = 0; h < c.size[1]; ++h)
#pragma unroll 4
          for (int64_t w = 0; w < c.size[2]; ++w) {
            const double value = magnitude(x[d * c.acts_x[0] + h * c.acts_x[1] + w * c.acts_x[2]]);
            sum += value * value;
          }
      total += root(sum);
    }
  }
  memory[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp || ch >= c.channels) return;
  total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += memory[warp * kWarp + threadIdx.x];
  sums[block.part * c.channels + ch] = total;
}

}  // namespace

void queue_norms(const Conv& c, const CudaPlan& p, double* sums, void* stream) {
  by_type(c.acts_type, [&](auto x) {
    using S = decltype(x);
    if (p.lanes == 0)
      return launch("neighbour_norms", neighbour_norms<S>, p.parts.count * ceil_div(c.channels, kWarp), kThreads, 0,
                    stream, c, p.parts, sums);
    launch("norms", p.columns == 4 ? norms<S, 4> : norms<S, 1>, p.parts.count * c.channels, kThreads, 0, stream, c, p,
           sums);
  });
}

}  // namespace nnrelief
