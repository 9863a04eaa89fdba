// The sums' sweeps: one block of threads takes a column of an item through a chapter, forward or back.
//
//     chapter     |......................|......................|......................|
//     forward     --> a row before each segment                                            x: kept
//                 x......x......x......x
//     back                             <--  the last segment forward again, all alphas kept; then back
//                                x======
//                         x======           and so on: one block does both, segment after segment
//
// An item of one column and one segment may have two blocks, one forward and one back, that MEET in the middle:
//
//     block 0     ------------> alphas kept |  betas met, outputs ->       A block that comes to the middle before the other
//     block 1   <- outputs, alphas met      |  betas kept <-----------     one has begun takes that one's part as well.
//
// Half of the warps are consumers, and hold pairs (row.cuh). The other half are producers: they bring weights
// (weights.cuh) and edges, and keep what comes of a stage (keep.cuh).
#pragma once

#include "row.cuh"

namespace ctc_align {

template <DeviceWords Device, class RealType, bool kHasMean, bool kWholeRows, bool kStars>
struct SumSweep {
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

  // Each runs the task of a block.
  //   Called by    all threads of the block, once a launch.
  //   Waits for    the ticket, where tasks wait for one another.
  //   Afterwards   the task's rows, edges and outputs are in global memory.
  //   Reuse        shared memory is the block's own.
  CTC_ALIGN_FN static void run_forward(const SumInputs<Real>& in, const SumWorkspace<Real>& work,
                                       const SumLaunch& launch, Shared& shared) {
    const uint32_t ticket = take_ticket(work.forward_ticket, work.plan.columns() > 1, shared);
    SumSweep sweep{in, work, launch, shared, sum_task(in, work.plan, launch, ticket, false)};
    sweep.prepare();
    const FrameRange frames = sweep.task.frames();
    if (!frames.is_empty()) {
      sweep.template sweep<true, SumMode::kForget>(frames, 0);
    }
  }

  template <SumMode kBackMode>
  CTC_ALIGN_FN static void run_backward(const SumInputs<Real>& in, const SumWorkspace<Real>& work,
                                        const SumLaunch& launch, Shared& shared) {
    const bool waits = work.plan.columns() > 1 || work.plan.slots < launch.blocks;
    const uint32_t ticket = take_ticket(work.backward_ticket, waits, shared);
    SumSweep sweep{in, work, launch, shared, sum_task(in, work.plan, launch, ticket, true)};
    sweep.prepare();
    sweep.take_slot(ticket);
    sweep.template go_back<kBackMode>();
    if (work.plan.slots < launch.blocks) {
      Device::block_barrier();
      if (Device::thread() == 0) {
        Device::store_release(work.finished + ticket, 0);
      }
    }
  }

  CTC_ALIGN_FN static void run_meeting(const SumInputs<Real>& in, const SumWorkspace<Real>& work,
                                       const SumLaunch& launch, Shared& shared) {
    const uint32_t ticket = take_ticket(work.backward_ticket, true, shared);
    SumSweep sweep{in, work, launch, shared, sum_task(in, work.plan, launch, ticket / 2, false)};
    sweep.prepare();
    sweep.slot = work.alphas + sweep.task.local_item * sweep.slot_reals();
    sweep.meet(ticket % 2 == 0);
  }

 private:
  CTC_ALIGN_FN static uint32_t take_ticket(uint32_t* tickets, bool waits, Shared& shared) {
    if (!waits) {
      return Device::block();
    }
    if (Device::thread() == 0) {
      shared.ticket = Device::take_ticket(tickets) + 1;
    }
    Device::block_barrier();
    return shared.ticket;
  }

  CTC_ALIGN_FN void prepare() {
    warp = Device::warp() % kSumWarps;
    slot = nullptr;
    barriers = 0;
    if constexpr (kWholeRows) {
      const Real nothing[] = {Weight::zero().scaled().mantissa, Weight::zero().scaled().exponent};
      for (int i = Device::thread(); i < Shared::Rings::kRing * kStage; i += kSumThreads) {
        shared.rings.labels[i / kStage][i % kStage][Shared::Rings::kNothing] = {nothing[0], nothing[1]};
      }
    }
  }

