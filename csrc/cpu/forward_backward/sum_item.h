// One item's sum over all paths: its log-likelihood, and its posteriors frame by frame. No tensors in here.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "../item.h"
#include "../options.h"

namespace ctc_align {

// How many rows of alphas are kept. The way back needs the alphas of every frame, from the last to the first. With one
// level all are kept. With more, the item is cut into `rows` parts: the row before each part is kept on the way forward,
// and the parts are swept again, the last one first, each with the levels that are left.
//
//     level 1   | . . . . . . . . | . . . . . . . . | . . . . . . . . |    '|' kept, '.' swept and forgotten
//     level 0                                         | | | | | | | | |    the last part again, all of it kept
//
// Memory rows * levels; every level but one costs another sweep forward.
struct SoftLevels {
  int levels;
  index_t rows;  // of each level: rows^levels >= frames

  // The fewest levels that fit, or those that take least.
  static SoftLevels choose(index_t frames, index_t row_bytes, index_t bytes) {
    SoftLevels best{1, std::max<index_t>(frames, 1)};
    index_t rows = best.rows;
    for (int levels = 2; best.levels * best.rows * row_bytes > bytes && rows > 2; ++levels) {
      rows = static_cast<index_t>(std::pow(static_cast<double>(frames), 1.0 / levels));
      while (power(rows, levels) < frames) {
        ++rows;
      }
      if (levels * rows < best.levels * best.rows) {
        best = {levels, rows};
      }
    }
    return best;
  }
  // rows^levels, or what is more than any item's frames.
  static index_t power(index_t rows, int levels) {
    index_t product = 1;
    for (int i = 0; i < levels && product < (index_t{1} << 40); ++i) {
      product *= std::min<index_t>(rows, 1 << 20);
    }
    return product;
  }
};

// Bytes of alphas, unless the user has set a budget: everything for an utterance, three levels for an hour.
inline index_t default_soft_bytes(index_t frames) {
  constexpr index_t kBytesPerFrame = 1024;
  constexpr index_t kAlways = 4 << 20;
  return std::max(kAlways, kBytesPerFrame * frames);
}

// What an item's paths collect on their way, if anything: label k's gain in column k, any blank's in `blank_column`.
template <class Real>
struct Gains {
  Emissions<Real> values = {};
  index_t blank_column = 0;
};

// Sums over the paths of an item of at least one frame. `see(t, sums)` is told of every frame, from the last to the first,
// unless there is no path: of posteriors, or with gains of what forward_backward.h says of them.
//
// Real is the type that sums of scalar_t are in, or a wider one. Exponents are whole numbers in a Real, relative to the
// best state of their frame. Those of alpha and beta of a state that paths with any weight go through add up to
// -`over_z`, see backward_frame, so they are exact as long as that is below kWidest. Where a target holds many classes
// that are all but impossible it is not, and the sums have to be done again in float64.
template <class Real, class scalar_t, class See>
class ForwardBackward {
 public:
  using Row = NumberRow<Real>;
  using Narrow = AccumulationType<scalar_t>;
  static constexpr bool kWidens =
      !std::is_same_v<Real, Narrow>;  // frame by frame, to `wide_classes_` and `wide_gains_`

