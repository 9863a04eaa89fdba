// Runs the text of CUDA kernels on the host: one fiber a thread, several orders of execution, mistakes reported.
//
// Contents: 1 how to launch  2 fibers  3 lanes, warps, blocks  4 the scheduler  5 the words of kernel text
//
// A kernel is a template on its Device and speaks to the machine through that type's words (section 5) alone:
//
//     Options options;
//     options.schedule = Schedule::kRandom;
//     emulate<Shared>(grid_blocks, threads_per_block, options, [&](Shared& shared) { kernel<EmulatedDevice>(...); });
//
// Order of work. The lanes of a warp run one after the other, each to its next collective. When all 32 stand at the
// SAME one (word, number and source line) they exchange values and the warp is ready again. A warp runs on until it
// waits at a block barrier, pauses or finishes; the schedule says which ready warp comes next, and in which order
// lanes run and blocks arrive. A block arrives when a place among the resident ones is free, with a fresh object of
// shared memory, poisoned with 0xFF bytes: NaN, -1, or the largest number.
//
//     kInOrder, kReversed   the ready warp of the lowest (highest) block, lowest (highest) warp; never interrupted
//     kRandom               the ready warp of highest priority. After collectives, and before and after memory words,
//                           it draws a new priority, by a chance of 1/2, 1/8, 1/32 or 1/128 (two bits of the seed)
//
// Reported as std::runtime_error out of emulate(): lanes of a warp at different collectives; warps of a block at
// different barriers; a lane or warp that exits while others wait for it; a deadlock (every warp waits or pauses, and
// kIdleRounds rounds of polling bring no ticket, changed word or exit). What kernel text throws comes out as well.
//
// A barrier of a block may bring a number (device.cuh); all warps have to bring the same one.
//
// Not seen: the memory model (plain stores are visible at once and in program order, so a missing release, acquire or
// volatile passes); races between plain loads and stores that no interruption uncovers; a loop that polls without
// pause(), and endless loops: they hang. After an error the lanes are dropped as they stand, without destructors.
// One emulate() at a time in a process. Linux.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/device.cuh"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ctc_align {

// ------------------------------------------------------------------------------------------ 1 how to launch

enum class Schedule { kInOrder, kReversed, kRandom };

struct Options {
  int resident_blocks = 2;
  Schedule schedule = Schedule::kInOrder;
  uint64_t seed = 0;  // of kRandom
};

// Returns how often a lane was resumed. Shared: the block's shared memory, trivial; kernel: called as kernel(shared).
template <class Shared, class Kernel>
uint64_t emulate(uint32_t grid_blocks, int threads_per_block, Options options, Kernel&& kernel);

namespace emulator {

// ------------------------------------------------------------------------------------------------- 2 fibers
//
// makecontext() gives a fiber its stack and the compiler's own setjmp and longjmp switch: three words are saved, where
// swapcontext() makes a system call and the library's longjmp() may refuse to change stacks (_FORTIFY_SOURCE).

#define CTC_ALIGN_SWITCH __attribute__((noinline, no_sanitize("address")))

// AddressSanitizer has to know which stack is in use. It keeps `frames` for a stack while that one rests.
inline void depart([[maybe_unused]] void** frames, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(frames, stack, bytes);
#endif
}
inline void arrive([[maybe_unused]] void* frames, [[maybe_unused]] const void** from, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(frames, from, bytes);
#endif
}

// Stacks are used again: memory for them is most of the cost of a small launch. A page below each one is forbidden.
class StackPool {
 public:
  static constexpr size_t kBytes = 256 << 10;  // pages that are never touched cost nothing

  char* take() {
    if (spare_.empty()) {
      void* const pages = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED || mprotect(pages, sysconf(_SC_PAGESIZE), PROT_NONE) != 0) throw std::bad_alloc();
      spare_.push_back(static_cast<char*>(pages));
    }
    char* const stack = spare_.back();
    spare_.pop_back();
    return stack;
  }
  void give_back(char* stack) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kBytes);
#endif
    spare_.push_back(stack);
  }
  ~StackPool() {
    for (char* stack : spare_) munmap(stack, kBytes);
  }

 private:
  std::vector<char*> spare_;
};
inline StackPool stacks;

