// Sums that do not lose precision with length: alphas are kept relative to a base.
//
// A float32 sum of 50,000 log-probabilities has a spacing of about 0.01 nats near its end: plain float32 Viterbi then
// picks paths that are several nats worse than the optimum. Here every COLUMN of 256 neighbouring pairs has a base, a
// float64, and alpha = base + stored value. Frames come in BLOCKS of 512:
//
//     frame  0 | 1 ... 512 | 513 ... 1024 | 1025 ...          block(t) = (t - 1) / 512
//              ^           ^ border      ^ border
//
// At a border, with t the frame just done, every column takes the maximum over its own pairs k >= first(t) (the pairs
// that can still reach the end), subtracts it from its alphas and adds it to its base. If that maximum is -inf the
// column has nothing to keep and takes its left neighbour's new base, so that what enters it later is small too. (The
// column of first(t) has no neighbour in the band: it keeps its base, and nothing will ever enter it.)
// Inside a block a label alpha that crosses to the column on its right gets one addition of
// float(base_left - base_right); in the first block, where all bases are 0, that changes nothing.
//
// The grid is a part of the result's definition, not of the implementation: every backend and every tile size must
// round at the same places. A maximum does not depend on the order in which it is taken, so nothing else does.
// float64 input needs none of this and uses none of it.
#pragma once

#include "lattice.h"

namespace ctc_align {

constexpr index_t kColumnPairs = 256;
constexpr index_t kBlockFrames = 512;

// Is there a border between frame t-1 and frame t?
CTC_ALIGN_FN bool starts_new_block(index_t t) { return t > kBlockFrames && (t - 1) % kBlockFrames == 0; }

// The first frame behind the block that frame t >= 1 lies in.
CTC_ALIGN_FN index_t end_of_block(index_t t) { return (t - 1) / kBlockFrames * kBlockFrames + kBlockFrames + 1; }

// What is added to a label alpha that crosses from a column to its right neighbour.
CTC_ALIGN_FN float crossing_offset(double base_left, double base_right) {
  return static_cast<float>(base_left - base_right);
}

}  // namespace ctc_align
