// The protocol between the producers and the consumers of a block of threads: what each warp does in which step.
//
// Half of the sweep's warps are CONSUMERS: they hold pairs, kWarps times as many as fit a warp. The other half are
// PRODUCERS: they bring emissions and edges into shared memory and take edges on to the right neighbour. All go through
// the STAGES of a frame block in STEPS, and a barrier of the block of threads ends each step. Four consumers:
//
//     step          0        1        2        3        4        5        6   ...
//     producers  stage 0  stage 1  stage 2  ...                                       whole rows: all the same stage;
//     consumer 0          stage 0  stage 1  stage 2  ...                              own labels: producer w is w steps
//     consumer 1                   stage 0  stage 1  ...                              behind producer 0, one ahead of
//     consumer 2                            stage 0  ...                              its consumer
//     consumer 3                                     stage 0  ...
//     last producer                                           stage 0  ...            sends its edges
//
// A column of few labels has fewer consumers with pairs, and as many steps less. If bases move at the start of the frame
// block (bases.cuh), one more step comes before these: it ends when the maxima are in shared memory.
//
// Invariant: every warp of the block takes the same steps, with or without work, and ends each by end(). The number that
// end() hands to the barrier tells the step; the emulator checks that all warps bring the same one.
#pragma once

#include "plan.h"

namespace ctc_align {

template <DeviceWords Device, int kWarps, bool kWholeRows>
struct Steps {
  int32_t frame_block;
  int stages;
  int consumers;  // that have pairs of the item; 1 to kWarps

  static constexpr int kSettling = -1;  // the step before the first, where bases move

  // The stages that warps are at in a step. Those outside 0 ... stages - 1 do not exist.
  CTC_ALIGN_FN static int produced(int step, int producer) { return step - (kWholeRows ? 0 : producer); }
  CTC_ALIGN_FN static int sent(int step) { return step - 1 - kWarps; }
  CTC_ALIGN_FN static int first_step_of(int consumer) { return 1 + consumer; }
  CTC_ALIGN_FN bool has(int stage) const { return 0 <= stage && stage < stages; }
  CTC_ALIGN_FN int count() const { return stages + consumers; }

  // Ends a step.
  //   Called by    all threads of the block.
  //   Waits for    all of them.
  //   Afterwards   what any warp has written to shared memory in the step is valid for all warps.
  //   Reuse        each buffer says in which later step it is written again.
  CTC_ALIGN_FN void end(int step) const {
    Device::block_barrier(frame_block * static_cast<int32_t>(kFrameBlock) + step);
  }

  // Calls run(stage) in the steps of a consumer.
  //   Called by    all lanes of every consumer, with pairs or without.
  //   Waits for    all warps, at the end of each step.
  //   Afterwards   the consumer has run all stages.
  //   Reuse        as end().
  template <class Run>
  CTC_ALIGN_FN void consume(int consumer, const Run& run) const {
    if (consumer >= consumers) {
      idle(0, count());
      return;
    }
    const int first = first_step_of(consumer);
    idle(0, first);
    for (int stage = 0; stage < stages; ++stage) {
      run(stage);
      end(first + stage);
    }
    idle(first + stages, count());
  }

  // Calls bring(stage) and send(stage) in the steps of a producer. What the last step has made is sent after it.
  //   Called by    all lanes of every producer.
  //   Waits for    all warps, at the end of each step.
  //   Afterwards   bring(stage) has written for the consumers of the next step; what send(stage) reads is complete.
  //   Reuse        as end().
  template <class Bring, class Send>
  CTC_ALIGN_FN void produce(int producer, bool sends, const Bring& bring, const Send& send) const {
    for (int step = 0; step < count(); ++step) {
      if (has(produced(step, producer))) {
        bring(produced(step, producer));
      }
      if (sends && sent(step) >= 0) {
        send(sent(step));
      }
      end(step);
    }
    if (sends) {
      send(stages - 1);
    }
  }

 private:
  CTC_ALIGN_FN void idle(int begin, int until) const {
    for (int step = begin; step < until; ++step) {
      end(step);
    }
  }
};

}  // namespace ctc_align
