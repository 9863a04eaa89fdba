// The CUDA aligner on the host: the text of csrc/cuda/kernels.cuh, run by the emulator, behind one C function.
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "../../csrc/cuda/kernels.cuh"
#include "emulator.h"

namespace ctc_align {
namespace {

template <class scalar_t, int R, template <class, class, class, int, int> class Source>
void run(const Plan& plan, const Inputs<scalar_t>& in, const Outputs<scalar_t>& out, const Options& options) {
  using Real = scalar_t;
  using SweepText = Sweep<EmulatedDevice, Real, scalar_t, R, Source>;
  const WorkspaceLayout layout = lay_out<Real>(plan);
  std::vector<uint64_t> memory(static_cast<size_t>(layout.bytes) / 8 + 2, 0x7ff4'dead'7fa4'deadu);  // NaN, and no pair
  auto* bytes = reinterpret_cast<uint8_t*>(memory.data());
  std::memset(bytes, 0xff, static_cast<size_t>(layout.unset_bytes));
  const Workspace<Real> work = layout.template at<Real>(bytes);
  if (plan.blocks() > 0) {
    emulate<typename SweepText::Shared>(static_cast<uint32_t>(plan.tickets()), SweepText::kThreads, options,
                                        [&](auto& shared) { SweepText::run(plan, in, work, shared); });
  }
  emulate<HopShared>(static_cast<uint32_t>(plan.batch), 64, options,
                     [&](auto& shared) { run_hop<EmulatedDevice, Real, scalar_t>(plan, in, work, shared); });
  emulate<TraceShared>(
      static_cast<uint32_t>(plan.batch * larger<index_t>(plan.segments(), 1)), kWarp, options,
      [&](auto& shared) { Trace<EmulatedDevice, Real, scalar_t, Source>::run(plan, in, work, out, shared); });
}

template <class scalar_t, int R>
void run(const Plan& plan, const Inputs<scalar_t>& in, const Outputs<scalar_t>& out, const Options& options) {
  in.classes <= kWarp ? run<scalar_t, R, RowInWarp>(plan, in, out, options)
                      : run<scalar_t, R, OwnColumns>(plan, in, out, options);
}

template <class scalar_t>
void run(int pairs_per_thread, const Plan& plan, const Inputs<scalar_t>& in, const Outputs<scalar_t>& out,
         const Options& options) {
  switch (pairs_per_thread) {
    case 1:  return run<scalar_t, 1>(plan, in, out, options);
    case 2:  return run<scalar_t, 2>(plan, in, out, options);
    case 4:  return run<scalar_t, 4>(plan, in, out, options);
    default: return run<scalar_t, 8>(plan, in, out, options);
  }
}

}  // namespace
}  // namespace ctc_align

// Contiguous log_probs (B, T, C), targets (B, L) and lengths (B,), all integers int64. Returns nullptr or what went wrong.
extern "C" const char* emulated_align(int is_double, const void* log_probs, const int64_t* targets,
                                      const int64_t* input_lengths, const int64_t* target_lengths, int64_t batch,
                                      int64_t frames, int64_t classes, int64_t labels, int64_t blank, int64_t* paths,
                                      void* scores, int pairs_per_thread, int64_t task_blocks, int64_t ring_tasks,
                                      int64_t stagger, int resident_blocks, int schedule, uint64_t seed) {
  using namespace ctc_align;
  static char message[512];
  try {
    const Plan plan{batch, frames, labels, static_cast<int32_t>(task_blocks), static_cast<int32_t>(ring_tasks), static_cast<int32_t>(stagger)};
    const Options options{resident_blocks, static_cast<Schedule>(schedule), seed};
    const auto align = [&](auto scalar) {
      using scalar_t = decltype(scalar);
      const Inputs<scalar_t> in{static_cast<const scalar_t*>(log_probs),
                                frames * classes,
                                classes,
                                1,
                                classes,
                                {targets, true},
                                labels,
                                1,
                                {{input_lengths, true}, 1},
                                {{target_lengths, true}, 1},
                                blank};
      run(pairs_per_thread, plan, in, {paths, true, static_cast<scalar_t*>(scores)}, options);
    };
    is_double ? align(double{}) : align(float{});
    return nullptr;
  } catch (const std::exception& error) {
    std::snprintf(message, sizeof message, "%s", error.what());
    return message;
  }
}
