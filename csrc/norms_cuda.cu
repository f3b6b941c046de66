// 1x1 convolutions: sum over samples of ||x_ni|| per channel, in float64, which has the range for every square of a
// float32.
#include "magnitude.h"

namespace nnrelief {
namespace {

constexpr int kLoads = 8;  // of a thread, before more threads join in

// Whether the pixels of a map lie one after the other, acts_x[2] apart.
HOST_DEVICE inline bool joined(const Conv& c) {
  return (c.size[1] == 1 || c.acts_x[1] == c.size[2] * c.acts_x[2]) &&
         (c.size[0] == 1 || c.acts_x[0] == c.size[1] * c.size[2] * c.acts_x[2]);
}

// Threads side by side on a map's pixels (`lanes` of them, a power of two up to a warp), read PIECE at a time.
template <class S, int PIECE>
__global__ void __launch_bounds__(kThreads) norms(Conv c, Parts parts, int lanes, double* sums) {
  __shared__ double memory[kThreads];
  const Block block(c.channels);
  const int64_t ch = block.index, end = part_end(parts, block.part, c.samples);
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes, slots = kThreads / lanes;
  const int64_t pixels = c.pixels();
  double total = 0;
  for (int64_t first = block.part * parts.size; first < end; first += slots) {
    const int64_t n = first + slot;
    double sum[4] = {};
    if (n < end) {
      const S* x = static_cast<const S*>(c.acts) + n * c.acts_n + ch * c.acts_c;
      const auto add = [&](const Vector<S, PIECE>& some, double& to) {
#pragma unroll
        for (int k = 0; k < PIECE; ++k) {
          const double value = magnitude(some.x[k]);
          to += value * value;
        }
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
  const Block block((c.channels + 31) / 32);
  const int64_t ch = block.index * 32 + threadIdx.x % 32, end = part_end(parts, block.part, c.samples);
  double total = 0;
  if (ch < c.channels) {
    for (int64_t n = block.part * parts.size + threadIdx.x / 32; n < end; n += kThreads / 32) {
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
  if (threadIdx.x >= 32 || ch >= c.channels) return;
  total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += memory[warp * 32 + threadIdx.x];
  sums[block.part * c.channels + ch] = total;
}

template <class S>
void queue(const Conv& c, Parts parts, double* sums, void* stream) {
  if (c.acts_c == 1 && c.acts_x[2] != 1 && c.channels >= 16)
    return launch("neighbour_norms", neighbour_norms<S>, parts.count * ceil_div(c.channels, 32), kThreads, 0, stream, c,
                  parts, sums);
  const auto whole = [](int64_t x) { return x % 4 == 0; };
  const bool pieces = joined(c) && c.acts_x[2] == 1 && whole(c.pixels()) && whole(c.acts_c) && whole(c.acts_n) &&
                      reinterpret_cast<uintptr_t>(c.acts) % (4 * sizeof(S)) == 0;
  int lanes = 1;
  while (lanes < 32 && lanes * kLoads * (pieces ? 4 : 1) < c.pixels()) lanes *= 2;
  launch("norms", pieces ? norms<S, 4> : norms<S, 1>, parts.count * c.channels, kThreads, 0, stream, c, parts, lanes,
         sums);
}

}  // namespace

void queue_norms(const Conv& c, Parts parts, double* sums, void* stream) {
  by_type(c.acts_type, [&](auto x) { queue<decltype(x)>(c, parts, sums, stream); });
}

}  // namespace nnrelief
