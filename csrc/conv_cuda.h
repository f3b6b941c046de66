// The CUDA kernels as the host queues them on a stream (a cudaStream_t), and how a call is cut into blocks.
#pragma once

#include <algorithm>

#include "conv.h"

namespace nnrelief {

constexpr int kThreads = 128;  // of a block
constexpr int kWarp = 32;
constexpr int kPerThread = 4;    // filters of a thread in phase 2, at most,
constexpr int kFewFilters = 16;  // and one where there are no more than these
constexpr int kLongest = 128;    // products of one float32 sum

HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The samples, or rows, cut into parts: each leaves sums of its own, added in order afterwards.
struct Parts {
  int64_t count, size;
};

// Parts of whole blocks, so many that `programs` per part fill a chip and `bytes` per part stay few.
inline Parts cut(int64_t samples, int64_t block, int64_t programs, int64_t bytes) {
  constexpr int64_t kPrograms = 2048, kPartialBytes = 8 << 20;
  const int64_t most = std::max<int64_t>(1, std::min(ceil_div(kPrograms, programs), kPartialBytes / bytes));
  const int64_t size = ceil_div(ceil_div(samples, block), most) * block;
  return {ceil_div(samples, size), size};
}

// How lags_cuda.cu reads a tile's rows: by vectors, or pixel by pixel, neighbours in memory or not.
enum class Reading : int64_t { vectors, singly, strided };

// Whether every map can be read `piece` neighbouring pixels at a time from its first on.
inline bool whole_loads(const Conv& c, int64_t piece) {
  return c.acts_x[2] == 1 && c.acts_c % piece == 0 && c.acts_n % piece == 0 &&
         reinterpret_cast<uintptr_t>(c.acts) % (piece * item_size(c.acts_type)) == 0;
}

// Of gram_cuda.cu: neighbouring outputs that a thread takes at once, whose columns are `stride` apart; as many as often
// divide a map's width. 0 where it takes them one by one.
HOST_DEVICE constexpr int run_of(int block, int stride) {
  return stride == 2 ? 16 : stride == 1 ? (block == 7 ? 7 : 8) : 0;
}
inline int run_of(const Conv& c, int64_t block) {
  return c.kernel[2] == block && c.dilation[2] == 1 ? run_of(block, static_cast<int>(c.stride[2])) : 0;
}

struct CudaPlan {
  Path path;        // norms, lags, gram, or direct: feature maps in float64
  int64_t samples;  // whose features a block holds at once
  int64_t box[3];   // of gram_cuda.cu: outputs of a tile
  int64_t extent[3];
  int64_t staged;   // of gram_cuda.cu: samples whose tile is in shared memory at once
  int64_t block;    // of gram_cuda.cu: taps of a thread, against as many, 5 or 7
  int64_t slots;    // of gram_cuda.cu: threads that have the same taps of a sample
  int64_t columns;  // of lags_cuda.cu: columns of one thread's tile; of norms_cuda.cu: pixels of one load
  int64_t outputs;  // of lags_cuda.cu: how many outputs a tile has at most,
  Reading reading;  // and how it is read
  int64_t lanes;    // threads of a map, 0 where tiles are staged (gram_cuda.cu) or channels are (norms_cuda.cu)
  int64_t filters;  // of one step of phase 2
  Parts parts;
};

CudaPlan plan_cuda(const Conv& c);

// What phase 1 and 2 leave of each part: sums[part][channel][filter], and where a flag is up float32 was not enough.
struct Partial {
  double* sums;
  int32_t* flags;  // [part][channel]
};

void queue_lags(const Conv& c, const CudaPlan& p, Partial partial, void* stream);
void queue_windows(const Conv& c, const CudaPlan& p, Partial partial, void* stream);
void queue_gram(const Conv& c, const CudaPlan& p, Partial partial, void* stream);

// out[filter][channel of the group] = the sum of all parts; parts whose flag is up, and everything where
// `partial.sums` is null, are scored from their feature maps in float64. `first`: the channel of the layer that channel
// 0 of the activations is.
void queue_finish(const Conv& c, Parts parts, Partial partial, int64_t first, int64_t channels, bool wide, void* out,
                  void* stream);

// Whether the pixels of a map lie one after the other, acts_x[2] apart.
HOST_DEVICE inline bool joined(const Conv& c) {
  return (c.size[1] == 1 || c.acts_x[1] == c.size[2] * c.acts_x[2]) &&
         (c.size[0] == 1 || c.acts_x[0] == c.size[1] * c.size[2] * c.acts_x[2]);
}

// norms[part][channel] = sum over the part's samples of ||x||.
void queue_norms(const Conv& c, const CudaPlan& p, double* norms, void* stream);

// A matrix of |x| whose columns are the pixels of maps: column i = ((ch * size[0] + d) * size[1] + h) * size[2] + w.
struct Columns {
  const void* x;
  Dtype type;
  int64_t rows, row_stride, channels, channel_stride, size[3], stride[3];

  HOST_DEVICE int64_t count() const { return channels * size[0] * size[1] * size[2]; }
};

// sums[part][column] = sum over the part's rows of |x|.
void queue_column_sums(const Columns& columns, Parts parts, double* sums, void* stream);

// total[i] = sums[0][i] + sums[1][i] + ...
void queue_add(const double* sums, int64_t parts, int64_t count, double* total, void* stream);

// out[j][i] = |w_ji| * sum over the parts of factors[part][j / filters * columns + i].
struct Matrix {
  const void* w;
  Dtype type;
  int64_t rows, columns, row_stride, column_stride;
};
void queue_scale(const Matrix& weight, int64_t filters, const double* factors, int64_t parts, bool wide, void* out,
                 void* stream);

}  // namespace nnrelief
