// One work item: some channels, one part of the samples, both phases; nothing but the sums leaves it.
#pragma once

#include "direct.h"
#include "norms.h"
#include "signal.h"

namespace {

// The memory to score maps in precision T: `channels` x `blocks` vectors of maps at a time.
template <class T>
struct Worker {
  using Wide = Vec<double, kLanes<T>>;
  V<T>*tile, *zones, *features, *scale, *one_map;
  Wide* total;
  Table<T> table;
  LaneKernels<T> kernels;  // for direct, in place of the table

  Worker(Scratch& s, const Conv& c, const Plan& p, int64_t channels, int64_t blocks) : kernels(s, c, p) {
    const int64_t k = c.kernel[2];
    const bool lag = p.path == Path::lags;
    tile = s.take<V<T>>(p.tile_size);
    zones = s.take<V<T>>(lag ? (2 * c.kernel[1] - 1) * (2 * k - 1) * (2 * k - 1) : 0);
    one_map = s.take<V<T>>(p.features);
    total = s.take<Wide>(p.tiles[0] * p.tiles[1] * p.tiles[2] > 1 ? p.features : 0);
    features = s.take<V<T>>(channels * blocks * p.features);
    scale = s.take<V<T>>(channels * blocks);
    table = take_table<T>(s, c, p);
  }
};

// One tile of |x|; with `mean`, of the sum of |x| over all samples.
template <class T>
void load_tile(const Conv& c, const Plan& p, const Lanes& lanes, const int64_t* first, const Tile& t, V<T>* x,
               Range& range) {
  if (!p.mean) return fill<T>(c, lanes, first, t.extent, x, range);
  for (int64_t i = 0; i < t.extent[0] * t.extent[1] * t.extent[2]; ++i) x[i] = V<T>{};
  Lanes sample = lanes;
  for (int64_t n = 0; n < c.samples; ++n, sample.base += c.acts_n * item_size(c.acts_type))
    fill<T, true>(c, sample, first, t.extent, x, range);
}

// Phase 1 for a vector of maps. In float64 each map is divided by a power of two near its peak, so that no square is
// out of range; `scale` undoes it. (A sum of maps is left as it is.)
template <class T>
void map_features(const Conv& c, const Plan& p, Worker<T>& w, const Lanes& lanes, V<T>* out, V<T>& scale,
                  Range& range) {
  const bool scaled = sizeof(T) == 8 && !p.mean, several = p.tiles[0] * p.tiles[1] * p.tiles[2] > 1;
  V<T> inverse = V<T>{} + 1;
  scale = inverse;
  const auto find_scale = [&](V<T> peak) {
    for (int l = 0; l < kLanes<T>; ++l) {
      double down = 1;
      scale[l] = (T)power_of_two((double)peak[l], down);
      inverse[l] = (T)down;
    }
  };
  const auto size = [](const Tile& t) { return t.extent[0] * t.extent[1] * t.extent[2]; };
  V<T> peak{};
  if (scaled && several) {
    each_tile(c, p, [&](const int64_t* first, const Tile& t) {
      load_tile<T>(c, p, lanes, first, t, w.tile, range);
      for (int64_t i = 0; i < size(t); ++i) peak = larger<T>(w.tile[i], peak);
    });
    find_scale(peak);
  }
  if (several)
    for (int64_t f = 0; f < p.features; ++f) w.total[f] = typename Worker<T>::Wide{};
  each_tile(c, p, [&](const int64_t* first, const Tile& t) {
    load_tile<T>(c, p, lanes, first, t, w.tile, range);
    if (scaled && !several) {
      for (int64_t i = 0; i < size(t); ++i) peak = larger<T>(w.tile[i], peak);
      find_scale(peak);
    }
    if (scaled)
      for (int64_t i = 0; i < size(t); ++i) w.tile[i] *= inverse;
    if (p.path == Path::direct)
      squared_norms<T>(c, t, w.tile, w.kernels, out);
    else
      tile_features<T>(c, p, t, w.tile, w.zones, out);
    if (several)
      for (int64_t f = 0; f < p.features; ++f) w.total[f] += __builtin_convertvector(out[f], typename Worker<T>::Wide);
  });
  if (several)
    for (int64_t f = 0; f < p.features; ++f) out[f] = __builtin_convertvector(w.total[f], V<T>);
}

constexpr float kLargest = 0x1p40f;  // beyond it, or with NaN, a block of maps is scored in float64

// The magnitudes that a block of maps holds, as in Range.
struct BlockRange {
  uint32_t small, large;

