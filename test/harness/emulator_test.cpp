// emulator_test KERNEL: runs one small kernel under every schedule and prints a line for each, "SCHEDULE: outcome".
//
// Outcomes: "right", "wrong" (the kernel's result), or what emulate() threw. test_emulator.py knows what to expect.
// emulator_test speed prints how many lanes are resumed in a second.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <string>

#include "emulator.h"

using namespace ctc_align;

namespace {

constexpr int kSeeds = 24;

struct NoShared {};

template <size_t kCount>
bool all_of(const bool (&statements)[kCount]) {
  return std::all_of(statements, statements + kCount, [](bool statement) { return statement; });
}

template <class Device, class T>
T sum_of_warp(T value) {
  for (int mask = 16; mask > 0; mask /= 2) value += Device::shuffle_xor(value, mask);
  return value;
}

// Every word that warps have, with values whose results are short formulas.
template <class Device>
void use_every_warp_word(bool* right) {
  const int lane = Device::lane();
  int scan = lane;
  for (int delta = 1; delta < 32; delta *= 2) {
    const int left = Device::shuffle_up(scan, delta);
    if (lane >= delta) scan += left;
  }
  bool all = scan == lane * (lane + 1) / 2;
  all &= sum_of_warp<Device>(0.5 * lane) == 248;
  all &= Device::shuffle(uint64_t{1} << lane, lane + 31) == uint64_t{1} << (lane + 31) % 32;
  all &= Device::ballot(lane % 3 == 0) == 0x49249249;
  all &= Device::any(lane == 17) && !Device::any(lane == 32);
  Device::warp_barrier();
  right[Device::block() * Device::threads_per_block() + Device::thread()] = all && Device::thread() % 32 == lane;
}

bool every_warp_word(const Options& options) {
  bool right[3 * 64] = {};
  emulate<NoShared>(3, 64, options, [&](NoShared&) { use_every_warp_word<EmulatedDevice>(right); });
  return all_of(right);
}

// Sums of kRows rows, each by the whole block. The first barrier makes the warps' sums visible, the second one keeps
// them until all warps have read them.
constexpr int kWarps = 4, kRows = 5;

struct SumShared {
  int of_warp[kWarps];
};

template <class Device, bool kFirstBarrier, bool kSecondBarrier>
void sum_rows(SumShared& shared, int* sums) {
  for (int row = 0; row < kRows; ++row) {
    const int of_warp = sum_of_warp<Device>(row * Device::thread());
    if (Device::lane() == 0) shared.of_warp[Device::warp()] = of_warp;
    if (kFirstBarrier) Device::block_barrier();
    if (Device::thread() == 32) {
      sums[Device::block() * kRows + row] = std::accumulate(shared.of_warp, shared.of_warp + kWarps, 0);
    }
    if (kSecondBarrier) Device::block_barrier();
  }
}

template <bool kFirstBarrier, bool kSecondBarrier>
bool block_sum(const Options& options) {
  constexpr int kBlocks = 3, kThreads = 32 * kWarps;
  int sums[kBlocks * kRows] = {};
  emulate<SumShared>(kBlocks, kThreads, options,
                     [&](SumShared& shared) { sum_rows<EmulatedDevice, kFirstBarrier, kSecondBarrier>(shared, sums); });
  for (int i = 0; i < kBlocks * kRows; ++i) {
    if (sums[i] != i % kRows * (kThreads * (kThreads - 1) / 2)) return false;
  }
  return true;
}

// Lanes exchange values through shared memory, which every block finds poisoned.
struct ExchangeShared {
  uint32_t values[32];
};

template <class Device, bool kBarrier>
void exchange_lanes(ExchangeShared& shared, bool* right) {
  const uint32_t lane = Device::lane(), poison = shared.values[lane];
  Device::warp_barrier();
  shared.values[lane] = lane;
  if (kBarrier) Device::warp_barrier();
  right[Device::block() * 32 + lane] = poison == 0xFFFFFFFF && shared.values[lane ^ 1] == (lane ^ 1);
}

template <bool kBarrier>
bool exchange(const Options& options) {
  bool right[3 * 32] = {};
  emulate<ExchangeShared>(3, 32, options,
                          [&](ExchangeShared& shared) { exchange_lanes<EmulatedDevice, kBarrier>(shared, right); });
  return all_of(right);
}

// A chain: chunk i hands the sum over chunks 0..i to chunk i+1, one value a round. What is left out breaks it.
enum class Chain { kComplete, kNoTicket, kNoPublishing, kPublishedTooEarly };

constexpr int kChunks = 7, kRounds = 4;

struct ChainShared {
  uint32_t chunk;
};
struct ChainMemory {
  uint32_t tickets = 0;
  uint32_t rounds_done[kChunks] = {};
  int sums[kChunks][kRounds] = {};
};

template <class Device, Chain kChain>
void sum_along_chain(ChainShared& shared, ChainMemory* memory) {
  if (Device::thread() == 0) {
    shared.chunk = kChain == Chain::kNoTicket ? Device::block() : Device::take_ticket(&memory->tickets);
  }
  Device::block_barrier();
  const uint32_t chunk = shared.chunk;
  for (uint32_t round = 0; round < kRounds; ++round) {
    if (Device::thread() == 0) {
      int sum = static_cast<int>(chunk + round);
      if (chunk > 0) {
        while (Device::load_acquire(&memory->rounds_done[chunk - 1]) <= round) Device::pause();
        sum += memory->sums[chunk - 1][round];
      }
      if (kChain == Chain::kPublishedTooEarly) Device::store_release(&memory->rounds_done[chunk], round + 1);
      memory->sums[chunk][round] = sum;
      if (kChain == Chain::kComplete || kChain == Chain::kNoTicket) {
        Device::store_release(&memory->rounds_done[chunk], round + 1);
      }
    }
    Device::warp_barrier();
  }
}

template <Chain kChain>
bool chain(const Options& options) {
  ChainMemory memory;
  emulate<ChainShared>(kChunks, 64, options,
                       [&](ChainShared& shared) { sum_along_chain<EmulatedDevice, kChain>(shared, &memory); });
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    for (int round = 0; round < kRounds; ++round) {
      if (memory.sums[chunk][round] != chunk * (chunk + 1) / 2 + (chunk + 1) * round) return false;
    }
  }
  return true;
}

