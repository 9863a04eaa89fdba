// Ctrl-C during a call of minutes.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace ctc_align {

// Tells whether the user has asked to stop. Each call of an operator makes one, on the thread that calls.
//
// Python runs its signal handlers on the main thread, between two of its own instructions: not while that thread is in
// here. So twice a second the main thread lets them run, if it is the calling thread. If a handler raises
// (KeyboardInterrupt, or another signal's exception), the answer is yes from then on, for all threads. The exception is
// kept for Python to take (ctc_align_take_exception), and stays set as Python's current one as well: up to torch 2.14 it
// becomes the cause of the error that the caller sees. A handler that does not raise does not end the call. Without
// Python in the process the answer is always no; Python's functions are looked up by name, so this library does not
// depend on any version of it.
class StopSignal {
 public:
  // Any thread of the call may ask, every few milliseconds or less often; it costs next to nothing.
  bool stopped() {
    if (!was_stopped() && is_caller()) {
      look();
    }
    return was_stopped();
  }
  // The last answer.
  bool was_stopped() const { return stopped_.load(std::memory_order_relaxed); }
  bool is_caller() const { return std::this_thread::get_id() == caller_; }

 private:
  using Clock = std::chrono::steady_clock;

  void look();

  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_{false};
  Clock::time_point last_look_ = {};  // used by the calling thread only
};

}  // namespace ctc_align
