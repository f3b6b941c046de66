// Phase 1: the features of one tile of |x|, lanes side by side. G_ab = sum over outputs of x under tap a times x under
// tap b.
#pragma once

#include "fill.h"

namespace {

// A tile's shape: outputs, and rows and columns of the padded input it holds.
struct Tile {
  int64_t out[3], extent[3];

  int64_t index(int64_t d, int64_t h, int64_t w) const { return (d * extent[1] + h) * extent[2] + w; }
};

template <class Function>
INLINE void each_tile(const Conv& c, const Plan& p, const Function& function) {
  Tile t;
  int64_t at[3], first[3];
  for (at[0] = 0; at[0] < c.out[0]; at[0] += p.tile[0])
    for (at[1] = 0; at[1] < c.out[1]; at[1] += p.tile[1])
      for (at[2] = 0; at[2] < c.out[2]; at[2] += p.tile[2]) {
        for (int d = 0; d < 3; ++d) {
          t.out[d] = smaller(p.tile[d], c.out[d] - at[d]);
          t.extent[d] = p.path == Path::dual ? c.size[d] : c.span(d, t.out[d]);
          first[d] = p.path == Path::dual ? 0 : at[d] * c.stride[d] - c.before[d];
        }
        function(first, t);
      }
}

INLINE int64_t pair_index(int64_t taps, int64_t a, int64_t b) { return a * taps - a * (a - 1) / 2 + (b - a); }

INLINE int64_t tap_offset(const Conv& c, const Tile& t, int64_t tap) {
  const int64_t w = tap % c.kernel[2], h = tap / c.kernel[2] % c.kernel[1], d = tap / (c.kernel[1] * c.kernel[2]);
  return t.index(d * c.dilation[0], h * c.dilation[1], w * c.dilation[2]);
}

// The products of one row with another (Same: itself) at every column shift, K = kernel width. zone[shift][slot]: slot
// 0 takes the columns that every window of a shift contains, 1..K-1 the first K-1 columns, K..2K-2 the last, one by
// one.
template <class T, int K, bool Same>
INLINE void row_products(const V<T>* base, const V<T>* other, int64_t columns, V<T>* zone) {
  constexpr int shifts = Same ? K : 2 * K - 1, first = Same ? 0 : 1 - K, slots = 2 * K - 1;
  V<T> sum[shifts] = {}, window[shifts];
#pragma GCC unroll 16
  for (int i = 0; i + 1 < shifts; ++i) window[i] = other[K - 1 + first + i];
  for (int64_t w = K - 1; w < columns; ++w) {
    window[shifts - 1] = other[w + K - 1];
    const V<T> x = base[w];
#pragma GCC unroll 16
    for (int i = 0; i < shifts; ++i) sum[i] += x * window[i];
#pragma GCC unroll 16
    for (int i = 0; i + 1 < shifts; ++i) window[i] = window[i + 1];
  }
#pragma GCC unroll 16
  for (int i = 0; i < shifts; ++i) zone[i * slots] += sum[i];
#pragma GCC unroll 8
  for (int e = 0; e < K - 1; ++e) {
    const V<T> left = base[e], right = base[columns + e];
#pragma GCC unroll 16
    for (int i = 0; i < shifts; ++i) {
      const int shift = first + i;
      if (e + shift >= 0) zone[i * slots + 1 + e] += left * other[e + shift];
      if (e + shift < K - 1) zone[i * slots + K + e] += right * other[columns + e + shift];
    }
  }
}

template <class T, int K>
void lags(const Conv& c, const Tile& t, const V<T>* x, V<T>* zones, V<T>* out) {
  constexpr int slots = 2 * K - 1, zone = slots * slots;
  const int64_t height = c.kernel[1], rows = t.out[1], columns = t.out[2], taps = c.taps();
  for (int64_t dr = 0; dr < height; ++dr) {
    const int64_t edges =
        height - 1 - dr;  // rows at each end that only some windows contain: zones 1.., then 1+edges..
    for (int64_t i = 0; i < (1 + 2 * edges) * zone; ++i) zones[i] = V<T>{};
    for (int64_t r = 0; r < rows + edges; ++r) {
      V<T>* z = zones + (r < edges ? 1 + r : r < rows ? 0 : 1 + edges + r - rows) * zone;
      const V<T>*base = x + r * t.extent[2], *other = base + dr * t.extent[2];
      if (dr == 0)
        row_products<T, K, true>(base, other, columns, z);
      else
        row_products<T, K, false>(base, other, columns, z);
    }
    const int first = dr == 0 ? 0 : 1 - K;
    for (int shift = first; shift < K; ++shift) {
      const int64_t at = (shift - first) * slots;
      const int begin = shift < 0 ? -shift : 0, end = shift < 0 ? K : K - shift;
      for (int64_t a = 0; a <= edges; ++a) {
        V<T> row[slots];
        for (int s = 0; s < slots; ++s) {
          row[s] = zones[at + s];
          for (int64_t r = a; r < edges; ++r) row[s] += zones[(1 + r) * zone + at + s];
          for (int64_t r = 0; r < a; ++r) row[s] += zones[(1 + edges + r) * zone + at + s];
        }
        for (int b = begin; b < end; ++b) {
          V<T> sum = row[0];
          for (int e = b; e < K - 1; ++e) sum += row[1 + e];
          for (int e = 0; e < b; ++e) sum += row[K + e];
          out[pair_index(taps, a * K + b, (a + dr) * K + b + shift)] = sum;
        }
      }
    }
  }
}

// Three taps against three: every output's products, in registers over a row.
template <class T, bool Diagonal>
INLINE void tap_blocks(const Conv& c, const Tile& t, const V<T>* x, const int64_t* p, const int64_t* q, V<T>* sums) {
  V<T> total[9] = {};
  for (int64_t d = 0; d < t.out[0]; ++d)
    for (int64_t h = 0; h < t.out[1]; ++h) {
      const V<T>* at = x + t.index(d * c.stride[0], h * c.stride[1], 0);
      V<T> sum[9] = {};
      for (int64_t w = 0; w < t.out[2]; ++w, at += c.stride[2]) {
        const V<T> a[3] = {at[p[0]], at[p[1]], at[p[2]]};
        const V<T> b[3] = {at[q[0]], at[q[1]], at[q[2]]};
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i)
#pragma GCC unroll 3
          for (int j = Diagonal ? i : 0; j < 3; ++j) sum[3 * i + j] += a[i] * b[j];
      }
      for (int i = 0; i < 9; ++i) total[i] += sum[i];
    }
  for (int i = 0; i < 9; ++i) sums[i] = total[i];
}

