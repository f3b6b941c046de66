// Which CUDA kernels a convolution takes, and in what blocks: by shapes, strides and types alone.
//
//   norms   1x1 kernels: |w_ij| * sum_n ||x_ni||, read where the maps lie
//   lags    3x3 and 5x5 kernels with stride and dilation 1 on zero-padded maps: a product sum per lag
//   gram    every pair of taps: of 3x3 kernels in registers, of others from tiles in shared memory
//   direct  the feature maps themselves, in float64: float64 inputs, the one summed map of "norm_of_mean" and "l1", and
//           kernels whose Gram matrices or tiles are too large for shared memory
#include "conv_cuda.h"

namespace nnrelief {
namespace {

constexpr int64_t kMostTaps = 64;
constexpr int64_t kFeatureBytes = 20 << 10;  // of a block's samples
constexpr int64_t kTilePixels = 2560;        // of float32 in shared memory
constexpr int64_t kBlocks = 2 * 132;         // that fill a chip
constexpr int64_t kRows = 1024;              // of a 3x3 kernel's input whose places are in shared memory

bool norms_serve(const Conv& c) {
  return c.taps() == 1 && c.before[0] + c.before[1] + c.before[2] == 0 && c.positions() == c.pixels();
}

// Neighbouring columns of one thread, 0 where lags do not serve.
int64_t lag_columns(const Conv& c) {
  const int64_t k = c.kernel[1], width = c.size[2];
  if (c.kernel[0] != 1 || c.size[0] != 1 || c.out[0] != 1 || c.kernel[2] != k || (k != 3 && k != 5)) return 0;
  for (int d = 1; d < 3; ++d)
    if (c.stride[d] > 1 || c.dilation[d] > 1) return 0;
  if (c.padding != Padding::zeros &&
      (c.out[1] > c.size[1] - k + 1 || c.out[2] > c.size[2] - k + 1 || c.before[1] || c.before[2]))
    return 0;
  if (k == 5) return width <= 64 ? 2 : 0;
  return width <= 8 ? 2 : width <= 128 ? 4 : width <= 256 ? 8 : 0;
}

// Threads of a map whose outputs' 3x3 pixels lie in registers, more where that fills the chip; 0 where such kernels do
// not serve.
int64_t window_lanes(const Conv& c) {
  if (c.kernel[0] != 1 || c.kernel[1] != 3 || c.kernel[2] != 3 || c.size[0] != 1 || c.out[0] != 1) return 0;
  if (c.span(1, c.out[1]) > kRows || c.acts_x[2] * c.size[2] >= int64_t{1} << 31) return 0;
  int64_t lanes = c.out[2] > 4 ? 8 : 4;
  while (lanes < 32 && lanes < c.out[2] && ceil_div(c.samples, kThreads / lanes) * c.channels < kBlocks) lanes *= 2;
  return lanes;
}

// Samples of a part: `most`, or down to `least` where the blocks would not fill a chip.
int64_t part_samples(const Conv& c, int64_t most, int64_t least) {
  while (most > least && ceil_div(c.samples, most) * c.channels < kBlocks) most /= 2;
  return most;
}

// Samples whose features a block holds.
int64_t block_samples(int64_t taps) {
  if (taps == 9) return kSamples;
  int64_t samples = kSamples;
  while (samples > 2 && samples * taps * (taps + 1) / 2 * 4 > kFeatureBytes) samples /= 2;
  return samples;
}

// Filters of one step of phase 2: few enough to lie in shared memory, with as few left unused in the last step as can
// be.
int64_t step_filters(const Conv& c) {
  if (c.filters <= kFewFilters) return c.filters <= kFewFilters / 2 ? kFewFilters / 2 : kFewFilters;
  int64_t step = 8 * kPerThread;
  const auto covered = [&](int64_t filters) { return ceil_div(c.filters, filters) * filters; };
  const int64_t most = kThreads * kPerThread * (c.taps() == 9 ? 9 : 7);  // elements of kernels
  while (2 * step <= kThreads * kPerThread && 2 * step * c.taps() <= most && covered(2 * step) <= covered(step))
    step *= 2;
  return step;
}

// A tile of outputs whose inputs fit, as many samples' as fit, and sums short enough; false where none does.
bool choose_tile(const Conv& c, CudaPlan& p) {
  p.block = c.kernel[2] == 7 || (c.kernel[2] != 5 && c.taps() > 25) ? 7 : 5;
  const int64_t groups = ceil_div(c.taps(), p.block), pairs = groups * (groups + 1) / 2;
  const auto pixels = [&] {
    for (int d = 0; d < 3; ++d) p.extent[d] = c.span(d, p.box[d]);
    return p.extent[0] * p.extent[1] * p.extent[2];
  };
  const auto slots = [&] {
    int64_t most = 32;
    while (most > 1 && most * pairs * p.staged > kThreads) most /= 2;
    return most;
  };
  p.staged = 1;
  p.box[0] = 1;
  p.box[1] = c.out[1];
  p.box[2] = c.out[2];
  while (pixels() > kTilePixels || p.box[1] * p.box[2] > kLongest * slots()) {
    if (p.box[1] == 1 && p.box[2] == 1) return false;
    const int d = p.box[1] >= p.box[2] ? 1 : 2;
    p.box[d] = (p.box[d] + 1) / 2;
  }
  while (2 * p.staged <= p.samples && 2 * p.staged * pairs <= kThreads && 2 * p.staged * pixels() <= kTilePixels) {
    p.staged *= 2;
    if (p.box[1] * p.box[2] <= kLongest * slots()) continue;
    p.staged /= 2;
    break;
  }
  p.slots = slots();
  return true;
}

}  // namespace

CudaPlan plan_cuda(const Conv& c) {
  CudaPlan p{};
  p.parts = {1, c.samples};
  p.path = Path::direct;
  if (c.variant != Variant::paper || c.acts_type == Dtype::f64 || c.weight_type == Dtype::f64) return p;
  if (norms_serve(c)) {
    p.path = Path::norms;
    p.parts = cut(c.samples, 1, c.channels, 8 * c.channels);
    return p;
  }
  p.samples = block_samples(c.taps());
  p.filters = step_filters(c);
  p.columns = lag_columns(c);
  p.lanes = window_lanes(c);
  int64_t block = p.samples;
  if (p.columns > 0) {
    p.path = Path::lags;
    if (c.taps() == 25) block = p.samples = kSamples / 2;
  } else if (p.lanes > 0) {
    p.path = Path::gram;
    block = part_samples(c, p.samples, kThreads / p.lanes);
  } else {
    block = p.samples = part_samples(c, p.samples, 2);
    if (c.taps() > kMostTaps || !choose_tile(c, p)) return p;
    p.path = Path::gram;
  }
  p.parts = cut(c.samples, block, c.channels, 8 * c.channels * c.filters);
  return p;
}

}  // namespace nnrelief
