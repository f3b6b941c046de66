// Phase 1 of any convolution: a tile of |x|, padding included, in shared memory, and G_ab = sum over outputs of x under
// tap a times x under tap b from there. A thread owns BLOCK taps against as many, for every slots-th output of a map,
// whose sums stay in its registers; those of a tile are added to those of the tiles before. Where BLOCK taps are a row
// of the kernel, and outputs that follow each other meet pixels one or two apart, it takes them in runs (runs.h).
#include "forms.h"
#include "runs.h"

namespace nnrelief {
namespace {

// Shared memory behind the features.
struct Tile {
  int pairs;
  float* x;        // [staged][extent]
  int32_t* tap;    // [taps rounded up], where x lies under a tap, from x under tap 0
  uchar2* groups;  // [pairs], of BLOCK taps
  char* behind;

  HOST_DEVICE Tile(const CudaPlan& p, int taps, char* memory) {
    const int rounded = (taps + p.block - 1) / p.block;
    pairs = rounded * (rounded + 1) / 2;
    x = reinterpret_cast<float*>(memory);
    tap = reinterpret_cast<int32_t*>(x + p.staged * p.extent[0] * p.extent[1] * p.extent[2]);
    groups = reinterpret_cast<uchar2*>(tap + rounded * p.block);
    behind = reinterpret_cast<char*>(groups + pairs);
  }
};

// |x| of `staged` samples from `n` on, where the tile begins at `corner` of the unpadded map; zeros beyond `end`.
template <class S>
__device__ __forceinline__ void stage(const Conv& c, const CudaPlan& p, const Tile& t, const Features& f, int64_t ch,
                                      int64_t n, int64_t end, int place, const int64_t* corner) {
  const uint32_t width = p.extent[2], height = p.extent[1], depth = p.extent[0], rows = p.staged * depth * height;
  const auto within = [&](int d, int64_t i) { return static_cast<uint64_t>(i) < static_cast<uint64_t>(c.size[d]); };
  const auto source = [&](int d, int64_t i) {  // most lie inside; a tile may reach beyond the padding
    if (within(d, i)) return i;
    const int64_t padded = c.source(d, i);
    return within(d, padded) ? padded : -1;
  };
  const uint32_t shift = rows >= kThreads / 8 ? 3 : rows >= kThreads / 16 ? 4 : 5, lanes = 1u << shift;  // of a row
  const int64_t before = corner[2] < 0 ? -corner[2] : 0, behind = c.size[2] - corner[2];  // columns of the map between
  const uint32_t first = threadIdx.x & (lanes - 1), columns = behind > before ? behind - before : 0;
  const bool wraps = c.padding != Padding::zeros;
  for (uint32_t row = threadIdx.x >> shift; row < rows; row += kThreads >> shift) {
    const uint32_t volume = rows == height ? 0 : row / height, h = row - volume * height;  // few maps need a division
    const uint32_t s = depth == 1 ? volume : volume / depth, d = volume - s * depth;
    const int64_t front = source(0, corner[0] + d), line = source(1, corner[1] + h);
    const bool inside = n + s < end && front >= 0 && line >= 0;
    const S* const x =
        static_cast<const S*>(c.acts) + (n + s) * c.acts_n + ch * c.acts_c + front * c.acts_x[0] + line * c.acts_x[1];
    const S* from = x + (corner[2] + first) * c.acts_x[2];
    float* const to = t.x + row * width;
    uint32_t low = ~0u;
    for (uint32_t w = first; w < width; w += lanes, from += lanes * c.acts_x[2]) {
      float value = 0;
      if (inside && w - static_cast<uint32_t>(before) < columns) {
        value = magnitude(*from);
      } else if (inside && wraps) {
        const int64_t column = source(2, corner[2] + w);
        if (column >= 0) value = magnitude(x[column * c.acts_x[2]]);
      }
      to[w] = value;
      low = lower(value, low);
    }
    if (low < kSmallBits - 1) atomicOr(f.small + place + s, 1u);
  }
}

// What a thread owns: taps a[i] against b[j], where the rows' taps follow each other if NEAR. STRIDE: 0 without runs.
template <int BLOCK, bool NEAR, int STRIDE>
struct Owned {
  const float *a[NEAR ? 1 : BLOCK], *b[NEAR ? 1 : BLOCK];
  float total[BLOCK * BLOCK];

  __device__ __forceinline__ float first(int i, int at) const { return NEAR ? a[0][at + i] : a[NEAR ? 0 : i][at]; }
  __device__ __forceinline__ float second(int j, int at) const { return NEAR ? b[0][at + j] : b[NEAR ? 0 : j][at]; }

  // Adds the products of this thread's share of the tile's `high` x `wide` outputs.
  __device__ __forceinline__ void add(const Conv& c, const CudaPlan& p, int slot, int high, int wide) {
    const int down = c.stride[1] * p.extent[2];
    float sum[BLOCK][BLOCK] = {};
    int done = 0;
    if constexpr (STRIDE > 0) {
      constexpr int run = run_of(BLOCK, STRIDE), span = kSpan<BLOCK, STRIDE, run>;
      const int runs = wide / run;
#pragma unroll 1
      for (int i = slot; i < high * runs; i += p.slots) {
        const int at = i / runs * down + i % runs * run * STRIDE;
        float x[span], y[span];
#pragma unroll
        for (int u = 0; u < span; ++u) x[u] = first(u, at), y[u] = second(u, at);
        add_run<false, BLOCK, STRIDE, run>(x, y, sum);
      }
      done = runs * run;
    }
    if (done < wide) add_outputs(done * c.stride[2], down, c.stride[2], p.slots, slot, high, wide - done, sum);
#pragma unroll
    for (int i = 0; i < BLOCK * BLOCK; ++i) total[i] += sum[i / BLOCK][i % BLOCK];
  }

