// The CUDA aligner on the host: the text of csrc/cuda/viterbi/kernels.cuh, run by the emulator, behind C functions.
// test_cuda_emulated.py compiles this file, once for each of
//
//     CTC_ALIGN_REAL     float or double, of log_probs and of the sums
//     CTC_ALIGN_PAIRS    the numbers of pairs a thread that are asked for: 1,2,4,8 or some of them
//     CTC_ALIGN_KERNELS  the kernels.cuh to run
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include CTC_ALIGN_KERNELS
#include "emulator.h"

using namespace ctc_align;
using Real = CTC_ALIGN_REAL;

// How a batch is cut. second_blocks and third_blocks: of frames, in the regions of a second and a third pass; 0: none;
// -1: as plan_passes() chooses. task_blocks = 0 asks for the tasks that with_tasks() chooses.
struct PlanArguments {
  int64_t batch, frames, labels, second_blocks, third_blocks, task_blocks, ring_tasks, stagger;
};

// One call of the operator; strides are in elements.
struct Call {
  PlanArguments plan;
  const Real* log_probs;
  int64_t item_stride, frame_stride, class_stride, classes;
  const void* targets;
  int64_t wide, target_item_stride, label_stride;  // wide: targets and paths are int64, not int32
  const void *input_lengths, *target_lengths;      // or nullptr
  int64_t input_wide, target_wide, lengths_stride;
  int64_t blank;
  void* paths;
  Real* scores;
  int64_t pairs_per_thread;  // 0: as the library would choose
  int64_t replay;            // keep the workspace as the call before has left it, which had the same plan
  int64_t resident_blocks, schedule, seed;
};

