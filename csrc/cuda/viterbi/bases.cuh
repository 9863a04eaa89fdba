// Bases: how a column moves its maximum into its base at the start of a frame block (lattice/viterbi/rebase.h).
//
// The first pass computes the bases and leaves them, and what each move took off, in the workspace. Later passes see a
// part of the columns only; they read what the first one has left, and so round identically.
#pragma once

#include "steps.cuh"
#include "task.cuh"

namespace ctc_align {

template <int kWarps>
struct SharedBases {
  float maxima[kWarps];  // of the consumers
  double left;           // the left neighbour's new base
};

template <DeviceWords Device, class Real, int kWarps>
struct Bases {
  const Task<Device, Real>& task;
  SharedBases<kWarps>& shared;

  struct Settled {
    float moved;   // what the column's alphas lose
    float offset;  // what an edge gains that crosses into the column
  };

  // Hands in the largest alpha of a thread.
  //   Called by    all lanes of every consumer, in the first pass.
  //   Waits for    the warp's lanes.
  //   Afterwards   the warp's maximum is valid for the block in the step after kSettling.
  //   Reuse        at the next frame block, many steps later.
  CTC_ALIGN_FN void offer(int consumer, float largest) const {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const float other = Device::shuffle_xor(largest, distance);
      largest = other > largest ? other : largest;
    }
    if (Device::lane() == 0) {
      shared.maxima[consumer] = largest;
    }
  }

  // Fetches the left neighbour's new base.
  //   Called by    lane 0 of producer 0, in the first pass.
  //   Waits for    the word that the left neighbour publishes in settle().
  //   Afterwards   it is valid for the block in the step after kSettling.
  //   Reuse        at the next frame block, many steps later.
  CTC_ALIGN_FN void fetch_left(const TaskFrames& frames) const {
    const uint64_t* const base = work().bases + base_at(task.index.column - 1, frames.frame_block);
    uint64_t word = Device::load_relaxed(base);
    while (word == ~uint64_t{0}) {
      Device::pause();
      word = Device::load_relaxed(base);
    }
    shared.left = same_bits<double>(word);
  }

  // Moves the column's base.
  //   Called by    all threads of the block, at the start of a frame block that rebases.
  //   Waits for    the block, at the end of step kSettling: for the maxima and the left base.
  //   Afterwards   every thread has the result, and the right neighbour finds the base.
  //   Reuse        the words are written once a call.
  template <class BlockSteps>
  CTC_ALIGN_FN Settled settle(const TaskFrames& frames, const BlockSteps& steps) const {
    const int32_t q = frames.frame_block, column = task.index.column;
    if (!task.is_first_pass()) {
      const auto base_of = [&](index_t j) { return same_bits<double>(work().bases[base_at(j, q)]); };
      return {work().moved[base_at(column, q)],
              frames.has_left ? crossing_offset(base_of(column - 1), base_of(column)) : 0};
    }
    steps.end(BlockSteps::kSettling);
    float best = shared.maxima[0];
    for (int w = 1; w < kWarps; ++w) {
      best = shared.maxima[w] > best ? shared.maxima[w] : best;
    }
    const double base_left = frames.has_left ? shared.left : 0;

    // The column's base so far was published by this block of threads or by one that is done.
    const bool is_new = !task.in_band(column, q - 1);
    double base = q == 1 || is_new ? 0 : same_bits<double>(Device::load_relaxed(work().bases + base_at(column, q - 1)));
    const double next = next_base(base, best, frames.has_left, base_left);
    float moved = 0;
    if (next > kMinusInfinity<double>) {
      // A column that nothing has reached stays at -inf. (Its base may be below what a float32 holds, and -inf less
      // -inf is NaN.)
      moved = is_new ? 0 : base_move(base, next);
      base = next;
    }
    if (Device::thread() == 0) {
      work().moved[base_at(column, q)] = moved;
      Device::store_relaxed(work().bases + base_at(column, q), same_bits<uint64_t>(base));
    }
    return {moved, frames.has_left ? crossing_offset(base_left, base) : 0};
  }

 private:
  CTC_ALIGN_FN const Workspace<Real>& work() const { return task.work; }
  CTC_ALIGN_FN index_t base_at(index_t column, index_t frame_block) const {
    return work().base_at(task.index.item, column, frame_block);
  }
};

}  // namespace ctc_align