  template <class label_t>
  ForwardBackward(const Item<scalar_t, label_t>& item, const CompactTarget& target, const Gains<Narrow>& gains,
                  const Options& options, const Crew& crew, const See& see)
      : kernels_(options.isa->kernels<Loaded>()),
        frame_(gains.values.data ? kernels_.gains : kernels_.posteriors),
        emissions_(item.emissions),
        gains_(gains),
        classes_(target.classes.empty() ? nullptr : target.classes.data()),
        crew_(crew),
        see_(see),
        frames_(item.frames),
        labels_(item.labels) {
    const index_t words = static_cast<index_t>(target.skip_bits.size());
    const index_t pairs = words * kPairsPerWord;
    const index_t class_words = std::max<index_t>((target.class_count + kPairsPerWord - 1) / kPairsPerWord, 2);
    const index_t classes = class_words * kPairsPerWord;
    row_size_ = Row::size_for(words, frame_.parts);
    width_ = Row::width_for(words);
    constexpr index_t kRealBytes = sizeof(Real);
    const index_t narrow_frame = 2 * classes + 4 * pairs;
    const index_t for_frame = narrow_frame + kWidens * (target.class_count + item.labels + 1);
    const index_t spent = (for_frame + kLooseRows * row_size_) * kRealBytes + target.bytes();
    const index_t limit = options.memory_budget > 0 ? options.memory_budget - spent : default_soft_bytes(item.frames);
    levels_ = SoftLevels::choose(item.frames, row_size_ * kRealBytes + sizeof(Row), limit);
    scratch_ = uninitialized<Real>(for_frame + (kLooseRows + levels_.levels * levels_.rows) * row_size_);
    Real* at = scratch_.get();
    std::fill_n(at, for_frame, Real{0});  // padding takes part in sums, with weight 0
    rows_ = at + for_frame;
    sums_ = at + 2 * classes + 3 * pairs;
    wide_classes_ = at + narrow_frame;
    wide_gains_ = wide_classes_ + target.class_count;
    lattice_ = {Band{item.frames, item.labels},
                target.class_ids.data(),
                target.skip_bits.data(),
                words,
                target.class_count,
                target.blank,
                {},
                gains.blank_column,
                at,
                at + classes,
                at + 2 * classes,
                at + 2 * classes + pairs,
                at + 2 * classes + 2 * pairs};
    if constexpr (!kWidens) {
      lattice_.gains = gains.values;
    } else if (gains.values.data) {
      lattice_.gains = {wide_gains_, 0, 1};
      lattice_.blank_gain = labels_;
    }
  }

  // The log-likelihood in nats; -inf if there is no path. Nothing if exponents do not fit into a Real: then `see` may have
  // been told of some frames, and wrongly.
  std::optional<double> run() {
    Row start = row(0);
    begin_row(start, lattice_.words, 0);
    later_ = row(1);
    begin_row(later_, lattice_.words, labels_);
    earlier_ = row(2);
    if (!run(0, frames_, levels_.levels - 1, start)) {
      return too_wide_ ? std::nullopt : std::make_optional(-std::numeric_limits<double>::infinity());
    }
    return std::log(total_.mantissa) + total_.exponent * std::log(2.0);
  }

 private:
  using Loaded = std::conditional_t<kWidens, Real, scalar_t>;  // what load_classes reads
  // Half of 2^24, to which float32 counts: the other half is for what exponents gain in kFramesToNormalize frames.
  static constexpr double kWidest = sizeof(Real) == sizeof(float) ? 0x1p23 : std::numeric_limits<double>::infinity();
  static constexpr index_t kLooseRows = 5;  // before the frames, two of q, two of a sweep that forgets

  Row row(index_t number) const { return {rows_ + number * row_size_, width_, frame_.parts}; }
  Row kept_row(int level, index_t i) const { return row(kLooseRows + level * levels_.rows + i); }

  // Frames begin..end-1, `start` the alphas of the frame before. False if the item has no path, or is too wide.
  bool run(index_t begin, index_t end, int level, const Row& start) {
    if (level == 0) {
      return run_kept(begin, end, start);
    }
    const index_t part = SoftLevels::power(levels_.rows, level);
    std::vector<Row> starts;
    starts.reserve(levels_.rows);
    starts.push_back(start);
    Row from = start;
    for (index_t t = begin; t + part < end || (t - begin) % part != 0; ++t) {
      const bool keep = (t + 1 - begin) % part == 0;
      Row to = keep ? kept_row(level, static_cast<index_t>(starts.size()) - 1) : row(3 + t % 2);
      forward(t, from, to);
      from = to;
      if (keep) {
        starts.push_back(to);
      }
    }
    for (auto p = static_cast<index_t>(starts.size()) - 1; p >= 0; --p) {
      if (!run(begin + p * part, std::min(begin + (p + 1) * part, end), level - 1, starts[p])) {
        return false;
      }
    }
    return true;
  }

