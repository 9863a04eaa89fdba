// One sweep over a part of a column's frames, forward or back.
//
// Half of the block's warps are consumers, and hold pairs (row.cuh). The other half are producers: they bring weights
// (weights.cuh) and edges, and keep what comes of a stage (keep.cuh). task.cuh has their steps.
#pragma once

#include "row.cuh"

namespace ctc_align {

template <DeviceWords Device, class RealType, bool kHasMean, bool kWholeRows, bool kStars>
struct SumPart {
  using Real = RealType;
  static constexpr int kStage = kSumStage<Real, kHasMean>;
  using Lanes = ThreadLanes<Device, Real>;
  using Weight = SumWeight<Device, Real, kHasMean>;
  using Shared = SumShared<Real, kHasMean, kWholeRows>;
  using Keeper = SumKeeper<Device, Real, kHasMean, kWholeRows, kStars>;
  using Producer = WeightProducer<Device, Real, kHasMean, kWholeRows, kStars>;
  using Words = WeightWords<Weight>;
  template <bool kForward, SumMode kMode>
  using Row = SumRow<Device, Real, kHasMean, kWholeRows, kStars, kForward, kMode>;

  const SumInputs<Real>& in;
  const SumWorkspace<Real>& work;
  const SumLaunch& launch;
  Shared& shared;
  SumTask task;
  Real* slot;  // the block's alphas or betas of a segment
  int warp;    // its number among the consumers, or among the producers
  int barriers;

  CTC_ALIGN_FN index_t frame_reals() const { return work.plan.kept_pairs() * work.pair_reals(); }
  CTC_ALIGN_FN index_t slot_reals() const { return work.plan.segment_frames * frame_reals(); }
  CTC_ALIGN_FN index_t row_at(index_t row, int32_t pair) const { return work.row_of(row, task.local_item, pair); }

  // Sweeps frames of the column: those of a chapter forward, or a part of them that the slot has room for, from
  // `slot_frame` on.
  //   Called by    all threads of the block.
  //   Waits for    the edges, and on the way back the sums, of the neighbour whose ticket is earlier.
  //   Afterwards   rows, edges and outputs are in global memory.
  //   Reuse        shared memory, and the slot: after the next barrier.
  template <bool kForward, SumMode kMode>
  CTC_ALIGN_FN void sweep(const FrameRange& part, int32_t slot_frame) {
    constexpr bool kMeets = Row<kForward, kMode>::kMeets;
    const int32_t low_stage = part.begin / kStage, high_stage = (part.end - 1) / kStage;
    const SumSteps<Device> steps{high_stage - low_stage + 1, task.consumers(), next_barriers()};
    const auto frame_of = [&](int stage) { return (kForward ? low_stage + stage : high_stage - stage) * kStage; };
    const PairOrder order = PairOrder::of(task, kForward);
    if (Device::warp() < kSumWarps) {
      const bool has_pairs = warp < steps.consumers;
      Row<kForward, kMode> row{in, task, shared, warp, part};
      if (has_pairs) {
        row.read_target(order);
        const int32_t pair = row.lower_pair() - task.first_pair();
        row.has_memory = kMode != SumMode::kForget && pair < work.plan.kept_pairs();
        row.memory = slot + (row.has_memory ? pair : 0) * work.pair_reals();
        row.memory_frame = slot_frame;
        row.memory_stride = static_cast<int32_t>(frame_reals());
        begin(row, part, slot_frame);
        if constexpr (kMeets) {
          row.meeting = Meeting<Lanes, Weight>::at(shared.total.exponent, shared.total.mean);
          row.load_stage(frame_of(0));
        }
        row.pass_on();
      }
      for (int step = 0; step < steps.count(); ++step) {
        const int stage = step - 1 - warp;
        if (has_pairs && steps.has(stage)) {
          if constexpr (kMode == SumMode::kForget) {
            keep_segment_row(row, frame_of(stage));
          }
          row.run_stage(stage, frame_of(stage));
        }
        steps.end(step);
      }
      if (has_pairs) {
        end(row, part);
      }
      return;
    }
    constexpr bool keeps = kMode == SumMode::kMeet;
    const bool publishes = keeps && work.plan.columns() > 1 && warp == 0 && Device::lane() == 0;
    Keeper keeper{in, task, work, shared, warp, part};
    Producer producer{in, task, work};
    producer.reset(order, warp, kMode == SumMode::kMeetAgain);
    producer.load(frame_of(0));
    for (int step = 0; step < steps.count(); ++step) {
      bring<kForward>(producer, steps, step, frame_of, part);
      const int kept = steps.kept_in(step);
      if (steps.has(kept)) {
        if constexpr (!kForward || kMode == SumMode::kForget) {
          send<kForward>(steps, kept, frame_of(kept), part);
        }
        if (keeps) {
          keeper.keep(kept, frame_of(kept));
        }
      }
      if (publishes && steps.has(kept - 1)) {
        keeper.publish(larger(frame_of(kept - 1), part.begin));
      }
      steps.end(step);
    }
    if (publishes) {
      keeper.publish(part.begin);
    }
  }

