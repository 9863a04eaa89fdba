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
#pragma once

#include "part.cuh"

namespace ctc_align {

template <DeviceWords Device, class RealType, bool kHasMean, bool kWholeRows, bool kStars>
struct SumSweep : SumPart<Device, RealType, kHasMean, kWholeRows, kStars> {
  using Part = SumPart<Device, RealType, kHasMean, kWholeRows, kStars>;
  using Part::in, Part::work, Part::launch, Part::shared, Part::task, Part::slot, Part::warp, Part::barriers;
  using Part::kStage, Part::frame_reals, Part::row_at, Part::slot_reals;
  using typename Part::Keeper;
  using typename Part::Lanes;
  using typename Part::Real;
  using typename Part::Shared;
  using typename Part::Weight;

  // Each runs the task of a block.
  //   Called by    all threads of the block, once a launch.
  //   Waits for    the ticket, where tasks wait for one another.
  //   Afterwards   the task's rows, edges and outputs are in global memory.
  //   Reuse        shared memory is the block's own.
  CTC_ALIGN_FN static void run_forward(const SumInputs<Real>& in, const SumWorkspace<Real>& work,
                                       const SumLaunch& launch, Shared& shared) {
    const uint32_t ticket = take_ticket(work.forward_ticket, work.plan.columns() > 1, shared);
    SumSweep sweep{{in, work, launch, shared, sum_task(in, work.plan, launch, ticket, false)}};
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
    SumSweep sweep{{in, work, launch, shared, sum_task(in, work.plan, launch, ticket, true)}};
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
    SumSweep sweep{{in, work, launch, shared, sum_task(in, work.plan, launch, ticket / 2, false)}};
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
        this->template sweep<true, SumMode::kKeep>(part, begin + s * segment);
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
        this->template sweep<false, kBackMode>(part, begin + s * segment);
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
          this->template sweep<false, SumMode::kKeep>(late, 0);
        } else if (!early.is_empty()) {
          this->template sweep<true, SumMode::kKeep>(early, 0);
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
          this->template sweep<true, SumMode::kMeet>(late, 0);
        } else if (!early.is_empty()) {
          this->template sweep<false, SumMode::kMeet>(early, 0);
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