template <class T>
void gram(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  const int64_t taps = c.taps();
  for (int64_t a = 0; a < taps; a += 3)
    for (int64_t b = a; b < taps; b += 3) {
      int64_t p[3], q[3];
      for (int i = 0; i < 3; ++i) {  // beyond the last tap: any, its sums are left out
        p[i] = tap_offset(c, t, a + i < taps ? a + i : 0);
        q[i] = tap_offset(c, t, b + i < taps ? b + i : 0);
      }
      V<T> sums[9];
      if (a == b)
        tap_blocks<T, true>(c, t, x, p, q, sums);
      else
        tap_blocks<T, false>(c, t, x, p, q, sums);
      for (int i = 0; i < 3 && a + i < taps; ++i)
        for (int j = a == b ? i : 0; j < 3 && b + j < taps; ++j) out[pair_index(taps, a + i, b + j)] = sums[3 * i + j];
    }
}

template <class T>
void window_sums(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  for (int64_t tap = 0; tap < c.taps(); ++tap) {
    const V<T>* at = x + tap_offset(c, t, tap);
    V<T> sum{};
    for (int64_t d = 0; d < t.out[0]; ++d)
      for (int64_t h = 0; h < t.out[1]; ++h)
        for (int64_t w = 0; w < t.out[2]; ++w) sum += at[t.index(d * c.stride[0], h * c.stride[1], w * c.stride[2])];
    out[tap] = sum;
  }
}

template <class T>
void squares(const Conv& c, const Tile& t, const V<T>* x, V<T>* out) {
  V<T> total{};
  for (int64_t h = 0; h < t.out[1]; ++h) {
    const V<T>* at = x + t.index(0, h * c.stride[1], 0);
    V<T> sum[4] = {};
    int64_t w = 0;
    for (; w + 4 <= t.out[2]; w += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += at[(w + i) * c.stride[2]] * at[(w + i) * c.stride[2]];
    for (; w < t.out[2]; ++w) sum[0] += at[w * c.stride[2]] * at[w * c.stride[2]];
    total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  *out = total;
}

// The features of one tile that is already in `x`.
template <class T>
void tile_features(const Conv& c, const Plan& p, const Tile& t, const V<T>* x, V<T>* zones, V<T>* out) {
  switch (p.path) {
    case Path::norms:
      return squares<T>(c, t, x, out);
    case Path::lags:
      switch (c.kernel[2]) {
        case 1:
          return lags<T, 1>(c, t, x, zones, out);
        case 2:
          return lags<T, 2>(c, t, x, zones, out);
        case 3:
          return lags<T, 3>(c, t, x, zones, out);
        case 4:
          return lags<T, 4>(c, t, x, zones, out);
        case 5:
          return lags<T, 5>(c, t, x, zones, out);
        case 6:
          return lags<T, 6>(c, t, x, zones, out);
        default:
          return lags<T, 7>(c, t, x, zones, out);
      }
    case Path::gram:
      return gram<T>(c, t, x, out);
    case Path::dual:
      for (int64_t a = 0; a < c.pixels(); ++a)
        for (int64_t b = a; b < c.pixels(); ++b) *out++ = x[a] * x[b];
      return;
    case Path::direct:
      for (int64_t i = 0; i < p.features; ++i) out[i] = x[i];
      return;
    case Path::window_sums:
      return window_sums<T>(c, t, x, out);
  }
}

}  // namespace
