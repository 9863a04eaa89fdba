// The sum over all paths: one frame forward, one frame backward, and the posteriors where the two meet.
//
// Contents: 1 names  2 the emissions of a frame  3 rows  4 a frame forward  5 a frame backward
//
// In probabilities, not logarithms; scaled.h tells why they do not underflow. With y(t, s) the emission of state s and
// s' -> s the moves of the lattice (Graves et al. 2006, equations 6, 10 and 14; 0-based here):
//
//     forward:    alpha(t, s) = y(t, s) * sum over s' -> s of alpha(t-1, s')                paths that are in s at frame t
//     backward:   beta(t, s)  =           sum over s -> s' of y(t+1, s') * beta(t+1, s')    how they can go on from there
//     posterior:  gamma(t, s) = alpha(t, s) * beta(t, s) / Z                                Z: the sum over all paths
//
// In pairs (lattice.h), with `left` and `right` the neighbours, and skip(k) true where labels k-1 and k differ:
//
//     m = blank(k) + left.label                         blank'(k) = y_blank * m
//                                                       label'(k) = y_label * (label(k) + (skip(k) ? m : blank(k)))
//
// The way back keeps q(t, s) = y(t, s) * beta(t, s), so that a frame is read and written once:
//
//     m = q.right.blank + q.right.label                 beta.blank(k) = q.blank(k) + q.label(k)
//                                                       beta.label(k) = q.label(k) + (skip(k+1) ? m : q.right.blank)
//
// Both begin with a row outside the frames: all probability in blank 0 before frame 0, or in blank L behind frame T-1.
//
// The sum of gamma over the states of a frame is 1, but for rounding. It is divided by its sum and not by Z: then the
// rounding of T products, which all states of a frame have in common, cancels.
//
// GAINS. The same text runs with Expected numbers (scaled.h) in place of Scaled ones. Then a path collects v(t, s) at
// frame t in state s; with V its total,
//
//     d E[V] / d log y(t, s) = gamma(t, s) * (E[V | s at t] - E[V])
//
// at fixed v, which is the gradient of any function of the posteriors whose derivative by gamma(t, s) is v(t, s). The
// conditional mean is what alpha's paths have collected up to t and beta's behind it.
//
// Rows are worked on in words of 16 pairs, and sums over a row are sums of 16 lanes, added up in order at the end: the
// result is the same for every width of vectors.
#pragma once

#include "../emission.h"
#include "../lattice.h"
#include "../viterbi/records.h"
#include "scaled.h"

namespace ctc_align {

// ----------------------------------------------------------------------------------------------------- 1 names

// Mantissas grow by at most 3 * sqrt(2) a frame and shrink by at most sqrt(2): from [1, 2) to [2^-8, 2^35) in 16 frames.
// Exponents move by at most 2^18 / ln 2 a frame, so by less than 2^23: in float32 they stay exact meanwhile.
constexpr index_t kFramesToNormalize = 16;

// The numbers of all pairs at one frame: `parts` arrays for the blanks, as many for the labels. A word of room on either
// side of each, so that neighbours can be read.
template <class Real>
struct NumberRow {
  Real* values;
  index_t width;     // pairs in whole words, and two words more
  index_t parts;     // arrays of a number
  double base = 0;   // true exponent = exponent + base
  double shift = 0;  // what the next frame moves from its exponents to its base

  static index_t width_for(index_t words) { return (words + 2) * kPairsPerWord; }
  static index_t size_for(index_t words, index_t parts) { return 2 * parts * width_for(words); }

  CTC_ALIGN_FN Real* blank(index_t pair) const { return values + kPairsPerWord + pair; }
  CTC_ALIGN_FN Real* label(index_t pair) const { return blank(pair) + parts * width; }
};

// One item's lattice, and room for what belongs to one frame.
template <class Real>
struct SoftLattice {
  Band band;                  // of the whole item
  const int32_t* class_ids;   // pair -> panel class; 0 in the padding, up to whole words
  const uint16_t* skip_bits;  // bit k % 16 of word k / 16
  index_t words;
  index_t class_count;    // in the panel
  int32_t blank;          // panel class
  Emissions<Real> gains;  // of label k in column k, of all blanks in column `blank_gain`; only with Expected numbers
  index_t blank_gain;

