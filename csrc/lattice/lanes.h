// The dictionary of lanes: every word that the lattice speaks to a processor.
//
// A SIMD register and a thread of a GPU are both a row of lanes, so the algorithm is written once, over a struct of
// static functions. A backend is such a struct: csrc/cpu/lanes has one for each instruction set, csrc/cuda one for a
// thread. lattice/ uses these words alone, never an operator on a Value. Each line below is a word as it is used.
#pragma once

#include <cstdint>

#include "lattice.h"

namespace ctc_align {

template <class Lanes>
struct PairRecords;  // viterbi/pair_step.h

// One step of one frame (pair_step.h). Choice: what greater_where asks, the dictionary's Mask or another type.
template <class Lanes, class Choice = typename Lanes::Choice>
concept StepLanes =
    requires(typename Lanes::Value a, typename Lanes::Value b, typename Lanes::Mask mask, Choice choice) {
  a = Lanes::add(a, b);                    // a + b, rounded once
  a = Lanes::greater(a, b);                // a > b ? a : b
  mask = Lanes::exceeds(a, b);             // on where a > b, in IEEE order: off with a NaN
  a = Lanes::greater_where(choice, a, b);  // greater(a, b) where the choice is on, b elsewhere
};

// Rows in memory, of type Real.
template <class Lanes>
concept RowLanes =
    StepLanes<Lanes> && requires(typename Lanes::Real real, const typename Lanes::Real* from, typename Lanes::Real* to,
                                 typename Lanes::Value value, typename Lanes::Mask mask, uint32_t bits) {
  Lanes::kWidth;                              // lanes of a Value; divides 16
  value = Lanes::load(from);                  // kWidth neighbours; `from` need not be aligned
  Lanes::store(to, value);                    //
  value = Lanes::broadcast(real);             // `real` in every lane
  mask = Lanes::mask(bits);                   // lane i is on where bit i is set
  value = Lanes::select(mask, value, value);  // (mask, a, b): a where the mask is on, b elsewhere
};

// Classes looked up in registers. Only for kTableClasses > 0.
template <class Lanes>
concept TableLanes = requires(const typename Lanes::Real* row, const int32_t* from, typename Lanes::Value value,
                              typename Lanes::Index index, typename Lanes::Table table) {
  table = Lanes::load_table(row);        // kTableClasses neighbours
  index = Lanes::load_index(from);       // kWidth neighbours, each below kTableClasses
  value = Lanes::look_up(table, index);  // table[index], lane by lane
};

// The Viterbi sweep (sweep.h).
template <class Lanes>
concept SweepLanes =
    RowLanes<Lanes> && (Lanes::kTableClasses == 0 || TableLanes<Lanes>) &&
    requires(typename Lanes::Real real, typename Lanes::Value value, typename Lanes::Choice choice, uint32_t bits,
             const typename Lanes::Real* const* rows, int64_t begin, typename Lanes::Value (&columns)[Lanes::kWidth],
             uint32_t* word, const PairRecords<Lanes> (&records)[16 / Lanes::kWidth]) {
  Lanes::kTileWords;                          // record words (16 pairs each) that a tile holds in registers, at most
  choice = Lanes::choice(bits);               // on in lane i where bit i is set
  real = Lanes::last(value);                  // the highest lane
  value = Lanes::shift_in(value, value);      // (previous, current): current, up one lane; previous's last at lane 0
  value = Lanes::shift_in(real, value);       // (last, current): the same, where only previous's last is known
  Lanes::load_columns(rows, begin, columns);  // lane l of columns[i] is rows[l][begin + i], for kWidth rows
  Lanes::store_records(word, records);        // the records of 16 pairs, as a word (records.h)
};

// The sums over all paths (forward_backward/): arithmetic, and the bits of a Real as an integer of its size, or as a
// WHOLE number, which has a sign. A whole number may have the bits of a NaN: words of Reals never see it.
template <class Lanes>
concept SumLanes = requires(typename Lanes::Value a, typename Lanes::Value b, typename Lanes::Mask mask,
                            typename Lanes::Bits bits, int n) {
  a = Lanes::subtract(a, b);
  a = Lanes::multiply(a, b);
  a = Lanes::divide(a, b);
  a = Lanes::shift_bits_left(a, n);
  a = Lanes::shift_bits_right(a, n);  // of what is not negative
  a = Lanes::keep_bits(a, bits);      // a & bits
  a = Lanes::join_bits(a, b);         // a | b
  a = Lanes::broadcast_whole(n);      // n in every lane
  a = Lanes::add_whole(a, b);
  a = Lanes::subtract_whole(a, b);
  a = Lanes::greater_whole(a, b);
  mask = Lanes::exceeds_whole(a, b);  // on where a > b
};

// Their rows in memory.
template <class Lanes>
concept SumRowLanes = RowLanes<Lanes> && SumLanes<Lanes> &&
                      requires(const typename Lanes::Real* from, typename Lanes::Real* to, const int32_t* ids,
                               typename Lanes::Value a, typename Lanes::Value b) {
  Lanes::store_couples(to, a, b);        // lane l of a and of b to to[2 * l] and to[2 * l + 1]
  Lanes::load_couples(from, ids, a, b);  // lane l of a and of b from from[2 * ids[l]] and from[2 * ids[l] + 1]
};

}  // namespace ctc_align
