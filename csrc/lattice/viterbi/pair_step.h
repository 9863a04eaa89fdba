// One frame of the CTC lattice for a row of (blank, label) pairs.
//
// Recurrence, log domain, 0-based (Graves et al. 2006, eqs. 6-7, max for the sum); left = label score of pair k-1:
//   from_left = left > blank            best_blank = from_left ? left : blank
//   entry     = skip_allowed ? best_blank : blank        enters = entry > label
//   blank'    = best_blank + emission[t][BLANK]          label' = (enters ? entry : label) + emission[t][target[k]]
//
// Ties: stay over advance, advance over skip. All of it follows from '>'. A label's three predecessors are its own
// stay, blank k (advance) and label k-1 (skip): `entry` is the better of the last two and prefers the blank.
// Record: from_left and enters; lattice.h tells what they mean. They serve both states: 1 bit per state.
// Invariant: on entry the row holds frame t-1; only `left` crosses a pair boundary.
// One rounded addition per state and frame, in frame order (rebase.h has the grid): every backend returns the same bits.
// Callers pass emissions that are finite or -inf (emission.h), and skip_allowed is false for pair 0.
// Cost per pair: 2 additions, 2 comparisons, 3 selects.
#pragma once

#include "../lanes.h"

namespace ctc_align {

// The decisions of one step, a mask of lanes for each bit of the record.
template <class Lanes>
struct PairRecords {
  typename Lanes::Mask from_left;
  typename Lanes::Mask enters;
};

// Choice: Lanes::Mask, or another type that Lanes can select by.
template <class Lanes, class Choice>
CTC_ALIGN_FN PairRecords<Lanes> pair_step(typename Lanes::Value left, Choice skip_allowed,
                                          typename Lanes::Value blank_emission, typename Lanes::Value label_emission,
                                          typename Lanes::Value& blank, typename Lanes::Value& label) {
  static_assert(StepLanes<Lanes, Choice>);
  const auto best_blank = Lanes::greater(left, blank);
  const auto entry = Lanes::greater_where(skip_allowed, left, blank);
  const PairRecords<Lanes> records = {Lanes::exceeds(left, blank), Lanes::exceeds(entry, label)};
  blank = Lanes::add(best_blank, blank_emission);
  label = Lanes::add(Lanes::greater(entry, label), label_emission);
  return records;
}

}  // namespace ctc_align