// A call with a stack of its own: resume() runs `body` until it calls leave(), the next resume() goes on from there.
// The body begins with enter() and never returns.
class Fiber {
 public:
  Fiber() : stack_(stacks.take()) {}
  Fiber(const Fiber&) = delete;
  ~Fiber() { stacks.give_back(stack_); }

  CTC_ALIGN_SWITCH void resume(void (*body)()) {
    void* frames = nullptr;
    depart(&frames, stack_, StackPool::kBytes);
    if (__builtin_setjmp(outside_) == 0) {
      if (started_) jump(inside_);
      start(body);
    }
    arrive(frames, nullptr, nullptr);
  }
  void enter() { arrive(nullptr, &outside_stack_, &outside_bytes_); }
  CTC_ALIGN_SWITCH void leave() {
    void* frames = nullptr;
    depart(&frames, outside_stack_, outside_bytes_);
    if (__builtin_setjmp(inside_) == 0) jump(outside_);
    arrive(frames, &outside_stack_, &outside_bytes_);
  }

 private:
  [[noreturn]] CTC_ALIGN_SWITCH static void jump(void** to) { __builtin_longjmp(to, 1); }

  [[noreturn]] CTC_ALIGN_SWITCH void start(void (*body)()) {
    started_ = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_;
    context.uc_stack.ss_size = StackPool::kBytes;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    setcontext(&context);
    std::abort();
  }

  char* const stack_;
  bool started_ = false;
  void* inside_[5];   // where leave() was called, and
  void* outside_[5];  // where resume() was
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
};

// ----------------------------------------------------------------------------------- 3 lanes, warps, blocks

constexpr int kWarpLanes = 32;
constexpr int kIdleRounds = 64;  // a poller may pause a few times before it looks again

// Where a lane stands: a word of kernel text, the number that has to be equal in all lanes, and the source line.
// Source comes as a default argument, and so names the line of the call.
struct Source {
  const char* file;
  int line;

  static Source here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
struct Place {
  const char* word;
  int number;
  Source source;

  bool operator==(const Place& other) const {
    return word == other.word && number == other.number && source.file == other.source.file &&
           source.line == other.source.line;
  }
};

enum class State { kReady, kPausing, kAtCollective, kAtBarrier, kFinished };

struct Warp;
struct Block;

struct Lane {
  Fiber fiber;
  Warp* warp;
  int index;
  State state;
  Place place;  // of a lane that waits or pauses
};

struct Warp {
  std::array<Lane, kWarpLanes> lanes;
  Block* block;
  int index;
  State state;
  uint64_t priority;
  uint64_t meetings;                                        // collectives completed
  std::array<std::array<uint64_t, kWarpLanes>, 2> offered;  // by the lanes to meeting m: offered[m % 2]

  void wake(State from) {
    for (Lane& lane : lanes) lane.state = lane.state == from ? State::kReady : lane.state;
    state = State::kReady;
  }
};

struct Block {
  uint32_t index;
  std::vector<Warp> warps;
  std::shared_ptr<void> shared;
};

// "block 3 warp 0: lanes 0-15 at shuffle_up(1) in scan.cuh:57, lanes 16-31 have finished"
inline std::string describe(const Lane& lane) {
  if (lane.state == State::kReady) return "are ready";
  if (lane.state == State::kFinished) return "have finished";
  const auto [word, number, source] = lane.place;
  const std::string file = source.file, numbers = number ? std::to_string(number) : "";
  return std::string("at ") + word + "(" + numbers + ") in " + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(source.line);
}
inline std::string describe(const Warp& warp) {
  std::string text = "block " + std::to_string(warp.block->index) + " warp " + std::to_string(warp.index) + ":";
  for (int first = 0, end = 0; first < kWarpLanes; first = end) {
    const std::string standing = describe(warp.lanes[first]);
    while (end < kWarpLanes && describe(warp.lanes[end]) == standing) ++end;
    text += (first ? ", lanes " : " lanes ") + std::to_string(first) + "-" + std::to_string(end - 1) + " " + standing;
  }
  return text;
}

// ------------------------------------------------------------------------------------------ 4 the scheduler

class Grid {
 public:
  static inline Grid* current = nullptr;