  // Every slots-th of `high` x `wide` outputs, the first of which is at `corner`.
  __device__ __forceinline__ void add_outputs(int corner, int down, int right, int slots, int slot, int high, int wide,
                                              float (&sum)[BLOCK][BLOCK]) const {
    const int back = down - wide * right, next = slots % wide, step = slots / wide * down + next * right;
    int w = slot % wide, at = corner + slot / wide * down + w * right;
#pragma unroll 1
    for (int left = high * wide - slot; left > 0; left -= slots) {
      float x[BLOCK], y[BLOCK];
#pragma unroll
      for (int i = 0; i < BLOCK; ++i) x[i] = first(i, at), y[i] = second(i, at);
#pragma unroll
      for (int i = 0; i < BLOCK; ++i)
#pragma unroll
        for (int j = 0; j < BLOCK; ++j) sum[i][j] += x[i] * y[j];
      w += next;
      at += step;
      if (w >= wide) w -= wide, at += back;
    }
  }
};

template <class S, int BLOCK, bool NEAR, int STRIDE>
__global__ void __launch_bounds__(kThreads, STRIDE == 0 ? 3 : 2) gram(Conv c, CudaPlan p, Partial partial) {
  const int taps = c.taps(), staged = p.staged;
  const Features f(taps, p.samples, p.filters, taps, shared_memory<char>());
  const Tile t(p, taps, f.behind);
  const Block block(c.channels);
  const int64_t ch = block.index, end = part_end(p.parts, block.part, c.samples);
  const Member member(c, ch);

  f.start(c);
  for (int i = threadIdx.x; i < (taps + BLOCK - 1) / BLOCK * BLOCK; i += kThreads) {  // beyond the last tap: the first
    const Place k(i < taps ? i : 0, c.kernel);
    t.tap[i] =
        (k.at[0] * c.dilation[0] * p.extent[1] + k.at[1] * c.dilation[1]) * p.extent[2] + k.at[2] * c.dilation[2];
  }
  if (threadIdx.x == 0) {
    int pair = 0;
    for (int a = 0; a * BLOCK < taps; ++a)
      for (int b = a; b * BLOCK < taps; ++b) t.groups[pair++] = uchar2{(unsigned char)a, (unsigned char)b};
  }
  __syncthreads();

  const int slots = p.slots, slot = threadIdx.x % slots, unit = threadIdx.x / slots, sample = unit / t.pairs;
  const uchar2 groups = t.groups[unit % t.pairs];
  const float* const x = t.x + (sample < staged ? sample : 0) * p.extent[0] * p.extent[1] * p.extent[2];
  Owned<BLOCK, NEAR, STRIDE> owned;
#pragma unroll
  for (int i = 0; i < (NEAR ? 1 : BLOCK); ++i) {
    owned.a[i] = x + t.tap[groups.x * BLOCK + i];
    owned.b[i] = x + t.tap[groups.y * BLOCK + i];
  }

  bool bad = false;
  const int64_t begin = block.part * p.parts.size;
  for (int64_t first = begin; first < end; first += f.samples) {
    f.clear();
    for (int place = 0; place < f.samples; place += staged) {
#pragma unroll
      for (int i = 0; i < BLOCK * BLOCK; ++i) owned.total[i] = 0;
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
            owned.add(c, p, slot, p.box[1] < c.out[1] - at[1] ? p.box[1] : c.out[1] - at[1],
                      p.box[2] < c.out[2] - at[2] ? p.box[2] : c.out[2] - at[2]);
          }
#pragma unroll 1
      for (int offset = slots / 2; offset > 0; offset /= 2)
#pragma unroll
        for (int i = 0; i < BLOCK * BLOCK; ++i) owned.total[i] += __shfl_xor_sync(kAll, owned.total[i], offset);
      if (slot == 0 && sample < staged) {
#pragma unroll
        for (int i = 0; i < BLOCK; ++i)
#pragma unroll
          for (int j = 0; j < BLOCK; ++j) {
            const int a = groups.x * BLOCK + i, b = groups.y * BLOCK + j;
            if (a > b || b >= taps) continue;
            const float value = a == b ? owned.total[i * BLOCK + j] : 2 * owned.total[i * BLOCK + j];
            f.g[(place + sample) * f.row + Features::pair(taps, a, b)] = value;
          }
      }
      __syncthreads();
    }
    bad = f.judge() || bad;
    __syncthreads();
    bad = add_norms(c, f, member.kernels, first > begin, partial.sums) || bad;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) partial.flags[blockIdx.x] = bad;
}

template <class S, int BLOCK>
auto kernel_of(const Conv& c) {
  if (c.kernel[2] != BLOCK || c.dilation[2] > 1) return gram<S, BLOCK, false, 0>;
  if (run_of(c, BLOCK) == 0) return gram<S, BLOCK, true, 0>;
  return c.stride[2] == 1 ? gram<S, BLOCK, true, 1> : gram<S, BLOCK, true, 2>;
}

}  // namespace

void queue_gram(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) {
    using S = decltype(x);
    const int taps = c.taps();
    const int64_t shared =
        Tile(p, taps, Features(taps, p.samples, p.filters, taps, nullptr).behind).behind - static_cast<char*>(nullptr);
    launch("gram", p.block == 7 ? kernel_of<S, 7>(c) : kernel_of<S, 5>(c), p.parts.count * c.channels, kThreads, shared,
           stream, c, p, partial);
  });
}

}  // namespace nnrelief
