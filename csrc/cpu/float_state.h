// Round to nearest, and keep subnormal numbers, whatever the thread that calls has been set to.
#pragma once

#include <cfenv>

namespace ctc_align {

// torch.set_flush_denormal(True) must not cost a bit: the log-probabilities near 0 of float16 are subnormal.
class StandardFloats {
 public:
  StandardFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~StandardFloats() { std::fesetenv(&before_); }
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace ctc_align
