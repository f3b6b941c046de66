// One map at a time, lanes side by side along its pixels, for what needs no Gram matrix: the norms of the maps
// themselves, and v'U where a channel meets so few filters (depthwise convolutions) that G would cost more.
#pragma once

#include "table.h"

namespace {

// |x| of `count` elements `step` apart, as floats. Writes up to a vector of zeros behind them.
template <class S>
INLINE void copy_row(const S* x, int64_t step, int64_t count, float* out) {
  constexpr int n = kLanes<float>;
  const auto put = [&](int64_t i, V<float> value) { memcpy(out + i, &value, sizeof(value)); };
  int64_t i = 0;
  if (step == 1) {
    for (; i + n <= count; i += n) put(i, load<float>(x + i));
    if (i < count) put(i, load_some<float>(x + i, count - i));
  } else if (step == 2) {
    for (; i + n < count; i += n) put(i, evens<float>(load<float>(x + 2 * i), load<float>(x + 2 * i + n)));
    if (i < count) {
      const int64_t left = 2 * (count - i) - 1;
      put(i, evens<float>(load_some<float>(x + 2 * i, smaller(left, n)),
                          left > n ? load_some<float>(x + 2 * i + n, left - n) : V<float>{}));
    }
  } else {
    for (; i < count; ++i) out[i] = load_one<float>(x + i * step);
  }
}

// Whether float32 holds a sum of `count` squares to its full precision: none overflowed, and those that underflowed do
// not show.
INLINE bool holds(double sum, int64_t count) { return sum >= 0x1p-100 * (double)count && sum <= 0x1p120; }

template <class S>
bool is_zero(const Conv& c, const S* x) {
  bool zero = true;
  for (int64_t d = 0; d < c.size[0]; ++d)
    for (int64_t h = 0; h < c.size[1]; ++h)
      for (int64_t w = 0; w < c.size[2]; ++w)
        zero = zero && load_one<float>(x + d * c.acts_x[0] + h * c.acts_x[1] + w * c.acts_x[2]) == 0;
  return zero;
}

// || |K| * |x| || of one map in float64, for the maps and kernels whose squares float32 does not hold.
template <class S>
double norm_in_float64(const Conv& c, const S* x, int64_t ch, int64_t j) {
  const Taps taps{c};
  double sum = 0;
  int64_t l[3], tap[3];
  for (l[0] = 0; l[0] < c.out[0]; ++l[0])
    for (l[1] = 0; l[1] < c.out[1]; ++l[1])
      for (l[2] = 0; l[2] < c.out[2]; ++l[2]) {
        double y = 0;
        int64_t t = 0;
        for (tap[0] = 0; tap[0] < c.kernel[0]; ++tap[0])
          for (tap[1] = 0; tap[1] < c.kernel[1]; ++tap[1])
            for (tap[2] = 0; tap[2] < c.kernel[2]; ++tap[2], ++t) {
              int64_t at = 0;
              bool inside = true;
              for (int d = 0; d < 3; ++d) {
                const int64_t i = c.source(d, l[d] * c.stride[d] + tap[d] * c.dilation[d] - c.before[d]);
                inside = inside && i >= 0;
                at += i * c.acts_x[d];
              }
              if (inside) y += kernel_element(c, ch, j, taps.offset(t)) * (double)load_one<float>(x + at);
            }
        sum += y * y;
      }
  return __builtin_sqrt(sum);
}

// ||x|| of one map.
template <class S>
double map_norm(const Conv& c, const S* x) {
  constexpr int n = kLanes<float>;
  constexpr int64_t most = 64 * n;  // elements between two sums in float64
  alignas(64) float row[most + n];
  int64_t width = c.size[2], rows = c.size[1];
  const int64_t step = c.acts_x[2];
  if (step == 1 && (rows == 1 || c.acts_x[1] == width)) {
    width *= rows;
    rows = 1;
  }
  double total = 0;
  for (int64_t d = 0; d < c.size[0]; ++d)
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t w = 0; w < width; w += most) {
        const int64_t count = smaller(width - w, most);
        const S* at = x + d * c.acts_x[0] + h * c.acts_x[1] + w * step;
        V<float> sum[4] = {};
        const auto add = [&](V<float> value, int64_t i) { sum[i] += value * value; };
        int64_t i = 0;
        if (step == 1) {
          for (; i + 4 * n <= count; i += 4 * n)
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) add(load<float>(at + i + u * n), u);
          for (; i + n <= count; i += n) add(load<float>(at + i), 0);
          if (i < count) add(load_some<float>(at + i, count - i), 1);
        } else {
          copy_row(at, step, count, row);
          for (; i + n <= count; i += n) add(load<float>(row + i), 0);
          if (i < count) add(load_some<float>(row + i, count - i), 1);
        }
        total += sum_lanes<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
      }
  if (holds(total, c.pixels())) return __builtin_sqrt(total);
  total = 0;
  for (int64_t d = 0; d < c.size[0]; ++d)
    for (int64_t h = 0; h < c.size[1]; ++h)
      for (int64_t w = 0; w < c.size[2]; ++w) {
        const double value = load_one<float>(x + d * c.acts_x[0] + h * c.acts_x[1] + w * step);
        total += value * value;
      }
  return __builtin_sqrt(total);
}

