// The CUDA sums over all paths on the host: the text of csrc/cuda/forward_backward, run by the emulator, behind a C
// function. sums.py compiles this file with CTC_ALIGN_REAL, float or double. The launches are those of the library.
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "cuda/forward_backward/sweep.cuh"
#include "emulator.h"

using namespace ctc_align;
using Real = CTC_ALIGN_REAL;

// One call of an operator; strides are in elements.
struct Call {
  int64_t batch, frames, labels, classes;
  int64_t group, segment, chapter, slots;  // sizes that the plan is to have; 0: as it likes
  const void* log_probs;
  int64_t storage, item_stride, frame_stride, class_stride;
  const void* targets;
  int64_t wide, target_item_stride, label_stride;
  const void *input_lengths, *target_lengths;  // or nullptr
  int64_t input_wide, target_wide, lengths_stride;
  int64_t blank;
  const void* star_scores;  // or nullptr: no stars
  int64_t star_item_stride, star_frame_stride;
  const uint8_t* wild_gaps;  // or nullptr
  int64_t wild_item_stride, gap_stride;
  const Real* path_values;  // or nullptr
  int64_t values_item_stride, values_frame_stride, values_column_stride;
  int64_t kind;
  const int64_t *starts, *ends;  // or nullptr
  int64_t starts_strides[2], ends_strides[2];
  Real* out;
  int64_t out_columns;
  Real* log_likelihoods;
  int64_t replay;  // the workspace holds what the call before has left there
  int64_t resident_blocks, schedule, seed;
};

