// Sums that do not lose precision with length: alphas are kept relative to a base.
//
// A float32 sum of 50,000 log-probabilities has a spacing of about 0.01 nats near its end: plain float32 Viterbi then
// picks paths that are several nats worse than the optimum. Here every COLUMN of 256 neighbouring pairs has a base, a
// float64, and alpha = base + stored value. Frames come in FRAME BLOCKS of 512:
//
//     frame  0 | 1 ... 512 | 513 ... 1024 | 1025 ...          frame_block(t) = (t - 1) / 512
//              ^           ^ border      ^ border
//
// At a border, with t the frame just done, columns go from left to right, from the column of pair first(t) on:
//
//     best    = maximum of the stored alphas of the column's pairs k >= first(t)     (they can still reach the end)
//     base'   = max(base + best, base' of the left neighbour - kLargestDrop)         (float64; the first has no neighbour)
//     stored' = stored - float(base' - base)
//
// (If base' is -inf, in a first column whose alphas are all -inf, nothing changes: no path will ever enter it. And -inf
// stays -inf, however far the base of such a column moves.) Why the second term: the columns ahead of the good paths may
// hold hopeless paths only, which have paid for a masked label (a -65504, say) or rushed ahead. Relative to their base a
// good path that crosses over would stand at +65504 and lose its digits. So a column's base is never far below its
// neighbour's: its own paths lose digits instead, and they lose anyway. With -inf for the mask the column has no path
// yet, and the same term sets the scale in which the first ones come in.
//
// Inside a frame block a label alpha that crosses to the column on its right gets one addition of
// float(base_left - base_right); in the first frame block, where all bases are 0, that changes nothing.
//
// The grid is a part of the result's definition, not of the implementation: every backend and every tile size must
// round at the same places. A maximum does not depend on the order in which it is taken, so nothing else does.
// float64 input needs no bases and has none.
#pragma once

#include <limits>

#include "../lattice.h"

namespace ctc_align {

constexpr index_t kColumnPairs = 256;
constexpr index_t kFrameBlock = 512;
constexpr double kLargestDrop = 1024;  // nats; float32 still tells 1e-4 nats apart there

template <class Real>
constexpr bool kRebases = sizeof(Real) == sizeof(float);

// Returns whether there is a border between frame t-1 and frame t.
CTC_ALIGN_FN bool starts_frame_block(index_t t) { return t > kFrameBlock && (t - 1) % kFrameBlock == 0; }

// The first frame after the frame block of frame t >= 1.
CTC_ALIGN_FN index_t end_of_frame_block(index_t t) { return (t - 1) / kFrameBlock * kFrameBlock + kFrameBlock + 1; }

// A column's new base. `best` is -inf where no path lives; base_left is the left neighbour's NEW base, if it has one.
CTC_ALIGN_FN double next_base(double base, float best, bool has_left, double base_left) {
  const double own = base + static_cast<double>(best);
  return has_left ? larger(own, base_left - kLargestDrop) : own;
}

// The amount that a column's alphas lose when its base moves. Never -inf, since -inf less -inf is NaN: a base moves
// further down than float32 reaches only where no path lives.
CTC_ALIGN_FN float base_move(double from, double to) {
  return static_cast<float>(larger(to - from, -static_cast<double>(std::numeric_limits<float>::max())));
}

// The amount added to a label alpha that crosses from a column to its right neighbour.
CTC_ALIGN_FN float crossing_offset(double base_left, double base_right) {
  return static_cast<float>(base_left - base_right);
}

}  // namespace ctc_align
