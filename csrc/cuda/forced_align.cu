// ctc_align::forced_align on CUDA tensors.
//
// Contents: 1 kernels  2 launches  3 the operator
//
// One allocation and two launches for short items of one column. A launch or two and a memset more for longer ones, and
// two launches more for each further pass over items too long to keep all rows (plan_launches in viterbi/plan.h).
// Nothing here looks at a value: there is no synchronisation, and a CUDA graph may capture the call and replay it with
// other contents and lengths.
#include <array>
#include <optional>
#include <tuple>
#include <type_traits>

#include "device.cuh"
#include "tensors.cuh"
#include "viterbi/sweep.cuh"
#include "viterbi/trace.cuh"

namespace ctc_align {
namespace {

// ------------------------------------------------------------------------------------------------ 1 kernels

// kStars: the call has star scores. Without them no kernel knows of stars.
template <class Real, class scalar_t, bool kWholeRows, bool kStars>
using SweepText = Sweep<CudaDevice, Real, scalar_t, kPairsPerThread, kWholeRows, kStars>;

// Two blocks on a multiprocessor where its shared memory has room for them: then they have 128 registers a thread, with
// which no float sum spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr size_t kSharedBytes = size_t{64} << 10;
#else
constexpr size_t kSharedBytes = size_t{100} << 10;
#endif
template <class Real, class Text>
constexpr int kResidentBlocks = kRebases<Real> && 2 * sizeof(typename Text::Shared) <= kSharedBytes ? 2 : 1;

template <class Real, class scalar_t, bool kWholeRows, bool kStars>
__global__ void __launch_bounds__(sweep_threads(kPairsPerThread),
                                  kResidentBlocks<Real, SweepText<Real, scalar_t, kWholeRows, kStars>>)
    sweep_kernel(const Inputs<scalar_t, kStars> in, const Workspace<Real> work, int pass) {
  using Text = SweepText<Real, scalar_t, kWholeRows, kStars>;
  __shared__ typename Text::Shared shared;
  Text::run(in, work, pass, shared);
}

template <class Real, class scalar_t, bool kStars>
__global__ void __launch_bounds__(kHopThreads)
    hop_kernel(const Inputs<scalar_t, kStars> in, const Workspace<Real> work) {
  __shared__ HopShared shared;
  run_hop<CudaDevice>(in, work, shared);
}

template <class Real, class scalar_t, bool kStars>
__global__ void region_hop_kernel(const Inputs<scalar_t, kStars> in, const Workspace<Real> work, int pass) {
  run_hop_in_region<CudaDevice>(in, work, pass);
}

// As many warps to a multiprocessor as can be without spilling: a trace waits for memory much of its time. (With float64 and
// stars it spills a little all the same.)
template <class Real, bool kStars>
constexpr int kResidentTraces = kRebases<Real> && !kStars ? 12 : 8;

template <class Real, class scalar_t, bool kStars>
__global__ void __launch_bounds__(kWarp, kResidentTraces<Real, kStars>)
    trace_kernel(const Inputs<scalar_t, kStars> in, const Workspace<Real> work, const Outputs<scalar_t> out) {
  __shared__ TraceShared shared;
  Trace<CudaDevice, Real, scalar_t, kStars>::run(in, work, out, shared);
}

// ----------------------------------------------------------------------------------------------- 2 launches

Processors processors_of(int32_t device) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda("forced_align", cudaDeviceGetAttribute(&value, attribute, device), "asking what the device has");
    return value;
  };
  return {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

template <class Real, class scalar_t, bool kWholeRows, bool kStars>
void launch_sweep(const Launch& launch, const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work,
                  cudaStream_t stream) {
  const auto kernel = sweep_kernel<Real, scalar_t, kWholeRows, kStars>;
  const int64_t own_bytes = sizeof(typename SweepText<Real, scalar_t, kWholeRows, kStars>::Shared);
  const int spare = static_cast<int>(larger<int64_t>(0, launch.least_shared - own_bytes));
  if (spare > 0) {
    check_cuda("forced_align", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, spare),
               "asking for memory");
  }
  kernel<<<static_cast<unsigned>(launch.blocks), launch.threads, spare, stream>>>(in, work, launch.pass);
}

template <class Real, class scalar_t, bool kStars>
void run(const Launch& launch, const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work,
         const Outputs<scalar_t>& out, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(launch.blocks), threads = launch.threads;
  const char* action = "launching the sweep";
  switch (launch.kernel) {
    case Kernel::kSweep:
      launch.whole_rows ? launch_sweep<Real, scalar_t, true, kStars>(launch, in, work, stream)
                        : launch_sweep<Real, scalar_t, false, kStars>(launch, in, work, stream);
      break;
    case Kernel::kHop:
      action = "launching the hop";
      hop_kernel<Real, scalar_t, kStars><<<blocks, threads, 0, stream>>>(in, work);
      break;
    case Kernel::kRegionHop:
      action = "launching the hop in the regions";
      region_hop_kernel<Real, scalar_t, kStars><<<blocks, threads, 0, stream>>>(in, work, launch.pass);
      break;
    case Kernel::kTrace:
      action = "launching the trace";
      trace_kernel<Real, scalar_t, kStars><<<blocks, threads, 0, stream>>>(in, work, out);
  }
  check_cuda("forced_align", cudaGetLastError(), action);
}

// ------------------------------------------------------------------------------------------- 3 the operator

using OutputTensors = std::tuple<Tensor, Tensor>;

OutputTensors empty_outputs(const Tensor& log_probs, const Tensor& targets) {
  const std::array<int64_t, 2> sizes = {log_probs.size(0), log_probs.size(1)};
  return {empty_tensor<2>(sizes, targets), empty_tensor<2>(sizes, log_probs)};
}

template <class scalar_t, bool kStars>
OutputTensors align_as(const Passes& passes, const Launches& launches, const Tensor& log_probs, const Tensor& targets,
                       const Tensors<scalar_t>& tensors, const Stars<scalar_t, kStars>& stars, cudaStream_t stream) {
  using Real = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const Inputs<scalar_t, kStars> in{tensors, stars};
  const Tensor memory = empty_bytes(WorkspaceLayout<Real>(passes, nullptr).bytes, log_probs);
  auto* const bytes = static_cast<uint8_t*>(memory.mutable_data_ptr());
  const WorkspaceLayout<Real> layout(passes, bytes);
  if (layout.unset_bytes > 0) {
    check_cuda("forced_align", cudaMemsetAsync(bytes, 0xff, layout.unset_bytes, stream), "clearing the workspace");
  }
  const Launch* launch = launches.begin();
  for (; launch->kernel != Kernel::kTrace; ++launch) {
    run<Real, scalar_t, kStars>(*launch, in, layout.work, {}, stream);
  }
  // Only now: the device has work already, and no caller waits longer for these allocations.
  OutputTensors outputs = empty_outputs(log_probs, targets);
  const auto& [paths, scores] = outputs;
  run<Real, scalar_t, kStars>(
      *launch, in, layout.work,
      {paths.mutable_data_ptr(), in.targets.wide, static_cast<scalar_t*>(scores.mutable_data_ptr())}, stream);
  return outputs;
}

OutputTensors align(const Tensor& log_probs, const Tensor& targets, const std::optional<Tensor>& input_lengths,
                    const std::optional<Tensor>& target_lengths, int64_t blank,
                    const std::optional<Tensor>& star_scores, const std::optional<Tensor>& wild_gaps) {
  check_arguments(log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps);
  const index_t batch = log_probs.size(0), frames = log_probs.size(1), labels = targets.size(1);
  check(frames <= kMostFrames, "log_probs may have 2^30 frames at most on CUDA, found T = ", frames);
  check(2 * labels + 1 < kNoPath, "targets may have fewer than 2^31 - 1 labels on CUDA, found L = ", labels);
  constexpr index_t kMostBlocks = index_t{1} << 31;  // of threads, in a launch
  check(batch < kMostBlocks, "the batch is too large for one CUDA launch");
  const index_t real_bytes = log_probs.scalar_type() == ScalarType::Double ? 8 : 4;
  const Passes passes = plan_passes(batch, frames, labels, 2 * real_bytes + 4);
  const int32_t device = log_probs.get_device_index();
  const Processors processors = passes.whole().columns() > 1 ? processors_of(device) : Processors{};
  const Launches launches = plan_launches(passes, log_probs.size(2), kPairsPerThread, processors);
  for (const Launch& launch : launches) {
    check(launch.blocks < kMostBlocks, "the batch is too large for one CUDA launch");
  }

  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  if (batch == 0 || frames == 0) {
    return empty_outputs(log_probs, targets);
  }
  const auto align_with = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const auto align_among = [&](const auto& stars) {
      const auto all = tensors<scalar_t>(log_probs, targets, input_lengths, target_lengths, blank);
      return align_as<scalar_t>(passes, launches, log_probs, targets, all, stars, stream);
    };
    return star_scores ? align_among(stars<scalar_t>(*star_scores, wild_gaps)) : align_among(Stars<scalar_t, false>());
  };
  switch (log_probs.scalar_type()) {
    case ScalarType::Half:     return align_with(Half{});
    case ScalarType::BFloat16: return align_with(BFloat16{});
    case ScalarType::Float:    return align_with(float{});
    default:                   return align_with(double{});
  }
}

OutputTensors forced_align(const Tensor& log_probs, const Tensor& targets, const std::optional<Tensor>& input_lengths,
                           const std::optional<Tensor>& target_lengths, int64_t blank,
                           const std::optional<Tensor>& star_scores, const std::optional<Tensor>& wild_gaps) {
  return as_operator("forced_align", [&] {
    return align(log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps);
  });
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CUDA, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