  Real* class_mantissas;  // [class_count, in whole words, at least two]
  Real* class_exponents;
  Real* pair_mantissas;  // [words * 16]
  Real* pair_exponents;
  Real* pair_gains;
};

// Z, and the mean gain of all paths.
struct Total {
  double mantissa;
  double exponent;
  double mean;
};

// What a frame says about its labels and about all its blanks together, but for a common factor: posteriors, or with
// Expected numbers gamma * (E[V | s at t] - E[V]).
template <class Real>
struct FrameSums {
  const Real* labels;  // from pair `first` to `last` alone
  index_t first;
  index_t last;
  Real blank;
  Real factor;  // 1 / sum of all posteriors
};

// ------------------------------------------------------------------------------------ 2 the emissions of a frame

// Scaled emissions of the panel's classes at frame t, with `shift` taken from their exponents. `classes` as in
// EmissionPanel.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_classes(const SoftLattice<typename Lanes::Real>& lattice, const Emissions<scalar_t>& emissions,
                               const int64_t* classes, index_t t, double shift) {
  using Real = typename Lanes::Real;
  const index_t padded = (lattice.class_count + kPairsPerWord - 1) / kPairsPerWord * kPairsPerWord;
  Real* values = lattice.class_mantissas;
  if (!classes && emissions.class_stride == 1) {
    const scalar_t* from = &emissions.at(t, 0);
    for (index_t c = 0; c < lattice.class_count; ++c) {  // a copy: vector code
      values[c] = static_cast<Real>(widen(from[c]));
    }
  } else {
    for (index_t c = 0; c < lattice.class_count; ++c) {
      values[c] = static_cast<Real>(widen(emissions.at(t, classes ? classes[c] : c)));
    }
  }
  for (index_t c = lattice.class_count; c < padded; ++c) {
    values[c] = 0;
  }
  const auto moved = Lanes::broadcast(static_cast<Real>(shift));
  for (index_t c = 0; c < padded; c += Lanes::kWidth) {
    const auto scaled = Scaled<Lanes>::exponential(Lanes::load(values + c));
    Lanes::store(values + c, scaled.mantissa);
    Lanes::store(lattice.class_exponents + c, scaled.exponent - moved);
  }
}

// The emissions of labels: looked up in registers,
template <class Lanes>
struct TableLookUp {
  typename Lanes::Table mantissas;
  typename Lanes::Table exponents;
  const int32_t* class_ids;

  CTC_ALIGN_FN TableLookUp(const SoftLattice<typename Lanes::Real>& lattice, index_t, index_t)
      : mantissas(Lanes::load_table(lattice.class_mantissas)),
        exponents(Lanes::load_table(lattice.class_exponents)),
        class_ids(lattice.class_ids) {}
  CTC_ALIGN_FN Scaled<Lanes> operator()(index_t pair) const {
    const auto ids = Lanes::load_index(class_ids + pair);
    return {Lanes::look_up(mantissas, ids), Lanes::look_up(exponents, ids)};
  }
};

// or fetched one by one beforehand.
template <class Lanes>
struct RowLookUp {
  using Real = typename Lanes::Real;
  const Real* mantissas;
  const Real* exponents;

  CTC_ALIGN_FN RowLookUp(const SoftLattice<Real>& lattice, index_t first_word, index_t last_word)
      : mantissas(lattice.pair_mantissas), exponents(lattice.pair_exponents) {
    for (index_t k = first_word * kPairsPerWord; k < (last_word + 1) * kPairsPerWord; ++k) {
      lattice.pair_mantissas[k] = lattice.class_mantissas[lattice.class_ids[k]];
      lattice.pair_exponents[k] = lattice.class_exponents[lattice.class_ids[k]];
    }
  }
  CTC_ALIGN_FN Scaled<Lanes> operator()(index_t pair) const {
    return {Lanes::load(mantissas + pair), Lanes::load(exponents + pair)};
  }
};

// What a frame multiplies its sums by: the emissions, and the gains if there are any.
template <class Lanes, class Number, class LookUp>
struct FrameFactors {
  using Real = typename Lanes::Real;
  LookUp look_up;
  Scaled<Lanes> blank;
  typename Lanes::Value blank_gain;
  const Real* pair_gains;

  CTC_ALIGN_FN FrameFactors(const SoftLattice<Real>& lattice, index_t t, index_t first_word, index_t last_word)
      : look_up(lattice, first_word, last_word),
        blank{Lanes::broadcast(lattice.class_mantissas[lattice.blank]),
              Lanes::broadcast(lattice.class_exponents[lattice.blank])},
        blank_gain(Lanes::broadcast(0)),
        pair_gains(lattice.pair_gains) {
    if constexpr (Number::kParts > 2) {
      blank_gain = Lanes::broadcast(lattice.gains.at(t, lattice.blank_gain));
      const index_t labels = smaller((last_word + 1) * kPairsPerWord, lattice.band.labels);
      for (index_t k = first_word * kPairsPerWord; k < labels; ++k) {
        lattice.pair_gains[k] = lattice.gains.at(t, k);
      }
    }
  }
  CTC_ALIGN_FN Number times_blank(Number sum) const { return sum.times(blank, blank_gain); }
  CTC_ALIGN_FN Number times_label(Number sum, index_t pair) const {
    if constexpr (Number::kParts > 2) {
      return sum.times(look_up(pair), Lanes::load(pair_gains + pair));
    } else {
      return sum.times(look_up(pair), blank_gain);
    }
  }
};

