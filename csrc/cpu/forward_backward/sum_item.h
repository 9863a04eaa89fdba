// One item's sum over all paths: its log-likelihood, and its sums frame by frame. No tensors in here.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "../../lattice/forward_backward/memory_levels.h"
#include "../../lattice/memory.h"
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
template <class scalar_t, class Visit>
class ItemSums {
 public:
  using Real = AccumulationType<scalar_t>;
  using Row = WeightRow<Real>;

  template <class label_t>
  ItemSums(const Item<scalar_t, label_t>& item, const CompactTarget& target, const PathValues<Real>& path_values,
           const Options& options, const Workers& workers, const Visit& visit)
      : kernels_(options.isa->kernels<scalar_t>()),
        frame_(kernels_.frames[path_values.data != nullptr][target.wild_words() != nullptr]),
        emissions_(item.emissions),
        stars_(item.star_scores),
        classes_(target.panel_classes()),
        workers_(workers),
        visit_(visit) {
    constexpr index_t kRealBytes = sizeof(Real);
    const index_t words = static_cast<index_t>(target.skip_bits.size());
    const index_t pairs = words * kPairsPerWord;
    const index_t class_count = target.class_count + (stars_ ? 1 : 0);
    const index_t class_words = std::max<index_t>((class_count + kPairsPerWord - 1) / kPairsPerWord, 2);
    const index_t classes = class_words * kPairsPerWord;
    const index_t for_frame = classes + 2 * pairs;
    const index_t row_size = Row::size_for(words, frame_.planes, classes);
    const index_t spent = (kAlignment + for_frame + Walk::kLooseRows * row_size) * kRealBytes + target.bytes();
    const index_t limit = options.memory_budget > 0 ? options.memory_budget - spent : default_level_bytes(item.frames);
    levels_ = MemoryLevels::choose(item.frames, row_size * kRealBytes + static_cast<index_t>(sizeof(Row)), limit);

    scratch_ = uninitialized<Real>(kAlignment + for_frame + Walk::row_count(levels_) * row_size);
    Real* free = scratch_.get() + kAlignment - reinterpret_cast<uintptr_t>(scratch_.get()) / kRealBytes % kAlignment;
    std::fill_n(free, for_frame, Real{0});  // padding takes part in sums, with weight 0
    const auto take = [&free](index_t count) { return std::exchange(free, free + count); };
    lattice_ = {.band = {item.frames, item.labels},
                .class_ids = target.class_ids.data(),
                .skip_bits = target.skip_bits.data(),
                .wild_bits = target.wild_words(),
                .words = words,
                .class_count = target.class_count,
                .blank_class = target.blank_class,
                .star_class = target.star_class,
                .path_values = path_values,
                .class_room = classes,
                .class_values = take(classes),
                .pair_values = take(pairs)};
    sums_ = take(pairs);
    rows_ = {free, words, frame_.planes, classes};
  }

  // What ForwardBackward::run returns.
  double run() { return Walk(lattice_.band, levels_, rows_, *this).run(); }

  void forward(index_t t, const Row& from, Row& to) {
    look_for_a_stop();
    kernels_.load_classes(lattice_, emissions_, classes_, stars_ ? &stars_->at(t) : nullptr, t, to.classes());
    frame_.forward(lattice_, t, from, to);
  }
  void backward(index_t t, const Row& alphas, const Total& total, const Row& from, Row& to) {
    look_for_a_stop();
    visit_(t, frame_.backward(lattice_, t, alphas, total, from, to, sums_));
  }

 private:
  using Walk = ForwardBackward<Real, ItemSums>;
  static constexpr index_t kAlignment = kPairsPerWord;  // in Reals: no vector of a row lies in two cache lines

  void look_for_a_stop() {
    constexpr index_t kPairsBetweenLooks = 1 << 20;
    pairs_since_look_ += lattice_.words * kPairsPerWord;
    if (pairs_since_look_ > kPairsBetweenLooks) {
      pairs_since_look_ = 0;
      if (workers_.must_stop()) {
        throw Interrupted();
      }
    }
  }

  const SweepKernels<scalar_t>& kernels_;
  const FrameKernels<Real>& frame_;
  const Emissions<scalar_t> emissions_;
  const std::optional<StarScores<scalar_t>> stars_;
  const int64_t* const classes_;
  const Workers& workers_;
  const Visit& visit_;
  MemoryLevels levels_;
  Memory<Real> scratch_;
  ForwardBackwardLattice<Real> lattice_;
  RowMemory<Real> rows_;
  Real* sums_;
  index_t pairs_since_look_ = 0;
};

// The log-likelihood of an item whose lengths and labels are in range; `visit` as above. The caller holds StandardFloats.
template <class scalar_t, class label_t, class Visit>
double sum_over_paths(const Item<scalar_t, label_t>& item, const CompactTarget& target,
                      const PathValues<AccumulationType<scalar_t>>& path_values, const Options& options,
                      const Workers& workers, const Visit& visit) {
  if (item.frames == 0 || shortest_path(item.labels, target.repeats) > item.frames) {
    return item.frames == 0 && item.labels == 0 ? 0 : kMinusInfinity<double>;
  }
  const KeepNothing keep_nothing(options.memory_budget > 0);
  return ItemSums<scalar_t, Visit>(item, target, path_values, options, workers, visit).run();
}

}  // namespace ctc_align