namespace {

// The workspace, every part in memory of its own, so that AddressSanitizer sees any access that leaves its part.
class Parts {
 public:
  const SumWorkspace<Real>& work() const { return layout_->work; }
  void lay_out(const SumPlan& plan, bool needs_sums) {
    SumWorkspaceLayout<Real> layout(plan, needs_sums, nullptr);
    std::vector<uint8_t> whole(static_cast<size_t>(layout.bytes) + 32);
    layout = SumWorkspaceLayout<Real>(plan, needs_sums, whole.data());
    SumWorkspace<Real>& work = layout.work;
    const auto members = std::vector<uint8_t**>{address(work.forward_ticket),
                                                address(work.forward_edges),
                                                address(work.backward_ticket),
                                                address(work.kept_to),
                                                address(work.finished),
                                                address(work.halves),
                                                address(work.backward_edges),
                                                address(work.chapter_rows),
                                                address(work.segment_rows),
                                                address(work.later_rows),
                                                address(work.alphas),
                                                address(work.ends),
                                                address(work.sums)};
    parts_.assign(members.size(), {});
    for (size_t i = 0; i < members.size(); ++i) {
      const uint8_t* const end = i + 1 < members.size() ? *members[i + 1] : whole.data() + layout.bytes;
      parts_[i].assign(static_cast<size_t>(end - *members[i]) / 8, 0x7ff4'dead'7fa4'deadu);
    }
    for (size_t i = 0; i < members.size(); ++i) *members[i] = reinterpret_cast<uint8_t*>(parts_[i].data());
    layout_ = layout;
  }
  void unset(Unset what) {
    const size_t begin = what == Unset::kForward ? 0 : 2, end = what == Unset::kForward ? 2 : 7;
    for (size_t i = begin; i < end; ++i) std::memset(parts_[i].data(), 0xff, parts_[i].size() * 8);
  }

 private:
  template <class T>
  static uint8_t** address(T*& member) {
    return reinterpret_cast<uint8_t**>(&member);
  }
  std::vector<std::vector<uint64_t>> parts_;
  std::optional<SumWorkspaceLayout<Real>> layout_;
};

template <bool kHasMean, bool kWholeRows, bool kStars>
void run(const SumLaunch& launch, const SumInputs<Real>& in, const SumWorkspace<Real>& work, const Options& options) {
  using Text = SumSweep<EmulatedDevice, Real, kHasMean, kWholeRows, kStars>;
  struct NoShared {};
  const uint32_t blocks = static_cast<uint32_t>(launch.blocks);
  switch (launch.kernel) {
    case SumKernel::kForward:
      emulate<typename Text::Shared>(blocks, launch.threads, options,
                                     [&](auto& shared) { Text::run_forward(in, work, launch, shared); });
      break;
    case SumKernel::kBackward:
      emulate<typename Text::Shared>(blocks, launch.threads, options, [&](auto& shared) {
        Text::template run_backward<SumMode::kMeet>(in, work, launch, shared);
      });
      break;
    case SumKernel::kSpans:
      if constexpr (!kHasMean) {
        emulate<typename Text::Shared>(blocks, launch.threads, options, [&](auto& shared) {
          Text::template run_backward<SumMode::kMeetAgain>(in, work, launch, shared);
        });
      }
      break;
    case SumKernel::kMeeting:
      if constexpr (!kHasMean) {
        emulate<typename Text::Shared>(blocks, launch.threads, options,
                                       [&](auto& shared) { Text::run_meeting(in, work, launch, shared); });
      }
      break;
    case SumKernel::kFinish:
      emulate<NoShared>(blocks, launch.threads, options,
                        [&](NoShared&) { finish_sums<EmulatedDevice>(in, work, launch); });
  }
}

void sum(const Call& call) {
  SumInputs<Real> in{};
  in.log_probs = call.log_probs;
  in.item_stride = call.item_stride;
  in.frame_stride = call.frame_stride;
  in.class_stride = call.class_stride;
  in.frames = call.frames;
  in.classes = call.classes;
  in.targets = {call.targets, call.wide != 0};
  in.target_item_stride = call.target_item_stride;
  in.label_stride = call.label_stride;
  in.labels = call.labels;
  in.input_lengths = {{call.input_lengths, call.input_wide != 0}, call.lengths_stride};
  in.target_lengths = {{call.target_lengths, call.target_wide != 0}, call.lengths_stride};
  in.blank = call.blank;
  in.star_scores = call.star_scores;
  in.star_item_stride = call.star_item_stride;
  in.star_frame_stride = call.star_frame_stride;
  in.wild_gaps = call.wild_gaps;
  in.wild_item_stride = call.wild_item_stride;
  in.gap_stride = call.gap_stride;
  in.storage = static_cast<Storage>(call.storage);
  in.path_values = call.path_values;
  in.values_item_stride = call.values_item_stride;
  in.values_frame_stride = call.values_frame_stride;
  in.values_column_stride = call.values_column_stride;
  in.kind = static_cast<SumOutput>(call.kind);
  in.starts = call.starts;
  in.ends = call.ends;
  for (int i = 0; i < 2; ++i) {
    in.starts_strides[i] = call.starts_strides[i];
    in.ends_strides[i] = call.ends_strides[i];
  }
  in.out = call.out;
  in.out_columns = call.out_columns;
  in.log_likelihoods = call.log_likelihoods;

  const SumSizes sizes{call.group, call.segment, call.chapter};
  const bool spans = in.kind == SumOutput::kSpans;
  SumPlan plan = plan_sums(call.batch, call.frames, call.labels, call.path_values ? 3 : 2, sizeof(Real), !spans, sizes);
  if (call.slots > 0 && !plan.is_single()) plan.slots = smaller(plan.slots, call.slots);
  const bool many = plan.columns() > 1;
  const auto launches = plan_sum_launches(plan, call.batch, spans, many);
  const Options options{static_cast<int>(call.resident_blocks), static_cast<Schedule>(call.schedule),
                        static_cast<uint64_t>(call.seed)};
  static Parts parts;
  if (!call.replay) parts.lay_out(plan, spans || many);
  for (const SumLaunch& launch : launches) {
    if (launch.unset != Unset::kNothing) parts.unset(launch.unset);
    choose_sum_kernel<Real>(in,
                            [&]<bool kHasMean, bool kWholeRows, bool kStars>(SumChoice<kHasMean, kWholeRows, kStars>) {
                              run<kHasMean, kWholeRows, kStars>(launch, in, parts.work(), options);
                            });
  }
}

}  // namespace

// Returns nullptr, or a message about what went wrong.
extern "C" const char* emulated_sum(const Call* call) {
  static std::string message;
  try {
    sum(*call);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