// ------------------------------------------------------------------------------------------------------ 3 rows

// A row with all probability in one blank, before any gain.
template <class Real>
void begin_row(NumberRow<Real>& row, index_t words, index_t pair) {
  for (index_t part = 0; part < row.parts; ++part) {
    for (index_t k = -1; k <= words * kPairsPerWord; ++k) {
      row.blank(k)[part * row.width] = row.label(k)[part * row.width] = part == 1 ? kNoExponent<Real> : 0;
    }
  }
  row.blank(pair)[0] = 1;
  row.blank(pair)[row.width] = 0;
  row.base = row.shift = 0;
}

template <class Lanes, class Number>
CTC_ALIGN_FN void store_zeros(const NumberRow<typename Lanes::Real>& row, index_t word) {
  for (index_t k = word * kPairsPerWord; k < (word + 1) * kPairsPerWord; k += Lanes::kWidth) {
    Number::zero().store(row.blank(k), row.width);
    Number::zero().store(row.label(k), row.width);
  }
}

template <class Number, class Real>
CTC_ALIGN_FN void store_zero(Real* p, index_t width) {
  for (int part = 0; part < Number::kParts; ++part) {
    p[part * width] = part == 1 ? kNoExponent<Real> : 0;
  }
}

// Stores a row's numbers. Every so often it brings their mantissas back to ordinary size and looks for the greatest
// exponent, which the next frame is to take from all.
template <class Lanes, class Number, bool kNormalize>
struct RowWriter {
  using Real = typename Lanes::Real;
  NumberRow<Real>& row;
  typename Lanes::Value greatest;

  CTC_ALIGN_FN explicit RowWriter(NumberRow<Real>& to) : row(to), greatest(Lanes::broadcast(kNoExponent<Real>)) {}
  CTC_ALIGN_FN void store(Number number, Real* p) {
    if (kNormalize) {
      number = number.normalized();
      greatest = Lanes::greater(number.weight().exponent, greatest);
    }
    number.store(p, row.width);
  }
  CTC_ALIGN_FN void finish(const NumberRow<Real>& from) {
    row.base = from.base + from.shift;
    row.shift = 0;
    if (kNormalize) {
      Real values[Lanes::kWidth];
      Lanes::store(values, greatest);
      Real most = values[0];
      for (const Real value : values) {
        most = larger(most, value);
      }
      row.shift = most > kNoExponent<Real> / 2 ? static_cast<double>(most) : 0.0;  // a row of zeros stays as it is
    }
  }
};

// -------------------------------------------------------------------------------------------- 4 a frame forward

// From `from`, frame t-1, to `to`. The classes of frame t have been loaded, with from.shift.
template <class Lanes, class Number, class LookUp, bool kNormalize>
CTC_ALIGN_FN void forward_frame(const SoftLattice<typename Lanes::Real>& lattice, index_t t,
                                const NumberRow<typename Lanes::Real>& from, NumberRow<typename Lanes::Real>& to) {
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Number, LookUp> factors(lattice, t, first, last);
  RowWriter<Lanes, Number, kNormalize> writer(to);
  for (index_t w = first; w <= last; ++w) {
    const uint32_t skips = lattice.skip_bits[w];
    for (int u = 0; u < kPairsPerWord; u += Lanes::kWidth) {
      const index_t k = w * kPairsPerWord + u;
      const Number blank = Number::load(from.blank(k), from.width);
      const Number label = Number::load(from.label(k), from.width);
      const Number left = Number::load(from.label(k - 1), from.width);
      const Number into_blank = blank + left;
      const Number into_label = label + Number::select(Lanes::mask(skips >> u), into_blank, blank);
      writer.store(factors.times_blank(into_blank), to.blank(k));
      writer.store(factors.times_label(into_label, k), to.label(k));
    }
  }
  // The next frame may reach one pair further to the right, and reads one label left of its own.
  store_zeros<Lanes, Number>(to, last + 1);
  store_zero<Number>(to.label(first * kPairsPerWord - 1), to.width);
  writer.finish(from);
}

