// The plan of the CUDA sums and its launches, as csrc/cuda/posteriors.cu makes them, behind two C functions. sums.py
// compiles this file with CTC_ALIGN_REAL.
#include <utility>
#include <vector>

#include "cuda/forward_backward/workspace.cuh"

using namespace ctc_align;
using Real = CTC_ALIGN_REAL;

// Sizes of a call, of which its plan is made; then what comes of it.
struct PlanArguments {
  int64_t batch, frames, labels, planes;
  int64_t group, segment, chapter;
  int64_t has_second_pass;
  int64_t rows, slots, is_single;
};

struct LaunchArguments {
  int64_t kernel, first_item, blocks, threads, unset, begin, end, row, row_to, keeps_rows;
};

namespace {

std::pair<SumPlan, std::vector<SumLaunch>> plan_of(const PlanArguments& of) {
  const bool spans = of.has_second_pass != 0;
  SumPlan plan =
      plan_sums(of.batch, of.frames, of.labels, of.planes, sizeof(Real), !spans, {of.group, of.segment, of.chapter});
  const auto launches = plan_sum_launches(plan, of.batch, spans, plan.columns() > 1);
  return {plan, launches};
}

}  // namespace

// How a batch is cut. Returns the bytes of the workspace, and sets the sizes of the plan.
extern "C" int64_t sum_plan(PlanArguments* arguments) {
  const SumPlan plan = plan_of(*arguments).first;
  arguments->group = plan.batch;
  arguments->segment = plan.segment_frames;
  arguments->chapter = plan.chapter_frames;
  arguments->rows = plan.rows;
  arguments->slots = plan.slots;
  arguments->is_single = plan.is_single();
  return SumWorkspaceLayout<Real>(plan, arguments->has_second_pass != 0 || plan.columns() > 1, nullptr).bytes;
}

// The list of launches, as many as there is room for. Returns their number.
extern "C" int64_t sum_launches(const PlanArguments* arguments, LaunchArguments* list, int64_t room) {
  const auto launches = plan_of(*arguments).second;
  const int64_t count = static_cast<int64_t>(launches.size());
  for (int64_t i = 0; i < smaller(count, room); ++i) {
    const SumLaunch& launch = launches[static_cast<uint64_t>(i)];
    list[i] = {static_cast<int64_t>(launch.kernel),
               launch.first_item,
               launch.blocks,
               launch.threads,
               static_cast<int64_t>(launch.unset),
               launch.begin,
               launch.end,
               launch.row,
               launch.row_to,
               launch.keeps_rows};
  }
  return count;
}
