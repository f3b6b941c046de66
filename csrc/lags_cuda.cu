// Phase 1 of square kernels with stride and dilation 1 on zero-padded maps: each activation is read once. With r the
// newest row, the products x[r - d][u] x[r][u + s] at the lags (d, s) are sums that taps share; G_ab is the sum at lag
// b - a over a window of base rows and columns that depends on a, and the windows differ in the first and last rows and
// columns alone. Rows stream through registers, a thread holding COLUMNS neighbouring columns of the last K rows and
// its right neighbour's first K - 1, which it gets by shuffles. Products are kept per column and summed over base rows
// that all taps' windows treat alike; then every window takes its columns, the lanes of the map add up, and the taps
// whose rows include these take the sum. Nothing is subtracted.
#include "forms.h"

namespace nnrelief {
namespace {

constexpr int kLongest = 128;  // rows of one float32 sum

template <int K>
constexpr int kShifts = 2 * K - 1;  // s + K - 1; the first K - 1 are unused where d = 0

// What plan_cuda.cpp gives these kernels, here for the compiler.
HOST_DEVICE constexpr int samples_of(int K) { return K == 3 ? kSamples : 16; }

template <class S, int COLUMNS>
struct alignas(sizeof(S) * COLUMNS) Vector {
  S x[COLUMNS];
};

// One map's lanes, of which `threadIdx.x % lanes` is this thread's.
template <class S, int K, int COLUMNS>
struct Stream {
  static constexpr int kHalo = K - 1;
  const S* x;              // the next row's first own column
  int count, lane, lanes;  // own columns inside the map
  bool whole;              // own columns can be read as one
  uint32_t low;
  float next[COLUMNS];

  __device__ __forceinline__ void fetch(const Conv& c, bool inside) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) next[i] = 0;
    if (!inside) return;
    if (whole) {
      if (count > 0) {
        const Vector<S, COLUMNS> own = *reinterpret_cast<const Vector<S, COLUMNS>*>(x);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) next[i] = magnitude(own.x[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i)
        if (i < count) next[i] = magnitude(x[i * c.acts_x[2]]);
    }
    x += c.acts_x[1];
  }
  // The fetched row with its neighbours, while the one after it is on its way.
  __device__ __forceinline__ void advance(const Conv& c, bool more, float* row) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
      row[i] = next[i];
      if constexpr (sizeof(S) == 4 || std::is_same_v<S, BFloat16>) low = lower(row[i], low);
    }
#pragma unroll
    for (int i = 0; i < kHalo; ++i) {
      const float other = __shfl_down_sync(kAll, row[i % COLUMNS], 1 + i / COLUMNS, lanes);
      row[COLUMNS + i] = lane + 1 + i / COLUMNS < lanes ? other : 0;
    }
    fetch(c, more);
  }
};

// The products of row NEWEST with the row D above it, and so on to K - 1.
template <int K, int COLUMNS, int NEWEST, int D = 0>
__device__ __forceinline__ void add_row(const float (&rows)[K][COLUMNS + K - 1],
                                        float (&sums)[K][kShifts<K>][COLUMNS]) {
  constexpr int above = (NEWEST + K - D) % K;
#pragma unroll
  for (int s = D == 0 ? 0 : 1 - K; s < K; ++s)
#pragma unroll
    for (int u = 0; u < COLUMNS; ++u)
      sums[D][s + K - 1][u] += s >= 0 ? rows[above][u] * rows[NEWEST][u + s] : rows[NEWEST][u] * rows[above][u - s];
  if constexpr (D + 1 < K) add_row<K, COLUMNS, NEWEST, D + 1>(rows, sums);
}