  Grid(uint32_t grid_blocks, int threads_per_block, Options options,
       std::function<std::shared_ptr<void>()> poisoned_shared, std::function<void(void*)> kernel)
      : options_(options),
        poisoned_shared_(std::move(poisoned_shared)),
        kernel_(std::move(kernel)),
        random_(options.seed),
        interrupt_odds_(2u << 2 * (options.seed % 4)),
        resident_(std::min<size_t>(grid_blocks, options.resident_blocks)) {
    if (threads_per_block <= 0 || threads_per_block % kWarpLanes != 0 || options.resident_blocks <= 0) {
      throw std::runtime_error("emulator: a block has whole warps, and at least one block is resident");
    }
    for (uint32_t i = 0; i < grid_blocks; ++i) arrivals_.push_back(i);
    if (options.schedule == Schedule::kInOrder) std::reverse(arrivals_.begin(), arrivals_.end());  // taken from the end
    if (options.schedule == Schedule::kRandom) std::shuffle(arrivals_.begin(), arrivals_.end(), random_);
    for (Block& block : resident_) {
      block.warps = std::vector<Warp>(threads_per_block / kWarpLanes);
      admit_next(block);
    }
  }

  uint64_t run() {
    current = this;
    while (Warp* warp = choose()) run_warp(*warp);
    return resumed_;
  }

  // Called by the running lane.
  Lane& lane() const { return *running_; }
  int threads_per_block() const { return static_cast<int>(resident_[0].warps.size()) * kWarpLanes; }
  void wait(State state, const Place& place) {
    running_->state = state;
    running_->place = place;
    running_->fiber.leave();
  }
  void may_interrupt() {
    if (drawn(interrupt_odds_)) running_->fiber.leave();  // and stays ready
  }
  void note_progress() { idle_rounds_ = 0; }

 private:
  bool drawn(uint32_t odds) { return options_.schedule == Schedule::kRandom && random_() % odds == 0; }

  uint64_t draw_priority(const Warp& warp) {
    const uint64_t place = uint64_t{warp.block->index} << 32 | static_cast<uint32_t>(warp.index);
    switch (options_.schedule) {
      case Schedule::kInOrder:  return ~place;
      case Schedule::kReversed: return place;
      default:                  return random_();
    }
  }

  void admit_next(Block& block) {
    block.index = arrivals_.back();
    arrivals_.pop_back();
    block.shared = poisoned_shared_();
    for (size_t w = 0; w < block.warps.size(); ++w) {
      Warp& warp = block.warps[w];
      warp.block = &block;
      warp.index = static_cast<int>(w);
      warp.priority = draw_priority(warp);
      warp.meetings = 0;
      for (int i = 0; i < kWarpLanes; ++i) {
        warp.lanes[i].warp = &warp;
        warp.lanes[i].index = i;
        warp.lanes[i].state = State::kReady;
      }
      warp.state = State::kReady;
    }
  }

  // The ready warp that runs next; null when the grid is done. Pausing warps wake when no warp is ready.
  Warp* choose() {
    for (;;) {
      Warp* best = nullptr;
      bool some_pause = false;
      for (Block& block : resident_) {
        for (Warp& warp : block.warps) {
          if (warp.state == State::kReady && (!best || warp.priority > best->priority)) best = &warp;
          some_pause |= warp.state == State::kPausing;
        }
      }
      if (!some_pause || (best && !drawn(interrupt_odds_))) return best;
      if (!best && ++idle_rounds_ > kIdleRounds) fail("deadlock: every warp waits or polls");
      for (Block& block : resident_) {
        for (Warp& warp : block.warps) {
          if (warp.state == State::kPausing) warp.wake(State::kPausing);
        }
      }
    }
  }

