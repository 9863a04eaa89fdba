// One item: from its log_probs and its target to its row of paths and scores. No tensors in here.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../item.h"
#include "../options.h"

namespace ctc_align {

// An item's rows of the results, padding included.
template <class scalar_t, class label_t>
struct AlignedRows {
  label_t* path;     // [padded_frames]
  scalar_t* scores;  // [padded_frames]
  index_t padded_frames;
};

inline float minus_infinity(float) { return kMinusInfinity<float>; }
inline double minus_infinity(double) { return kMinusInfinity<double>; }
inline StoredHalf minus_infinity(StoredHalf) { return {0xFC00}; }
inline StoredBFloat16 minus_infinity(StoredBFloat16) { return {0xFF80}; }

// The distance from 1 to the next number.
inline float epsilon(float) { return std::numeric_limits<float>::epsilon(); }
inline double epsilon(double) { return std::numeric_limits<double>::epsilon(); }
inline float epsilon(StoredHalf) { return 1.0f / 1024; }
inline float epsilon(StoredBFloat16) { return 1.0f / 128; }

// Memory for the bases of the band's columns: 0 in the first frame block.
struct BaseMemory {
  std::vector<index_t> row_begins;
  Memory<double> values;
  index_t count = 0;

  explicit BaseMemory(const Band& band) {
    const index_t frame_blocks = BaseGrid::frame_blocks(band.frames);
    row_begins.reserve(frame_blocks);
    for (index_t n = 0; n < frame_blocks; ++n) {
      row_begins.push_back(count - BaseGrid::first_column(band, n));
      count += BaseGrid::last_column(band, n) - BaseGrid::first_column(band, n) + 1;
    }
    values = uninitialized<double>(count);
    std::fill_n(values.get(), frame_blocks > 0 ? BaseGrid::last_column(band, 0) + 1 : 0, 0.0);
  }

  BaseGrid grid() const { return {values.get(), row_begins.data()}; }
  index_t bytes() const { return count * static_cast<index_t>(sizeof(double)); }
};

// Bytes of records and checkpoints, unless the user has set a budget. Checkpoints then lie so close that a few per cent
// of the lattice are swept a second time, whatever its size: a row of alphas grows with the labels, and so may the pieces.
// Workers that share the first sweep wait for one of them to do the second: there it is half as long.
inline index_t default_ladder_bytes(index_t frames, const Workers& workers) {
  constexpr index_t kBytesPerFrame = 160;
  constexpr index_t kAlways = 4 << 20;  // little on any machine, and enough for all records of a minute or two
  return std::max(kAlways, kBytesPerFrame * frames * (workers.count > 1 ? 2 : 1));
}

// Returns whether any of these entries is above 0 by more than the rounding of a logarithm: no log-probability is.
template <class scalar_t>
bool any_positive(const scalar_t* scores, index_t count) {
  using Real = AccumulationType<scalar_t>;
  const Real limit = 4 * static_cast<Real>(epsilon(scalar_t{}));
  bool found = false;
  for (index_t i = 0; i < count; ++i) {
    found |= load_emission<Real>(scores[i]) > limit;
  }
  return found;
}

template <class scalar_t, class label_t>
void mark_infeasible(const AlignedRows<scalar_t, label_t>& rows, const Workers& workers) {
  fill(rows.path, rows.padded_frames, static_cast<label_t>(kMarked), workers);
  fill(rows.scores, rows.padded_frames, minus_infinity(scalar_t{}), workers);
}

// Finds the best path of an item of at least one frame and writes it. Returns false if there is none.
template <bool kStars, class scalar_t, class label_t>
bool trace_item(const Item<scalar_t, label_t>& item, const CompactTarget& target, const Options& options,
                const Workers& workers, const AlignedRows<scalar_t, label_t>& rows) {
  using Real = AccumulationType<scalar_t>;
  const SweepKernels<scalar_t>& kernels = options.isa->kernels<scalar_t>();
  const StandardFloats standard_floats;
  const KeepNothing keep_nothing(options.memory_budget > 0);
  const Band band{item.frames, item.labels};

  const index_t pairs = static_cast<index_t>(target.class_ids.size());
  const auto alphas = uninitialized<Real>(2 * pairs);
  const AlphaRow<Real> row{alphas.get(), alphas.get() + pairs, 0, pairs};
  std::fill_n(alphas.get(), 2 * pairs, kMinusInfinity<Real>);
  const auto first_emission = [&](bool is_label) {
    return load_emission<Real>(
        item.template entry<kStars>(0, {0, is_label}, target.labels().template class_of<kStars>(0)).score);
  };
  start_paths(item.labels, first_emission, row.blank(0), row.label(0));

  const BaseMemory bases(band);
  Sweeper<scalar_t> sweep(kernels, workers, options.tiling, item.emissions, item.star_scores, target, item.frames);

  LadderLimits limits{.bytes = default_ladder_bytes(item.frames, workers),
                      .cuts = options.cuts.data(),
                      .cut_count = static_cast<index_t>(options.cuts.size()),
                      .forced = options.force_cuts};
  if (options.memory_budget > 0) {
    constexpr index_t kLeast = 64 * 1024;
    const index_t spent =
        2 * pairs * static_cast<index_t>(sizeof(Real)) + target.bytes() + bases.bytes() + sweep.bytes();
    limits.bytes = std::max(options.memory_budget - spent, kLeast);
  }

  const auto visit = [item, labels = target.labels(), rows](index_t t, State state) {
    const auto entry = item.template entry<kStars>(t, state, labels.template class_of<kStars>(state.pair));
    rows.path[t] = static_cast<label_t>(entry.name);
    rows.scores[t] = entry.score;
  };
  const SweepJob<Real> job{.whole = band,
                           .band = band,
                           .target = {target.class_ids.data(), target.skip_bits.data(), target.wild_words()},
                           .row = row,
                           .bases = bases.grid(),
                           .settle_bases = true,
                           .records = nullptr,
                           .record_begin = 0};
  return Ladder<Real, Sweeper<scalar_t>, decltype(visit)>(job, kernels.tile_pairs, limits, sweep, visit).trace();
}

// Aligns an item whose lengths and labels are in range, and writes its whole rows of paths and scores. Returns false if
// the item has no path: then its rows are marked.
template <class scalar_t, class label_t>
bool align_item(const Item<scalar_t, label_t>& item, const Options& options, const Workers& workers,
                const AlignedRows<scalar_t, label_t>& rows) {
  const auto finds_path = [&] {
    if (item.frames == 0 || item.labels > item.frames) {  // nothing is sized by a target that cannot fit
      return item.labels == 0;
    }
    const CompactTarget target(item, options.isa->kernels<scalar_t>().tile_pairs);
    if (shortest_path(item.labels, target.repeats) > item.frames) {
      return false;
    }
    return item.star_scores ? trace_item<true>(item, target, options, workers, rows)
                            : trace_item<false>(item, target, options, workers, rows);
  };
  if (!finds_path()) {
    mark_infeasible(rows, workers);
    return false;
  }
  fill(rows.path + item.frames, rows.padded_frames - item.frames, static_cast<label_t>(item.blank), workers);
  fill(rows.scores + item.frames, rows.padded_frames - item.frames, scalar_t{}, workers);
  return true;
}

}  // namespace ctc_align
