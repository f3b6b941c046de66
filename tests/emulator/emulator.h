// CUDA's device language on the host: blocks run in turn, the threads of a
// block as fibres that give way at barriers and shuffles. Shared memory starts
// as NaN and lies between guard bands.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define HOST_DEVICE
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;
struct float2 {
  float x, y;
};
struct uchar2 {
  unsigned char x, y;
};

namespace emulator {

constexpr int kWarp = 32, kStack = 256 << 10, kBand = 4096;

struct Barrier {
  int expected = 0, arrived = 0, round = 0;
};
struct Fibre {
  ucontext_t start;
  jmp_buf place;  // where it gave way: unlike swapcontext, a jump asks nothing of the system
  bool begun;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
};
struct Block {
  std::vector<Fibre> fibres;
  std::vector<Barrier> warps;
  std::vector<uint64_t> lanes;                // what a shuffle exchanges
  std::vector<std::array<float, 6>> factors;  // what a product of matrices takes from each thread
  Barrier all;
  int any;
  bool moved;
  jmp_buf scheduler;
  std::function<void()> body;
  char* memory;
};
inline Block block;
inline bool reversed = false;  // the order in which threads run

inline void give_way() {
  if (!_setjmp(block.fibres[threadIdx.x].place)) _longjmp(block.scheduler, 1);
}

// Until it gives way.
inline void go_on(Fibre& fibre) {
  if (_setjmp(block.scheduler)) return;
  if (fibre.begun) _longjmp(fibre.place, 1);
  fibre.begun = true;
  setcontext(&fibre.start);
}

inline void wait(Barrier& barrier) {
  block.moved = true;
  const int round = barrier.round;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) give_way();
}

inline void enter() {
  block.body();
  block.fibres[threadIdx.x].done = block.moved = true;
  give_way();
}

inline void run_block(const std::string& name, int threads) {
  if (block.fibres.size() < static_cast<size_t>(threads)) block.fibres = std::vector<Fibre>(threads);
  block.warps.assign((threads + kWarp - 1) / kWarp, {kWarp});
  block.lanes.assign(threads, 0);
  block.factors.assign(threads, {});
  block.all = {threads};
  for (int t = 0; t < threads; ++t) {
    Fibre& fibre = block.fibres[t];
    fibre.done = fibre.begun = false;
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.data();
    fibre.start.uc_stack.ss_size = kStack;
    makecontext(&fibre.start, enter, 0);
  }
  for (int left = threads; left > 0;) {
    block.moved = false;
    for (int i = 0; i < threads; ++i) {
      threadIdx.x = reversed ? threads - 1 - i : i;
      Fibre& fibre = block.fibres[threadIdx.x];
      if (fibre.done) continue;
      go_on(fibre);
      left -= fibre.done;
    }
    if (!block.moved) throw std::runtime_error(name + ": threads wait for each other");
  }
}

template <class T>
T exchange(T value, int from) {
  Barrier& warp = block.warps[threadIdx.x / kWarp];
  memcpy(&block.lanes[threadIdx.x], &value, sizeof(value));
  wait(warp);
  memcpy(&value, &block.lanes[threadIdx.x / kWarp * kWarp + from], sizeof(value));
  wait(warp);
  return value;
}

template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block.all); }
inline int __syncthreads_or(int x) {
  __syncthreads();
  emulator::block.any = 0;
  __syncthreads();
  emulator::block.any |= x != 0;
  __syncthreads();
  return emulator::block.any;
}
inline void __syncwarp() { emulator::wait(emulator::block.warps[threadIdx.x / emulator::kWarp]); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, (threadIdx.x % emulator::kWarp) ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by, int width) {
  const int lane = threadIdx.x % emulator::kWarp;
  return emulator::exchange(value, lane % width + by < width ? lane + by : lane);
}
inline unsigned atomicOr(unsigned* p, unsigned x) { return std::exchange(*p, *p | x); }
inline unsigned atomicMax(unsigned* p, unsigned x) { return std::exchange(*p, std::max(*p, x)); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __uint_as_float(uint32_t x) { return emulator::bits<float>(x); }
inline uint32_t __float_as_uint(float x) { return emulator::bits<uint32_t>(x); }
inline double __longlong_as_double(long long x) { return emulator::bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulator::bits<long long>(x); }

namespace nnrelief {

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulator::block.memory);
}

inline float root(float x) { return std::sqrt(x); }

// As the PTX manual lays out mma.m16n8k8 of tf32 numbers: element i of a lane's share of the first factor is at
// (lane / 4 + 8 (i % 2), lane % 4 + 4 (i / 2)), of the second at (lane % 4 + 4 i, lane / 4), and of the product at
// (lane / 4 + 8 (i / 2), 2 (lane % 4) + i % 2).
inline void add_product(float a0, float a1, float a2, float a3, float b0, float b1, float (&total)[4]) {
  const auto tf32 = [](float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); };
  const int lane = threadIdx.x % emulator::kWarp, warp = threadIdx.x - lane;
  emulator::block.factors[threadIdx.x] = {tf32(a0), tf32(a1), tf32(a2), tf32(a3), tf32(b0), tf32(b1)};
  __syncwarp();
  const auto* of = &emulator::block.factors[warp];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; ++k)
      total[i] += of[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] * of[column * 4 + k % 4][4 + k / 4];
  }
  __syncwarp();
}

inline float half_value(uint16_t bits) { return emulator::bits<_Float16>(bits); }

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, int64_t shared, void*,
            A... arguments) {
  if (blocks < 1 || blocks > 0x7fffffff || shared > 48 << 10)
    throw std::runtime_error(std::string(name) + ": invalid launch");
  std::vector<char> memory(shared + 2 * emulator::kBand);
  emulator::block.memory = memory.data() + emulator::kBand;
  emulator::block.body = [&] { kernel(arguments...); };
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::fill(memory.begin(), memory.end(), '\xff');
    emulator::run_block(name, threads);
    const auto untouched = [](char c) { return c == '\xff'; };
    if (!std::all_of(memory.begin(), memory.begin() + emulator::kBand, untouched) ||
        !std::all_of(memory.end() - emulator::kBand, memory.end(), untouched))
      throw std::runtime_error(std::string(name) + ": wrote beyond its shared memory");
  }
}

}  // namespace nnrelief
