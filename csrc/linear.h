// Column sums of |x| and the products |w_ij| sums_i, in float64: as fast as memory, so nothing is gained by less.
#pragma once

#include "fill.h"

namespace {

template <class S>
void column_sums_of(const S* x, int64_t row_stride, int64_t column_stride, int64_t begin, int64_t end, int64_t first,
                    int64_t last, double* sums) {
  constexpr int n = kLanes<double>;
  int64_t row = begin;
  for (; row < end; row += 4) {
    const int64_t rows = end - row < 4 ? end - row : 4;
    const S* at = x + row * row_stride;
    int64_t i = first;
    if (column_stride == 1 && rows == 4) {
      for (; i + n <= last; i += n) {
        V<double> sum;
        memcpy(&sum, sums + i, sizeof(sum));
        sum += (load<double>(at + i) + load<double>(at + row_stride + i)) +
               (load<double>(at + 2 * row_stride + i) + load<double>(at + 3 * row_stride + i));
        memcpy(sums + i, &sum, sizeof(sum));
      }
    }
    for (; i < last; ++i)
      for (int64_t r = 0; r < rows; ++r) sums[i] += load_one<double>(at + r * row_stride + i * column_stride);
  }
}

// Calls with a pointer to the elements' type.
template <class Call>
INLINE void with_elements(const void* x, Dtype type, const Call& call) {
  switch (type) {
    case Dtype::f16:
      return call((const Half*)x);
    case Dtype::bf16:
      return call((const BFloat16*)x);
    case Dtype::f32:
      return call((const float*)x);
    case Dtype::f64:
      return call((const double*)x);
  }
}

void column_sums(const void* x, Dtype type, int64_t row_stride, int64_t column_stride, int64_t begin, int64_t end,
                 int64_t first, int64_t last, double* sums) {
  with_elements(x, type, [&](auto* elements) {
    column_sums_of(elements, row_stride, column_stride, begin, end, first, last, sums);
  });
}

template <class T, class S>
void scale_rows_of(const S* w, int64_t row_stride, int64_t column_stride, int64_t columns, const double* factors,
                   int64_t begin, int64_t end, T* out) {
  constexpr int n = kLanes<double>;
  for (int64_t j = begin; j < end; ++j) {
    const S* at = w + j * row_stride;
    T* row = out + j * columns;
    int64_t i = 0;
    if (column_stride == 1) {
      for (; i + n <= columns; i += n) {
        V<double> factor;
        memcpy(&factor, factors + i, sizeof(factor));
        const auto product = __builtin_convertvector(load<double>(at + i) * factor, Vec<T, n>);
        memcpy(row + i, &product, sizeof(product));
      }
    }
    for (; i < columns; ++i) row[i] = (T)(load_one<double>(at + i * column_stride) * factors[i]);
  }
}

void scale_rows(const void* w, Dtype type, int64_t row_stride, int64_t column_stride, int64_t columns,
                const double* factors, int64_t begin, int64_t end, bool wide, void* out) {
  with_elements(w, type, [&](auto* elements) {
    if (wide)
      scale_rows_of(elements, row_stride, column_stride, columns, factors, begin, end, (double*)out);
    else
      scale_rows_of(elements, row_stride, column_stride, columns, factors, begin, end, (float*)out);
  });
}

}  // namespace