  // The same with room for all alphas.
  bool run_kept(index_t begin, index_t end, const Row& start) {
    std::vector<Row> alphas;
    alphas.reserve(end - begin + 1);
    alphas.push_back(start);
    for (index_t t = begin; t < end; ++t) {
      Row to = kept_row(0, t - begin);
      forward(t, alphas.back(), to);
      alphas.push_back(to);
    }
    if (end == frames_) {
      total_ = total(alphas.back());
      if (!(total_.mantissa > 0)) {
        return false;
      }
    }
    for (index_t t = end - 1; t >= begin; --t) {
      const Row& alpha = alphas[t - begin + 1];
      if (alpha.base + later_.base - total_.exponent > kWidest) {
        too_wide_ = true;
        return false;
      }
      prepare(t, later_);
      see_(t, frame_.backward(lattice_, t, alpha, total_, later_, earlier_, sums_));
      std::swap(later_, earlier_);
    }
    return true;
  }

  void forward(index_t t, const Row& from, Row& to) {
    prepare(t, from);
    frame_.forward(lattice_, t, from, to);
  }

  void prepare(index_t t, const Row& from) {
    look_for_a_stop();
    if constexpr (kWidens) {
      widen_frame(t);
      kernels_.load_classes(lattice_, {wide_classes_, 0, 1}, nullptr, t, from.shift);
    } else {
      kernels_.load_classes(lattice_, emissions_, classes_, t, from.shift);
    }
  }

  void widen_frame(index_t t) {
    for (index_t c = 0; c < lattice_.class_count; ++c) {
      wide_classes_[c] = widen(emissions_.at(t, classes_ ? classes_[c] : c));
    }
    if (gains_.values.data) {
      for (index_t k = 0; k < labels_; ++k) {
        wide_gains_[k] = gains_.values.at(t, k);
      }
      wide_gains_[labels_] = gains_.values.at(t, gains_.blank_column);
    }
  }

  // Over the last frame: paths end in blank L or in label L-1.
  Total total(const Row& alphas) const {
    const Real* ends[2] = {alphas.blank(labels_), alphas.label(labels_ - 1)};  // label -1 is there, and zero
    const double most = std::max(ends[0][width_], ends[1][width_]);
    Total total{0, most + alphas.base, 0};
    for (const Real* end : ends) {
      const double mantissa =
          std::ldexp(static_cast<double>(end[0]), static_cast<int>(std::max<double>(end[width_] - most, -2000)));
      total.mantissa += mantissa;
      total.mean += frame_.parts > 2 ? mantissa * end[2 * width_] : 0;
    }
    total.mean /= total.mantissa;
    return total;
  }

  void look_for_a_stop() {
    constexpr index_t kPairsBetweenLooks = 1 << 20;
    pairs_ += width_;
    if (pairs_ > kPairsBetweenLooks) {
      pairs_ = 0;
      if (crew_.must_stop()) {
        throw Interrupted();
      }
    }
  }

  const SweepKernels<Loaded>& kernels_;
  const FrameKernels<Real>& frame_;
  const Emissions<scalar_t> emissions_;
  const Gains<Narrow> gains_;
  const int64_t* const classes_;
  const Crew& crew_;
  const See& see_;
  const index_t frames_;
  const index_t labels_;
  SoftLevels levels_;
  index_t row_size_;
  index_t width_;
  std::unique_ptr<Real[]> scratch_;
  SoftLattice<Real> lattice_;
  Real* rows_;
  Real* sums_;
  Real* wide_classes_;
  Real* wide_gains_;
  bool too_wide_ = false;
  Row later_, earlier_;
  Total total_ = {};
  index_t pairs_ = 0;
};

// The log-likelihood of an item whose lengths and labels are in range; `see`, and nothing for a result, as above. Call it
// under StandardFloats.
template <class Real, class scalar_t, class label_t, class See>
std::optional<double> sum_over_paths(const Item<scalar_t, label_t>& item, const CompactTarget& target,
                                     const Gains<AccumulationType<scalar_t>>& gains, const Options& options,
                                     const Crew& crew, const See& see) {
  if (item.frames == 0 || shortest_path(item.labels, target.repeats) > item.frames) {
    return item.frames == 0 && item.labels == 0 ? 0 : -std::numeric_limits<double>::infinity();
  }
  return ForwardBackward<Real, scalar_t, See>(item, target, gains, options, crew, see).run();
}

}  // namespace ctc_align