// K rows, after which each lies in its register again; `left` are left of the map.
template <class S, int K, int COLUMNS, int I = 0>
__device__ __forceinline__ void add_rows(const Conv& c, Stream<S, K, COLUMNS>& stream, bool used, int left,
                                         float (&rows)[K][COLUMNS + K - 1], float (&sums)[K][kShifts<K>][COLUMNS]) {
  stream.advance(c, used && I + 1 < left, rows[I]);
  add_row<K, COLUMNS, I>(rows, sums);
  if constexpr (I + 1 < K) add_rows<S, K, COLUMNS, I + 1>(c, stream, used, left, rows, sums);
}

// Adds what has been summed over base rows that end with `y` to every feature at a lag with row distance D, and clears
// it.
template <int K, int COLUMNS, int D>
__device__ __forceinline__ void flush(const Conv& c, const Features& f, int y, int sample, int lane, int lanes,
                                      float (*sums)[COLUMNS]) {
  const int left = c.before[2], top = c.before[1], wide = c.out[2], high = c.out[1], own = lane * COLUMNS;
#pragma unroll
  for (int s = D == 0 ? 0 : 1 - K; s < K; ++s) {
    const int far = s < 0 ? -s : s, most = static_cast<int>(c.size[2]) - far;
    float total = 0;
#pragma unroll 1
    for (int tap = 0; tap < K - far; ++tap) {  // of the left column
      const int begin = tap - left, end = begin + wide;
      if (tap == 0 || begin > 0 || end <= most) {  // else this window has the columns of the one before
        total = 0;
#pragma unroll
        for (int u = 0; u < COLUMNS; ++u) total += own + u >= begin && own + u < end ? sums[s + K - 1][u] : 0;
        for (int offset = lanes / 2; offset > 0; offset /= 2) total += __shfl_xor_sync(kAll, total, offset);
      }
      const float value = D == 0 && s == 0 ? total : 2 * total;
      for (int h = lane; h < K - D; h += lanes) {
        if (y < h - top || y >= h - top + high) continue;
        const int a = h * K + (s < 0 ? tap - s : tap), b = (h + D) * K + (s < 0 ? tap : tap + s);
        f.g[Features::pair(K * K, a, b) * f.samples + sample] += value;
      }
    }
#pragma unroll
    for (int u = 0; u < COLUMNS; ++u) sums[s + K - 1][u] = 0;
  }
}

// Whether the sums of lags with row distance `d` end with the newest row `r`: the next base row is treated otherwise.
__device__ __forceinline__ bool ends(const Conv& c, int K, int r, int d) {
  const int top = c.before[1], high = c.out[1], last = c.size[1] - 1;
  return r >= d && (r < K - 1 - top || r - d + 1 >= high - top || r == last || r % kLongest == kLongest - 1);
}

// The features of one map, added to f.g. All lanes of a warp take part, those without a map with zeros.
template <class S, int K, int COLUMNS, int D = 0>
__device__ __forceinline__ void end_row(const Conv& c, const Features& f, int r, int sample, int lane, int lanes,
                                        float (*sums)[kShifts<K>][COLUMNS]) {
  if (ends(c, K, r, D)) flush<K, COLUMNS, D>(c, f, r - D, sample, lane, lanes, sums[D]);
  if constexpr (D + 1 < K) end_row<S, K, COLUMNS, D + 1>(c, f, r, sample, lane, lanes, sums);
}

template <class S, int K, int COLUMNS>
__device__ __forceinline__ void map_features(const Conv& c, const Features& f, int sample,
                                             Stream<S, K, COLUMNS>& stream, bool used) {
  const int height = c.size[1], top = c.before[1], high = c.out[1], lane = stream.lane, lanes = stream.lanes;
  float rows[K][COLUMNS + K - 1] = {}, sums[K][kShifts<K>][COLUMNS] = {};
  stream.low = ~0u;
  stream.fetch(c, used);
  int r = 0;
  while (r < height) {
    // rows whose sums go on, K at a time so that no row moves from register to register
    int until = high - top - 1 < height - 1 ? high - top - 1 : height - 1;
    if (until > r - r % kLongest + kLongest - 1) until = r - r % kLongest + kLongest - 1;
    for (; r >= K - 1 - top && r + K <= until; r += K) {
      add_rows<S, K, COLUMNS>(c, stream, used, height - r, rows, sums);
    }
    stream.advance(c, used && r + 1 < height, rows[0]);
    add_row<K, COLUMNS, 0>(rows, sums);
    end_row<S, K, COLUMNS>(c, f, r, sample, lane, lanes, sums);
    ++r;
    float newest[COLUMNS + K - 1];
#pragma unroll
    for (int u = 0; u < COLUMNS + K - 1; ++u) {
      newest[u] = rows[0][u];
#pragma unroll
      for (int i = 0; i + 1 < K; ++i) rows[i][u] = rows[i + 1][u];
      rows[K - 1][u] = newest[u];
    }
  }
}