  // The row before a part: kept before its segment, before the chapter, or in the slot; or where paths begin.
  template <SumMode kMode>
  CTC_ALIGN_FN void begin(Row<true, kMode>& row, const FrameRange& part, int32_t slot_frame) {
    row.clear();
    const bool is_entered = part.begin > task.first_frame(task.column);
    if (kMode == SumMode::kMeet && part.begin > 0) {
      if (row.has_memory) {
        row.load_row(row.memory + (part.begin - 1) * row.memory_stride);
      }
    } else if (is_entered && part.begin > task.chapter_begin) {
      const index_t segment = (slot_frame - task.chapter_begin) / work.plan.segment_frames;
      row.load_row(work.segment_rows + row_at(segment, row.lower_pair()));
    } else if (is_entered && launch.row >= 0) {
      row.load_row(work.chapter_rows + row_at(launch.row, row.lower_pair()));
    } else if (part.begin == 0) {
      row.begin_in(0);
    }
  }
  CTC_ALIGN_FN void keep_segment_row(const Row<true, SumMode::kForget>& row, int32_t frame) {
    const int32_t in_chapter = frame - task.chapter_begin, segment = static_cast<int32_t>(work.plan.segment_frames);
    const bool may_be_first = in_chapter % static_cast<int32_t>(kChapterGrid) == 0;  // before a slow division
    if (launch.keeps_rows && may_be_first && in_chapter % segment == 0 && row.frames.has(frame)) {
      row.store_row(work.segment_rows + row_at(in_chapter / segment, row.lower_pair()));
    }
  }
  template <SumMode kMode>
  CTC_ALIGN_FN void end(const Row<true, kMode>& row, const FrameRange& part) {
    if (kMode == SumMode::kForget && launch.row_to >= 0 && part.end == task.chapter_end) {
      row.store_row(work.chapter_rows + row_at(launch.row_to, row.lower_pair()));
    }
    if (part.end == task.end_frame && (kMode == SumMode::kForget || work.plan.is_single())) {
      Real* const ends = work.ends + task.local_item * 2 * work.plan.planes;
      for (int r = 0; r < kSumPairs; ++r) {
        if (row.pairs[r] == task.labels - 1) {
          pack(row.state[r].label, ends);
        }
        if (row.pairs[r] == task.labels) {
          pack(row.state[r].blank, ends + work.plan.planes);
          if (task.labels == 0) {
            pack(Weight::zero(), ends);
          }
        }
      }
    }
  }

  // The row after a part: after the item's last frame, or as the part after it has left it, in this chapter or the next.
  template <SumMode kMode>
  CTC_ALIGN_FN void begin(Row<false, kMode>& row, const FrameRange& part, int32_t) {
    row.clear();
    if (part.end == task.end_frame) {
      row.begin_in(task.labels);
    } else if (part.end < task.after_last_frame(task.column)) {
      const index_t from = launch.row_to + (part.end == task.chapter_end ? 1 : 0);
      row.load_row(work.later_rows + row_at(from % 2, row.lower_pair()));
    }
    if (kMode == SumMode::kMeetAgain) {
      row.begin_spans();
    }
  }
  // Registers hold a row no longer than a part: the way forward needs them, too.
  template <SumMode kMode>
  CTC_ALIGN_FN void end(const Row<false, kMode>& row, const FrameRange&) {
    if (kMode == SumMode::kMeetAgain) {
      row.end_spans();
    }
    // In a meeting the block forward may read the row of the middle until it is done.
    if (work.plan.meets ? kMode == SumMode::kKeep : !work.plan.is_single()) {
      row.store_row(work.later_rows + row_at(launch.row_to % 2, row.lower_pair()));
    }
  }

