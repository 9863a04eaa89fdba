// The sweep: the forward pass over one task, 256 pairs of one column through some frame blocks.
//
// A block of threads takes a ticket if there is more than one task, waits for what its task needs (task.cuh), and then
// its two halves run two loops (steps.cuh): consumers hold pairs and do nothing but frames (row.cuh), producers bring
// emissions (emissions.cuh) and edges (edges.cuh). In one loop each role would carry the other's registers. At the start
// of a frame block both move the column's base (bases.cuh).
//
// No torch, no CUDA header: a Device brings the words of the machine (device.cuh), so that the same text runs on a GPU
// and in the emulator of the tests.
#pragma once

#include "bases.cuh"
#include "row.cuh"

namespace ctc_align {

template <class Real, int kWarps, bool kWholeRows, bool kStars>
struct SweepShared {
  EmissionRing<Real, kWarps, kWholeRows, kStars> emissions;
  EdgeBuffers<Real, kWarps> edges;
  SharedBases<kWarps> bases;
  uint32_t ticket;
  bool has_bad_label[kWarps];  // among those of a consumer
};

// R pairs a thread; the library is built with kPairsPerThread. Whole rows of emissions are shared if a warp can hold one.
template <DeviceWords Device, class Real, class scalar_t, int R, bool kWholeRows, bool kStars>
struct Sweep {
  using Consumer = Row<Device, Real, R, kWholeRows, kStars>;
  static constexpr int kWarps = Consumer::kWarps;  // consumers; as many are producers
  static constexpr int kThreads = sweep_threads(R);
  static constexpr int kStage = kStageFrames<Real>;
  using BlockSteps = Steps<Device, kWarps, kWholeRows>;
  using Shared = SweepShared<Real, kWarps, kWholeRows, kStars>;

  const Inputs<scalar_t, kStars>& in;
  Shared& shared;
  Task<Device, Real> task;
  int warp;            // its number among the consumers, or among the producers
  int32_t first_pair;  // of the thread, or of the one that it is a producer for
  int consumers;       // that have pairs

  // Runs the task of a block.
  //   Called by    all threads of the block, once a launch.
  //   Waits for    the ticket, where tasks wait for one another.
  //   Afterwards   the task's rows, edges and bases are in the workspace.
  //   Reuse        shared memory is the block's own.
  CTC_ALIGN_FN static void run(const Inputs<scalar_t, kStars>& in, const Workspace<Real>& work, int pass_number,
                               Shared& shared) {
    const Pass<Real>& pass = work.passes[pass_number];
    const Plan& plan = pass.plan;
    uint32_t ticket = Device::block();
    if (plan.waits()) {
      if (Device::thread() == 0) {
        shared.ticket = Device::take_ticket(pass.ticket) + 1;
      }
      Device::block_barrier();
      ticket = shared.ticket;
    }
    const TaskIndex index = task_of_ticket(plan, ticket);
    if (index.column >= plan.columns_of_region() || index.number < 0 || index.number >= plan.tasks()) {
      return;
    }
    Sweep sweep{in, shared, {work, pass, pass_number, index}};
    if (sweep.task.begin(lattice_of(in, index.item))) {
      sweep.run_task();
    }
  }

  // Runs the task, once it is placed.
  //   Called by    all threads of the block.
  //   Waits for    other tasks, where columns are cut into several: thread 0 waits, the block waits for it.
  //   Afterwards   the task is done, and in that case published.
  //   Reuse        shared memory is the block's own.
  CTC_ALIGN_FN void run_task() {
    warp = Device::warp() % kWarps;
    first_pair = task.first_pair() + (warp * kWarp + Device::lane()) * R;
    consumers = smaller(kWarps, (task.last_pair - task.first_pair()) / (kWarp * R) + 1);
    const bool waits = task.plan().cuts_columns();
    const int32_t end = task.end(), first = task.first(end);
    if (first >= end) {
      return;
    }
    const bool continues = task.continues(first);
    if (Device::thread() == 0 && waits) {
      task.wait_for_others(continues);
    }
    Device::block_barrier();
    if (Device::warp() >= kWarps) {
      produce(first, end);
    } else {
      consume(first, end, continues);
    }
    if (waits) {
      Device::block_barrier();
      if (Device::thread() == 0) {
        task.publish();
      }
    }
  }