  // Runs every ready lane to where it waits, in an order that is as good as any other.
  void run_warp(Warp& warp) {
    const bool forward = options_.schedule == Schedule::kInOrder, random = options_.schedule == Schedule::kRandom;
    const uint32_t first = random ? random_() : forward ? 0 : kWarpLanes - 1;
    const uint32_t stride = random ? random_() | 1 : forward ? 1 : kWarpLanes - 1;  // odd: meets every lane once
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
      Lane& lane = warp.lanes[(first + i * stride) % kWarpLanes];
      if (lane.state != State::kReady) continue;
      running_ = &lane;
      ++resumed_;
      lane.fiber.resume(&run_lane);
      if (thrown_) std::rethrow_exception(thrown_);
      if (lane.state == State::kReady) {
        warp.priority = draw_priority(warp);
        return;
      }
    }
    settle(warp);
    if (drawn(interrupt_odds_)) warp.priority = draw_priority(warp);
  }

  // The body of every fiber: once through the kernel a block.
  static void run_lane() {
    Lane& lane = *current->running_;
    lane.fiber.enter();
    for (;;) {  // a lane that has finished starts over in the next block
      try {
        current->kernel_(lane.warp->block->shared.get());
      } catch (...) {
        current->thrown_ = std::current_exception();
      }
      current->note_progress();
      lane.state = State::kFinished;
      lane.fiber.leave();
    }
  }

  // Called when no lane of the warp is ready. Finds out whether they meet.
  void settle(Warp& warp) {
    const Lane& first = warp.lanes[0];
    bool same = true;
    for (const Lane& lane : warp.lanes) {
      if (lane.state == State::kPausing) {
        warp.state = State::kPausing;
        return;
      }
      same &= lane.state == first.state && (lane.state == State::kFinished || lane.place == first.place);
    }
    if (!same) fail("the lanes of a warp do not meet", warp.block);
    warp.state = first.state;
    if (warp.state == State::kAtCollective) {
      ++warp.meetings;
      warp.wake(State::kAtCollective);
    } else {
      settle_block(*warp.block, warp);
    }
  }

  void settle_block(Block& block, const Warp& last) {
    bool all_there = true;
    for (const Warp& warp : block.warps) {
      const bool there = warp.state == State::kAtBarrier || warp.state == State::kFinished;
      const bool same =
          warp.state == last.state && (warp.state == State::kFinished || warp.lanes[0].place == last.lanes[0].place);
      if (there && !same) fail("the warps of a block do not meet", &block);
      all_there &= there;
    }
    if (!all_there) return;
    if (last.state == State::kFinished) {
      if (!arrivals_.empty()) admit_next(block);
    } else {
      for (Warp& warp : block.warps) warp.wake(State::kAtBarrier);
    }
  }

  [[noreturn]] void fail(const std::string& what, const Block* where = nullptr) const {
    std::string text = "emulator: " + what;
    for (const Block& block : resident_) {
      for (const Warp& warp : block.warps) {
        if (where ? where == &block : warp.state != State::kFinished) text += "\n  " + describe(warp);
      }
    }
    throw std::runtime_error(text);
  }

  const Options options_;
  const std::function<std::shared_ptr<void>()> poisoned_shared_;
  const std::function<void(void*)> kernel_;
  std::mt19937_64 random_;
  const uint32_t interrupt_odds_;
  std::vector<uint32_t> arrivals_;  // the blocks still to come, the next one last
  std::vector<Block> resident_;
  Lane* running_ = nullptr;
  std::exception_ptr thrown_;
  int idle_rounds_ = 0;
  uint64_t resumed_ = 0;
};

}  // namespace emulator

template <class Shared, class Kernel>
uint64_t emulate(uint32_t grid_blocks, int threads_per_block, Options options, Kernel&& kernel) {
  static_assert(std::is_trivial_v<Shared>, "shared memory is never constructed");
  const auto poisoned_shared = [] {
    const std::shared_ptr<Shared> shared(new Shared);
    std::memset(static_cast<void*>(shared.get()), 0xFF, sizeof(Shared));
    return shared;
  };
  emulator::Grid grid(grid_blocks, threads_per_block, options, poisoned_shared,
                      [&](void* shared) { kernel(*static_cast<Shared*>(shared)); });
  return grid.run();
}

// ------------------------------------------------------------------------------ 5 the words of kernel text