  void see(const Range& r, int lane) {
    small = r.small[lane] < small ? r.small[lane] : small;
    large = r.large[lane] > large ? r.large[lane] : large;
  }
  bool outside(float least) const {
    uint32_t low, high;
    memcpy(&low, &least, 4);
    memcpy(&high, &kLargest, 4);
    return small < low - 1 || large > high;
  }
};

// Makes filters [first, first + count) ready; returns the smallest activation that T holds under them.
template <class T>
float load_filters(const Conv& c, const Plan& p, Worker<T>& w, Span channels, int64_t first, int64_t count) {
  if (p.path == Path::norms) return (float)kSmallest;
  if (p.path == Path::direct) return w.kernels.load(c, channels, first, count);
  return build_table<T>(c, p, channels.begin, first, count, w.table);
}

// Phase 2 for the channel in lane `lane` of the filters that are ready.
template <class T>
void add_scores(const Plan& p, const Worker<T>& w, int64_t lane, const Blocks<T>& blocks, int64_t count, double* sums) {
  const double one = 1;
  if (p.path == Path::norms)
    add_roots<T>(p, blocks, &one, 0, count, sums);
  else if (p.path == Path::direct)
    add_roots<T>(p, blocks, (const double*)w.kernels.back + lane, kLanes<T>, count, sums);
  else
    add_norms<T>(p, blocks, w.table, count, sums);
}

// Scores `channels` for filters [first, first + count) over `samples`; sums[channel][filter of all columns].
template <class T>
void score(const Conv& c, const Plan& p, Worker<T>& w, Worker<double>* fallback, Span channels, Span samples,
           int64_t first, int64_t count, BlockRange* ranges, double* sums) {
  constexpr int n = kLanes<T>;
  const int64_t members = channels.end - channels.begin, step = n * p.blocks;
  const bool together = members == 1 || p.path == Path::direct;  // one load of the filters serves all channels
  const int64_t bytes = item_size(c.acts_type);
  const auto map = [&](int64_t sample, int64_t ch) {
    return (const char*)c.acts + (sample * c.acts_n + ch * c.acts_c) * bytes;
  };
  float least = together ? load_filters<T>(c, p, w, channels, first, count) : 0;

  for (int64_t begin = samples.begin; begin < samples.end; begin += step) {
    const int64_t end = smaller(begin + step, samples.end), blocks = (end - begin + n - 1) / n;
    for (int64_t i = 0; i < members * p.blocks; ++i) ranges[i] = {~0u, 0u};
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = begin + b * n, lanes = smaller(n, end - at);
      if (!p.channel_lanes) {
        Range range;
        map_features<T>(c, p, w, {map(at, channels.begin), c.acts_n, lanes}, w.features + b * p.features, w.scale[b],
                        range);
        for (int l = 0; l < n; ++l) ranges[b].see(range, sizeof(T) == 4 ? l : 0);
        continue;
      }
      if (lanes < n)
        for (int64_t m = 0; m < members; ++m)
          for (int64_t f = 0; f < p.features; ++f) w.features[(m * p.blocks + b) * p.features + f] = V<T>{};
      for (int64_t s = 0; s < lanes; ++s) {
        Range range;
        V<T> scale;
        map_features<T>(c, p, w, {map(at + s, channels.begin), c.acts_c, members}, w.one_map, scale, range);
        for (int64_t m = 0; m < members; ++m) {
          T* to = (T*)(w.features + (m * p.blocks + b) * p.features) + s;
          const T* from = (const T*)w.one_map + m;
          for (int64_t f = 0; f < p.features; ++f) to[f * n] = from[f * n];
          ((T*)(w.scale + m * p.blocks + b))[s] = scale[m];
          if (sizeof(T) == 4) ranges[m * p.blocks + b].see(range, (int)m);
        }
      }
      for (int64_t m = 0; m < members; ++m)
        for (int64_t s = lanes; s < n; ++s) ((T*)(w.scale + m * p.blocks + b))[s] = 1;
    }
    for (int64_t m = 0; m < members; ++m) {
      const Span channel = {channels.begin + m, channels.begin + m + 1};
      double* row = sums + m * p.columns + first;
      if (!together) least = load_filters<T>(c, p, w, channel, first, count);
      Blocks<T> inside = {w.features + m * p.blocks * p.features,
                          sizeof(T) == 8 ? w.scale + m * p.blocks : nullptr,
                          end - begin,
                          0,
                          {}};
      bool fell_back = false;
      for (int b = 0; b < blocks; ++b) {
        if (!fallback || !ranges[m * p.blocks + b].outside(least)) {
          inside.which[inside.count++] = b;
          continue;
        }
        if (!fell_back) load_filters<double>(c, p, *fallback, channel, first, count);
        fell_back = true;
        for (int64_t at = begin + b * n; at < smaller(begin + (b + 1) * n, end); at += kLanes<double>) {
          Range range;
          const Lanes lanes = {map(at, channel.begin), c.acts_n, smaller(kLanes<double>, end - at)};
          map_features<double>(c, p, *fallback, lanes, fallback->features, *fallback->scale, range);
          add_scores<double>(p, *fallback, 0, {fallback->features, fallback->scale, lanes.count, 1, {}}, count, row);
        }
      }
      add_scores<T>(p, w, m, inside, count, row);
    }
  }
}

