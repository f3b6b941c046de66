// The choice of a path. Costs are vector multiply-adds per map and lane-full of samples, as counted on paper and
// checked by measurement: what matters is where the minimum lies.
//
//   norms        1x1 kernels: |w_ij| * sum_n ||x_ni||
//   window_sums  "l1": every tap's window summed once, over the sum of all maps
//   lags         dilation 1, columns at most 2 apart, kernels up to 7x7: a product sum per lag and its edges; then as
//                gram
//   gram         every pair of taps: F = k²(k²+1)/2 features, F per filter in phase 2
//   dual         maps with fewer pixels P than taps: the norm as a quadratic form of the map instead of the kernel,
//                F = P(P+1)/2; the kernels' P x P forms are made once per layer
//   direct       vᵀU itself: few filters (depthwise) or few outputs under large kernels, L k² per filter
#include <algorithm>

#include "conv.h"

namespace nnrelief {
namespace {

constexpr int64_t kTileColumns = 64, kTileRows = 32;  // the longest float32 sums of phase 1
constexpr int64_t kFeatures = 8192;
constexpr int64_t kDirectFilters = 64;  // of one pass over the maps
constexpr int64_t kTableBytes = 512 << 10;
constexpr int64_t kPackedBytes = 1 << 20;
constexpr double kRoot = 8;  // of one vector

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool lags_serve(const Conv& c, const int64_t* tile) {
  for (int d = 0; d < 3; ++d)
    if (c.kernel[d] > 1 && c.dilation[d] > 1) return false;
  if (c.kernel[0] > 1 || c.stride[0] > 1 || c.stride[2] > 2 || c.kernel[1] > 7 || c.kernel[2] > 7) return false;
  for (int d = 1; d < 3; ++d) {
    const int64_t tiles = ceil_div(c.out[d], tile[d]);
    if (c.out[d] - (tiles - 1) * tile[d] < c.kernel[d] - 1) return false;
  }
  return true;
}

// Multiply-adds of `lags` for one map: a row of products for every row of a tap's class and its partner.
double lag_products(const Conv& c) {
  double rows = 0, columns = 0, below = 0;
  for (int64_t top = 0; top < std::min(c.stride[1], c.kernel[1]); ++top)
    for (int64_t dr = 0; top + dr < c.kernel[1]; ++dr) {
      const double count = c.out[1] + (c.kernel[1] - dr - top - 1) / c.stride[1];
      (dr == 0 ? rows : below) += count;
    }
  double half = 0;
  for (int64_t q = 0; q < std::min(c.stride[2], c.kernel[2]); ++q) {
    const int64_t taps = (c.kernel[2] - q + c.stride[2] - 1) / c.stride[2];
    const double count = c.out[2] + taps - 1;
    half += count * (c.kernel[2] - q);
    columns += count * (c.kernel[2] + c.stride[2] * (taps - 1));
  }
  return c.out[0] * (rows * half + below * columns);
}

void choose_path(const Conv& c, Plan& p) {
  const double taps = c.taps(), positions = c.positions(), pixels = c.pixels(), filters = c.filters;
  const double features = taps * (taps + 1) / 2, dual = pixels * (pixels + 1) / 2;
  if (c.variant == Variant::l1) {
    p.path = Path::window_sums;
    p.features = c.taps();
    return;
  }
  if (c.taps() == 1) {
    p.path = Path::norms;
    p.features = 1;
    p.in_place = !p.wide && (c.acts_c != 1 || c.channels == 1) && c.before[0] + c.before[1] + c.before[2] == 0 &&
                 c.positions() == c.pixels();
    return;
  }
  double least = 1e300;
  const auto offer = [&](Path path, double cost, double count) {
    if (cost >= least || count > kFeatures) return;
    least = cost;
    p.path = path;
    p.features = (int64_t)count;
  };
  if (lags_serve(c, p.tile))
    offer(Path::lags, 1.3 * lag_products(c) + 6 * features + filters * (features + kRoot), features);
  offer(Path::gram, 1.1 * positions * features + filters * (features + kRoot), features);
  const double sample_vectors = std::max(1.0, c.samples / 16.0);
  offer(Path::dual, dual + filters * (dual + kRoot + 2 * positions * (taps + dual) / (16 * sample_vectors)), dual);
  const double passes = ceil_div(c.filters, kDirectFilters);
  offer(Path::direct, filters * (positions * (1.15 * taps + 1) + kRoot) + passes * pixels,
        ceil_div(c.filters, (int64_t)passes));
}

}  // namespace

Plan make_plan(const Conv& c, Width width) {
  Plan p{};
  p.mean = c.variant != Variant::paper;
  p.wide = p.mean || c.acts_type == Dtype::f64 || c.weight_type == Dtype::f64;
  const int64_t lanes = p.wide ? width.lanes64 : width.lanes32, bytes = p.wide ? 8 : 4;

  p.tile[0] = 1;
  p.tile[1] = ceil_div(c.out[1], ceil_div(c.out[1], kTileRows));  // tiles of nearly equal size
  p.tile[2] = ceil_div(c.out[2], ceil_div(c.out[2], kTileColumns));
  choose_path(c, p);
  if (p.features == 0) return p;
  if (p.path == Path::dual) std::copy(c.out, c.out + 3, p.tile);
  p.tile_size = 1;
  for (int d = 0; d < 3; ++d) {
    p.tiles[d] = ceil_div(c.out[d], p.tile[d]);
    p.tile_size *= p.path == Path::dual ? c.size[d] : c.span(d, p.tile[d]);
  }
  p.columns = p.path == Path::norms ? 1 : c.filters;

  const bool direct = p.path == Path::direct, neighbours = c.acts_c == 1 && c.acts_x[2] != 1 && c.channels > 1;
  // vectors of phase 1, part of whose lanes stay empty
  const int64_t by_samples = ceil_div(c.samples, lanes) * c.channels,
                by_channels = c.samples * ceil_div(c.channels, lanes);
  const bool fuller = direct ? by_channels <= by_samples && c.channels > 1
                             : 6 * by_channels < 5 * by_samples && (c.channels > 3 * lanes || c.samples < lanes / 2);
  const bool fits = lanes * lanes * p.features * bytes <= (2 << 20);
  p.channel_lanes = !p.in_place && (p.mean || ((neighbours || fuller) && fits));
  const int64_t block = lanes * p.features * bytes * (p.channel_lanes ? lanes : 1);
  p.blocks = std::clamp<int64_t>(kTableBytes / block, 1, 16);

  const int64_t most = std::max<int64_t>(1, kTableBytes / (bytes * p.features * width.filters)) * width.filters;
  p.filter_block = direct ? p.features : std::min(p.columns, most);

  p.item_channels = p.channel_lanes ? lanes : std::clamp<int64_t>(c.channels / 64, 1, 16);
  p.channel_items = ceil_div(c.channels, p.item_channels);
  const int64_t kernels = c.filters * c.taps() * p.item_channels * item_size(c.weight_type);
  const bool tables = p.path != Path::norms && p.path != Path::direct;
  p.packed = tables && c.groups == 1 && p.item_channels > 1 && kernels <= kPackedBytes ? kernels : 0;
  p.chunks = 1;
  if (!p.mean) {
    // loading filters into lanes is little work, a table for phase 2 is that of many samples
    const int64_t partial = 8 * p.columns * c.channels, quantum = direct ? 2 : lanes * 4;
    p.chunks = std::max<int64_t>(
        1, std::min({ceil_div(c.samples, quantum), ceil_div(64, p.channel_items), (int64_t)(8 << 20) / partial}));
  }
  const int64_t whole = p.channel_lanes ? 1 : lanes;
  p.chunk = ceil_div(ceil_div(c.samples, p.chunks), whole) * whole;
  p.chunks = ceil_div(c.samples, p.chunk);
  return p;
}

}  // namespace nnrelief
