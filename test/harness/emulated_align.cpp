// The CUDA aligner on the host: the text of csrc/cuda/viterbi, run by the emulator, behind C functions.
//
// emulated.py compiles this file, with csrc (or a copy of it) as an include directory, once for each of
//
//     CTC_ALIGN_STORED   float, double, StoredHalf or StoredBFloat16: the type of log_probs
//     CTC_ALIGN_PAIRS    pairs a thread: 1, 2, 4, 8, or kPairsPerThread as in the library
//
// The launches are those of the library: both walk the list of plan_launches().
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "cuda/viterbi/sweep.cuh"
#include "cuda/viterbi/trace.cuh"
#include "emulator.h"

using namespace ctc_align;
using Stored = CTC_ALIGN_STORED;
using Real = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// How a batch is cut. second and third: frame blocks in the regions of a second and a third pass; 0: none; -1: as
// plan_passes() chooses. task_frame_blocks = 0 asks for the tasks that with_tasks() chooses.
struct PlanArguments {
  int64_t batch, frames, labels, second, third, task_frame_blocks, ring_tasks, skew;
};

// One call of the operator; strides are in elements.
struct Call {
  PlanArguments plan;
  const Stored* log_probs;
  int64_t item_stride, frame_stride, class_stride, classes;
  const void* targets;
  int64_t wide, target_item_stride, label_stride;  // wide: targets and paths are int64, not int32
  const void *input_lengths, *target_lengths;      // or nullptr
  int64_t input_wide, target_wide, lengths_stride;
  int64_t blank;
  const Stored* star_scores;  // or nullptr: no stars
  int64_t star_item_stride, star_frame_stride;
  const uint8_t* wild_gaps;  // or nullptr
  int64_t wild_item_stride, gap_stride;
  void* paths;
  Stored* scores;
  int64_t replay;  // keep the workspace as the call before has left it, which had the same plan
  int64_t resident_blocks, schedule, seed;
};

// One launch of the list, for the tests to look at.
struct LaunchArguments {
  int64_t kernel, pass, blocks, threads, whole_rows, least_shared;
};

