// One item of a batch for the kernels, and its target in a compact shape. No tensors in here.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "lanes/isa.h"

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
  using Scalar = scalar_t;
  using Label = label_t;
  using Real = AccumulationType<scalar_t>;

  Emissions<scalar_t> emissions;
  Strided<const label_t> target;
  index_t frames;   // T of this item
  index_t labels;   // L of this item
  index_t classes;  // C
  index_t blank;
  std::optional<StarScores<scalar_t>> star_scores;
  std::optional<Strided<const uint8_t>> wild_gaps;  // [labels + 1]

  bool is_wild(index_t pair) const { return wild_gaps && (*wild_gaps)[pair] != 0; }

  // What a path meets at frame t in a state of a pair with this label: what `paths` calls it, and its stored
  // log-probability.
  struct Entry {
    index_t name;
    scalar_t score;
  };
  template <bool kStars>
  Entry entry(index_t t, State state, index_t label) const {
    const index_t name = blank ^ ((blank ^ label) & -index_t{state.is_label});  // a branch would be a guess
    if constexpr (!kStars) {
      return {name, emissions.at(t, name)};
    }
    const scalar_t star = star_scores->at(t);
    if (name == classes) {
      return {name, star};
    }
    const scalar_t own = emissions.at(t, name);
    return !state.is_label && is_wild(state.pair) && takes_star(load_emission<Real>(star), load_emission<Real>(own))
               ? Entry{kGapStar, star}
               : Entry{name, own};
  }
};

// The target in the shape that the sweep reads: class ids of the panel, the pairs that may be skipped into, and those
// whose gap is wild.
//
// Panel classes are the classes of log_probs that are needed. Stars bring two more, behind these: the blank moves to the
// first, the blank of wild gaps is the second, and star labels get the place of the blank, which no label reads. So 32
// classes still fit into a table of 32.
struct CompactTarget {
  std::vector<int64_t> classes;     // panel class -> class, increasing; empty: all classes are in the panel
  std::vector<int32_t> class_ids;   // pair -> panel class; 0 in the padding
  std::vector<uint16_t> skip_bits;  // bit k % 16 of word k / 16
  std::vector<uint16_t> wild_bits;  // the same; the padding is like pair L. Empty: no gap is wild
  int32_t blank_class;              // panel class of the blank
  int32_t star_class = -1;          // of star labels; -1: there are no stars
  int32_t wild_class = -1;          // of the blanks of wild gaps; -1: no gap is wild
  index_t class_count;              // classes of log_probs in the panel
  index_t repeats = 0;

  // Up to this number of classes the panel holds all: that is quicker than finding those that occur. So it is where most
  // of them occur: a panel of neighbours is loaded by vectors.
  static constexpr index_t kFewClasses = 32;

  template <class scalar_t, class label_t>
  CompactTarget(const Item<scalar_t, label_t>& item, index_t tile_pairs) {
    const index_t labels = item.labels;
    const index_t padded = (labels / tile_pairs + 1) * tile_pairs;
    if (item.classes > larger(kFewClasses, labels)) {
      classes.reserve(labels + 1);
      classes.push_back(item.blank);
      for (index_t k = 0; k < labels; ++k) {
        if (item.target[k] != item.classes) {
          classes.push_back(item.target[k]);
        }
      }
      std::sort(classes.begin(), classes.end());
      classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
      classes.shrink_to_fit();
    }
    class_count = classes.empty() ? item.classes : static_cast<index_t>(classes.size());
    const int32_t blank_place = blank_class = panel_class(item.blank);
    if (item.star_scores) {
      star_label_ = item.classes;
      star_class = blank_class;
      blank_class = static_cast<int32_t>(class_count);
      wild_class = item.wild_gaps ? blank_class + 1 : -1;
    }
    class_ids.assign(padded, 0);
    skip_bits.assign(padded / kPairsPerWord, 0);
    for (index_t k = 0; k < labels; ++k) {
      const auto label = static_cast<int64_t>(item.target[k]);
      class_ids[k] = label == item.classes ? star_class : panel_class(label);
      const bool may_skip = may_skip_into(k, class_ids[k], k > 0 ? class_ids[k - 1] : blank_place);
      skip_bits[k / kPairsPerWord] |= static_cast<uint16_t>((may_skip ? 1u : 0u) << (k % kPairsPerWord));
      repeats += k > 0 && !may_skip;
    }
    if (item.wild_gaps) {
      wild_bits.assign(padded / kPairsPerWord, 0);
      for (index_t k = 0; k < padded; ++k) {
        const uint32_t is_wild = item.is_wild(smaller(k, labels)) ? 1 : 0;
        wild_bits[k / kPairsPerWord] |= static_cast<uint16_t>(is_wild << (k % kPairsPerWord));
      }
    }
  }

  // Null if the panel has all classes, as in EmissionPanel.
  const int64_t* panel_classes() const { return classes.empty() ? nullptr : classes.data(); }
  const uint16_t* wild_words() const { return wild_bits.empty() ? nullptr : wild_bits.data(); }

  // The classes of the labels.
  struct Labels {
    const int64_t* classes;
    const int32_t* class_ids;
    int32_t star_class;
    int64_t star_label;

    // kStars: it may be a star. The padding has a class, too.
    template <bool kStars>
    int64_t class_of(index_t pair) const {
      const int32_t id = class_ids[pair];
      if (kStars && id == star_class) {
        return star_label;
      }
      return classes ? classes[id] : id;
    }
  };
  Labels labels() const { return {panel_classes(), class_ids.data(), star_class, star_label_}; }

  index_t bytes() const {
    return static_cast<index_t>(classes.size() * sizeof(int64_t) + class_ids.size() * sizeof(int32_t) +
                                (skip_bits.size() + wild_bits.size()) * sizeof(uint16_t));
  }

 private:
  int64_t star_label_ = -1;

  int32_t panel_class(int64_t klass) const {
    if (classes.empty()) {
      return static_cast<int32_t>(klass);
    }
    return static_cast<int32_t>(std::lower_bound(classes.begin(), classes.end(), klass) - classes.begin());
  }
};

}  // namespace ctc_align