  // A number for the next steps' barriers that no barrier before had.
  CTC_ALIGN_FN int next_barriers() {
    barriers += 1 << 20;
    return barriers;
  }

  // Brings a step's weights, and the neighbour's edges.
  //   Called by    all lanes of a producer.
  //   Waits for    the neighbour, whose ticket is an earlier one.
  //   Afterwards   both are valid for the consumers in the next step.
  //   Reuse        of an edge's place: two stages later.
  template <bool kForward, class FrameOf>
  CTC_ALIGN_FN void bring(Producer& producer, const SumSteps<Device>& steps, int step, const FrameOf& frame_of,
                          const FrameRange& part) {
    const int stage = kWholeRows ? step : step - warp;  // own labels: one ahead of the consumer
    if (steps.has(stage) && warp < (kWholeRows ? kSumWarps : larger(steps.consumers, 1))) {
      producer.store(shared.rings, stage);
      if (steps.has(stage + 1)) {
        producer.load(frame_of(stage + 1));
      }
    }
    if (warp == 0 && steps.has(step)) {
      receive<kForward>(step, frame_of(step), part);
    }
  }

  CTC_ALIGN_FN uint64_t* edges(bool is_forward, int32_t of_column, int32_t frame) const {
    const index_t at = work.edge_of(task.local_item, of_column, frame - task.chapter_begin);
    return is_forward ? work.forward_edges + at * Words::kCount : work.backward_edges + at * 2 * Words::kCount;
  }

  template <bool kForward>
  CTC_ALIGN_FN void receive(int stage, int32_t first, const FrameRange& part) {
    constexpr int kCount = Upstream<Weight, kForward>::kCount;
    const int32_t from = task.column + (kForward ? -1 : 1);
    if (Device::lane() < kStage) {
      const int32_t frame = first + Device::lane();
      const bool is_sent = part.has(frame) && task.frames_of(from).has(frame);
      for (int i = 0; i < kCount; ++i) {
        Weight weight = Weight::zero();
        if (is_sent) {
          Words words;
          const uint64_t* const edge = edges(kForward, from, frame) + i * Words::kCount;
          for (int n = 0; n < Words::kCount; ++n) {
            while ((words.of[n] = Device::load_relaxed(edge + n)) == Words::kUnset) {
              Device::pause();
            }
          }
          weight = words.weight();
        }
        pack(weight, shared.edges[0][stage % 2][Device::lane()][i]);
      }
    }
  }

  // Sends a stage's edges to the neighbour, in the step after the last consumer has run it.
  //   Called by    all lanes of a producer.
  //   Waits for    nothing.
  //   Afterwards   the edges are on their way.
  //   Reuse        of an edge's place: two stages later.
  template <bool kForward>
  CTC_ALIGN_FN void send(const SumSteps<Device>& steps, int stage, int32_t first, const FrameRange& part) {
    constexpr int kCount = Upstream<Weight, kForward>::kCount;
    const bool has_reader = kForward ? task.column < task.last_column() : task.column > 0;
    if (warp == kSumWarps - 1 && has_reader && Device::lane() < kStage && part.has(first + Device::lane())) {
      for (int i = 0; i < kCount; ++i) {
        const auto words = Words::from(unpack<Weight>(shared.edges[steps.consumers][stage % 2][Device::lane()][i]));
        uint64_t* const edge = edges(kForward, task.column, first + Device::lane()) + i * Words::kCount;
        for (int n = 0; n < Words::kCount; ++n) {
          Device::store_relaxed(edge + n, words.of[n]);
        }
      }
    }
  }
};

}  // namespace ctc_align
