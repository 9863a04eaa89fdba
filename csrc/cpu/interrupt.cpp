#include "interrupt.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#endif

namespace ctc_align {

#if defined(__linux__)
namespace {

struct Python {
  int (*is_initialized)();
  int (*ensure_gil)();
  void (*release_gil)(int);
  int (*check_signals)();

  bool found() const { return is_initialized && ensure_gil && release_gil && check_signals; }
};

template <class Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

Python find_python() {
  return {find<int (*)()>("Py_IsInitialized"), find<int (*)()>("PyGILState_Ensure"),
          find<void (*)(int)>("PyGILState_Release"), find<int (*)()>("PyErr_CheckSignals")};
}

}  // namespace

bool interrupted() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kInterval(500);  // a busy Python lets go of its lock within 5 ms
  static thread_local const bool is_main_thread = syscall(SYS_gettid) == getpid();
  static thread_local Clock::time_point last_call, last_look;
  if (!is_main_thread) {
    return false;
  }
  // A pause between two calls of this function is time outside of forced_align, where Python looks after itself.
  const Clock::time_point now = Clock::now();
  if (now - last_call > kInterval) {
    last_look = now;
  }
  last_call = now;
  if (now - last_look < kInterval) {
    return false;
  }
  last_look = now;
  static const Python python = find_python();
  if (!python.found() || !python.is_initialized()) {
    return false;
  }
  const int gil = python.ensure_gil();
  const bool raised = python.check_signals() != 0;
  python.release_gil(gil);
  return raised;
}
#else
bool interrupted() { return false; }
#endif

}  // namespace ctc_align