// ------------------------------------------------------------------------------------------- 5 a frame backward

// `from` and `to` hold q of frames t+1 and t, `alphas` those of frame t; `labels` gets what FrameSums points to. The
// classes of frame t have been loaded, with from.shift.
template <class Lanes, class Number, class LookUp, bool kNormalize>
CTC_ALIGN_FN FrameSums<typename Lanes::Real> backward_frame(const SoftLattice<typename Lanes::Real>& lattice, index_t t,
                                                            const NumberRow<typename Lanes::Real>& alphas,
                                                            const Total& total,
                                                            const NumberRow<typename Lanes::Real>& from,
                                                            NumberRow<typename Lanes::Real>& to,
                                                            typename Lanes::Real* labels) {
  using Real = typename Lanes::Real;
  using Value = typename Lanes::Value;
  constexpr int kVectors = kPairsPerWord / Lanes::kWidth;
  const index_t first = lattice.band.first(t) / kPairsPerWord, last = lattice.band.last(t) / kPairsPerWord;
  const FrameFactors<Lanes, Number, LookUp> factors(lattice, t, first, last);
  RowWriter<Lanes, Number, kNormalize> writer(to);
  // In halves, one for each factor: what is added to an exponent is then no larger than the exponents themselves.
  const double over_z = alphas.base + from.base - total.exponent, half = __builtin_floor(over_z / 2);
  const Value alpha_over_z = Lanes::broadcast(static_cast<Real>(half));
  const Value beta_over_z = Lanes::broadcast(static_cast<Real>(over_z - half));
  const Value mean = Lanes::broadcast(static_cast<Real>(total.mean));

  // Adds a state's posterior to `sums`, and returns what is to be told of the state.
  const auto meet = [&](Number alpha, Number beta, Value& sums) __attribute__((always_inline)) {
    const Scaled<Lanes> both = {alpha.weight().mantissa * beta.weight().mantissa,
                                (alpha.weight().exponent + alpha_over_z) + (beta.weight().exponent + beta_over_z)};
    const Value posterior = both.plain();
    sums = sums + posterior;
    if constexpr (Number::kParts > 2) {
      return posterior * (alpha.mean + beta.mean - mean);
    } else {
      return posterior;
    }
  };

  Value sums[kVectors], blanks[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sums[v] = blanks[v] = Lanes::broadcast(0);
  }
  for (index_t w = first; w <= last; ++w) {
    const uint32_t next_skips = w + 1 < lattice.words ? lattice.skip_bits[w + 1] : 0u;
    const uint32_t skips = (lattice.skip_bits[w] | next_skips << kPairsPerWord) >> 1;  // into the label at the right
    for (int v = 0; v < kVectors; ++v) {
      const index_t k = w * kPairsPerWord + v * Lanes::kWidth;
      const Number blank = Number::load(from.blank(k), from.width);
      const Number label = Number::load(from.label(k), from.width);
      const Number right_blank = Number::load(from.blank(k + 1), from.width);
      const Number right_label = Number::load(from.label(k + 1), from.width);
      const auto skip = Lanes::mask(skips >> (v * Lanes::kWidth));
      const Number blank_beta = blank + label;
      const Number label_beta = label + Number::select(skip, right_blank + right_label, right_blank);
      blanks[v] = blanks[v] + meet(Number::load(alphas.blank(k), alphas.width), blank_beta, sums[v]);
      Lanes::store(labels + k, meet(Number::load(alphas.label(k), alphas.width), label_beta, sums[v]));
      writer.store(factors.times_blank(blank_beta), to.blank(k));
      writer.store(factors.times_label(label_beta, k), to.label(k));
    }
  }
  // The frame before may reach one pair further to the left, and reads one pair right of its own.
  if (first > 0) {
    store_zeros<Lanes, Number>(to, first - 1);
  }
  store_zero<Number>(to.blank((last + 1) * kPairsPerWord), to.width);
  store_zero<Number>(to.label((last + 1) * kPairsPerWord), to.width);
  writer.finish(from);

  Real all[kPairsPerWord], all_blanks[kPairsPerWord];
  for (int v = 0; v < kVectors; ++v) {
    Lanes::store(all + v * Lanes::kWidth, sums[v]);
    Lanes::store(all_blanks + v * Lanes::kWidth, blanks[v]);
  }
  Real sum = 0, blank = 0;
  for (int i = 0; i < kPairsPerWord; ++i) {
    sum += all[i];
    blank += all_blanks[i];
  }
  return {labels, lattice.band.first(t), lattice.band.last(t), blank, 1 / sum};
}

}  // namespace ctc_align
