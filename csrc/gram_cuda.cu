// Phase 1 of any convolution: a tile of |x|, padding included, in shared memory, and G_ab = sum over outputs of x under
// tap a times x under tap b from there. A thread owns three taps against three, for every slots-th output; these sums
// are added up in float64 over the tiles of a map.
#include "forms.h"

namespace nnrelief {
namespace {

constexpr int kBlock = 3;  // taps, against as many
constexpr int kSums = kBlock * kBlock;

HOST_DEVICE inline int pairs_of(int taps) {
  const int groups = (taps + kBlock - 1) / kBlock;
  return groups * (groups + 1) / 2;
}

// Shared memory behind the features.
struct Tile {
  int pairs, slots;
  double* sums;    // [staged][pairs][slots][kSums]
  float* x;        // [staged][extent]
  int32_t* tap;    // [taps rounded up], where x lies under a tap, from x under tap 0
  uchar2* groups;  // [pairs]
  char* behind;

  HOST_DEVICE Tile(const CudaPlan& p, int taps, char* memory) {
    pairs = pairs_of(taps);
    slots = kThreads / (pairs * p.staged) > 1 ? kThreads / (pairs * p.staged) : 1;
    sums = reinterpret_cast<double*>(memory);
    x = reinterpret_cast<float*>(sums + p.staged * pairs * slots * kSums);
    tap = reinterpret_cast<int32_t*>(x + p.staged * p.extent[0] * p.extent[1] * p.extent[2]);
    groups = reinterpret_cast<uchar2*>(tap + (taps + kBlock - 1) / kBlock * kBlock);
    behind = reinterpret_cast<char*>(groups + pairs);
  }
};

// |x| of `staged` samples from `n` on, where the tile begins at `corner` of the unpadded map; zeros beyond `end`.
template <class S>
__device__ __forceinline__ void stage(const Conv& c, const CudaPlan& p, const Tile& t, const Features& f, int64_t ch,
                                      int64_t n, int64_t end, int place, const int64_t* corner) {
  const int width = p.extent[2], height = p.extent[1], rows = p.staged * p.extent[0] * height;
  int lanes = 1;
  while (lanes < 32 && lanes < width) lanes *= 2;
  for (int row = threadIdx.x / lanes; row < rows; row += kThreads / lanes) {
    const int h = row % height, d = row / height % static_cast<int>(p.extent[0]), s = row / height / p.extent[0];
    const int64_t depth = c.source(0, corner[0] + d), line = c.source(1, corner[1] + h);
    const bool inside = n + s < end && depth >= 0 && line >= 0;
    const S* x =
        static_cast<const S*>(c.acts) + (n + s) * c.acts_n + ch * c.acts_c + depth * c.acts_x[0] + line * c.acts_x[1];
    uint32_t low = ~0u;
    for (int w = threadIdx.x % lanes; w < width; w += lanes) {
      const int64_t column = c.source(2, corner[2] + w);
      const float value = inside && column >= 0 ? magnitude(x[column * c.acts_x[2]]) : 0;
      t.x[row * width + w] = value;
      low = lower(value, low);
    }
    if (low < kSmallBits - 1) atomicOr(f.small + place + s, 1u);
  }
}

// Products of every thread's taps over the `high` x `wide` outputs of the tile.
__device__ __forceinline__ void add_products(const Conv& c, const CudaPlan& p, const Tile& t, int high, int wide) {
  const int size = p.extent[0] * p.extent[1] * p.extent[2], units = p.staged * t.pairs * t.slots;
  const int right = c.stride[2], down = c.stride[1] * p.extent[2];
  for (int unit = threadIdx.x; unit < units; unit += kThreads) {
    const int slot = unit % t.slots, pair = unit / t.slots % t.pairs;
    const float* x = t.x + unit / t.slots / t.pairs * size;
    const float *a[kBlock], *b[kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      a[i] = x + t.tap[t.groups[pair].x * kBlock + i];
      b[i] = x + t.tap[t.groups[pair].y * kBlock + i];
    }
    float sum[kSums] = {};
    int w = slot % wide, h = slot / wide;
    while (h < high) {
      const int at = h * down + w * right;
#pragma unroll
      for (int i = 0; i < kBlock; ++i)
#pragma unroll
        for (int j = 0; j < kBlock; ++j) sum[i * kBlock + j] += a[i][at] * b[j][at];
      for (w += t.slots; w >= wide; w -= wide) ++h;
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) t.sums[unit * kSums + i] += sum[i];
  }
}

template <class S, int TAPS>
__global__ void __launch_bounds__(kThreads, 4) gram(Conv c, CudaPlan p, Partial partial) {
  const int taps = TAPS > 0 ? TAPS : static_cast<int>(c.taps()), staged = p.staged;
  const Features f(taps, TAPS > 0 ? kSamples : p.samples, p.filters, shared_memory<char>());
  const Tile t(p, taps, f.behind);
  const Block block(c.channels);
  const int64_t ch = block.index, end = part_end(p.parts, block.part, c.samples);
  const Member member(c, ch);

  f.start(c);
  for (int i = threadIdx.x; i < (taps + kBlock - 1) / kBlock * kBlock;
       i += kThreads) {  // beyond the last tap: the first
    const Place k(i < taps ? i : 0, c.kernel);
    t.tap[i] =
        (k.at[0] * c.dilation[0] * p.extent[1] + k.at[1] * c.dilation[1]) * p.extent[2] + k.at[2] * c.dilation[2];
  }
  if (threadIdx.x == 0) {
    int pair = 0;
    for (int a = 0; a * kBlock < taps; ++a)
      for (int b = a; b * kBlock < taps; ++b) t.groups[pair++] = uchar2{(unsigned char)a, (unsigned char)b};
  }

  bool bad = false;
  const int64_t begin = block.part * p.parts.size;
  for (int64_t first = begin; first < end; first += f.samples) {
    f.clear();
    for (int place = 0; place < f.samples; place += staged) {
#pragma unroll 1
      for (int i = threadIdx.x; i < staged * t.pairs * t.slots * kSums; i += kThreads) t.sums[i] = 0;
      int64_t at[3];
      for (at[0] = 0; at[0] < c.out[0]; at[0] += p.box[0])
        for (at[1] = 0; at[1] < c.out[1]; at[1] += p.box[1])
          for (at[2] = 0; at[2] < c.out[2]; at[2] += p.box[2]) {
            int64_t corner[3];
#pragma unroll
            for (int d = 0; d < 3; ++d) corner[d] = at[d] * c.stride[d] - c.before[d];
            __syncthreads();
            stage<S>(c, p, t, f, ch, first + place, end, place, corner);
            __syncthreads();
            add_products(c, p, t, p.box[1] < c.out[1] - at[1] ? p.box[1] : c.out[1] - at[1],
                         p.box[2] < c.out[2] - at[2] ? p.box[2] : c.out[2] - at[2]);
          }
      __syncthreads();
#pragma unroll 1
      for (int i = threadIdx.x; i < staged * t.pairs * kSums; i += kThreads) {
        const int pair = i / kSums % t.pairs, s = i / kSums / t.pairs;
        const int a = t.groups[pair].x * kBlock + i % kSums / kBlock, b = t.groups[pair].y * kBlock + i % kBlock;
        if (a > b || b >= taps) continue;
        double sum = 0;
#pragma unroll 1
        for (int slot = 0; slot < t.slots; ++slot)
          sum += t.sums[((s * t.pairs + pair) * t.slots + slot) * kSums + i % kSums];
        const float value = a == b ? sum : 2 * sum;
        f.g[Features::pair(taps, a, b) * f.samples + place + s] = value;
        atomicMax(f.most + place + s, __float_as_uint(value));
      }
      __syncthreads();
    }
    bad = f.judge() || bad;
    __syncthreads();
    bad = add_norms<TAPS>(c, f, member.kernels, first > begin, partial.sums) || bad;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) partial.flags[blockIdx.x] = bad;
}

template <class S>
void queue(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  const int taps = c.taps();
  const int64_t shared =
      Tile(p, taps, Features(taps, p.samples, p.filters, nullptr).behind).behind - static_cast<char*>(nullptr);
  launch("gram", taps == 9 ? gram<S, 9> : gram<S, 0>, p.parts.count * c.channels, kThreads, shared, stream, c, p,
         partial);
}

}  // namespace

void queue_gram(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) { queue<decltype(x)>(c, p, partial, stream); });
}

}  // namespace nnrelief
