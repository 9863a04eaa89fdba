// One item of a batch for the kernels, and its target in a compact shape. No tensors in here.
#pragma once

#include <algorithm>
#include <limits>
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
};

// The target in the shape that the sweep reads: class ids of the panel, and the pairs that may be skipped into.
struct CompactTarget {
  std::vector<int64_t> classes;     // panel class -> class, increasing; empty: all classes are in the panel
  std::vector<int32_t> class_ids;   // pair -> panel class; 0 in the padding
  std::vector<uint16_t> skip_bits;  // bit k % 16 of word k / 16
  int32_t blank_class;              // panel class of the blank
  index_t class_count;              // in the panel
  index_t repeats = 0;

  // Up to this number of classes the panel holds all: that is quicker than finding those that occur.
  static constexpr index_t kFewClasses = 32;

  template <class scalar_t, class label_t>
  CompactTarget(const Item<scalar_t, label_t>& item, index_t tile_pairs) {
    const index_t labels = item.labels;
    const index_t padded = (labels / tile_pairs + 1) * tile_pairs;
    if (item.classes > kFewClasses) {
      classes.reserve(labels + 1);
      classes.push_back(item.blank);
      for (index_t k = 0; k < labels; ++k) {
        classes.push_back(item.target[k]);
      }
      std::sort(classes.begin(), classes.end());
      classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
      classes.shrink_to_fit();
    }
    class_count = classes.empty() ? item.classes : static_cast<index_t>(classes.size());
    blank_class = panel_class(item.blank);
    class_ids.assign(padded, 0);
    skip_bits.assign(padded / kPairsPerWord, 0);
    for (index_t k = 0; k < labels; ++k) {
      class_ids[k] = panel_class(static_cast<int64_t>(item.target[k]));
      const bool may_skip = may_skip_into(k, class_ids[k], k > 0 ? class_ids[k - 1] : blank_class);
      skip_bits[k / kPairsPerWord] |= static_cast<uint16_t>((may_skip ? 1u : 0u) << (k % kPairsPerWord));
      repeats += k > 0 && !may_skip;
    }
  }

  // Null if the panel has all classes, as in EmissionPanel.
  const int64_t* panel_classes() const { return classes.empty() ? nullptr : classes.data(); }
  int64_t class_of(index_t pair) const { return classes.empty() ? class_ids[pair] : classes[class_ids[pair]]; }
  bool skip_allowed(index_t pair) const { return (skip_bits[pair / kPairsPerWord] >> (pair % kPairsPerWord)) & 1; }

  index_t bytes() const {
    return static_cast<index_t>(classes.size() * sizeof(int64_t) + class_ids.size() * sizeof(int32_t) +
                                skip_bits.size() * sizeof(uint16_t));
  }

 private:
  int32_t panel_class(int64_t klass) const {
    if (classes.empty()) {
      return static_cast<int32_t>(klass);
    }
    return static_cast<int32_t>(std::lower_bound(classes.begin(), classes.end(), klass) - classes.begin());
  }
};

}  // namespace ctc_align
