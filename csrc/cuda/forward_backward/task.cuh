// A task of the sums: one column of an item through a chapter, and what of it is in the band.
//
//          pair |            column 2 .-------             Forward, edges go to the right, and tickets do too.
//               |     column 1 .------                     On the way back both go to the left.
//               |       .------                            So a task waits for tasks of earlier tickets alone: no
//          col 0|-------                                   deadlock, however few blocks of threads fit on the machine.
//               +----------------------------------- frame
//
// Everything here is the same for all threads of the block.
#pragma once

#include "workspace.cuh"

namespace ctc_align {

struct FrameRange {
  int32_t begin, end;

  CTC_ALIGN_FN bool has(int32_t frame) const { return begin <= frame && frame < end; }
  CTC_ALIGN_FN bool is_empty() const { return begin >= end; }
};

struct SumTask {
  index_t item;        // of the call
  index_t local_item;  // of the group
  int32_t column;
  bool possible;
  int32_t end_frame;      // T of the item
  int32_t labels;         // L of the item
  int32_t chapter_begin;  // of the launch
  int32_t chapter_end;

  CTC_ALIGN_FN int32_t first_pair() const { return column * static_cast<int32_t>(kColumnPairs); }
  CTC_ALIGN_FN int32_t last_column() const { return labels / static_cast<int32_t>(kColumnPairs); }
  // Warps with pairs of the item.
  CTC_ALIGN_FN int consumers() const {
    constexpr int kPairs = kSumPairs * kWarp;
    return smaller(kSumWarps, (labels - first_pair()) / kPairs + 1);
  }
  // The first frame in which a column may hold anything, and one after the last. One more at either end: the neighbour's
  // edge there is still in the band.
  CTC_ALIGN_FN int32_t first_frame(int32_t of_column) const {
    return larger(0, of_column * static_cast<int32_t>(kColumnPairs) - 1);
  }
  CTC_ALIGN_FN int32_t after_last_frame(int32_t of_column) const {
    return end_frame - larger(labels - (of_column + 1) * static_cast<int32_t>(kColumnPairs) - 1, 0);
  }
  // Those of the chapter.
  CTC_ALIGN_FN FrameRange frames_of(int32_t of_column) const {
    if (of_column < 0 || of_column > last_column()) {
      return {0, 0};
    }
    return {larger(chapter_begin, first_frame(of_column)), smaller(chapter_end, after_last_frame(of_column))};
  }
  CTC_ALIGN_FN FrameRange frames() const { return frames_of(column); }
};

template <class Real>
CTC_ALIGN_FN SumTask sum_task(const SumInputs<Real>& in, const SumPlan& plan, const SumLaunch& launch, uint32_t ticket,
                              bool is_backward) {
  const uint32_t items =
      static_cast<uint32_t>(launch.blocks) / (plan.meets ? 2u : static_cast<uint32_t>(plan.columns()));
  const int32_t place = static_cast<int32_t>(ticket / items);
  SumTask task;
  task.local_item = ticket % items;
  task.item = launch.first_item + task.local_item;
  task.column = is_backward ? static_cast<int32_t>(plan.columns()) - 1 - place : place;
  const ItemLattice lattice = lattice_of(in, task.item);
  task.possible = lattice.possible;
  task.end_frame = task.possible ? static_cast<int32_t>(lattice.band.frames) : 0;
  task.labels = task.possible ? static_cast<int32_t>(lattice.band.labels) : 0;
  task.chapter_begin = static_cast<int32_t>(launch.begin);
  task.chapter_end = static_cast<int32_t>(launch.end);
  return task;
}

// The STEPS of a block of threads, as in viterbi/steps.cuh: producers bring a stage, consumer w runs it w + 1 steps
// later, and the producers keep what came of it in the step after the last consumer's.
//
//     step          0        1        2        3        4        5     ...    two consumers with pairs:
//     producers  stage 0  stage 1  stage 2  ...
//     consumer 0          stage 0  stage 1  ...
//     consumer 1                   stage 0  stage 1  ...
//     producers                             stage 0  stage 1  ...             keep
template <DeviceWords Device>
struct SumSteps {
  int stages;
  int consumers;
  int number;  // told to barriers; the emulator checks it

  CTC_ALIGN_FN int count() const { return stages > 0 ? stages + consumers + 1 : 0; }
  CTC_ALIGN_FN int kept_in(int step) const { return step - consumers - 1; }
  CTC_ALIGN_FN bool has(int stage) const { return 0 <= stage && stage < stages; }

  // Ends a step.
  //   Called by    all threads of the block.
  //   Waits for    all of them.
  //   Afterwards   what any warp has written to shared memory in the step is valid for all warps.
  //   Reuse        each buffer says in which later step it is written again.
  CTC_ALIGN_FN void end(int step) const { Device::block_barrier(number + step); }
};

}  // namespace ctc_align