  // Takes a piece of memory for alphas: after the block of the ticket that had it before, where pieces are few.
  //   Called by    all threads of the block.
  //   Waits for    a task of an earlier ticket.
  //   Afterwards   the slot is the block's own.
  //   Reuse        when the block is done.
  CTC_ALIGN_FN void take_slot(uint32_t ticket) {
    const index_t slots = work.plan.slots;
    slot = work.alphas + ticket % static_cast<uint32_t>(slots) * slot_reals();
    if (slots < launch.blocks) {
      if (Device::thread() == 0 && ticket >= slots) {
        while (Device::load_acquire(work.finished + (ticket - slots)) != 0) {
          Device::pause();
        }
      }
      Device::block_barrier();
    }
  }
  CTC_ALIGN_FN index_t frame_reals() const { return work.plan.kept_pairs() * work.pair_reals(); }
  CTC_ALIGN_FN index_t slot_reals() const { return work.plan.segment_frames * frame_reals(); }
  CTC_ALIGN_FN index_t row_at(index_t row, int32_t pair) const { return work.row_of(row, task.local_item, pair); }

  // -------------------------------------------------------------------------------------------- back, or meeting

  template <SumMode kBackMode>
  CTC_ALIGN_FN void go_back() {
    const FrameRange frames = task.frames();
    const int32_t segment = static_cast<int32_t>(work.plan.segment_frames), begin = task.chapter_begin;
    const bool is_swept = !work.plan.is_single() && task.possible && task.end_frame > 0;
    if (Device::thread() == 0) {
      shared.total = is_swept ? total_of_item(work, task.local_item) : Total{};
    }
    Device::block_barrier();
    if (!frames.is_empty() && (work.plan.is_single() || shared.total.has_path())) {
      Keeper::begin(in, task, shared);
      Device::block_barrier();
      for (int32_t s = (frames.end - 1 - begin) / segment; s >= 0 && begin + (s + 1) * segment > frames.begin; --s) {
        const FrameRange part = {larger(frames.begin, begin + s * segment),
                                 smaller(frames.end, begin + (s + 1) * segment)};
        sweep<true, SumMode::kKeep>(part, begin + s * segment);
        Device::block_barrier();
        if (work.plan.is_single()) {
          if (Device::thread() == 0) {
            shared.total = total_of_item(work, task.local_item);
          }
          Device::block_barrier();
          if (!shared.total.has_path()) {
            break;
          }
        }
        sweep<false, kBackMode>(part, begin + s * segment);
        Device::block_barrier();
      }
    }
    if (task.column == 0 && begin == 0 && Device::thread() == 0) {
      put_log_likelihood(shared.total.log());
    }
  }

  CTC_ALIGN_FN void put_log_likelihood(double log_likelihood) const {
    if (task.end_frame == 0) {
      log_likelihood = task.possible && task.labels == 0 ? 0 : kMinusInfinity<double>;
    }
    in.log_likelihoods[task.item] = static_cast<Real>(log_likelihood);
  }

  // One of the two blocks of an item, or both in one.
  //   Called by    all threads of the block.
  //   Waits for    the other block, in the middle, if that has begun: then it is on the machine.
  //   Afterwards   its half of the outputs is in global memory; the block forward has the log-likelihood, too.
  //   Reuse        shared memory is the block's own.
  CTC_ALIGN_FN void meet(bool is_forward) {
    if (!claim(is_forward)) {
      return;
    }
    const int32_t middle = task.end_frame / 2 / kStage * kStage;
    const FrameRange early = {0, middle}, late = {middle, task.end_frame};
    bool has_both = false;
    if (task.end_frame > 0) {
      Keeper::begin(in, task, shared);
      Device::block_barrier();
      for (int part = 0; part < (has_both ? 2 : 1); ++part) {
        const bool forward = is_forward == (part == 0);
        if (!forward) {
          sweep<false, SumMode::kKeep>(late, 0);
        } else if (!early.is_empty()) {
          sweep<true, SumMode::kKeep>(early, 0);
        }
        Device::block_barrier();
        if (Device::thread() == 0) {
          Device::store_release(half(forward), 0);
        }
        has_both = has_both || claim(!is_forward);
      }
      if (Device::thread() == 0) {
        while (Device::load_acquire(half(!is_forward)) != 0) {
          Device::pause();
        }
      }
      Device::block_barrier();
      find_scale(middle);
      for (int part = 0; part < (has_both ? 2 : 1); ++part) {
        if (is_forward == (part == 0)) {
          sweep<true, SumMode::kMeet>(late, 0);
        } else if (!early.is_empty()) {
          sweep<false, SumMode::kMeet>(early, 0);
        }
        Device::block_barrier();
      }
    }
    if ((is_forward || has_both) && Device::thread() == 0) {
      put_log_likelihood(task.end_frame > 0 ? total_of_item(work, task.local_item).log() : 0);
    }
  }
  CTC_ALIGN_FN uint32_t* half(bool forward) const { return work.halves + 4 * task.local_item + (forward ? 0 : 1); }

