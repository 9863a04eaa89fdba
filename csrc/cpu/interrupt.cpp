#include "interrupt.h"

#include "../symbol_versions.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>
#endif

namespace ctc_align {

#if defined(__linux__)
namespace {

// Functions of Python's stable ABI; an object is a void*.
struct Python {
  int (*is_initialized)();
  int (*ensure_gil)();
  void (*release_gil)(int);
  int (*check_signals)();
  void (*fetch_error)(void**, void**, void**);
  void (*normalize_error)(void**, void**, void**);
  void (*restore_error)(void*, void*, void*);
  int (*set_traceback)(void*, void*);
  void (*increase)(void*);
  void (*decrease)(void*);

  bool found() const {
    return is_initialized && ensure_gil && release_gil && check_signals && fetch_error && normalize_error &&
           restore_error && set_traceback && increase && decrease;
  }
};

template <class Function>
Function find(Function&, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const Python& python() {
  static const Python found = [] {
    Python p;
    p.is_initialized = find(p.is_initialized, "Py_IsInitialized");
    p.ensure_gil = find(p.ensure_gil, "PyGILState_Ensure");
    p.release_gil = find(p.release_gil, "PyGILState_Release");
    p.check_signals = find(p.check_signals, "PyErr_CheckSignals");
    p.fetch_error = find(p.fetch_error, "PyErr_Fetch");
    p.normalize_error = find(p.normalize_error, "PyErr_NormalizeException");
    p.restore_error = find(p.restore_error, "PyErr_Restore");
    p.set_traceback = find(p.set_traceback, "PyException_SetTraceback");
    p.increase = find(p.increase, "Py_IncRef");
    p.decrease = find(p.decrease, "Py_DecRef");
    return p;
  }();
  return found;
}

// The exception that a handler raised, until Python takes it. The main thread uses it, under Python's lock.
void* kept_exception = nullptr;

// Keeps Python's current exception, which stays the current one.
void keep_exception() {
  const Python& p = python();
  void *type = nullptr, *value = nullptr, *traceback = nullptr;
  p.fetch_error(&type, &value, &traceback);
  p.normalize_error(&type, &value, &traceback);
  if (value && traceback) {
    p.set_traceback(value, traceback);
  }
  p.increase(value);
  p.decrease(std::exchange(kept_exception, value));
  p.restore_error(type, value, traceback);
}

}  // namespace

void StopSignal::look() {
  constexpr std::chrono::milliseconds kInterval(500);  // a busy Python lets go of its lock within 5 ms
  const Clock::time_point now = Clock::now();
  if (last_look_ == Clock::time_point()) {
    last_look_ = now;
  }
  if (now - last_look_ < kInterval) {
    return;
  }
  last_look_ = now;
  // Asked every time: a thread that forks is the main thread of the child.
  const bool is_main_thread = syscall(SYS_gettid) == getpid();
  if (!is_main_thread || !python().found() || !python().is_initialized()) {
    return;
  }
  const int gil = python().ensure_gil();
  if (python().check_signals() != 0) {
    keep_exception();
    stopped_ = true;
  }
  python().release_gil(gil);
}
#else
void StopSignal::look() {}
#endif

}  // namespace ctc_align

// The exception that ended a call, a new reference, or null. Python's lock must be held: torch_ctc_align/_library.py
// calls it through ctypes.PyDLL.
extern "C" __attribute__((visibility("default"))) void* ctc_align_take_exception() {
#if defined(__linux__)
  return std::exchange(ctc_align::kept_exception, nullptr);
#else
  return nullptr;
#endif
}
