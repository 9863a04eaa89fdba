// ctc_align::forced_align on CUDA tensors: one allocation, and two launches for short items of one column; a launch or two
// and a memset more for longer ones, and two launches more for each further pass over items too long to keep all rows.
// Nothing here looks at a value: no synchronisation, and a CUDA graph may capture it and replay it with other contents
// and lengths.
#include <cuda_runtime.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../arguments.h"
#include "../torch_seam.h"
#include "device.cuh"
#include "viterbi/kernels.cuh"

namespace ctc_align {
namespace {

template <class Real, class scalar_t, bool kWholeRows>
using SweepText = Sweep<CudaDevice, Real, scalar_t, kPairsPerThread, kWholeRows>;

// Two blocks on a multiprocessor where its shared memory has room for them: then they have 128 registers a thread, with
// which no float sum spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr size_t kSharedBytes = size_t{64} << 10;
#else
constexpr size_t kSharedBytes = size_t{100} << 10;
#endif
template <class Text>
constexpr int kResidentBlocks = Text::kRebases && 2 * sizeof(typename Text::Shared) <= kSharedBytes ? 2 : 1;

template <class Real, class scalar_t, bool kWholeRows>
__global__ void __launch_bounds__(SweepText<Real, scalar_t, kWholeRows>::kThreads,
                                  kResidentBlocks<SweepText<Real, scalar_t, kWholeRows>>)
    sweep_kernel(const Inputs<scalar_t> in, const Workspace<Real> work, int pass) {
  using Kernel = SweepText<Real, scalar_t, kWholeRows>;
  __shared__ typename Kernel::Shared shared;
  Kernel::run(in, work, pass, shared);
}

template <class Real, class scalar_t>
__global__ void __launch_bounds__(kHopThreads) hop_kernel(const Inputs<scalar_t> in, const Workspace<Real> work) {
  __shared__ HopShared shared;
  run_hop<CudaDevice>(in, work, shared, blockIdx.x);
}

template <class Real, class scalar_t>
__global__ void region_hop_kernel(const Inputs<scalar_t> in, const Workspace<Real> work, int pass) {
  run_hop_in_region<CudaDevice, Real, scalar_t>(in, work, pass);
}

// As many warps to a multiprocessor as can be without spilling: a trace waits for memory much of its time.
template <class Real>
constexpr int kResidentTraces = sizeof(Real) == sizeof(float) ? 12 : 8;

template <class Real, class scalar_t>
__global__ void __launch_bounds__(kWarp, kResidentTraces<Real>)
    trace_kernel(const Inputs<scalar_t> in, const Workspace<Real> work, const Outputs<scalar_t> out) {
  __shared__ TraceShared shared;
  Trace<CudaDevice, Real, scalar_t>::run(in, work, out, shared);
}

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    // "CUDA" tells Python that this is no refusal of an argument (as_raised in _operator.py).
    throw std::runtime_error(std::string("forced_align: CUDA failed in ") + what + ": " + cudaGetErrorString(error));
  }
}

int attribute_of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "asking what the device has");
  return value;
}

// Columns of an item wait for one another, so two that share a multiprocessor hold up all. With a few more columns than
// multiprocessors it is better to let those few come later: shared memory that nobody uses keeps blocks apart.
template <class Shared>
int spare_shared_bytes(const Plan& plan) {
  const index_t columns = plan.batch * plan.places();
  if (plan.columns() == 1) {
    return 0;
  }
  const index_t processors = attribute_of_device(cudaDevAttrMultiProcessorCount);
  if (columns <= processors || columns > processors * 8 / 5) {
    return 0;
  }
  const int more_than_half = attribute_of_device(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 + 1024;
  return larger(0, more_than_half - static_cast<int>(sizeof(Shared)));
}

template <class Real, class scalar_t, bool kWholeRows>
void launch_sweep(const Inputs<scalar_t>& in, const Workspace<Real>& work, int pass, cudaStream_t stream) {
  using Text = SweepText<Real, scalar_t, kWholeRows>;
  const Plan& plan = work.passes[pass].plan;
  const auto kernel = sweep_kernel<Real, scalar_t, kWholeRows>;
  const int spare = spare_shared_bytes<typename Text::Shared>(plan);
  if (spare > 0) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, spare), "asking for memory");
  }
  kernel<<<static_cast<unsigned>(plan.tickets()), Text::kThreads, static_cast<size_t>(spare), stream>>>(in, work, pass);
  check_cuda(cudaGetLastError(), "launching the sweep");
}