  // Claims a part of the item.
  //   Called by    all threads of the block.
  //   Waits for    the block.
  //   Afterwards   the answer is the same in all threads; one block alone gets a part.
  //   Reuse        of shared.claims_before: after the second barrier.
  CTC_ALIGN_FN bool claim(bool forward) {
    if (Device::thread() == 0) {
      shared.claims_before = Device::take_ticket(half(forward) + 2) + 1;
    }
    Device::block_barrier();
    const bool is_first = shared.claims_before == 0;
    Device::block_barrier();
    return is_first;
  }

  // Finds an exponent that may stand for Z's: the greatest of all states in the middle. Z itself is known at the end only.
  //   Called by    all threads of the block.
  //   Waits for    the block.
  //   Afterwards   shared.total.exponent is valid for it.
  //   Reuse        of shared memory: it uses groups.of_label, once.
  CTC_ALIGN_FN void find_scale(int32_t middle) {
    const PairOrder order = PairOrder::of(task, true);
    int32_t most = kNoExponent;  // of zero; no other is below kNoExponent / 2
    if (Device::warp() < task.consumers()) {
      CTC_ALIGN_UNROLL
      for (int r = 0; r < kSumPairs; ++r) {
        const int32_t k = order.pair(Device::thread(), r);
        if (k <= task.labels) {
          const PairSums<Weight> alpha = alpha_before(middle, k), q = q_from_middle(k);
          const PairSums<Weight> right = k < task.labels ? q_from_middle(k + 1) : no_pair();
          const bool may_skip =
              k + 1 < task.labels && may_skip_into(k + 1, in.label(task.item, k + 1), in.label(task.item, k));
          const PairSums<Weight> beta = sum_backward(q, right, may_skip);
          most = larger(most, larger(exponent_of(alpha.blank, beta.blank), exponent_of(alpha.label, beta.label)));
        }
      }
    }
    shared.groups.of_label[Device::thread()] = most;
    Device::block_barrier();
    if (Device::thread() == 0) {
      for (int i = 1; i < kSumThreads; ++i) {
        most = larger(most, shared.groups.of_label[i]);
      }
      shared.total = {0, most > kNoExponent / 2 ? most : kMostExponent, 0};  // without a path all posteriors are 0
    }
    Device::block_barrier();
  }
  CTC_ALIGN_FN static PairSums<Weight> no_pair() { return {Weight::zero(), Weight::zero()}; }
  CTC_ALIGN_FN static PairSums<Weight> pair_at(const Real* from) {
    return {unpack<Weight>(from), unpack<Weight>(from + Weight::kPlanes)};
  }
  CTC_ALIGN_FN PairSums<Weight> alpha_before(int32_t frame, int32_t pair) const {
    if (frame > 0) {
      return pair_at(slot + (frame - 1) * frame_reals() + pair * work.pair_reals());
    }
    const Real one[3] = {1, 0, 0};
    return {pair == 0 ? unpack<Weight>(one) : Weight::zero(), Weight::zero()};
  }
  CTC_ALIGN_FN PairSums<Weight> q_from_middle(int32_t pair) const { return pair_at(work.later_rows + row_at(0, pair)); }
  CTC_ALIGN_FN static int32_t exponent_of(const Weight& alpha, const Weight& beta) {
    return static_cast<int32_t>(
        same_bits<typename Lanes::Bits>((alpha.scaled() * beta.scaled()).normalized().exponent));
  }

  // ---------------------------------------------------------------------------------------------------- a sweep

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
    if (launch.keeps_rows && in_chapter % segment == 0 && row.frames.has(frame)) {
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

// Which text runs a call: of kernels for all eight choices, and for two types, some would hardly be used. Without wild gaps
// and star labels the text with stars gives the same bits.
template <bool kHasMean, bool kWholeRows, bool kStars>
struct SumChoice {};

template <class Real, class Run>
void choose_sum_kernel(const SumInputs<Real>& in, const Run& run) {
  if constexpr (sizeof(Real) == 8) {
    in.path_values ? run(SumChoice<true, false, true>()) : run(SumChoice<false, false, true>());
  } else {
    const bool has_few_classes = in.classes <= kWidestSumRow;
    if (in.path_values) {
      has_few_classes ? run(SumChoice<true, true, true>()) : run(SumChoice<true, false, true>());
    } else if (in.has_stars()) {
      has_few_classes ? run(SumChoice<false, true, true>()) : run(SumChoice<false, false, true>());
    } else {
      has_few_classes ? run(SumChoice<false, true, false>()) : run(SumChoice<false, false, false>());
    }
  }
}

}  // namespace ctc_align
