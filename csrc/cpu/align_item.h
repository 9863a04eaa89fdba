// One item on one thread: from its log_probs and its target to its row of paths and scores. No tensors in here.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "../lattice/sweep.h"
#include "../lattice/traceback.h"
#include "lanes_portable.h"

namespace ctc_align {

// A strided row of a tensor.
template <class T>
struct Strided {
  T* data;
  index_t stride;

  T& operator[](index_t i) const { return data[i * stride]; }
};

template <class scalar_t, class label_t>
struct Item {
  Emissions<scalar_t> emissions;
  Strided<const label_t> target;
  index_t frames;         // T of this item
  index_t labels;         // L of this item
  index_t padded_frames;  // T of the batch
  index_t blank;
  label_t* path;     // [padded_frames]
  scalar_t* scores;  // [padded_frames]
};

// Half types are summed in float32, the others in their own precision.
template <class scalar_t>
using AccumulationType = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// The panel stays small enough for a second-level cache.
constexpr index_t kPanelBytes = 256 * 1024;

template <class T>
std::unique_ptr<T[]> uninitialized(index_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// The target in the shape the sweep wants: class ids of the panel, and who may be skipped into.
struct CompactTarget {
  std::vector<int64_t> classes;     // panel class -> class; blank first, then the labels that occur
  std::vector<int32_t> class_ids;   // pair -> panel class; 0 in the padding
  std::vector<uint16_t> skip_bits;  // bit k % 16 of word k / 16
  index_t repeats = 0;

  template <class label_t>
  CompactTarget(const Strided<const label_t>& target, index_t labels, index_t blank, index_t tile_pairs) {
    const index_t padded = (labels / tile_pairs + 1) * tile_pairs;
    classes.reserve(labels + 1);
    classes.push_back(blank);
    for (index_t k = 0; k < labels; ++k) {
      classes.push_back(target[k]);
    }
    std::sort(classes.begin() + 1, classes.end());
    classes.erase(std::unique(classes.begin() + 1, classes.end()), classes.end());
    class_ids.assign(padded, 0);
    skip_bits.assign(padded / kPairsPerWord, 0);
    for (index_t k = 0; k < labels; ++k) {
      const auto found = std::lower_bound(classes.begin() + 1, classes.end(), static_cast<int64_t>(target[k]));
      class_ids[k] = static_cast<int32_t>(found - classes.begin());
      if (k > 0 && class_ids[k] != class_ids[k - 1]) {
        skip_bits[k / kPairsPerWord] |= static_cast<uint16_t>(1u << (k % kPairsPerWord));
      }
      repeats += k > 0 && class_ids[k] == class_ids[k - 1];
    }
  }

  bool skip_allowed(index_t pair) const { return (skip_bits[pair / kPairsPerWord] >> (pair % kPairsPerWord)) & 1; }
};

template <class scalar_t, class label_t>
void mark_infeasible(const Item<scalar_t, label_t>& item) {
  std::fill_n(item.path, item.padded_frames, static_cast<label_t>(-1));
  std::fill_n(item.scores, item.padded_frames,
              static_cast<scalar_t>(-std::numeric_limits<AccumulationType<scalar_t>>::infinity()));
}

// Aligns an item whose lengths and labels are in range. Writes the whole rows of paths and scores.
template <class scalar_t, class label_t>
void align_item(const Item<scalar_t, label_t>& item) {
  using Lanes = PortableLanes<AccumulationType<scalar_t>>;
  using Real = typename Lanes::Real;
  constexpr index_t kTilePairs = Lanes::kTileWords * kPairsPerWord;
  const Band band{item.frames, item.labels};

  if (band.labels > band.frames) {
    return mark_infeasible(item);  // before anything is sized by a target that cannot fit
  }
  const CompactTarget target(item.target, item.labels, item.blank, kTilePairs);
  if (shortest_path(band.labels, target.repeats) > band.frames) {
    return mark_infeasible(item);
  }

  if (band.frames > 0) {
    const index_t row_length = static_cast<index_t>(target.classes.size());
    const index_t stretch_frames = std::clamp<index_t>(kPanelBytes / (row_length * static_cast<index_t>(sizeof(Real))),
                                                       1, std::min(kBlockFrames, band.frames));
    const index_t padded_pairs = static_cast<index_t>(target.class_ids.size());
    const auto values = uninitialized<Real>(stretch_frames * row_length);
    const auto alphas = uninitialized<Real>(2 * padded_pairs);
    const auto bases = uninitialized<double>(columns_of(band.labels));
    const auto edges = uninitialized<Real>(stretch_frames);
    const auto row_offsets = uninitialized<index_t>(stretch_frames);
    const auto records = uninitialized<RecordWord>(RecordRows{band}.words());

    const EmissionPanel<Real> panel{values.get(), row_length, target.classes.data()};
    const SweepArea<Real> area{{alphas.get(), alphas.get() + padded_pairs, bases.get()},
                               edges.get(),
                               row_offsets.get(),
                               stretch_frames,
                               records.get()};
    const PathEnd end = sweep_lattice<Lanes>(
        band, {target.class_ids.data(), target.skip_bits.data()}, panel, area,
        [&](index_t first_frame, index_t frames) { load_panel(panel, item.emissions, first_frame, frames); });
    if (!end.feasible) {
      return mark_infeasible(item);
    }
    trace_path(
        band, records.get(), end.state, [&](index_t pair) { return target.skip_allowed(pair); },
        [&](index_t t, State state) {
          const index_t klass = state.is_label ? static_cast<index_t>(item.target[state.pair]) : item.blank;
          item.path[t] = static_cast<label_t>(klass);
          item.scores[t] = item.emissions.at(t, klass);
        });
  }
  std::fill_n(item.path + band.frames, item.padded_frames - band.frames, static_cast<label_t>(item.blank));
  std::fill_n(item.scores + band.frames, item.padded_frames - band.frames, static_cast<scalar_t>(0));
}

}  // namespace ctc_align