class EmulatedDevice {
  using Source = emulator::Source;
  using State = emulator::State;

 public:
  static int thread() { return 32 * warp() + lane(); }
  static int lane() { return self().index; }
  static int warp() { return self().warp->index; }
  static int threads_per_block() { return grid().threads_per_block(); }
  static uint32_t block() { return self().warp->block->index; }

  // All 32 lanes call the same word on the same line, with the same delta or lane_mask.
  template <class T>
  static T shuffle_up(T value, int delta, Source source = Source::here()) {
    const auto& offered = meet(value, {"shuffle_up", delta, source});
    return lane() < delta ? value : unpack<T>(offered[lane() - delta]);
  }
  template <class T>
  static T shuffle(T value, int source_lane, Source source = Source::here()) {
    return unpack<T>(meet(value, {"shuffle", 0, source})[source_lane & 31]);
  }
  template <class T>
  static T shuffle_xor(T value, int lane_mask, Source source = Source::here()) {
    return unpack<T>(meet(value, {"shuffle_xor", lane_mask, source})[(lane() ^ lane_mask) & 31]);
  }
  static int ones(uint32_t word) { return __builtin_popcount(word); }
  static void prefetch(const void*) {}
  static bool any(bool statement, Source source = Source::here()) {
    return bits(meet<uint32_t>(statement, {"any", 0, source})) != 0;
  }
  static uint32_t ballot(bool statement, Source source = Source::here()) {
    return bits(meet<uint32_t>(statement, {"ballot", 0, source}));
  }
  static void warp_barrier(Source source = Source::here()) { meet<uint32_t>(0, {"warp_barrier", 0, source}); }
  static void block_barrier(int number = 0, Source source = Source::here()) {
    grid().wait(State::kAtBarrier, {"block_barrier", number, source});
  }

  // Memory words: one lane alone may use them.
  static uint32_t take_ticket(uint32_t* counter) {
    const Interruption around;
    grid().note_progress();
    return (*counter)++;
  }
  static uint64_t load_relaxed(const uint64_t* word) { return load(word); }
  static uint32_t load_acquire(const uint32_t* word) { return load(word); }
  static void store_relaxed(uint64_t* word, uint64_t value) { store(word, value); }
  static void store_release(uint32_t* word, uint32_t value) { store(word, value); }
  template <class T>
  static T greater(T a, T b) {
    return a > b ? a : b;
  }
  static uint32_t opaque(uint32_t value) { return value; }
  static void pause(Source source = Source::here()) { grid().wait(State::kPausing, {"pause", 0, source}); }

 private:
  using Offered = std::array<uint64_t, emulator::kWarpLanes>;

  static emulator::Grid& grid() { return *emulator::Grid::current; }
  static emulator::Lane& self() { return grid().lane(); }

  // Returns what the lanes have offered, once all have. Valid until this lane comes to its next collective.
  template <class T>
  static const Offered& meet(T value, const emulator::Place& place) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "a register or a pair of them");
    emulator::Lane& lane = self();
    Offered& offered = lane.warp->offered[lane.warp->meetings % 2];
    std::memcpy(&offered[lane.index], &value, sizeof(T));
    grid().wait(State::kAtCollective, place);
    return offered;
  }
  template <class T>
  static T unpack(const uint64_t& offered) {
    T value;
    std::memcpy(&value, &offered, sizeof(T));
    return value;
  }
  static uint32_t bits(const Offered& offered) {
    uint32_t bits = 0;
    for (int i = 0; i < emulator::kWarpLanes; ++i) bits |= (unpack<uint32_t>(offered[i]) != 0 ? 1u : 0u) << i;
    return bits;
  }

  // Other lanes may come in before and after an access, not between its two halves.
  struct Interruption {
    Interruption() { grid().may_interrupt(); }
    ~Interruption() { grid().may_interrupt(); }
  };
  template <class T>
  static T load(const T* word) {
    const Interruption around;
    return *word;
  }
  template <class T>
  static void store(T* word, T value) {
    const Interruption around;
    if (*word != value) grid().note_progress();
    *word = value;
  }
};

static_assert(DeviceWords<EmulatedDevice>);

}  // namespace ctc_align