// A tile of |x| cut into planes: plane i holds every stride-th row from i, so that the inputs which one tap meets lie
// in one run: q = row * pitch + column passes the outputs, and columns that are none (between two rows, or passed over
// by the stride), which `mask` takes out.
struct Planes {
  static constexpr int kRun = 4;  // vectors side by side
  float* values;
  int64_t* offset;  // of each tap
  Bits* mask;
  int64_t planes, rows, pitch, count, height = 0, width = 0;  // of the tile prepared for
  bool zeros_stay;  // every map's zeros lie in the same places: they are written once

  Planes(Scratch& s, const Conv& c, const Plan& p) {
    zeros_stay = c.padding == nnrelief::Padding::zeros && p.tiles[0] * p.tiles[1] * p.tiles[2] == 1;
    const bool used = p.path == Path::direct;
    Tile largest;
    for (int d = 0; d < 3; ++d) largest.out[d] = p.tile[d];
    const int64_t vectors = used ? set(c, largest) : 0;
    values = s.take<float>(used ? planes * rows * pitch + kRun * kLanes<float> : 0);
    offset = s.take<int64_t>(used ? c.taps() : 0);
    mask = s.take<Bits>(vectors);
  }

  // Sizes for the outputs of `t`; the vectors that they take.
  int64_t set(const Conv& c, const Tile& t) {
    planes = smaller(c.stride[1], (c.kernel[1] - 1) * c.dilation[1] + 1);
    rows = (c.span(1, t.out[1]) + c.stride[1] - 1) / c.stride[1];
    pitch = c.span(2, t.out[2]);
    count = (t.out[1] - 1) * pitch + (t.out[2] - 1) * c.stride[2] + 1;
    return (count + kRun * kLanes<float> - 1) / (kRun * kLanes<float>)*kRun;
  }

  void prepare(const Conv& c, const Tile& t) {
    if (t.out[1] == height && t.out[2] == width) return;
    height = t.out[1];
    width = t.out[2];
    const int64_t vectors = set(c, t);
    memset(values, 0, planes * rows * pitch * sizeof(float));
    for (int64_t a = 0, tap = 0; a < c.kernel[1]; ++a)
      for (int64_t b = 0; b < c.kernel[2]; ++b, ++tap) {
        const int64_t y = a * c.dilation[1];
        offset[tap] = (y % c.stride[1] * rows + y / c.stride[1]) * pitch + b * c.dilation[2];
      }
    for (int64_t i = 0; i < vectors; ++i)
      for (int l = 0; l < kLanes<float>; ++l) {
        const int64_t q = i * kLanes<float> + l, column = q % pitch;
        const bool output = q < count && column % c.stride[2] == 0 && column / c.stride[2] < width;
        mask[i][l] = output ? ~0u : 0u;
      }
  }

  template <class S>
  void fill(const Conv& c, const S* x, const int64_t* first) const {
    // copies: what is stored could, for all the compiler knows, change the originals
    const int64_t rows = this->rows, pitch = this->pitch, stride = c.stride[1], top = first[1], left = first[2];
    const int64_t size = c.size[1], down = c.acts_x[1], step = c.acts_x[2], y_end = c.span(1, height);
    const int64_t begin = left < 0 ? smaller(-left, pitch) : 0;
    const int64_t inside = smaller(c.size[2] - left, pitch), end = inside > begin ? inside : begin;
    const bool stay = zeros_stay;
    const int64_t depth = c.source(0, first[0]);
    const S* slice = x + (depth < 0 ? 0 : depth) * c.acts_x[0];
    float* out = values;
    for (int64_t i = 0; i < planes; ++i)
      for (int64_t r = 0; r < rows; ++r, out += pitch) {
        const int64_t y = i + r * stride;
        int64_t row = top + y;
        if (row < 0 || row >= size) row = y < y_end ? c.source(1, row) : -1;
        if (row < 0 || depth < 0) {
          for (int64_t m = 0; m < pitch && !stay; m += kLanes<float>) memset(out + m, 0, sizeof(V<float>));
          continue;
        }
        // the row first: what it writes behind itself is overwritten by its edge and by the next row
        const S* line = slice + row * down;
        if (end > begin) copy_row(line + (left + begin) * step, step, end - begin, out + begin);
        if (stay) continue;
        for (int64_t m = 0; m < begin; ++m) edge(c, line, left + m, out + m);
        for (int64_t m = end; m < pitch; ++m) edge(c, line, left + m, out + m);
      }
  }

