// Phase 1 of 3x3 kernels with stride 1 or 2 and dilation 1 on zero-padded maps: each activation is read once. With r
// the newest row, the products x[r - d][u] x[r][u + s] at the lags (d, s) are sums that taps share; G_ab is the sum at
// lag b - a over a window of base rows and columns that depends on a, and windows that begin in the same class of rows
// and columns differ in the first and last ones alone. Rows stream through registers: a thread has the outputs of a
// tile of columns, and of the last three rows all columns that their windows cover. A row's products are summed once
// per lag, a window adds the edge products it contains; over the rows that all windows treat alike these sums go on,
// then the lanes of the map, which have neighbouring tiles, add up, and the taps whose rows include these take the sum.
// Nothing is subtracted.
//
// Rows and columns are counted from the first tap of output (0, 0) on: tap a meets row stride * h + a there.
#include "lanes.h"
#include "rows.h"

namespace nnrelief {
namespace {

constexpr int kTaps = K * K;

// Where the features of a thread's map go.
struct Target {
  float* g;
  int lane, lanes, stride, high;
};

// Adds what has been summed over base rows that end with `y`, and row D below each, to the features of tap rows FIRST,
// FIRST + STEP, ... whose windows hold these, and clears it.
template <int D, int FIRST, int STEP>
__device__ __forceinline__ void flush(const Target& t, int y, float (&sums)[K][K]) {
#pragma unroll 1
  for (int offset = 1; offset < t.lanes; offset *= 2)
#pragma unroll
    for (int p = 0; p < K; ++p)
#pragma unroll
      for (int q = D == 0 ? p : 0; q < K; ++q) sums[p][q] += __shfl_xor_sync(kAll, sums[p][q], offset);
  if (t.lane == 0) {
#pragma unroll
    for (int h = FIRST; h + D < K; h += STEP) {
      if (y < h || y > t.stride * (t.high - 1) + h) continue;
#pragma unroll
      for (int p = 0; p < K; ++p)
#pragma unroll
        for (int q = D == 0 ? p : 0; q < K; ++q)
          t.g[Features::pair(kTaps, h * K + p, (h + D) * K + q)] += D == 0 && p == q ? sums[p][q] : 2 * sums[p][q];
    }
  }
#pragma unroll
  for (int p = 0; p < K; ++p)
#pragma unroll
    for (int q = 0; q < K; ++q) sums[p][q] = 0;
}

// With stride 1: the products of row NEWEST with itself and the rows above it, and so on to K - 1.
template <int NEWEST, int D = 0, class Row>
__device__ __forceinline__ void add_row(const Row (&rows)[K], float (&sums)[K][K][K]) {
  Row::template add_products<D == 0>(rows[(NEWEST + K - D) % K], rows[NEWEST], sums[D]);
  if constexpr (D + 1 < K) add_row<NEWEST, D + 1>(rows, sums);
}

// K rows, not the map's last, after which each lies in its register again.
template <int I = 0, class Row, class Stream>
__device__ __forceinline__ void add_rows(Stream& stream, Row (&rows)[K], float (&sums)[K][K][K]) {
  stream.template advance<false>(rows[I]);
  add_row<I>(rows, sums);
  if constexpr (I + 1 < K) add_rows<I + 1>(stream, rows, sums);
}

// Where row `r` is the newest and sums do not go on: `all` of them, or those whose next base row is treated otherwise.
template <int D = 0>
__device__ __forceinline__ void end_row(const Target& t, int r, bool all, float (&sums)[K][K][K]) {
  if (all || r - D >= t.high - 1) flush<D, 0, 1>(t, r - D, sums[D]);
  if constexpr (D + 1 < K) end_row<D + 1>(t, r, all, sums);
}

// The features of one map with stride 1, whose rows are counted from the first tap of output (0, 0) on; `height` of
// them from `top`. All lanes of a warp take part, those without outputs with zeros.
template <class Row, class Stream>
__device__ __forceinline__ void stride_1_features(const Conv& c, const Target& t, Stream& stream) {
  const int top = c.before[1], end = top + static_cast<int>(c.size[1]);
  const int stop = end - 1 < t.high - 1 ? end - 1 : t.high - 1;
  Row rows[K] = {};
  float sums[K][K][K] = {};  // by the distance of rows
  for (int r = top; r < end;) {
    // rows whose sums go on, K at a time so that no row moves from register to register
    const int limit = (r / kLongest + 1) * kLongest - 1;
    if (r >= K - 1) {
#pragma unroll 1
      for (; r + K <= (stop < limit ? stop : limit); r += K) add_rows(stream, rows, sums);
    }
    stream.template advance<true>(rows[0]);
    add_row<0>(rows, sums);
    end_row(t, r, r < K - 1 || r == end - 1 || r % kLongest == kLongest - 1, sums);
    ++r;
    const Row newest = rows[0];
#pragma unroll
    for (int i = 0; i + 1 < K; ++i) rows[i] = rows[i + 1];
    rows[K - 1] = newest;
  }
}

// Even rows meet taps in rows 0 and 2, odd ones in row 1: base rows of one distance are summed by that.
template <int WIDTH, class Stream>
__device__ __forceinline__ void stride_2_features(const Conv& c, const Target& t, Stream& stream) {
  const int top = c.before[1], bottom = top + static_cast<int>(c.size[1]) - 1;
  const int last = bottom < 2 * t.high ? bottom : 2 * t.high;
  using R = Row<2, WIDTH>;
  R even = {}, odd, next;
  float even_0[K][K] = {}, even_1[K][K] = {}, even_2[K][K] = {}, odd_0[K][K] = {}, odd_1[K][K] = {};
  int r = top;
  if (r % 2 == 0) {
    stream.template advance<true>(even);
    R::template add_products<true>(even, even, even_0);
    if (r++ == 0) flush<0, 0, 2>(t, 0, even_0);
  }
  const auto add_odd = [&] {
    R::template add_products<true>(odd, odd, odd_0);
    R::template add_products<false>(even, odd, even_1);
  };
  const auto add_even = [&] {
    R::template add_products<true>(next, next, even_0);
    R::template add_products<false>(odd, next, odd_1);
    R::template add_products<false>(even, next, even_2);
    even = next;
  };
  do {
    const int until = last < r + kLongest - 1 ? last : r + kLongest - 1;
#pragma unroll 1
    for (; r + 1 < until; r += 2) {
      stream.template advance<false>(odd);
      add_odd();
      stream.template advance<false>(next);
      add_even();
    }
    stream.template advance<true>(odd);
    add_odd();
    if (r + 1 == 2 * t.high) flush<0, 0, 2>(t, r - 1, even_0);
    stream.template advance<true>(next);
    add_even();
    r += 2;
    flush<0, 0, 2>(t, r - 1, even_0);
    flush<1, 0, K>(t, r - 3, even_1);
    flush<2, 0, K>(t, r - 3, even_2);
    flush<0, 1, K>(t, r - 2, odd_0);
    flush<1, 1, K>(t, r - 2, odd_1);
  } while (r <= last);
}

template <class S, int STRIDE, int WIDTH, Reading READING>
__global__ void __launch_bounds__(kThreads, WIDTH == 8 && READING != Reading::strided ? 3 : 2)
    lags(Conv c, CudaPlan p, Partial partial) {
  const Features f = features_3x3(p, shared_memory<char>());
  score_samples(c, p, f, partial, [&](int place, int64_t base, bool used) {
    const int lanes = p.lanes, lane = threadIdx.x % lanes;
    const Target t{f.g + place * f.row, lane, lanes, STRIDE, static_cast<int>(c.out[1])};
    Stream<S, STRIDE, WIDTH, READING> stream(c, p, static_cast<const S*>(c.acts) + base, lane, used);
    if constexpr (STRIDE == 1)
      stride_1_features<Row<1, WIDTH>>(c, t, stream);
    else
      stride_2_features<WIDTH>(c, t, stream);
    return stream.low;
  });
}

template <class S, int STRIDE>
auto kernel_of(const CudaPlan& p) {
  if (p.reading == Reading::strided) return lags<S, STRIDE, 8, Reading::strided>;
  if (p.reading == Reading::singly)
    return p.columns == 8 ? lags<S, STRIDE, 8, Reading::singly> : lags<S, STRIDE, 16, Reading::singly>;
  return p.columns == 8    ? lags<S, STRIDE, 8, Reading::vectors>
         : p.columns == 16 ? lags<S, STRIDE, 16, Reading::vectors>
         : p.columns == 28 ? lags<S, STRIDE, 28, Reading::vectors>
                           : lags<S, STRIDE, 32, Reading::vectors>;
}

}  // namespace

void queue_lags(const Conv& c, const CudaPlan& p, Partial partial, void* stream) {
  by_type(c.acts_type, [&](auto x) {
    using S = decltype(x);
    const int64_t shared = features_3x3(p, nullptr).behind - static_cast<char*>(nullptr);
    launch("lags", c.stride[1] == 1 ? kernel_of<S, 1>(p) : kernel_of<S, 2>(p), p.parts.count * c.channels, kThreads,
           shared, stream, c, p, partial);
  });
}

}  // namespace nnrelief
