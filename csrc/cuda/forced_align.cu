// ctc_align::forced_align on CUDA tensors: one allocation, one memset, three launches. Nothing here looks at a value:
// no synchronisation, and a CUDA graph may capture it and replay it with other contents and lengths.
#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>

#include "../arguments.h"
#include "../torch_seam.h"
#include "device.cuh"
#include "kernels.cuh"

namespace ctc_align {
namespace {

constexpr int kHopThreads = 256;

template <class Real, class scalar_t, int R, template <class, class, class, int, int> class Source>
__global__ void __launch_bounds__(kColumnPairs / R, 1)
    sweep_kernel(const Plan plan, const Inputs<scalar_t> in, const Workspace<Real> work) {
  using Kernel = Sweep<CudaDevice, Real, scalar_t, R, Source>;
  __shared__ typename Kernel::Shared shared;
  Kernel::run(plan, in, work, shared);
}

template <class Real, class scalar_t>
__global__ void __launch_bounds__(kHopThreads)
    hop_kernel(const Plan plan, const Inputs<scalar_t> in, const Workspace<Real> work) {
  __shared__ HopShared shared;
  run_hop<CudaDevice, Real, scalar_t>(plan, in, work, shared);
}

template <class Real, class scalar_t, template <class, class, class, int, int> class Source>
__global__ void __launch_bounds__(kWarp)
    trace_kernel(const Plan plan, const Inputs<scalar_t> in, const Workspace<Real> work, const Outputs<scalar_t> out) {
  __shared__ TraceShared shared;
  Trace<CudaDevice, Real, scalar_t, Source>::run(plan, in, work, out, shared);
}

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("forced_align: ") + what + ": " + cudaGetErrorString(error));
  }
}

template <class Real, class scalar_t, int R, template <class, class, class, int, int> class Source>
void launch_sweep(const Plan& plan, const Inputs<scalar_t>& in, const Workspace<Real>& work, cudaStream_t stream) {
  sweep_kernel<Real, scalar_t, R, Source>
      <<<static_cast<unsigned>(plan.tickets()), kColumnPairs / R, 0, stream>>>(plan, in, work);
  check_cuda(cudaGetLastError(), "launching the sweep");
}

template <class scalar_t, template <class, class, class, int, int> class Source>
void launch(const Plan& plan, int pairs_per_thread, const Inputs<scalar_t>& in, const Outputs<scalar_t>& out,
            const Tensor& like, cudaStream_t stream) {
  using Real = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const WorkspaceLayout layout = lay_out<Real>(plan);
  const Tensor memory = empty_bytes(layout.bytes, like);
  auto* bytes = static_cast<uint8_t*>(memory.mutable_data_ptr());
  const Workspace<Real> work = layout.template at<Real>(bytes);
  check_cuda(cudaMemsetAsync(bytes, 0xff, layout.unset_bytes, stream), "clearing the workspace");
  if (plan.blocks() > 0) {
    switch (pairs_per_thread) {
      case 1:  launch_sweep<Real, scalar_t, 1, Source>(plan, in, work, stream); break;
      case 2:  launch_sweep<Real, scalar_t, 2, Source>(plan, in, work, stream); break;
      default: launch_sweep<Real, scalar_t, 4, Source>(plan, in, work, stream); break;
    }
  }
  hop_kernel<Real, scalar_t><<<static_cast<unsigned>(plan.batch), kHopThreads, 0, stream>>>(plan, in, work);
  check_cuda(cudaGetLastError(), "launching the hop");
  const index_t segments = larger<index_t>(plan.segments(), 1);
  trace_kernel<Real, scalar_t, Source>
      <<<static_cast<unsigned>(plan.batch * segments), kWarp, 0, stream>>>(plan, in, work, out);
  check_cuda(cudaGetLastError(), "launching the trace");
}

Integers integers(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Long}; }

Lengths lengths(const std::optional<Tensor>& tensor) {
  return tensor ? Lengths{integers(*tensor), tensor->stride(0)} : Lengths{{nullptr, false}, 0};
}

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  check_arguments(log_probs, targets, input_lengths, target_lengths, blank);
  const Plan plan = plan_batch(log_probs.size(0), log_probs.size(1), targets.size(1));
  check(2 * plan.labels + 1 < kNoPath, "targets may have fewer than 2^31 - 1 labels on CUDA, found L = ", plan.labels);
  check(plan.tickets() < (index_t{1} << 31), "the batch is too large for one CUDA launch");

  const int32_t device = log_probs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));

  Tensor paths = empty_matrix(plan.batch, plan.frames, targets);
  Tensor scores = empty_matrix(plan.batch, plan.frames, log_probs);
  if (plan.batch == 0 || plan.frames == 0) {
    return {paths, scores};
  }
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
    const Outputs<scalar_t> out{paths.mutable_data_ptr(), targets.scalar_type() == ScalarType::Long,
                                static_cast<scalar_t*>(scores.mutable_data_ptr())};
    const bool whole_rows = in.classes <= kWarp;
    const auto launch_with = whole_rows ? launch<scalar_t, RowInWarp> : launch<scalar_t, OwnColumns>;
    launch_with(plan, pairs_per_thread(plan, whole_rows), in, out, log_probs, static_cast<cudaStream_t>(stream));
  };
  switch (log_probs.scalar_type()) {
    case ScalarType::Half:     launch_as(Half{}); break;
    case ScalarType::BFloat16: launch_as(BFloat16{}); break;
    case ScalarType::Float:    launch_as(float{}); break;
    default:                   launch_as(double{});
  }
  return {paths, scores};
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CUDA, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