  // The part of a consumer. Beside its frames it has little to do in a step: that would cost as much as frames do.
  CTC_ALIGN_FN void consume(int32_t first, int32_t end, bool continues) {
    Consumer row{task, shared.emissions, first_pair};
    const bool is_bad = row.read_target(in);
    if (Device::lane() == 0) {
      shared.has_bad_label[warp] = is_bad;  // read by finish(), steps later
    }
    row.begin(in, continues, first);
    bool reached_end = false;
    for (int32_t q = first; q < end && task.in_band(task.index.column, q); ++q) {
      const TaskFrames frames = task.frames_of(q);
      const BlockSteps steps = steps_of(frames);
      if (frames.rebases) {
        const Bases<Device, Real, kWarps> bases{task, shared.bases};
        if (task.is_first_pass()) {
          bases.offer(warp, row.largest(frames.first - 1));
        }
        row.subtract(static_cast<Real>(bases.settle(frames, steps).moved));
      }
      row.pass_right();
      steps.consume(warp, [&](int stage) {
        row.run_stage(frames.first + stage * kStage, frames.count - stage * kStage, shared.edges.into(warp, stage));
      });
      reached_end = reached_end || frames.first + frames.count > task.end_frame;
    }
    if (reached_end && task.is_first_pass() && row.owns_end()) {
      finish(row.path_end());
    }
    if (task.plan().cuts_columns()) {
      row.leave();
    }
  }

  // The part of a producer. The first receives edges from the left, the last sends them to the right.
  CTC_ALIGN_FN void produce(int32_t first, int32_t end) {
    const bool receives = warp == 0;
    EmissionProducer<Device, Real, scalar_t, R, kWarps, kWholeRows, kStars> emissions;
    emissions.reset(in, task.index.item, task.band(), first_pair, warp);
    emissions.load(task.first_frame_of(first));
    Edges<Device, Real, kWarps> edges(task, shared.edges, first);
    for (int32_t q = first; q < end && task.in_band(task.index.column, q); ++q) {
      const TaskFrames frames = task.frames_of(q);
      const BlockSteps steps = steps_of(frames);
      Real offset = 0;
      if (frames.rebases) {
        const Bases<Device, Real, kWarps> bases{task, shared.bases};
        if (receives && frames.has_left && task.is_first_pass() && Device::lane() == 0) {
          bases.fetch_left(frames);
        }
        offset = static_cast<Real>(bases.settle(frames, steps).offset);
      }
      edges.begin(frames, offset, receives);
      const bool sends = warp == kWarps - 1 && frames.has_right;
      steps.produce(
          warp, sends,
          [&](int stage) {
            emissions.store(shared.emissions, frames.first + stage * kStage);
            emissions.load(frames.first + (stage + 1) * kStage);
            if (receives) {
              edges.receive(stage);
            }
          },
          [&](int stage) { edges.send(stage); });
      edges.advance();
    }
  }

  CTC_ALIGN_FN BlockSteps steps_of(const TaskFrames& frames) const {
    return {frames.frame_block, (frames.count + kStage - 1) / kStage, consumers};
  }

  // Decides where the path ends. Called after the pseudo-frame by the thread that owns blank L.
  CTC_ALIGN_FN void finish(const PathEnd<Real>& end) const {
    bool is_good = end.is_finite();
    for (int w = 0; w < kWarps; ++w) {
      is_good = is_good && !shared.has_bad_label[w];
    }
    task.work.path_ends[task.index.item] = is_good ? pack_state(end.state) : kNoPath;
  }
};

}  // namespace ctc_align
