// One item's sum over all paths: its log-likelihood, and its sums frame by frame. No tensors in here.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "../../lattice/forward_backward/memory_levels.h"
#include "../item.h"
#include "../options.h"

namespace ctc_align {

// Bytes of alphas, unless the user has set a budget: everything for an utterance, three levels for an hour.
inline index_t default_level_bytes(index_t frames) {
  constexpr index_t kBytesPerFrame = 1024;
  constexpr index_t kAlways = 4 << 20;
  return std::max(kAlways, kBytesPerFrame * frames);
}

// An item's memory, and its steps forward and backward. `visit(t, sums)` is called for every frame, from the last to the
// first, unless there is no path: with posteriors, or with path values with the sums that frame.h tells of.
//
// Real is the type that sums of scalar_t are in, or a wider one.
template <class Real, class scalar_t, class Visit>
class ItemSums {
 public:
  using Row = WeightRow<Real>;
  using Narrow = AccumulationType<scalar_t>;
  static constexpr bool kWidens =
      !std::is_same_v<Real, Narrow>;  // frame by frame, to `wide_classes_` and `wide_values_`

  template <class label_t>
  ItemSums(const Item<scalar_t, label_t>& item, const CompactTarget& target, const PathValues<Narrow>& path_values,
           const Options& options, const Workers& workers, const Visit& visit)
      : kernels_(options.isa->kernels<Loaded>()),
        frame_(kernels_.frames[path_values.data != nullptr][target.wild_words() != nullptr]),
        emissions_(item.emissions),
        stars_(item.star_scores),
        path_values_(path_values),
        classes_(target.panel_classes()),
        workers_(workers),
        visit_(visit) {
    constexpr index_t kRealBytes = sizeof(Real);
    const index_t words = static_cast<index_t>(target.skip_bits.size());
    const index_t pairs = words * kPairsPerWord;
    const index_t class_count = target.class_count + (stars_ ? 1 : 0);
    const index_t class_words = std::max<index_t>((class_count + kPairsPerWord - 1) / kPairsPerWord, 2);
    const index_t classes = class_words * kPairsPerWord;
    const index_t for_frame = 2 * classes + 4 * pairs + kWidens * (class_count + item.labels + 2);
    const index_t row_size = Row::size_for(words, frame_.planes);
    const index_t spent = (for_frame + Walk::kLooseRows * row_size) * kRealBytes + target.bytes();
    const index_t limit = options.memory_budget > 0 ? options.memory_budget - spent : default_level_bytes(item.frames);
    levels_ = MemoryLevels::choose(item.frames, row_size * kRealBytes + static_cast<index_t>(sizeof(Row)), limit);

    scratch_ = uninitialized<Real>(for_frame + Walk::row_count(levels_) * row_size);
    std::fill_n(scratch_.get(), for_frame, Real{0});  // padding takes part in sums, with weight 0
    Real* free = scratch_.get();
    const auto take = [&free](index_t count) { return std::exchange(free, free + count); };
    lattice_ = {.band = {item.frames, item.labels},
                .class_ids = target.class_ids.data(),
                .skip_bits = target.skip_bits.data(),
                .wild_bits = target.wild_words(),
                .words = words,
                .class_count = target.class_count,
                .blank_class = target.blank_class,
                .star_class = target.star_class,
                .path_values = {},
                .class_mantissas = take(classes),
                .class_exponents = take(classes),
                .pair_mantissas = take(pairs),
                .pair_exponents = take(pairs),
                .pair_values = take(pairs)};
    sums_ = take(pairs);
    if constexpr (!kWidens) {
      lattice_.path_values = path_values;
    } else {
      wide_classes_ = take(class_count);
      wide_values_ = take(item.labels + 2);
      if (path_values.data) {
        lattice_.path_values = {wide_values_, 0, 1, item.labels, item.labels + 1};
      }
    }
    rows_ = {free, words, frame_.planes};
  }

  // What ForwardBackward::run returns.
  std::optional<double> run() { return Walk(lattice_.band, levels_, rows_, *this).run(); }

  void forward(index_t t, const Row& from, Row& to) {
    load_frame(t, from);
    frame_.forward(lattice_, t, from, to);
  }
  void backward(index_t t, const Row& alphas, const Total& total, const Row& from, Row& to) {
    load_frame(t, from);
    visit_(t, frame_.backward(lattice_, t, alphas, total, from, to, sums_));
  }

 private:
  using Walk = ForwardBackward<Real, ItemSums>;
  using Loaded = std::conditional_t<kWidens, Real, scalar_t>;  // what load_classes reads

  void load_frame(index_t t, const Row& from) {
    look_for_a_stop(from.width);
    if constexpr (kWidens) {
      widen_frame(t);
      kernels_.load_classes(lattice_, {wide_classes_, 0, 1}, nullptr,
                            stars_ ? wide_classes_ + lattice_.class_count : nullptr, t, from.shift);
    } else {
      kernels_.load_classes(lattice_, emissions_, classes_, stars_ ? &stars_->at(t) : nullptr, t, from.shift);
    }
  }

  void widen_frame(index_t t) {
    for (index_t c = 0; c < lattice_.class_count; ++c) {
      wide_classes_[c] = widen(emissions_.at(t, classes_ ? classes_[c] : c));
    }
    if (stars_) {
      wide_classes_[lattice_.class_count] = widen(stars_->at(t));
    }
    if (path_values_.data) {
      const index_t labels = lattice_.band.labels;
      for (index_t k = 0; k < labels; ++k) {
        wide_values_[k] = path_values_.at(t, k);
      }
      wide_values_[labels] = path_values_.blank_at(t);
      wide_values_[labels + 1] = path_values_.star_at(t);
    }
  }

  void look_for_a_stop(index_t pairs) {
    constexpr index_t kPairsBetweenLooks = 1 << 20;
    pairs_since_look_ += pairs;
    if (pairs_since_look_ > kPairsBetweenLooks) {
      pairs_since_look_ = 0;
      if (workers_.must_stop()) {
        throw Interrupted();
      }
    }
  }

  const SweepKernels<Loaded>& kernels_;
  const FrameKernels<Real>& frame_;
  const Emissions<scalar_t> emissions_;
  const std::optional<StarScores<scalar_t>> stars_;
  const PathValues<Narrow> path_values_;
  const int64_t* const classes_;
  const Workers& workers_;
  const Visit& visit_;
  MemoryLevels levels_;
  std::unique_ptr<Real[]> scratch_;
  ForwardBackwardLattice<Real> lattice_;
  RowMemory<Real> rows_;
  Real* sums_;
  Real* wide_classes_ = nullptr;
  Real* wide_values_ = nullptr;
  index_t pairs_since_look_ = 0;
};

// The log-likelihood of an item whose lengths and labels are in range; `visit`, and nothing for a result, as above. The
// caller holds StandardFloats.
template <class Real, class scalar_t, class label_t, class Visit>
std::optional<double> sum_over_paths(const Item<scalar_t, label_t>& item, const CompactTarget& target,
                                     const PathValues<AccumulationType<scalar_t>>& path_values, const Options& options,
                                     const Workers& workers, const Visit& visit) {
  if (item.frames == 0 || shortest_path(item.labels, target.repeats) > item.frames) {
    return item.frames == 0 && item.labels == 0 ? 0 : kMinusInfinity<double>;
  }
  return ItemSums<Real, scalar_t, Visit>(item, target, path_values, options, workers, visit).run();
}

}  // namespace ctc_align
