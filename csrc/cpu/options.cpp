// Keeps the options, and lets Python set them: torch_ctc_align/config.py calls the C functions below through ctypes.
#include "options.h"

#include <cstring>
#include <mutex>
#include <string>

namespace ctc_align {
namespace {

struct NamedIsa {
  const char* name;
  const Isa* isa;
};

// The instruction sets that this processor and the operating system can run, the fastest first.
std::vector<NamedIsa> find_isas() {
  std::vector<NamedIsa> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", &kAvx512});
  }
  if (__builtin_cpu_supports("avx2")) {
    found.push_back({"avx2", &kAvx2});
  }
#endif
  found.push_back({"portable", &kPortable});
  return found;
}

const std::vector<NamedIsa>& available_isas() {
  static const std::vector<NamedIsa> isas = find_isas();
  return isas;
}

std::mutex options_mutex;

Options& shared_options() {
  static Options options{.isa = available_isas().front().isa};
  return options;
}

}  // namespace

Options current_options() {
  const std::lock_guard<std::mutex> lock(options_mutex);
  return shared_options();
}

}  // namespace ctc_align

#define CTC_ALIGN_EXPORT extern "C" __attribute__((visibility("default")))

// Names of the instruction sets that can be used here, the fastest first, separated by commas.
CTC_ALIGN_EXPORT const char* ctc_align_cpus() {
  static const std::string names = [] {
    std::string joined;
    for (const auto& isa : ctc_align::available_isas()) {
      joined += (joined.empty() ? "" : ",") + std::string(isa.name);
    }
    return joined;
  }();
  return names.c_str();
}

CTC_ALIGN_EXPORT const char* ctc_align_cpu() {
  const ctc_align::Isa* isa = ctc_align::current_options().isa;
  for (const auto& known : ctc_align::available_isas()) {
    if (known.isa == isa) {
      return known.name;
    }
  }
  return "";
}

// Returns 0, or -1 if there is no such instruction set here.
CTC_ALIGN_EXPORT int ctc_align_set_cpu(const char* name) {
  for (const auto& known : ctc_align::available_isas()) {
    if (std::strcmp(known.name, name) == 0) {
      const std::lock_guard<std::mutex> lock(ctc_align::options_mutex);
      ctc_align::shared_options().isa = known.isa;
      return 0;
    }
  }
  return -1;
}

CTC_ALIGN_EXPORT int64_t ctc_align_memory_budget() { return ctc_align::current_options().memory_budget; }

CTC_ALIGN_EXPORT void ctc_align_set_memory_budget(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(ctc_align::options_mutex);
  ctc_align::shared_options().memory_budget = bytes;
}

// For tests. None of these changes a result. count < 0: the ladder is cut by the budget; sizes of 0: chosen by the code.
CTC_ALIGN_EXPORT void ctc_align_set_cuts(const int64_t* cuts, int64_t count, int64_t strip_frames,
                                         int64_t group_columns) {
  const std::lock_guard<std::mutex> lock(ctc_align::options_mutex);
  auto& options = ctc_align::shared_options();
  options.force_cuts = count >= 0;
  options.cuts.assign(cuts, cuts + (count > 0 ? count : 0));
  options.tiling = {strip_frames, group_columns};
}