// make_outputs() is called when the device has work already: what the host does before that, somebody waits for.
template <class scalar_t, bool kWholeRows, class MakeOutputs>
void launch(const Passes& passes, const Inputs<scalar_t>& in, const MakeOutputs& make_outputs, const Tensor& like,
            cudaStream_t stream) {
  using Real = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const Tensor memory = empty_bytes(WorkspaceLayout<Real>(passes, nullptr).bytes, like);
  auto* bytes = static_cast<uint8_t*>(memory.mutable_data_ptr());
  const WorkspaceLayout<Real> layout(passes, bytes);
  const Workspace<Real>& work = layout.work;
  if (layout.unset_bytes > 0) {
    check_cuda(cudaMemsetAsync(bytes, 0xff, layout.unset_bytes, stream), "clearing the workspace");
  }

  const unsigned batch = static_cast<unsigned>(passes.whole().batch);
  if (passes.whole().blocks() > 0) {
    launch_sweep<Real, scalar_t, kWholeRows>(in, work, 0, stream);
  }
  if (work.has_hop()) {
    hop_kernel<Real, scalar_t><<<batch, kHopThreads, 0, stream>>>(in, work);
    check_cuda(cudaGetLastError(), "launching the hop");
  }
  for (int pass = 1; pass < passes.count; ++pass) {
    launch_sweep<Real, scalar_t, kWholeRows>(in, work, pass, stream);
    const index_t regions = passes.plans[pass].regions();
    region_hop_kernel<Real, scalar_t><<<static_cast<unsigned>(batch * regions), kWarp, 0, stream>>>(in, work, pass);
    check_cuda(cudaGetLastError(), "launching the hop in the regions");
  }
  const Outputs<scalar_t> out = make_outputs();
  const index_t segments = traced_segments(work.last().plan);
  trace_kernel<Real, scalar_t><<<static_cast<unsigned>(batch * segments), kWarp, 0, stream>>>(in, work, out);
  check_cuda(cudaGetLastError(), "launching the trace");
}

Integers integers(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Long}; }

Lengths lengths(const std::optional<Tensor>& tensor) {
  return tensor ? Lengths{integers(*tensor), tensor->stride(0)} : Lengths{{nullptr, false}, 0};
}

std::tuple<Tensor, Tensor> align(const Tensor& log_probs, const Tensor& targets,
                                 const std::optional<Tensor>& input_lengths,
                                 const std::optional<Tensor>& target_lengths, int64_t blank) {
  check_arguments(log_probs, targets, input_lengths, target_lengths, blank);
  const index_t batch = log_probs.size(0), frames = log_probs.size(1), labels = targets.size(1);
  check(frames <= kMostFrames, "log_probs may have 2^30 frames at most on CUDA, found T = ", frames);
  check(2 * labels + 1 < kNoPath, "targets may have fewer than 2^31 - 1 labels on CUDA, found L = ", labels);
  constexpr index_t kMostBlocks = index_t{1} << 31;  // of threads, in a launch
  check(batch < kMostBlocks, "the batch is too large for one CUDA launch");
  const index_t real_bytes = log_probs.scalar_type() == ScalarType::Double ? 8 : 4;
  const Passes passes = plan_passes(batch, frames, labels, 2 * real_bytes + 4);
  check(batch * traced_segments(passes.last()) < kMostBlocks, "the batch is too large for one CUDA launch");
  for (int pass = 0; pass < passes.count; ++pass) {
    check(passes.plans[pass].tickets() < kMostBlocks, "the batch is too large for one CUDA launch");
  }

  const int32_t device = log_probs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));

  const auto empty_outputs = [&] {
    return std::tuple(empty_tensor<2>({batch, frames}, targets), empty_tensor<2>({batch, frames}, log_probs));
  };
  if (batch == 0 || frames == 0) {
    return empty_outputs();
  }
  std::optional<std::tuple<Tensor, Tensor>> outputs;
  const auto launch_as = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const Inputs<scalar_t> in{static_cast<const scalar_t*>(log_probs.const_data_ptr()),
                              log_probs.stride(0),
                              log_probs.stride(1),
                              log_probs.stride(2),
                              log_probs.size(2),
                              integers(targets),
                              targets.stride(0),
                              targets.stride(1),
                              lengths(input_lengths),
                              lengths(target_lengths),
                              blank};
    const auto make_outputs = [&] {
      auto& [paths, scores] = outputs.emplace(empty_outputs());
      return Outputs<scalar_t>{paths.mutable_data_ptr(), targets.scalar_type() == ScalarType::Long,
                               static_cast<scalar_t*>(scores.mutable_data_ptr())};
    };
    using MakeOutputs = decltype(make_outputs);
    const auto launch_with =
        in.classes <= kWarp ? launch<scalar_t, true, MakeOutputs> : launch<scalar_t, false, MakeOutputs>;
    launch_with(passes, in, make_outputs, log_probs, static_cast<cudaStream_t>(stream));
  };
  switch (log_probs.scalar_type()) {
    case ScalarType::Half:     launch_as(Half{}); break;
    case ScalarType::BFloat16: launch_as(BFloat16{}); break;
    case ScalarType::Float:    launch_as(float{}); break;
    default:                   launch_as(double{});
  }
  return *std::move(outputs);
}

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  return as_operator("forced_align", [&] { return align(log_probs, targets, input_lengths, target_lengths, blank); });
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CUDA, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