namespace {

Passes passes_of(const PlanArguments& arguments) {
  Passes passes = arguments.second < 0
                      ? plan_passes(arguments.batch, arguments.frames, arguments.labels, 2 * sizeof(Real) + 4)
                      : cut_into(arguments.batch, arguments.frames, arguments.labels,
                                 RegionSizes{arguments.second, arguments.third});
  const auto set = [](auto& field, int64_t value) { field = static_cast<std::decay_t<decltype(field)>>(value); };
  for (int i = 0; i < passes.count && arguments.task_frame_blocks > 0; ++i) {
    set(passes.plans[i].task_frame_blocks, arguments.task_frame_blocks);
    set(passes.plans[i].ring_tasks, arguments.ring_tasks);
    set(passes.plans[i].skew, arguments.skew);
  }
  return passes;
}

// Every pointer of a workspace.
std::vector<uint8_t**> pointers_of(Workspace<Real>& work) {
  std::vector<uint8_t**> pointers;
  const auto add = [&](auto*&... members) { (pointers.push_back(reinterpret_cast<uint8_t**>(&members)), ...); };
  add(work.bases, work.moved, work.path_ends);
  for (int i = 0; i < work.count; ++i) {
    Pass<Real>& pass = work.passes[i];
    add(pass.ticket, pass.done, pass.edges, pass.live_alphas, pass.live_origins, pass.kept_alphas, pass.kept_origins,
        pass.path_states);
  }
  return pointers;
}

// The workspace, every part in memory of its own, so that AddressSanitizer sees any access that leaves its part. It
// starts as NaN, and as numbers that are neither a pair nor a ticket.
class Parts {
 public:
  Workspace<Real> lay_out(const Passes& passes, bool replay) {
    std::vector<uint8_t> whole(static_cast<size_t>(WorkspaceLayout<Real>(passes, nullptr).bytes) + 16);
    WorkspaceLayout<Real> layout(passes, whole.data());
    const std::vector<uint8_t**> pointers = pointers_of(layout.work);
    std::vector<uint8_t*> begins;
    for (uint8_t** pointer : pointers) begins.push_back(*pointer);
    if (!replay) parts_.assign(pointers.size(), {});
    for (size_t i = 0; i < pointers.size(); ++i) {
      const uint8_t* end = whole.data() + layout.bytes;
      for (const uint8_t* other : begins) end = begins[i] < other && other < end ? other : end;
      parts_[i].resize(static_cast<size_t>(end - begins[i]) / 8, 0x7ff4'dead'7fa4'deadu);
      *pointers[i] = reinterpret_cast<uint8_t*>(parts_[i].data());
      const bool unset = begins[i] - whole.data() < layout.unset_bytes;
      if (unset) std::memset(*pointers[i], 0xff, parts_[i].size() * 8);
    }
    return layout.work;
  }

 private:
  std::vector<std::vector<uint64_t>> parts_;
};

Parts parts;

constexpr int kPairs = CTC_ALIGN_PAIRS;

// One launch of the list. Every kernel's block has the threads and the shared memory that the list says.
template <bool kStars>
void run(const Launch& launch, const Inputs<Stored, kStars>& in, const Workspace<Real>& work,
         const Outputs<Stored>& out, const Options& options) {
  const auto emulate_with = [&]<class Shared>(Shared*, auto kernel) {
    emulate<Shared>(static_cast<uint32_t>(launch.blocks), launch.threads, options, kernel);
  };
  const auto emulate_sweep = [&]<bool kWholeRows>(std::bool_constant<kWholeRows>) {
    using Text = Sweep<EmulatedDevice, Real, Stored, kPairs, kWholeRows, kStars>;
    emulate_with(static_cast<typename Text::Shared*>(nullptr),
                 [&](auto& shared) { Text::run(in, work, launch.pass, shared); });
  };
  struct NoShared {};
  switch (launch.kernel) {
    case Kernel::kSweep: launch.whole_rows ? emulate_sweep(std::true_type()) : emulate_sweep(std::false_type()); break;
    case Kernel::kHop:
      emulate_with(static_cast<HopShared*>(nullptr),
                   [&](HopShared& shared) { run_hop<EmulatedDevice>(in, work, shared); });
      break;
    case Kernel::kRegionHop:
      emulate_with(static_cast<NoShared*>(nullptr),
                   [&](NoShared&) { run_hop_in_region<EmulatedDevice>(in, work, launch.pass); });
      break;
    case Kernel::kTrace:
      emulate_with(static_cast<TraceShared*>(nullptr), [&](TraceShared& shared) {
        Trace<EmulatedDevice, Real, Stored, kStars>::run(in, work, out, shared);
      });
  }
}

template <bool kStars>
void align(const Call& call, const Stars<Stored, kStars>& stars) {
  const Passes passes = passes_of(call.plan);
  const Tensors<Stored> tensors{.log_probs = call.log_probs,
                                .item_stride = call.item_stride,
                                .frame_stride = call.frame_stride,
                                .class_stride = call.class_stride,
                                .frames = call.plan.frames,
                                .classes = call.classes,
                                .targets = {call.targets, call.wide != 0},
                                .target_item_stride = call.target_item_stride,
                                .label_stride = call.label_stride,
                                .labels = call.plan.labels,
                                .input_lengths = {{call.input_lengths, call.input_wide != 0}, call.lengths_stride},
                                .target_lengths = {{call.target_lengths, call.target_wide != 0}, call.lengths_stride},
                                .blank = call.blank};
  const Inputs<Stored, kStars> in{tensors, stars};
  const Options options{static_cast<int>(call.resident_blocks), static_cast<Schedule>(call.schedule),
                        static_cast<uint64_t>(call.seed)};
  const Workspace<Real> work = parts.lay_out(passes, call.replay != 0);
  for (const Launch& launch : plan_launches(passes, call.classes, kPairs, Processors{})) {
    Outputs<Stored> out{};  // as in forced_align.cu they are there for the trace alone
    if (launch.kernel == Kernel::kTrace) out = {call.paths, call.wide != 0, call.scores};
    run(launch, in, work, out, options);
  }
}

void align(const Call& call) {
  if (call.star_scores == nullptr) {
    align(call, Stars<Stored, false>{});
  } else {
    align(call, Stars<Stored, true>{call.star_scores, call.star_item_stride, call.star_frame_stride, call.wild_gaps,
                                    call.wild_item_stride, call.gap_stride});
  }
}

// Checks that every task has one ticket, and that the tasks that it waits for have earlier ones.
void check_tickets(const Plan& plan) {
  const index_t columns = plan.columns_of_region(), tasks = plan.tasks(), regions = plan.regions();
  constexpr index_t kNone = -1;
  std::vector<index_t> ticket_of(static_cast<size_t>(plan.batch * regions * columns * tasks), kNone);
  const auto ticket = [&](const TaskIndex& task) -> index_t& {
    const index_t column = (task.item * regions + task.region) * columns + task.column;
    return ticket_of[static_cast<size_t>(column * tasks + task.number)];
  };
  const auto complain = [](const char* mistake, const TaskIndex& task) {
    throw std::runtime_error(std::string(mistake) + ": item " + std::to_string(task.item) + " region " +
                             std::to_string(task.region) + " column " + std::to_string(task.column) + " task " +
                             std::to_string(task.number));
  };
  const auto is_planned = [&](const TaskIndex& task) {
    return 0 <= task.column && task.column < columns && 0 <= task.number && task.number < tasks;
  };
  for (index_t i = 0; i < plan.tickets(); ++i) {
    const TaskIndex task = task_of_ticket(plan, static_cast<uint32_t>(i));
    if (task.item < 0 || task.item >= plan.batch) complain("no such item", task);
    if (task.region < 0 || task.region >= regions) complain("no such region", task);
    if (!is_planned(task)) continue;
    if (ticket(task) != kNone) complain("two tickets", task);
    ticket(task) = i;
    const TaskIndex awaited[] = {
        {task.item, task.region, task.column - 1, task.number},                     // its edges
        {task.item, task.region, task.column, task.number - 1},                     // its row
        {task.item, task.region, task.column + 1, task.number - plan.ring_tasks}};  // its part of the ring
    for (const TaskIndex& other : awaited) {
      if (is_planned(other) && ticket(other) == kNone) complain("waits for a later ticket", task);
    }
  }
  for (index_t i = 0; i < static_cast<index_t>(ticket_of.size()); ++i) {
    const auto as_int = [](index_t value) { return static_cast<int32_t>(value); };
    const index_t column = i / tasks;
    const TaskIndex task{as_int(column / columns / regions), as_int(column / columns % regions),
                         as_int(column % columns), as_int(i % tasks)};
    if (ticket_of[static_cast<size_t>(i)] == kNone) complain("no ticket", task);
  }
}

const char* message_of(const std::function<void()>& work) {
  static std::string message;
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

// Both return nullptr, or a message about what went wrong.
extern "C" const char* emulated_align(const Call* call) {
  return message_of([&] { align(*call); });
}
extern "C" const char* emulated_tickets(const PlanArguments* arguments) {
  return message_of([&] {
    const Passes passes = passes_of(*arguments);
    for (int i = 0; i < passes.count; ++i) check_tickets(passes.plans[i]);
  });
}
// How a batch is cut: task_frame_blocks, ring_tasks and skew of the first pass. Returns the bytes of the workspace.
extern "C" int64_t emulated_plan(PlanArguments* arguments) {
  const Passes passes = passes_of(*arguments);
  const Plan& plan = passes.whole();
  arguments->task_frame_blocks = plan.task_frame_blocks;
  arguments->ring_tasks = plan.ring_tasks;
  arguments->skew = plan.skew;
  return WorkspaceLayout<Real>(passes, nullptr).bytes;
}
// The list of launches, on a device with `processors` multiprocessors of `shared_bytes`. Returns their number.
extern "C" int64_t emulated_launches(const PlanArguments* arguments, int64_t classes, int64_t processors,
                                     int64_t shared_bytes, LaunchArguments* list) {
  int64_t count = 0;
  for (const Launch& launch :
       plan_launches(passes_of(*arguments), classes, kPairs, Processors{processors, shared_bytes})) {
    list[count++] = {static_cast<int64_t>(launch.kernel),
                     launch.pass,
                     launch.blocks,
                     launch.threads,
                     launch.whole_rows,
                     launch.least_shared};
  }
  return count;
}
