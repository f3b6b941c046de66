// Which CUDA kernels a convolution takes, and in what blocks: by shapes, strides and types alone.
//
//   norms   1x1 kernels: |w_ij| * sum_n ||x_ni||, read where the maps lie
//   lags    3x3 kernels with stride 1 or 2 and dilation 1 on zero-padded maps: a product sum per lag
//   gram    every pair of taps: of other 3x3 kernels in registers, of other kernels from tiles in shared memory
//   direct  the feature maps themselves, in float64: float64 inputs, the one summed map of "norm_of_mean" and "l1", and
//           kernels whose Gram matrices or tiles are too large for shared memory
#include "conv_cuda.h"

namespace nnrelief {
namespace {

constexpr int64_t kMostTaps = 64;
constexpr int64_t kSamples = 32;  // whose features a block holds (forms_3x3.h), more where it has more maps at once
constexpr int64_t kFeatureBytes = 21 << 10;  // of a block's samples; all its shared memory stays below 48 KiB
constexpr int64_t kTilePixels = 2560;        // of float32 in shared memory
constexpr int64_t kMultiprocessors = 132;
constexpr int64_t kBlocks = 2 * kMultiprocessors;  // that fill a chip
constexpr int64_t kTileColumns = 4;                // what a tile of lags_cuda.cu costs, in columns
constexpr int64_t kWidestStep = 1 << 26;           // from pixel to pixel, where a tile's are reached in 32 bits
constexpr int64_t kLoads = 8;                      // of a thread of norms_cuda.cu
constexpr int64_t kRows = 1024;                    // of a 3x3 kernel's input whose places are in shared memory

bool norms_serve(const Conv& c) {
  return c.taps() == 1 && c.before[0] + c.before[1] + c.before[2] == 0 && c.positions() == c.pixels();
}

// Threads side by side on a map's pixels, with at least kLoads loads for each, or on neighbouring channels.
void choose_lanes(const Conv& c, CudaPlan& p) {
  const bool pieces = joined(c) && c.pixels() % 4 == 0 && whole_loads(c, 4);
  const bool channels = c.acts_c == 1 && c.acts_x[2] != 1 && c.channels >= 16;
  p.columns = pieces ? 4 : 1;
  p.lanes = channels ? 0 : 1;
  while (!channels && p.lanes < kWarp && 2 * p.lanes * kLoads * p.columns <= c.pixels()) p.lanes *= 2;
  const int64_t programs = channels ? ceil_div(c.channels, kWarp) : c.channels;
  p.parts = cut(c.samples, kThreads / (channels ? kWarp : p.lanes), programs, 8 * c.channels);
}

// Tiles of columns for lags_cuda.cu; false where none serve. Wide ones take least for a pixel, narrow ones have the
// threads for all multiprocessors where maps are few.
bool choose_columns(const Conv& c, CudaPlan& p) {
  const int64_t stride = c.stride[2], width = c.size[2], wide = c.out[2];
  if (c.kernel[0] != 1 || c.kernel[1] != 3 || c.kernel[2] != 3 || c.size[0] != 1 || c.out[0] != 1) return false;
  for (int d = 1; d < 3; ++d)
    if (c.stride[d] > 2 || c.stride[d] != stride || c.dilation[d] > 1) return false;
  if (c.before[2] > 2 || c.acts_x[2] >= kWidestStep) return false;
  if (c.padding != Padding::zeros &&
      (c.span(1, c.out[1]) > c.size[1] || c.span(2, wide) > width || c.before[1] || c.before[2]))
    return false;
  int64_t least = 0;
  const auto consider = [&](int64_t columns, Reading reading) {
    int64_t lanes = 1;
    while (lanes * (columns / stride) < wide) lanes *= 2;
    if (lanes > 32) return;
    const int64_t blocks = ceil_div(c.samples * lanes, kThreads) * c.channels;
    const int64_t cost = ceil_div(blocks, kMultiprocessors) * (columns + kTileColumns);
    if (least > 0 && cost >= least) return;
    least = cost;
    p.columns = columns;
    p.reading = reading;
    p.lanes = lanes;
    p.outputs = reading == Reading::vectors ? columns / stride : ceil_div(wide, lanes);
  };
  if (c.before[2] == 1 && width == stride * wide && c.acts_x[1] % 4 == 0 && whole_loads(c, 4)) {
    for (const int64_t columns : {28, 32, 16, 8})
      if (width % columns == 0) consider(columns, Reading::vectors);
  }
  if (least == 0 && c.acts_x[2] == 1) {
    if (stride * wide > 8) consider(16, Reading::singly);
    consider(8, Reading::singly);
  } else if (least == 0) {
    consider(8, Reading::strided);
  }
  // a tile of one output has no window in common with its neighbours'
  return least > 0 && (stride == 2 || (wide - 1) % p.outputs > 0);
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
  int64_t samples = kSamples;
  while (samples > 2 && samples * taps * (taps + 1) / 2 * 4 > kFeatureBytes) samples /= 2;
  return samples;
}

// Filters of one step of phase 2 in forms_3x3.h.
int64_t step_filters_3x3(const Conv& c) { return std::min<int64_t>(64, ceil_div(c.filters, 8) * 8); }

// The same in forms.h: few enough to lie in shared memory, with as few left unused in the last step as can be.
int64_t step_filters(const Conv& c) {
  if (c.filters <= kFewFilters) return c.filters <= kFewFilters / 2 ? kFewFilters / 2 : kFewFilters;
  int64_t step = 8 * kPerThread;
  const auto covered = [&](int64_t filters) { return ceil_div(c.filters, filters) * filters; };
  constexpr int64_t most = 3584;  // elements of kernels
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
  const int64_t run = std::max<int64_t>(1, run_of(c, p.block));
  p.staged = 1;
  p.box[0] = 1;
  p.box[1] = c.out[1];
  p.box[2] = c.out[2];
  while (pixels() > kTilePixels || p.box[1] * p.box[2] > kLongest * slots()) {
    if (p.box[1] == 1 && p.box[2] == 1) return false;
    const int d = p.box[1] > 1 && (p.box[1] >= p.box[2] || p.box[2] <= run) ? 1 : 2;
    const int64_t whole = d == 2 && p.box[2] > run ? run : 1;
    p.box[d] = ceil_div(p.box[d], 2 * whole) * whole;
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
    choose_lanes(c, p);
    return p;
  }
  p.samples = block_samples(c.taps());
  p.filters = step_filters_3x3(c);
  int64_t block = p.samples;
  if (choose_columns(c, p)) {
    p.path = Path::lags;
    p.samples = std::max(kSamples, kThreads / p.lanes);
    block = part_samples(c, p.samples, kThreads / p.lanes);
  } else if ((p.lanes = window_lanes(c)) > 0) {
    p.path = Path::gram;
    block = part_samples(c, p.samples, kThreads / p.lanes);
  } else {
    p.filters = step_filters(c);
    block = p.samples = part_samples(c, p.samples, 2);
    if (c.taps() > kMostTaps || !choose_tile(c, p)) return p;
    p.path = Path::gram;
  }
  p.parts = cut(c.samples, block, c.channels, 8 * c.channels * c.filters);
  return p;
}

}  // namespace nnrelief
