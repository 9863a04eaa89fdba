// Rounding to nearest with subnormal numbers, however the calling thread is set.
#pragma once

#if !defined(__SSE2__)
#include <cfenv>
#endif

namespace ctc_align {

// torch.set_flush_denormal(True) must not cost a bit: the log-probabilities near 0 of float16 are subnormal.
class StandardFloats {
 public:
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;

#if defined(__SSE2__)
  // x86-64 computes in SSE registers alone, whose state is one word: 1 ns, where <cfenv> takes 40.
  StandardFloats() : before_(__builtin_ia32_stmxcsr()) {
    if ((before_ & ~kFlags) != kDefault) {
      __builtin_ia32_ldmxcsr(kDefault);
    }
  }
  ~StandardFloats() {
    if ((before_ & ~kFlags) != kDefault) {
      __builtin_ia32_ldmxcsr(before_);
    }
  }

 private:
  static constexpr unsigned kFlags = 0x3f;      // for exceptions that have happened
  static constexpr unsigned kDefault = 0x1f80;  // to nearest, no flushing, every exception masked
  unsigned before_;
#else
  StandardFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~StandardFloats() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

}  // namespace ctc_align