namespace {

Passes passes_of(const PlanArguments& arguments) {
  Passes passes = arguments.second_blocks < 0
                      ? plan_passes(arguments.batch, arguments.frames, arguments.labels, 2 * sizeof(Real) + 4)
                      : cut_into(arguments.batch, arguments.frames, arguments.labels,
                                 RegionSizes{arguments.second_blocks, arguments.third_blocks});
  const auto set = [](auto& field, int64_t value) { field = static_cast<std::decay_t<decltype(field)>>(value); };
  for (int i = 0; i < passes.count && arguments.task_blocks > 0; ++i) {
    set(passes.plans[i].task_blocks, arguments.task_blocks);
    set(passes.plans[i].ring_tasks, arguments.ring_tasks);
    set(passes.plans[i].stagger, arguments.stagger);
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

// The workspace, every part in memory of its own: AddressSanitizer sees who leaves it. It starts as NaN, and as
// numbers that are no pair and no ticket.
class Parts {
 public:
  Workspace<Real> lay_out_anew(const Passes& passes, bool replay) {
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

// SweepText and TraceText: Sweep<...> and Trace<...> of kernels.cuh.
template <class SweepText, class TraceText>
void launch(const Passes& passes, const Inputs<Real>& in, const Outputs<Real>& out, const Options& options,
            bool replay) {
  const Workspace<Real> work = parts.lay_out_anew(passes, replay);
  const uint32_t batch = static_cast<uint32_t>(passes.whole().batch);
  const auto sweep = [&](int pass) {
    const uint32_t tickets = static_cast<uint32_t>(passes.plans[pass].tickets());
    emulate<typename SweepText::Shared>(tickets, SweepText::kThreads, options,
                                        [&](auto& shared) { SweepText::run(in, work, pass, shared); });
  };
  if (passes.whole().blocks() > 0) sweep(0);
  if (work.has_hop()) {
    emulate<HopShared>(batch, kHopThreads, options,
                       [&](auto& shared) { run_hop<EmulatedDevice>(in, work, shared, EmulatedDevice::block()); });
  }
  for (int pass = 1; pass < passes.count; ++pass) {
    sweep(pass);
    emulate<HopShared>(batch * static_cast<uint32_t>(passes.plans[pass].regions()), kWarp, options,
                       [&](auto&) { run_hop_in_region<EmulatedDevice, Real, Real>(in, work, pass); });
  }
  using TraceShared = std::remove_reference_t<decltype(std::declval<TraceText&>().shared)>;
  emulate<TraceShared>(batch * static_cast<uint32_t>(traced_segments(work.last().plan)), kWarp, options,
                       [&](auto& shared) { TraceText::run(in, work, out, shared); });
}

template <int R, class... Arguments>
void align_with(const Inputs<Real>& in, const Arguments&... arguments) {
  using Device = EmulatedDevice;
  in.classes <= kWarp ? launch<Sweep<Device, Real, Real, R, true>, Trace<Device, Real, Real>>(arguments...)
                      : launch<Sweep<Device, Real, Real, R, false>, Trace<Device, Real, Real>>(arguments...);
}

template <int... R>
void align(const Call& call) {
  const Passes passes = passes_of(call.plan);
  const Inputs<Real> in{call.log_probs,
                        call.item_stride,
                        call.frame_stride,
                        call.class_stride,
                        call.classes,
                        {call.targets, call.wide != 0},
                        call.target_item_stride,
                        call.label_stride,
                        {{call.input_lengths, call.input_wide != 0}, call.lengths_stride},
                        {{call.target_lengths, call.target_wide != 0}, call.lengths_stride},
                        call.blank};
  const Outputs<Real> out{call.paths, call.wide != 0, call.scores};
  const Options options{static_cast<int>(call.resident_blocks), static_cast<Schedule>(call.schedule),
                        static_cast<uint64_t>(call.seed)};
  const int64_t wanted = call.pairs_per_thread != 0 ? call.pairs_per_thread : kPairsPerThread;
  const auto run_if = [&](bool holds, auto run) { return holds && (run(), true); };
  const bool found =
      (run_if(R == wanted, [&] { align_with<R>(in, passes, in, out, options, call.replay != 0); }) || ...);
  if (!found) throw std::runtime_error("not compiled for " + std::to_string(wanted) + " pairs a thread");
}

// Does every task have one ticket, and do the tasks that it waits for have earlier ones?
void check_tickets(const Plan& plan) {
  const index_t columns = plan.columns_of_region(), tasks = plan.tasks(), regions = plan.regions();
  constexpr index_t kNone = -1;
  std::vector<index_t> ticket_of(static_cast<size_t>(plan.batch * regions * columns * tasks), kNone);
  const auto ticket = [&](const Task& task) -> index_t& {
    const index_t place = (task.item * regions + task.region) * columns + task.column;
    return ticket_of[static_cast<size_t>(place * tasks + task.number)];
  };
  const auto complain = [](const char* what, const Task& task) {
    throw std::runtime_error(std::string(what) + ": item " + std::to_string(task.item) + " region " +
                             std::to_string(task.region) + " column " + std::to_string(task.column) + " task " +
                             std::to_string(task.number));
  };
  const auto is_planned = [&](const Task& task) {
    return 0 <= task.column && task.column < columns && 0 <= task.number && task.number < tasks;
  };
  for (index_t i = 0; i < plan.tickets(); ++i) {
    const Task task = task_of_ticket(plan, static_cast<uint32_t>(i));
    if (task.item < 0 || task.item >= plan.batch) complain("no such item", task);
    if (task.region < 0 || task.region >= regions) complain("no such region", task);
    if (!is_planned(task)) continue;
    if (ticket(task) != kNone) complain("two tickets", task);
    ticket(task) = i;
    const Task awaited[] = {
        {task.item, task.region, task.column - 1, task.number},                     // its edges
        {task.item, task.region, task.column, task.number - 1},                     // its row
        {task.item, task.region, task.column + 1, task.number - plan.ring_tasks}};  // its place in the ring
    for (const Task& other : awaited) {
      if (is_planned(other) && ticket(other) == kNone) complain("waits for a later ticket", task);
    }
  }
  for (index_t i = 0; i < static_cast<index_t>(ticket_of.size()); ++i) {
    const index_t place = i / tasks;
    const Task task{place / columns / regions, place / columns % regions, place % columns, i % tasks};
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

// Both return nullptr, or what went wrong.
extern "C" const char* emulated_align(const Call* call) {
  return message_of([&] { align<CTC_ALIGN_PAIRS>(*call); });
}
extern "C" const char* emulated_tickets(const PlanArguments* arguments) {
  return message_of([&] {
    const Passes passes = passes_of(*arguments);
    for (int i = 0; i < passes.count; ++i) check_tickets(passes.plans[i]);
  });
}
// How a batch is cut: task_blocks, ring_tasks and stagger of the first pass; returns the bytes of the workspace.
extern "C" int64_t emulated_plan(PlanArguments* arguments) {
  const Passes passes = passes_of(*arguments);
  const Plan& plan = passes.whole();
  arguments->task_blocks = plan.task_blocks;
  arguments->ring_tasks = plan.ring_tasks;
  arguments->stagger = plan.stagger;
  return WorkspaceLayout<Real>(passes, nullptr).bytes;
}
