// Work shared out among torch's threads, which Ctrl-C can stop.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../torch_seam.h"
#include "interrupt.h"
#include "workers.h"

namespace ctc_align {

// Runs work(0), ..., work(count - 1) on torch's threads. Only the calling thread notices Ctrl-C (interrupt.h): when its
// own work is done it goes on asking `stop` until the other threads are done, which ask it too.
inline void run_on_threads(StopSignal& stop, int count, const std::function<void(int)>& work) {
  constexpr std::chrono::milliseconds kPatience(100);
  std::mutex mutex;
  std::condition_variable ended;
  int at_work = 0;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::unique_lock<std::mutex> lock(mutex);
    ++at_work;
    lock.unlock();
    for (int64_t w = begin; w < end; ++w) {
      work(static_cast<int>(w));
    }
    lock.lock();
    --at_work;
    ended.notify_all();
    // A thread that has not begun yet finds no work left: work is taken piece by piece.
    while (stop.is_caller() && at_work > 0) {
      // Not wait_for: it takes a function that glibc has since 2.30. A clock that is set only delays Ctrl-C.
      ended.wait_until(lock, std::chrono::system_clock::now() + kPatience);
      lock.unlock();
      stop.stopped();
      lock.lock();
    }
  });
}

// The first exception of several threads. (A std::exception_ptr asks for functions that libstdc++ has since GCC 11.)
class FirstError {
 public:
  // Keeps the exception that is being handled.
  void keep() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kind_ != Kind::kNone) {
      return;
    }
    try {
      throw;
    } catch (const Interrupted&) {
      kind_ = Kind::kInterrupted;
    } catch (const std::bad_alloc&) {
      kind_ = Kind::kNoMemory;
    } catch (const std::length_error&) {  // of a container: more than a machine can count
      kind_ = Kind::kNoMemory;
    } catch (const std::exception& error) {
      kind_ = Kind::kOther;
      message_ = error.what();
    } catch (...) {
      kind_ = Kind::kOther;
      message_ = "an exception of an unknown type";
    }
  }

  // Once the threads are done.
  void throw_again() const {
    switch (kind_) {
      case Kind::kNone:        return;
      case Kind::kInterrupted: throw Interrupted();
      case Kind::kNoMemory:    throw std::bad_alloc();
      case Kind::kOther:       throw std::runtime_error(message_);
    }
  }

 private:
  enum class Kind { kNone, kInterrupted, kNoMemory, kOther };

  std::mutex mutex_;
  Kind kind_ = Kind::kNone;
  std::string message_;
};

// Runs align(b, workers, side_by_side) for every item, the largest first. An item that would keep one thread busy after
// all others are done gets all workers if splits(b). The rest get a thread each, with side_by_side items at a time. Never
// throws inside the parallel body, where the message would be lost: the first exception is carried out and thrown again.
template <class Size, class Splits, class Align>
void for_each_item(index_t count, const Size& size, const Splits& splits, const Align& align) {
  constexpr index_t kWorthAllWorkers = 4 << 20;  // cells
  constexpr index_t kWorthAThread = 1 << 16;     // waking one takes some microseconds
  StopSignal stop;
  const auto stopped = [&stop] { return stop.stopped(); };
  const Workers alone{1, nullptr, stopped};
  index_t cells = 0;
  for (index_t b = 0; b < count; ++b) {
    cells += size(b);
  }
  const index_t useful = std::max<index_t>(1, cells / kWorthAThread);
  const int most = useful > 1 ? static_cast<int>(std::min<index_t>(torch::stable::get_num_threads(), useful)) : 1;
  const auto end_if_stopped = [](bool stopped) {
    if (stopped) {
      throw Interrupted();
    }
  };
  if (most <= 1) {
    for (index_t b = 0; b < count; ++b) {
      end_if_stopped(stop.stopped());
      align(b, alone, 1);
    }
    return;
  }

  const auto run = [&stop](int n, const std::function<void(int)>& work) { run_on_threads(stop, n, work); };
  const Workers all{most, run, stopped};
  std::vector<index_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return size(a) > size(b); });
  index_t done = 0;
  while (done < count && size(order[done]) > kWorthAllWorkers && size(order[done]) > cells / all.count &&
         splits(order[done])) {
    cells -= size(order[done]);
    align(order[done++], all, 1);
  }

  const int side_by_side = static_cast<int>(std::min<index_t>(all.count, count - done));
  std::atomic<index_t> next{done};
  FirstError error;
  const auto work = [&](int) {
    try {
      for (index_t i = next++; i < count; i = next++) {
        end_if_stopped(stop.stopped());
        align(order[i], alone, side_by_side);
      }
    } catch (...) {
      error.keep();
      next = count;
    }
  };
  if (side_by_side > 1) {
    run_on_threads(stop, side_by_side, work);
  } else {
    work(0);
  }
  error.throw_again();
  // The calling thread may have noticed Ctrl-C after the other threads asked for the last time. Python has an exception
  // then, so the call must not seem to have gone well.
  end_if_stopped(stop.was_stopped());
}

}  // namespace ctc_align