template <class S, int K, int COLUMNS>
__global__ void __launch_bounds__(kThreads, K == 3 && COLUMNS < 8 ? 4 : 2)
    lags(Conv c, CudaPlan p, int lanes, bool whole, Partial partial) {
  const Features f(K * K, samples_of(K), p.filters, shared_memory<char>());
  const Block block(c.channels);
  const int64_t end = part_end(p.parts, block.part, c.samples), begin = block.part * p.parts.size;
  const int at_once = kThreads / lanes;
  Stream<S, K, COLUMNS> stream;
  stream.lane = threadIdx.x % lanes;
  stream.lanes = lanes;
  stream.count = static_cast<int>(c.size[2]) - stream.lane * COLUMNS;
  stream.whole = whole;

  f.start(c);
  bool bad = false;
  for (int64_t first = begin; first < end; first += f.samples) {
    f.clear();
    for (int i = threadIdx.x; i < f.count * f.samples; i += kThreads) f.g[i] = 0;
    __syncthreads();
    for (int place = threadIdx.x / lanes; place < f.samples; place += at_once) {
      const int64_t n = first + place;
      stream.x =
          static_cast<const S*>(c.acts) + n * c.acts_n + block.index * c.acts_c + stream.lane * COLUMNS * c.acts_x[2];
      map_features<S, K, COLUMNS>(c, f, place, stream, n < end);
      if (stream.low < kSmallBits - 1) atomicOr(f.small + place, 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < f.count * f.samples; i += kThreads)
      atomicMax(f.most + i % f.samples, __float_as_uint(f.g[i]));
    __syncthreads();
    bad = f.judge() || bad;
    __syncthreads();
    bad = add_norms<K == 3 ? 9 : 0>(c, f, Member(c, block.index).kernels, first > begin, partial.sums) || bad;
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x == 0) partial.flags[blockIdx.x] = bad;
}

template <class S, int K, int COLUMNS>
void queue(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  const bool whole = c.acts_x[2] == 1 && c.size[2] % COLUMNS == 0 && c.acts_x[1] % COLUMNS == 0 &&
                     c.acts_c % COLUMNS == 0 && c.acts_n % COLUMNS == 0 &&
                     reinterpret_cast<uintptr_t>(c.acts) % (COLUMNS * sizeof(S)) == 0;
  int lanes = kThreads / samples_of(K);
  while (lanes * COLUMNS < c.size[2]) lanes *= 2;
  const int64_t shared = Features(K * K, samples_of(K), p.filters, nullptr).behind - static_cast<char*>(nullptr);
  launch("lags", lags<S, K, COLUMNS>, p.parts.count * c.channels, kThreads, shared, stream, c, p, lanes, whole,
         partial);
}

template <class S>
void queue(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  if (c.kernel[1] == 5) return queue<S, 5, 2>(c, p, partial, stream);
  if (p.columns == 2) return queue<S, 3, 2>(c, p, partial, stream);
  if (p.columns == 4) return queue<S, 3, 4>(c, p, partial, stream);
  return queue<S, 3, 8>(c, p, partial, stream);
}

}  // namespace

void queue_lags(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) { queue<decltype(x)>(c, p, partial, stream); });
}

}  // namespace nnrelief
