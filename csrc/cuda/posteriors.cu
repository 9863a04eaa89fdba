// ctc_align::posteriors, class_posteriors, span_posteriors, occupancies and posteriors_backward on CUDA tensors.
//
// Contents: 1 kernels  2 launches  3 the operators
//
// Utterances of one column take two allocations, a memset and one launch. Longer items take a launch forward and one back,
// with a memset before each, and one that divides; hours take as many for each chapter (plan_sum_launches in
// forward_backward/plan.h). Nothing here looks at a value: there is no synchronisation, and a CUDA graph may capture the
// call and replay it with other contents and lengths.
#include <array>
#include <tuple>
#include <vector>

#include "device.cuh"
#include "forward_backward/sweep.cuh"
#include "tensors.cuh"

namespace ctc_align {
namespace {

// ------------------------------------------------------------------------------------------------ 1 kernels

template <class Real, class Choice>
struct SumTextOf;
template <class Real, bool kHasMean, bool kWholeRows, bool kStars>
struct SumTextOf<Real, SumChoice<kHasMean, kWholeRows, kStars>> {
  using Text = SumSweep<CudaDevice, Real, kHasMean, kWholeRows, kStars>;
};
template <class Real, class Choice>
using SumText = typename SumTextOf<Real, Choice>::Text;

template <class Choice>
constexpr bool kHasNoValues = true;
template <bool kWholeRows, bool kStars>
constexpr bool kHasNoValues<SumChoice<true, kWholeRows, kStars>> = false;

// Shared memory is more than a kernel may have without asking, so it is dynamic.
template <class Shared>
__device__ Shared& shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return *reinterpret_cast<Shared*>(memory);
}

// Two blocks on a multiprocessor have 128 registers a thread, which is enough forward. Sweeps back and meetings would
// spill.
template <class Real>
constexpr int kResidentForward = sizeof(Real) == 4 ? 2 : 1;
constexpr int kResidentBackward = 1;

template <class Real, class Choice>
__global__ void __launch_bounds__(kSumThreads, kResidentForward<Real>)
    sum_forward_kernel(const SumInputs<Real> in, const SumWorkspace<Real> work, const SumLaunch launch) {
  using Text = SumText<Real, Choice>;
  Text::run_forward(in, work, launch, shared_memory<typename Text::Shared>());
}

template <class Real, class Choice>
__global__ void __launch_bounds__(kSumThreads, kResidentBackward)
    sum_backward_kernel(const SumInputs<Real> in, const SumWorkspace<Real> work, const SumLaunch launch) {
  using Text = SumText<Real, Choice>;
  Text::template run_backward<SumMode::kMeet>(in, work, launch, shared_memory<typename Text::Shared>());
}

template <class Real, class Choice>
__global__ void __launch_bounds__(kSumThreads, kResidentBackward)
    sum_spans_kernel(const SumInputs<Real> in, const SumWorkspace<Real> work, const SumLaunch launch) {
  using Text = SumText<Real, Choice>;
  Text::template run_backward<SumMode::kMeetAgain>(in, work, launch, shared_memory<typename Text::Shared>());
}

template <class Real, class Choice>
__global__ void __launch_bounds__(kSumThreads, kResidentBackward)
    sum_meeting_kernel(const SumInputs<Real> in, const SumWorkspace<Real> work, const SumLaunch launch) {
  using Text = SumText<Real, Choice>;
  Text::run_meeting(in, work, launch, shared_memory<typename Text::Shared>());
}

template <class Real>
__global__ void __launch_bounds__(kWarp)
    sum_finish_kernel(const SumInputs<Real> in, const SumWorkspace<Real> work, const SumLaunch launch) {
  finish_sums<CudaDevice>(in, work, launch);
}

// ----------------------------------------------------------------------------------------------- 2 launches

template <class Real, class Kernel>
void start(const char* name, Kernel kernel, size_t shared_bytes, const SumLaunch& launch, const SumInputs<Real>& in,
           const SumWorkspace<Real>& work, cudaStream_t stream) {
  if (shared_bytes > 0) {
    check_cuda(
        name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "asking for shared memory");
  }
  kernel<<<static_cast<unsigned>(launch.blocks), launch.threads, shared_bytes, stream>>>(in, work, launch);
  check_cuda(name, cudaGetLastError(), "launching a sweep of the sums");
}

// What an operator adds to the arguments that all have.
struct Kind {
  const char* name;
  SumOutput output;
  index_t star_columns;
  const Tensor* path_values;
  const Tensor *starts, *ends;
};

template <class Real>
std::tuple<Tensor, Tensor> sum_as(const Kind& kind, const Tensor& log_probs, const Tensor& targets,
                                  const std::optional<Tensor>& input_lengths,
                                  const std::optional<Tensor>& target_lengths, int64_t blank,
                                  const std::optional<Tensor>& star_scores, const std::optional<Tensor>& wild_gaps) {
  const index_t batch = log_probs.size(0), frames = log_probs.size(1), labels = targets.size(1);
  SumInputs<Real> in{};
  static_cast<Tensors<void>&>(in) = tensors<void>(log_probs, targets, input_lengths, target_lengths, blank);
  if (star_scores) {
    static_cast<Stars<void, true>&>(in) = stars<void>(*star_scores, wild_gaps);
  }
  const ScalarType type = log_probs.scalar_type();
  in.storage = type == ScalarType::Half       ? Storage::kHalf
               : type == ScalarType::BFloat16 ? Storage::kBFloat16
                                              : Storage::kReal;
  if (kind.path_values != nullptr) {
    in.path_values = static_cast<const Real*>(kind.path_values->const_data_ptr());
    in.values_item_stride = kind.path_values->stride(0);
    in.values_frame_stride = kind.path_values->stride(1);
    in.values_column_stride = kind.path_values->stride(2);
  }
  in.kind = kind.output;
  const bool is_spans = kind.output == SumOutput::kSpans;
  if (is_spans) {
    in.starts = static_cast<const int64_t*>(kind.starts->const_data_ptr());
    in.ends = static_cast<const int64_t*>(kind.ends->const_data_ptr());
    for (int i = 0; i < 2; ++i) {
      in.starts_strides[i] = kind.starts->stride(i);
      in.ends_strides[i] = kind.ends->stride(i);
    }
  }
  in.out_columns = kind.output == SumOutput::kClasses  ? in.classes + kind.star_columns
                   : kind.output == SumOutput::kTokens ? labels + 1
                                                       : labels;
  const int32_t dtype = sums_dtype(log_probs);
  const Tensor out = is_spans ? empty_tensor<2>({batch, labels}, log_probs, dtype)
                              : empty_tensor<3>({batch, frames, in.out_columns}, log_probs, dtype);
  const Tensor log_likelihoods = empty_tensor<1>({batch}, log_probs, dtype);
  in.out = static_cast<Real*>(out.mutable_data_ptr());
  in.log_likelihoods = static_cast<Real*>(log_likelihoods.mutable_data_ptr());
  if (batch == 0) {
    return {out, log_likelihoods};
  }

  SumPlan plan = plan_sums(batch, frames, labels, kind.path_values != nullptr ? 3 : 2, sizeof(Real), !is_spans);
  const bool has_columns = plan.columns() > 1;
  const std::vector<SumLaunch> launches = plan_sum_launches(plan, batch, is_spans, has_columns);
  constexpr index_t kMostBlocks = index_t{1} << 31;
  for (const SumLaunch& launch : launches) {
    check(launch.blocks < kMostBlocks, "the batch is too large for one CUDA launch");
  }
  const int32_t device = log_probs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const Tensor memory = empty_bytes(SumWorkspaceLayout<Real>(plan, is_spans || has_columns, nullptr).bytes, log_probs);
  auto* const bytes = static_cast<uint8_t*>(memory.mutable_data_ptr());
  const SumWorkspaceLayout<Real> layout(plan, is_spans || has_columns, bytes);
  const auto set = [&](void* part, int value, size_t count) {
    if (count > 0) {
      check_cuda(kind.name, cudaMemsetAsync(part, value, count, stream), "clearing memory");
    }
  };
  set(in.out, 0, static_cast<size_t>(out.numel()) * sizeof(Real));
  choose_sum_kernel(in, [&]<class Choice>(Choice) {
    constexpr size_t kShared = sizeof(typename SumText<Real, Choice>::Shared);
    for (const SumLaunch& launch : launches) {
      if (launch.unset == Unset::kForward) {
        set(bytes, 0xff, static_cast<size_t>(layout.forward_unset_bytes));
      } else if (launch.unset == Unset::kBackward) {
        set(bytes + layout.backward_unset_at, 0xff, static_cast<size_t>(layout.backward_unset_bytes));
      }
      switch (launch.kernel) {
        case SumKernel::kForward:
          start(kind.name, sum_forward_kernel<Real, Choice>, kShared, launch, in, layout.work, stream);
          break;
        case SumKernel::kBackward:
          start(kind.name, sum_backward_kernel<Real, Choice>, kShared, launch, in, layout.work, stream);
          break;
        case SumKernel::kSpans:
          if constexpr (kHasNoValues<Choice>) {
            start(kind.name, sum_spans_kernel<Real, Choice>, kShared, launch, in, layout.work, stream);
          }
          break;
        case SumKernel::kMeeting:
          if constexpr (kHasNoValues<Choice>) {
            start(kind.name, sum_meeting_kernel<Real, Choice>, kShared, launch, in, layout.work, stream);
          }
          break;
        case SumKernel::kFinish: start(kind.name, sum_finish_kernel<Real>, 0, launch, in, layout.work, stream);
      }
    }
  });
  return {out, log_likelihoods};
}

// ------------------------------------------------------------------------------------------- 3 the operators

// check_rest() throws if the other arguments of the operator do not fit.
template <class CheckRest>
std::tuple<Tensor, Tensor> sum(const Kind& kind, const Tensor& log_probs, const Tensor& targets,
                               const std::optional<Tensor>& input_lengths, const std::optional<Tensor>& target_lengths,
                               int64_t blank, const std::optional<Tensor>& star_scores,
                               const std::optional<Tensor>& wild_gaps, const CheckRest& check_rest) {
  return as_operator(kind.name, [&] {
    check_arguments(log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps);
    check_rest();
    const index_t frames = log_probs.size(1), labels = targets.size(1);
    check(frames <= kMostSumFrames, "log_probs may have 2^30 frames at most on CUDA, found T = ", frames);
    check(labels < kMostSumFrames, "targets may have fewer than 2^30 labels on CUDA, found L = ", labels);
    const auto sum_with = log_probs.scalar_type() == ScalarType::Double ? sum_as<double> : sum_as<float>;
    return sum_with(kind, log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps);
  });
}

std::tuple<Tensor, Tensor> posteriors(const Tensor& log_probs, const Tensor& targets,
                                      const std::optional<Tensor>& input_lengths,
                                      const std::optional<Tensor>& target_lengths, int64_t blank,
                                      const std::optional<Tensor>& star_scores,
                                      const std::optional<Tensor>& wild_gaps) {
  return sum({.name = "posteriors", .output = SumOutput::kTokens}, log_probs, targets, input_lengths, target_lengths,
             blank, star_scores, wild_gaps, [] {});
}

std::tuple<Tensor, Tensor> class_posteriors(const Tensor& log_probs, const Tensor& targets,
                                            const std::optional<Tensor>& input_lengths,
                                            const std::optional<Tensor>& target_lengths, int64_t blank,
                                            const std::optional<Tensor>& star_scores,
                                            const std::optional<Tensor>& wild_gaps) {
  return sum({.name = "class_posteriors", .output = SumOutput::kClasses}, log_probs, targets, input_lengths,
             target_lengths, blank, star_scores, wild_gaps, [] {});
}

// As in csrc/cpu/posteriors.cpp, its errors bear the name of class_posteriors.
std::tuple<Tensor, Tensor> occupancies(const Tensor& log_probs, const Tensor& targets,
                                       const std::optional<Tensor>& input_lengths,
                                       const std::optional<Tensor>& target_lengths, int64_t blank,
                                       const Tensor& star_scores, const std::optional<Tensor>& wild_gaps) {
  return sum({.name = "class_posteriors", .output = SumOutput::kClasses, .star_columns = 1}, log_probs, targets,
             input_lengths, target_lengths, blank, star_scores, wild_gaps, [] {});
}

std::tuple<Tensor, Tensor> span_posteriors(const Tensor& log_probs, const Tensor& targets, const Tensor& starts,
                                           const Tensor& ends, const std::optional<Tensor>& input_lengths,
                                           const std::optional<Tensor>& target_lengths, int64_t blank,
                                           const std::optional<Tensor>& star_scores,
                                           const std::optional<Tensor>& wild_gaps) {
  const auto check_rest = [&] {
    check_borders("starts", starts, log_probs, targets);
    check_borders("ends", ends, log_probs, targets);
  };
  return sum({.name = "span_posteriors", .output = SumOutput::kSpans, .starts = &starts, .ends = &ends}, log_probs,
             targets, input_lengths, target_lengths, blank, star_scores, wild_gaps, check_rest);
}

Tensor posteriors_backward(const Tensor& grad_posteriors, const Tensor& log_probs, const Tensor& targets,
                           const std::optional<Tensor>& input_lengths, const std::optional<Tensor>& target_lengths,
                           int64_t blank, const std::optional<Tensor>& star_scores,
                           const std::optional<Tensor>& wild_gaps) {
  const bool has_stars = star_scores.has_value();
  const auto check_rest = [&] { check_path_values(grad_posteriors, log_probs, targets, has_stars); };
  const Kind kind = {.name = "posteriors_backward",
                     .output = SumOutput::kClasses,
                     .star_columns = has_stars ? 1 : 0,
                     .path_values = &grad_posteriors};
  return std::get<0>(
      sum(kind, log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps, check_rest));
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CUDA, library) {
  library.impl("posteriors", TORCH_BOX(&ctc_align::posteriors));
  library.impl("class_posteriors", TORCH_BOX(&ctc_align::class_posteriors));
  library.impl("occupancies", TORCH_BOX(&ctc_align::occupancies));
  library.impl("span_posteriors", TORCH_BOX(&ctc_align::span_posteriors));
  library.impl("posteriors_backward", TORCH_BOX(&ctc_align::posteriors_backward));
}