// One warp makes the others wait with 64-bit words while it works: pausing is not a deadlock.
template <class Device>
void wait_for_slow_warp(uint64_t* word, int* sum) {
  if (Device::warp() == 0) {
    int value = 1;
    for (int i = 0; i < 1000; ++i) value = Device::shuffle_xor(value, 1);
    if (Device::lane() == 0) Device::store_relaxed(word, value);
  } else {
    while (!Device::any(Device::lane() == 5 && Device::load_relaxed(word) == 1)) Device::pause();
    if (Device::lane() == 0) ++*sum;
  }
}

bool slow_warp(const Options& options) {
  uint64_t word = 0;
  int sum = 0;
  emulate<NoShared>(1, 128, options, [&](NoShared&) { wait_for_slow_warp<EmulatedDevice>(&word, &sum); });
  return sum == 3;
}

// The kernel must not return.
template <class Kernel>
bool must_throw(const Options& options, Kernel kernel) {
  emulate<NoShared>(2, 64, options, [&](NoShared&) { kernel(EmulatedDevice()); });
  return false;
}

bool different_words(const Options& options) {
  return must_throw(options, [](auto device) { device.lane() < 16 ? device.any(true) : device.shuffle(1, 0); });
}
bool different_numbers(const Options& options) {
  return must_throw(options, [](auto device) { device.shuffle_up(1, device.lane() < 16 ? 1 : 2); });
}
bool different_lines(const Options& options) {
  return must_throw(options, [](auto device) {
    if (device.lane() == 3) device.warp_barrier();
    if (device.lane() != 3) device.warp_barrier();
  });
}
bool different_barriers(const Options& options) {
  return must_throw(options, [](auto device) {
    if (device.warp() == 0) device.block_barrier();
    if (device.warp() != 0) device.block_barrier();
  });
}
bool lane_exits(const Options& options) {
  return must_throw(options, [](auto device) {
    if (device.lane() == 31) return;
    device.shuffle_up(1, 1);
  });
}
bool warp_exits(const Options& options) {
  return must_throw(options, [](auto device) {
    if (device.warp() == 1) return;
    device.block_barrier();
  });
}
bool kernel_throws(const Options& options) {
  return must_throw(options, [](auto device) {
    device.warp_barrier();
    if (device.thread() == 40) throw std::runtime_error("thrown by kernel text");
    device.block_barrier();
  });
}

const std::map<std::string, std::function<bool(const Options&)>> kKernels = {
    {"every_warp_word", every_warp_word},
    {"block_sum", block_sum<true, true>},
    {"block_sum_without_first_barrier", block_sum<false, true>},
    {"block_sum_without_second_barrier", block_sum<true, false>},
    {"exchange", exchange<true>},
    {"exchange_without_barrier", exchange<false>},
    {"chain", chain<Chain::kComplete>},
    {"chain_without_ticket", chain<Chain::kNoTicket>},
    {"chain_without_publishing", chain<Chain::kNoPublishing>},
    {"chain_published_too_early", chain<Chain::kPublishedTooEarly>},
    {"slow_warp", slow_warp},
    {"different_words", different_words},
    {"different_numbers", different_numbers},
    {"different_lines", different_lines},
    {"different_barriers", different_barriers},
    {"lane_exits", lane_exits},
    {"warp_exits", warp_exits},
    {"kernel_throws", kernel_throws},
};

void print_outcome(const std::string& name, const std::string& schedule, const Options& options) {
  std::string outcome;
  try {
    outcome = kKernels.at(name)(options) ? "right" : "wrong";
  } catch (const std::runtime_error& error) {
    outcome = error.what();
  }
  for (char& c : outcome) c = c == '\n' ? ';' : c;
  std::printf("%s: %s\n", schedule.c_str(), outcome.c_str());
}

void print_speed() {
  const auto start = std::chrono::steady_clock::now();
  const uint64_t resumed = emulate<NoShared>(4, 256, Options(), [](NoShared&) {
    for (int i = 0; i < 10000; ++i) EmulatedDevice::shuffle_up(i, 1);
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.3g lanes resumed in %.3g s: %.3g a second\n", 1.0 * resumed, seconds, resumed / seconds);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count == 2 ? arguments[1] : "";
  if (name == "speed") {
    print_speed();
  } else if (kKernels.count(name)) {
    print_outcome(name, "in order", {2, Schedule::kInOrder, 0});
    print_outcome(name, "reversed", {2, Schedule::kReversed, 0});
    for (int seed = 0; seed < kSeeds; ++seed) {
      print_outcome(name, "random " + std::to_string(seed), {2 + seed % 3, Schedule::kRandom, uint64_t(seed)});
    }
  } else {
    std::fprintf(stderr, "usage: emulator_test KERNEL | speed\n");
    return 2;
  }
}
