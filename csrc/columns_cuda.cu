// Column sums of |x| in float64, as fast as memory, and the outer products made of them: fully connected layers, 1x1
// convolutions, and the sum of a layer's maps over samples.
#include "magnitude.h"

namespace nnrelief {
namespace {

constexpr int kWide = 32;  // columns of a block; its threads share them, every kThreads / kWide-th row each
constexpr int kDeep = kThreads / kWide;

template <class S>
__global__ void __launch_bounds__(kThreads) column_sums(Columns c, Parts parts, double* sums) {
  __shared__ double memory[kThreads];
  const int64_t columns = c.count();
  const Block block((columns + kWide - 1) / kWide);
  const int64_t i = block.index * kWide + threadIdx.x % kWide, end = part_end(parts, block.part, c.rows);
  double sum[4] = {};
  if (i < columns) {
    const uint32_t pixels = c.size[0] * c.size[1] * c.size[2], ch = static_cast<uint32_t>(i) / pixels;
    const Place place(static_cast<uint32_t>(i) % pixels, c.size);
    const S* x = static_cast<const S*>(c.x) + ch * c.channel_stride + place.offset(c.stride);
    int64_t row = block.part * parts.size + threadIdx.x / kWide;
    for (; row + 3 * kDeep < end; row += 4 * kDeep) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] += magnitude(x[(row + k * kDeep) * c.row_stride]);
    }
    for (; row < end; row += kDeep) sum[0] += magnitude(x[row * c.row_stride]);
  }
  memory[threadIdx.x] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  __syncthreads();
  if (threadIdx.x >= kWide || i >= columns) return;
  double total = 0;
  for (int k = 0; k < kDeep; ++k) total += memory[k * kWide + threadIdx.x];
  sums[block.part * columns + i] = total;
}

__global__ void __launch_bounds__(kThreads) add_parts(const double* sums, int64_t parts, int64_t count, double* total) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  total[i] = strided_sum<8>(sums + i, count, parts);
}

// A block: kHigh filters of a group against kWide columns, whose factors it adds up from their parts first; a part has
// `all` of them.
constexpr int kHigh = 16;

template <class S, class T>
__global__ void __launch_bounds__(kThreads)
    scale(Matrix m, int64_t filters, const double* factors, int64_t parts, int64_t all, T* out) {
  __shared__ double memory[kThreads];
  const uint32_t across = (m.columns + kWide - 1) / kWide, down = (filters + kHigh - 1) / kHigh;
  const uint32_t column = blockIdx.x % across * kWide + threadIdx.x % kWide, block = blockIdx.x / across;
  const int64_t group = block / down, first = block % down * kHigh;
  const int64_t part = threadIdx.x / kWide;
  double sum = 0;
  if (column < m.columns)
    sum = strided_sum<4>(factors + group * m.columns + column + part * all, kDeep * all,
                         (parts - part + kDeep - 1) / kDeep);
  memory[threadIdx.x] = sum;
  __syncthreads();
  if (column >= m.columns) return;
  sum = 0;
  for (int k = 0; k < kDeep; ++k) sum += memory[k * kWide + threadIdx.x % kWide];
  const int64_t row = group * filters + first + threadIdx.x / kWide;
  const int left = static_cast<int>(filters - first) - static_cast<int>(threadIdx.x / kWide);
  const S* w = static_cast<const S*>(m.w) + row * m.row_stride + column * m.column_stride;
  T* to = out + row * m.columns + column;
#pragma unroll
  for (int k = 0; k < kHigh; k += kDeep, w += kDeep * m.row_stride, to += kDeep * m.columns)
    if (k < left) *to = static_cast<T>(magnitude(*w) * sum);
}

}  // namespace

void queue_column_sums(const Columns& columns, Parts parts, double* sums, void* stream) {
  const auto queue = [&](auto kernel) {
    launch("column_sums", kernel, parts.count * ceil_div(columns.count(), kWide), kThreads, 0, stream, columns, parts,
           sums);
  };
  if (columns.type == Dtype::f64) return queue(column_sums<double>);
  by_type(columns.type, [&](auto x) { queue(column_sums<decltype(x)>); });
}

void queue_add(const double* sums, int64_t parts, int64_t count, double* total, void* stream) {
  launch("add_parts", add_parts, ceil_div(count, kThreads), kThreads, 0, stream, sums, parts, count, total);
}

void queue_scale(const Matrix& weight, int64_t filters, const double* factors, int64_t parts, bool wide, void* out,
                 void* stream) {
  const int64_t blocks = weight.rows / filters * ceil_div(filters, kHigh) * ceil_div(weight.columns, kWide);
  const int64_t all = weight.rows / filters * weight.columns;
  const auto queue = [&](auto kernel, auto* to) {
    launch("scale", kernel, blocks, kThreads, 0, stream, weight, filters, factors, parts, all, to);
  };
  if (weight.type == Dtype::f64) return queue(scale<double, double>, static_cast<double*>(out));
  by_type(weight.type, [&](auto x) {
    using S = decltype(x);
    if (wide) return queue(scale<S, double>, static_cast<double*>(out));
    queue(scale<S, float>, static_cast<float*>(out));
  });
}

}  // namespace nnrelief
