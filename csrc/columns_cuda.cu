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
  double sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * count + i];
  total[i] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) scale(Matrix m, int64_t filters, const double* factors, T* out) {
  const int64_t count = m.rows * m.columns, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const uint32_t row = i / m.columns, column = i - row * m.columns, group = row / static_cast<uint32_t>(filters);
    const double w = magnitude_at<double>(m.w, m.type, row * m.row_stride + column * m.column_stride);
    out[i] = static_cast<T>(w * factors[group * m.columns + column]);
  }
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

void queue_scale(const Matrix& weight, int64_t filters, const double* factors, bool wide, void* out, void* stream) {
  const int64_t blocks = std::min<int64_t>(ceil_div(weight.rows * weight.columns, kThreads), 1 << 16);
  if (wide)
    launch("scale", scale<double>, blocks, kThreads, 0, stream, weight, filters, factors, static_cast<double*>(out));
  else
    launch("scale", scale<float>, blocks, kThreads, 0, stream, weight, filters, factors, static_cast<float*>(out));
}

}  // namespace nnrelief