INLINE Span item_channels(const Conv& c, const Plan& p, int64_t item) {
  const int64_t begin = item / p.chunks * p.item_channels;
  return {begin, smaller(begin + p.item_channels, c.channels)};
}

INLINE Span item_samples(const Conv& c, const Plan& p, int64_t item) {
  const int64_t begin = item % p.chunks * p.chunk;
  return p.mean ? Span{0, 1} : Span{begin, smaller(begin + p.chunk, c.samples)};
}

template <class T>
int64_t run_item(const Conv& whole, const Plan& p, int64_t item, char* base, double* sums) {
  Conv c = whole;
  Scratch s{base};
  char* packed = s.take<char>(p.packed);
  const int64_t group = p.channel_lanes ? kLanes<T> : 1;
  BlockRange* ranges = s.take<BlockRange>(group * p.blocks);
  Worker<T> main(s, c, p, group, p.blocks);
  Worker<double>* fallback = nullptr;
  Scratch rest = s;
  if (sizeof(T) == 8) rest.base = nullptr;
  Worker<double> wide(rest, c, p, 1, 1);
  if (sizeof(T) == 4) {
    fallback = &wide;
    s = rest;
  }
  if (!base) return s.used;

  const Span channels = item_channels(c, p, item), samples = item_samples(c, p, item);
  const int64_t begin = channels.begin, end = channels.end;
  if (p.packed) c = pack_kernels(whole, channels, packed);
  for (int64_t i = 0; i < (end - begin) * p.columns; ++i) sums[i] = 0;
  for (int64_t ch = begin; ch < end; ch += group)
    for (int64_t first = 0; first < p.columns; first += p.filter_block)
      score<T>(c, p, main, fallback, {ch, smaller(ch + group, end)}, samples, first,
               smaller(p.filter_block, p.columns - first), ranges, sums + (ch - begin) * p.columns);
  return s.used;
}

// Norms of maps read in place need no scratch memory.
void norm_item(const Conv& c, const Plan& p, int64_t item, double* sums) {
  const Span channels = item_channels(c, p, item), samples = item_samples(c, p, item);
  for (int64_t i = 0; i < channels.end - channels.begin; ++i) sums[i] = 0;
  if (c.acts_type == Dtype::f16)
    add_map_norms<Half>(c, channels, samples, sums);
  else if (c.acts_type == Dtype::bf16)
    add_map_norms<BFloat16>(c, channels, samples, sums);
  else
    add_map_norms<float>(c, channels, samples, sums);
}

int64_t scratch_bytes(const Conv& c, const Plan& p) {
  if (p.in_place) return 0;
  return p.wide ? run_item<double>(c, p, 0, nullptr, nullptr) : run_item<float>(c, p, 0, nullptr, nullptr);
}

void score_item(const Conv& c, const Plan& p, int64_t item, void* scratch, double* sums) {
  if (p.in_place)
    norm_item(c, p, item, sums);
  else if (p.wide)
    run_item<double>(c, p, item, (char*)scratch, sums);
  else
    run_item<float>(c, p, item, (char*)scratch, sums);
}

}  // namespace
