// Phase 1 of square kernels with stride and dilation 1 on zero-padded maps: each activation is read once. With r the
// newest row, the products x[r - d][u] x[r][u + s] at the lags (d, s) are sums that taps share; G_ab is the sum at lag
// b - a over a window of base rows and columns that depends on a, and the windows differ in the first and last rows and
// columns alone. Rows stream through registers, a thread holding COLUMNS neighbouring columns of the last K rows and
// its right neighbour's first K - 1, which it gets by shuffles. Products are kept per column and summed over base rows
// that all taps' windows treat alike; then every window takes its columns, the lanes of the map add up, and the taps
// whose rows include these take the sum. Nothing is subtracted.
#include "lanes.h"

namespace nnrelief {
namespace {

template <int K>
constexpr int kShifts = 2 * K - 1;  // s + K - 1; the first K - 1 are unused where d = 0

// What plan_cuda.cpp gives these kernels, here for the compiler.
HOST_DEVICE constexpr int samples_of(int K) { return K == 3 ? kSamples : 16; }

__device__ alignas(32) const float kZeros[8] = {};  // what threads without columns read

// One map's lanes, of which `lane` is this thread's, which reads its columns PIECE at a time.
template <class S, int K, int COLUMNS, int PIECE>
struct Stream {
  static constexpr int kHalo = K - 1;
  const S* x;  // the next row's first own column
  int64_t step;
  int count, lane, lanes;  // own columns inside the map
  uint32_t low;
  Vector<S, COLUMNS> next;  // a row as it comes from memory, which takes its time