  // A pixel beside the row that starts at `line`.
  template <class S>
  static void edge(const Conv& c, const S* line, int64_t column, float* out) {
    column = c.source(2, column);
    *out = column < 0 ? 0 : load_one<float>(line + column * c.acts_x[2]);
  }

  // || vᵀU ||² of the tile, kernel elements `kFilters` apart.
  double square_sum(int64_t taps, const float* kernel) const {
    constexpr int n = kLanes<float>;
    V<float> sum[kRun] = {};
    for (int64_t q = 0; q < count; q += kRun * n) {
      V<float> y[kRun] = {};
      for (int64_t t = 0; t < taps; ++t) {
        const float* at = values + offset[t] + q;
#pragma GCC unroll 8
        for (int i = 0; i < kRun; ++i) {
          V<float> x;
          memcpy(&x, at + i * n, sizeof(x));
          y[i] += x * kernel[t * kFilters];
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRun; ++i) {
        const V<float> inside = (V<float>)((Bits)y[i] & mask[q / n + i]);
        sum[i] += inside * inside;
      }
    }
    return sum_lanes<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
};

// One channel's kernels.
struct Kernels {
  Table<float> table;
  bool finite;

  const float* of(const Conv& c, int64_t j) const {
    return (const float*)(table.values + j / kFilters * c.taps()) + j % kFilters;
  }
  bool silent(const Conv& c, int64_t j) const {
    bool zero = true;
    for (int64_t t = 0; t < c.taps(); ++t) zero = zero && of(c, j)[t * kFilters] == 0;
    return zero;
  }
};

struct PixelWorker {
  Planes planes;
  Kernels* kernels;  // of each channel of the item
  double* squares;

  PixelWorker(Scratch& s, const Conv& c, const Plan& p) : planes(s, c, p) {
    kernels = s.take<Kernels>(p.item_channels);
    squares = s.take<double>(c.filters);
    for (int64_t m = 0; m < p.item_channels; ++m) {
      const Table<float> table = take_table<float>(s, c, p);
      if (s.base) kernels[m] = {table, false};
    }
  }
};

// Adds the norms of `samples` to sums[channel][filter]. Neighbouring channels are neighbours in memory: sample by
// sample.
template <class S>
void score_pixels(const Conv& c, const Plan& p, PixelWorker& w, Span channels, Span samples, double* sums) {
  const bool direct = p.path == Path::direct;
  for (int64_t ch = channels.begin; direct && ch < channels.end; ++ch) {
    Kernels& kernels = w.kernels[ch - channels.begin];
    kernels.finite = build_table<float>(c, p, ch, 0, c.filters, kernels.table) < kBeyond;
  }
  for (int64_t sample = samples.begin; sample < samples.end; ++sample)
    for (int64_t ch = channels.begin; ch < channels.end; ++ch) {
      const S* x = (const S*)c.acts + sample * c.acts_n + ch * c.acts_c;
      double* row = sums + (ch - channels.begin) * p.columns;
      if (!direct) {
        *row += map_norm(c, x);
        continue;
      }
      const Kernels& kernels = w.kernels[ch - channels.begin];
      for (int64_t j = 0; j < c.filters; ++j) w.squares[j] = 0;
      each_tile(c, p, [&](const int64_t* first, const Tile& t) {
        w.planes.prepare(c, t);
        w.planes.fill(c, x, first);
        for (int64_t j = 0; j < c.filters; ++j) w.squares[j] += w.planes.square_sum(c.taps(), kernels.of(c, j));
      });
      for (int64_t j = 0; j < c.filters; ++j) {
        const double sum = w.squares[j];
        const bool zero = sum == 0 && (kernels.silent(c, j) || is_zero(c, x));
        row[j] += kernels.finite && (zero || holds(sum, c.positions())) ? kernels.table.back[j] * __builtin_sqrt(sum)
                                                                        : norm_in_float64(c, x, ch, j);
      }
    }
}

}  // namespace
