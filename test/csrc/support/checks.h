// Checks, attempts that may fail, and the run of a test.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "../../../csrc/cpu/workers.h"
#include "../../../csrc/lattice/memory.h"
#include "heap.h"

namespace support {

using namespace ctc_align;

// The case and the setting at work, for messages. Arrays, because noting them must not allocate.
inline uint32_t seed = 0;
inline char case_at_work[200] = "";
inline char setting_at_work[200] = "";

inline void check(bool holds, const char* statement, const char* file, int line) {
  if (!holds) {
    std::fprintf(stderr, "%s:%d: not so: %s\n  seed %u%s%s\n", file, line, statement, seed, case_at_work,
                 setting_at_work);
    std::_Exit(1);
  }
}
#define CHECK(statement) support::check(statement, #statement, __FILE__, __LINE__)

enum class Outcome { kDone, kBadAlloc, kInterrupted };

// However `work` ends, it must have returned all memory that it took, but for the arrays that a thread keeps. It begins
// without those, so that every array is asked for.
template <class Work>
Outcome attempt(const Work& work) {
  FreeArrays::release();
  const long blocks = heap.blocks;
  Outcome outcome = Outcome::kDone;
  try {
    work();
  } catch (const std::bad_alloc&) {
    outcome = Outcome::kBadAlloc;
  } catch (const Interrupted&) {
    outcome = Outcome::kInterrupted;
  }
  heap.until_failure = LONG_MAX;
  FreeArrays::release();
  CHECK(heap.blocks == blocks);
  return outcome;
}

constexpr unsigned kMostSeconds = 1800;  // then a program that hangs is killed; emulation is slow

// Reads the arguments of a test program, [SEED], and returns its seed.
inline uint32_t begin(int argc, char** argv) {
  alarm(kMostSeconds);
  return seed = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 0;
}

template <class Test>
void run(const char* name, const Test& test) {
  std::printf("%-36s", name);
  std::fflush(stdout);
  const auto start = std::chrono::steady_clock::now();
  case_at_work[0] = setting_at_work[0] = 0;
  test();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%5.1f s\n", seconds.count());
}

}  // namespace support