  __device__ __forceinline__ void fetch(const Conv& c) {
    using Piece = Vector<S, PIECE>;
#pragma unroll
    for (int i = 0; i < COLUMNS; i += PIECE)
      if (PIECE == COLUMNS || i < count)
        *reinterpret_cast<Piece*>(next.x + i) = *reinterpret_cast<const Piece*>(x + (PIECE == 1 ? i * c.acts_x[2] : i));
    x += step;
  }
  __device__ __forceinline__ void start(const Conv& c, const S* first, bool used) {
    low = ~0u;
    x = used ? first : reinterpret_cast<const S*>(kZeros);
    step = used ? c.acts_x[1] : 0;
    count = used ? static_cast<int>(c.size[2]) - lane * COLUMNS : 0;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) next.x[i] = S{};
    fetch(c);
  }
  // The fetched row with its neighbours, while the one after it is on its way.
  __device__ __forceinline__ void advance(const Conv& c, bool more, float* row) {
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) row[i] = magnitude(next.x[i]);
    if (more) fetch(c);
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
      if constexpr (sizeof(S) == 4 || std::is_same_v<S, BFloat16>) low = lower(row[i], low);
#pragma unroll
    for (int i = 0; i < kHalo; ++i) {
      const float other = __shfl_down_sync(kAll, row[i % COLUMNS], 1 + i / COLUMNS, lanes);
      row[COLUMNS + i] = lane + 1 + i / COLUMNS < lanes ? other : 0;
    }
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

// K rows, not the map's last, after which each lies in its register again.
template <int K, int COLUMNS, int I = 0, class Stream>
__device__ __forceinline__ void add_rows(const Conv& c, Stream& stream, float (&rows)[K][COLUMNS + K - 1],
                                         float (&sums)[K][kShifts<K>][COLUMNS]) {
  stream.advance(c, true, rows[I]);
  add_row<K, COLUMNS, I>(rows, sums);
  if constexpr (I + 1 < K) add_rows<K, COLUMNS, I + 1>(c, stream, rows, sums);
}

// Adds what has been summed over base rows that end with `y` to every feature at a lag with row distance D, and clears
// it. The windows of taps (p, q) of a row's K are shared out to four lanes, and the taps' rows to every four of them.
template <int K, int COLUMNS, int D>
__device__ __forceinline__ void flush(const Conv& c, const Features& f, int y, int sample, int lane, int lanes,
                                      float (*sums)[COLUMNS]) {
  constexpr int all = D == 0 ? K * (K + 1) / 2 : K * K, quarter = (all + 3) / 4;
  const auto start = [](int p) { return D == 0 ? p * K - p * (p - 1) / 2 : p * K; };  // of windows (p, ...)
  const int left = c.before[2], top = c.before[1], high = c.out[1];
  float total[all];
#pragma unroll
  for (int least = 0; least < K; ++least) {
    const unsigned own = lane * COLUMNS + left - least, wide = c.out[2];
#pragma unroll
    for (int p = least; p < K; ++p)
#pragma unroll
      for (int q = least; q < K; ++q) {
        if ((p > least && q > least) || (D == 0 && p > q)) continue;
        float& sum = total[start(p) + (D == 0 ? q - p : q)] = 0;
#pragma unroll
        for (int u = 0; u < COLUMNS; ++u)
          if (own + u < wide) sum += sums[q - p + K - 1][u];
      }
  }
#pragma unroll
  for (int s = D == 0 ? 0 : 1 - K; s < K; ++s)
#pragma unroll
    for (int u = 0; u < COLUMNS; ++u) sums[s + K - 1][u] = 0;

  share_out<all>(total, lane, lanes);
#pragma unroll 1
  for (int h = lane / 4; h < K - D; h += lanes / 4) {
    if (y < h - top || y >= h - top + high) continue;
#pragma unroll
    for (int i = 0; i < quarter; ++i) {
      const int window = sum_at<all>(i, lane);
      if (window < 0) continue;
      int p = 0;
#pragma unroll
      for (int k = 1; k < K; ++k) p += window >= start(k);
      const int q = window - start(p) + (D == 0 ? p : 0);
      f.g[Features::pair(K * K, h * K + p, (h + D) * K + q) * f.samples + sample] +=
          D == 0 && p == q ? total[i] : 2 * total[i];
    }
  }
}

// Whether the sums of lags with row distance `d` end with the newest row `r`: the next base row is treated otherwise.
__device__ __forceinline__ bool ends(const Conv& c, int K, int r, int d) {
  const int top = c.before[1], high = c.out[1], last = c.size[1] - 1;
  return r >= d && (r < K - 1 - top || r - d + 1 >= high - top || r == last || r % kLongest == kLongest - 1);
}

template <int K, int COLUMNS, int D = 0>
__device__ __forceinline__ void end_row(const Conv& c, const Features& f, int r, int sample, int lane, int lanes,
                                        float (*sums)[kShifts<K>][COLUMNS]) {
  if (ends(c, K, r, D)) flush<K, COLUMNS, D>(c, f, r - D, sample, lane, lanes, sums[D]);
  if constexpr (D + 1 < K) end_row<K, COLUMNS, D + 1>(c, f, r, sample, lane, lanes, sums);
}

// The features of one map, added to f.g. All lanes of a warp take part, those without columns with zeros.
template <int K, int COLUMNS, class Stream>
__device__ __forceinline__ void map_features(const Conv& c, const Features& f, int sample, Stream& stream) {
  const int height = c.size[1], top = c.before[1], high = c.out[1], lane = stream.lane, lanes = stream.lanes;
  float rows[K][COLUMNS + K - 1] = {}, sums[K][kShifts<K>][COLUMNS] = {};
  int r = 0;
  while (r < height) {
    // rows whose sums go on, K at a time so that no row moves from register to register
    int until = high - top - 1 < height - 1 ? high - top - 1 : height - 1;
    if (until > r - r % kLongest + kLongest - 1) until = r - r % kLongest + kLongest - 1;
    if (r >= K - 1 - top) {
#pragma unroll 1
      for (; r + K <= until; r += K) add_rows<K, COLUMNS>(c, stream, rows, sums);
    }
    stream.advance(c, r + 1 < height, rows[0]);
    add_row<K, COLUMNS, 0>(rows, sums);
    end_row<K, COLUMNS>(c, f, r, sample, lane, lanes, sums);
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

template <class S, int K, int COLUMNS, int PIECE>
__global__ void __launch_bounds__(kThreads, K == 3 && COLUMNS < 8 ? 3 : 2)
    lags(Conv c, CudaPlan p, int lanes, Partial partial) {
  const Features f(K * K, samples_of(K), p.filters, shared_memory<char>());
  Stream<S, K, COLUMNS, PIECE> stream;
  stream.lane = threadIdx.x % lanes;
  stream.lanes = lanes;
  const int column = stream.lane * COLUMNS;
  score_samples<K == 3 ? 9 : 0>(c, p, f, lanes, partial, [&](int place, int64_t base, bool used) {
    stream.start(c, static_cast<const S*>(c.acts) + base + column * c.acts_x[2], used && column < c.size[2]);
    map_features<K, COLUMNS>(c, f, place, stream);
    return stream.low;
  });
}

template <class S, int K, int COLUMNS>
void queue(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  const auto pieces = [&](int64_t piece) {
    return c.acts_x[2] == 1 && c.size[2] % piece == 0 && c.acts_x[1] % piece == 0 && c.acts_c % piece == 0 &&
           c.acts_n % piece == 0 && reinterpret_cast<uintptr_t>(c.acts) % (piece * sizeof(S)) == 0;
  };
  int lanes = kThreads / samples_of(K);
  while (lanes * COLUMNS < c.size[2]) lanes *= 2;
  const int64_t shared = Features(K * K, samples_of(K), p.filters, nullptr).behind - static_cast<char*>(nullptr);
  const auto kernel = pieces(COLUMNS) ? lags<S, K, COLUMNS, COLUMNS>
                      : pieces(2)     ? lags<S, K, COLUMNS, 2>
                                      : lags<S, K, COLUMNS, 1>;
  launch("lags", kernel, p.parts.count * c.channels, kThreads, shared, stream, c, p, lanes, partial);
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
