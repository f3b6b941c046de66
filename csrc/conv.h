// What a convolution's scoring is (Conv), how it will be done (Plan), and the functions each instruction set offers
// (Level).
#pragma once

#include <cstdint>

#include "device.h"

namespace nnrelief {

enum class Dtype { f16, bf16, f32, f64 };
HOST_DEVICE inline int64_t item_size(Dtype type) { return type == Dtype::f64 ? 8 : type == Dtype::f32 ? 4 : 2; }
enum class Padding { zeros, reflect, replicate, circular };
enum class Variant { paper, norm_of_mean, l1 };
enum class Path { norms, lags, gram, dual, direct, window_sums };

// Always three spatial dimensions; those a layer lacks have size 1. Strides are in elements.
struct Conv {
  const void* acts;
  const void* weight;
  Dtype acts_type, weight_type;
  int64_t samples, channels, groups, filters;  // filters of one group
  int64_t acts_n, acts_c, acts_x[3];
  int64_t weight_j, weight_c, weight_x[3];
  int64_t size[3], kernel[3], stride[3], before[3], dilation[3], out[3];
  Padding padding;
  Variant variant;

  HOST_DEVICE int64_t per_group() const { return channels / groups; }
  HOST_DEVICE int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  HOST_DEVICE int64_t positions() const { return out[0] * out[1] * out[2]; }
  HOST_DEVICE int64_t pixels() const { return size[0] * size[1] * size[2]; }
  // Input elements that `outputs` neighbouring outputs span.
  HOST_DEVICE int64_t span(int d, int64_t outputs) const {
    return (outputs - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1;
  }

  // Where position `i` of dimension `d`, which may lie in the padding, reads the map; -1 for a zero.
  HOST_DEVICE int64_t source(int d, int64_t i) const {
    const int64_t n = size[d];
    if (i >= 0 && i < n) return i;
    switch (padding) {
      case Padding::replicate:
        return i < 0 ? 0 : n - 1;
      case Padding::circular:
        return i < 0 ? i + n : i - n;
      case Padding::reflect:
        return i < 0 ? -i : 2 * (n - 1) - i;
      default:
        return -1;
    }
  }
};

// Everything here depends on shapes, strides and types alone, never on the number of threads: so the bits do not
// either.
struct Plan {
  Path path;
  bool wide;           // compute in float64
  bool mean;           // sum the maps over samples first ("norm_of_mean"; "l1" is linear, so it may)
  bool channel_lanes;  // lanes of phase 1 hold neighbouring channels of one sample, not samples of one channel
  bool in_place;       // norms of maps that are read where they lie, lanes along their pixels (norms.h)
  int64_t features;    // numbers that phase 1 leaves of one map
  int64_t columns;     // filters that the item scores (1 for norms, whose result is an outer product)
  int64_t tile[3];     // outputs of one tile
  int64_t tiles[3];
  int64_t tile_size;      // vectors in a tile, halo included
  int64_t blocks;         // vectors of samples between two uses of a filter table
  int64_t filter_block;   // filters in the table
  int64_t item_channels;  // channels of one work item
  int64_t packed;         // bytes of an item's kernels, copied side by side; 0 where they are read in place
  int64_t channel_items;
  int64_t chunks;  // parts the samples are cut into
  int64_t chunk;   // samples of one part
};

// Lanes of the instruction set for float and double, and filters of one phase 2 step.
struct Width {
  int64_t lanes32, lanes64, filters;
};

// The cost model (see plan.cpp); a refused call has features = 0.
Plan make_plan(const Conv& conv, Width width);

struct Level {
  const char* name;
  Width width;
  // Scratch bytes of `score_item`, aligned to 128.
  int64_t (*scratch)(const Conv&, const Plan&);
  // Scores the channels and samples of one item into sums[channel - first channel][filter].
  void (*score_item)(const Conv&, const Plan&, int64_t item, void* scratch, double* sums);
  // sums[i] += sum over rows [begin, end) of |x[row][i]| for columns [first, last).
  void (*column_sums)(const void* x, Dtype type, int64_t row_stride, int64_t column_stride, int64_t begin, int64_t end,
                      int64_t first, int64_t last, double* sums);
  // out[j][i] = |w_ji| factors[i] for the rows [begin, end) of a matrix; float64 where `wide`, else float32.
  void (*scale_rows)(const void* w, Dtype type, int64_t row_stride, int64_t column_stride, int64_t columns,
                     const double* factors, int64_t begin, int64_t end, bool wide, void* out);
};

const Level* level_avx512();  // null where this build lacks it
const Level* level_avx2();
const Level* level_portable();

}  // namespace nnrelief
