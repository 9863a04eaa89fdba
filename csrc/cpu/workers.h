// The threads that a call may use, and how it is asked to stop.
#pragma once

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "../lattice/lattice.h"

namespace ctc_align {

// Thrown where a call was asked to stop.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

// The threads at hand. Nothing here knows where they come from.
struct Workers {
  int count = 1;
  // run(n, work) runs work(0), ..., work(n - 1), n <= count.
  std::function<void(int, const std::function<void(int)>&)> run = {};
  std::function<bool()> interrupted = {};  // asked every now and then, by any thread

  bool must_stop() const { return interrupted && interrupted(); }
};

// std::fill_n for many GB: that takes seconds, so it can be stopped, too.
template <class T>
void fill(T* to, index_t count, T value, const Workers& workers) {
  constexpr index_t kBetweenLooks = 1 << 24;
  for (index_t begin = 0; begin < count; begin += kBetweenLooks) {
    if (begin > 0 && workers.must_stop()) {
      throw Interrupted();
    }
    std::fill_n(to + begin, std::min(kBetweenLooks, count - begin), value);
  }
}

}  // namespace ctc_align
