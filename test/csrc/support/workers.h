// Workers for the kernel: on threads, or one after the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <climits>
#include <functional>
#include <thread>
#include <vector>

#include "heap.h"

namespace support {

inline int workers_seen = 0;  // in the largest run

// Starting threads does not fail here: the kernel leaves it to its caller.
inline void run_on_threads(int count, const std::function<void(int)>& work) {
  workers_seen = std::max(workers_seen, count);
  may_fail = false;
  std::vector<std::thread> threads;
  for (int w = 1; w < count; ++w) {
    threads.emplace_back([&work, w] { work(w); });
  }
  may_fail = true;
  work(0);
  for (std::thread& thread : threads) {
    thread.join();
  }
}

inline void run_in_turn(int count, const std::function<void(int)>& work) {
  workers_seen = std::max(workers_seen, count);
  for (int w = 0; w < count; ++w) {
    work(w);
  }
}

inline std::atomic<int> looks_left{INT_MAX};
inline bool stops_after_some_looks() { return looks_left-- <= 0; }

}  // namespace support
