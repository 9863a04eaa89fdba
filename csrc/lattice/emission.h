// Emissions on their way into the sweep: how they are stored, what they mean, and the panel that the sweep reads.
//
// The sweep looks up an emission for every pair and frame. The PANEL makes that cheap whatever the strides, the dtype
// and the number of classes of log_probs: it holds some frames of the classes that are needed, widened to the type of
// the sums. It comes in two layouts, for the two ways of looking up (sweep.h):
//
//     by frame:   | class 0 1 2 .. |  of frame 0,  | class 0 1 2 .. | of frame 1, ...    a row fits into registers
//     by class:   | frame 0 1 2 .. |  of class 0,  | frame 0 1 2 .. | of class 1, ...    any number of classes
//
// An emission that is not a log-probability (NaN, infinite, 2^100 or more) becomes -inf here: no alignment may pass
// through it. After that no sum can reach +inf (2^27 frames of 2^100 stay below it), so no NaN can arise anywhere in the
// lattice, and cells that no path can reach yet stay at -inf.
#pragma once

#include <type_traits>

#include "lattice.h"

namespace ctc_align {

// ---------------------------------------------------------------------------------------- half types as stored

// Plain bits, for code that is compiled once per instruction set: a library's half types bring inline functions of
// their own, and the linker would take one instruction set's copy of those for all.
struct StoredHalf {
  uint16_t bits;
};
struct StoredBFloat16 {
  uint16_t bits;
};

// Widening is exact. Without a branch, so that it becomes vector code: masks instead of choices.
CTC_ALIGN_FN float widen(StoredHalf stored) {
  constexpr uint32_t kRebias = 112u << 23;  // of the exponent: 15 -> 127
  const uint32_t sign = static_cast<uint32_t>(stored.bits & 0x8000) << 16;
  const uint32_t magnitude = stored.bits & 0x7FFF;
  const uint32_t is_subnormal = 0u - static_cast<uint32_t>(magnitude < 0x0400);  // all ones or none
  const uint32_t is_special = 0u - static_cast<uint32_t>(magnitude >= 0x7C00);   // infinity, NaN: exponent 31 -> 255
  const uint32_t normal = (magnitude << 13) + kRebias + (kRebias & is_special);
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return same_bits<float>(sign | (same_bits<uint32_t>(small) & is_subnormal) | (normal & ~is_subnormal));
}
CTC_ALIGN_FN float widen(StoredBFloat16 stored) { return same_bits<float>(static_cast<uint32_t>(stored.bits) << 16); }
template <class scalar_t>
CTC_ALIGN_FN scalar_t widen(scalar_t stored) {
  return stored;
}

// --------------------------------------------------------------------------------------------------- one emission

// The log_probs of one item, in place.
template <class scalar_t>
struct Emissions {
  const scalar_t* data;
  index_t frame_stride;  // in elements
  index_t class_stride;

  CTC_ALIGN_FN const scalar_t& at(index_t frame, index_t klass) const {
    return data[frame * frame_stride + klass * class_stride];
  }
};

// The star scores of one item, in place.
template <class scalar_t>
struct StarScores {
  const scalar_t* data;
  index_t frame_stride;  // in elements

  CTC_ALIGN_FN const scalar_t& at(index_t frame) const { return data[frame * frame_stride]; }
};

template <class Real>
constexpr Real kTooLarge = static_cast<Real>(0x1p100);

// Widens exactly (half types to float32), and turns anything that is not a log-probability into -inf.
template <class Real, class scalar_t>
CTC_ALIGN_FN Real load_emission(const scalar_t& stored) {
  const Real value = static_cast<Real>(widen(stored));
  return value < kTooLarge<Real> ? value : kMinusInfinity<Real>;  // NaN is not less either
}

template <class Lanes>
CTC_ALIGN_FN typename Lanes::Value keep_log_probabilities(typename Lanes::Value values) {
  const auto is_small = Lanes::exceeds(Lanes::broadcast(kTooLarge<typename Lanes::Real>), values);
  return Lanes::select(is_small, values, Lanes::broadcast(kMinusInfinity<typename Lanes::Real>));
}

// ---------------------------------------------------------------------------------------------------------- stars

// STAR SCORES are one more emission a frame: how well the frame is explained by something that the target does not say.
// A STAR LABEL, which is class C of the target, has it as its emission. A WILD GAP is a blank that may be a star instead,
// frame by frame: its emission is the larger one, and the blank wins a tie.
template <class Real>
CTC_ALIGN_FN bool takes_star(Real star, Real blank) {
  return star > blank;
}
template <class Real>
CTC_ALIGN_FN Real wild_emission(Real star, Real blank) {
  return takes_star(star, blank) ? star : blank;
}

// ------------------------------------------------------------------------------------------------------- the panel

template <class Real>
struct EmissionPanel {
  Real* values;
  index_t row_length;      // distance of two frames, or of two classes
  bool by_frame;           // the layout
  index_t class_count;     // classes in the panel
  const int64_t* classes;  // panel class -> class of log_probs, increasing; null: the panel has all classes
  int32_t blank_class;     // panel class of the blank
  int32_t star_class;      // with stars, of star labels: where the blank was loaded, before load_stars moves it
  int32_t wild_class;      // of the blanks of wild gaps; -1: no gap is wild

  CTC_ALIGN_FN index_t class_at(index_t c) const { return classes ? classes[c] : c; }
  CTC_ALIGN_FN Real& at(index_t frame, index_t c) const {
    return by_frame ? values[frame * row_length + c] : values[c * row_length + frame];
  }
};

// How far ahead of a row to ask for memory: processors read ahead by themselves inside a page of 4 KB only.
constexpr index_t kPrefetchBytes = 1024;
constexpr index_t kLineBytes = 64;  // of a cache

// The panel by class, of log_probs whose classes lie side by side and are all needed: vectors of classes are turned in
// registers into vectors of frames.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_all_classes(const EmissionPanel<typename Lanes::Real>& panel,
                                   const Emissions<scalar_t>& emissions, index_t first_frame, index_t frames) {
  using Real = typename Lanes::Real;
  constexpr int kWidth = Lanes::kWidth;
  for (index_t begin = 0; begin < frames; begin += kWidth) {
    const scalar_t* stored[kWidth];
    for (int i = 0; i < kWidth; ++i) {  // behind the last frame: that frame again
      stored[i] = &emissions.at(first_frame + smaller<index_t>(begin + i, frames - 1), 0);
    }
    Real* to = panel.values + begin;
    for (index_t c = 0; c < panel.class_count; c += kWidth) {
      if (c * sizeof(scalar_t) % kLineBytes == 0) {
        for (int i = 0; i < kWidth; ++i) {
          __builtin_prefetch(stored[i] + c + kPrefetchBytes / sizeof(scalar_t));
        }
      }
      typename Lanes::Value columns[kWidth];
      const auto store_columns = [&](index_t count) __attribute__((always_inline)) {
        for (index_t k = 0; k < count; ++k) {
          Lanes::store(to + k * panel.row_length, keep_log_probabilities<Lanes>(columns[k]));
        }
        to += count * panel.row_length;
      };
      const index_t count = smaller<index_t>(kWidth, panel.class_count - c);
      if constexpr (std::is_same_v<Real, scalar_t>) {
        if (count == kWidth) {
          Lanes::load_columns(stored, c, columns);
          store_columns(kWidth);
          continue;
        }
      }
      alignas(64) Real widened[kWidth][kWidth];
      const Real* rows[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        for (int k = 0; k < kWidth; ++k) {
          widened[i][k] = k < count ? static_cast<Real>(widen(stored[i][c + k])) : 0;
        }
        rows[i] = widened[i];
      }
      Lanes::load_columns(rows, 0, columns);
      store_columns(count);
    }
  }
}

// The panel by class, of any log_probs. The processor follows the rows of a group of frames from left to right.
//
// Tried and slower: asking for the entries some classes ahead (prefetch); copying them as they are stored and widening
// them by vectors afterwards.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_some_classes(const EmissionPanel<typename Lanes::Real>& panel,
                                    const Emissions<scalar_t>& emissions, index_t first_frame, index_t frames) {
  using Real = typename Lanes::Real;
  constexpr int kGroup = Lanes::kWidth;
  for (index_t begin = 0; begin < frames; begin += kGroup) {
    const index_t group = smaller<index_t>(kGroup, frames - begin);
    for (index_t c = 0; c < panel.class_count; ++c) {
      const scalar_t* from = &emissions.at(first_frame + begin, panel.class_at(c));
      Real* to = panel.values + c * panel.row_length + begin;
      if (group == kGroup) {
        for (int i = 0; i < kGroup; ++i) {
          to[i] = load_emission<Real>(from[i * emissions.frame_stride]);
        }
      } else {
        for (index_t i = 0; i < group; ++i) {
          to[i] = load_emission<Real>(from[i * emissions.frame_stride]);
        }
      }
    }
  }
}

// Fills the panel with `frames` frames from first_frame on. It has room for whole vectors of frames, or of classes.
template <class Lanes, class scalar_t>
CTC_ALIGN_FN void load_panel(const EmissionPanel<typename Lanes::Real>& panel, const Emissions<scalar_t>& emissions,
                             index_t first_frame, index_t frames) {
  using Real = typename Lanes::Real;
  const bool all_side_by_side = emissions.class_stride == 1 && !panel.classes;
  if (!panel.by_frame) {
    return all_side_by_side ? load_all_classes<Lanes>(panel, emissions, first_frame, frames)
                            : load_some_classes<Lanes>(panel, emissions, first_frame, frames);
  }
  for (index_t i = 0; i < frames; ++i) {
    const scalar_t* from = &emissions.at(first_frame + i, 0);
    Real* row = panel.values + i * panel.row_length;
    if (all_side_by_side) {
      for (index_t c = 0; c < panel.class_count; ++c) {  // a copy: vector code
        row[c] = load_emission<Real>(from[c]);
      }
      __builtin_prefetch(from + kPrefetchBytes / sizeof(scalar_t));
    } else {
      for (index_t c = 0; c < panel.class_count; ++c) {
        row[c] = load_emission<Real>(from[panel.class_at(c) * emissions.class_stride]);
      }
    }
  }
}

// Adds the stars to a panel that has been loaded.
template <class Real, class scalar_t>
CTC_ALIGN_FN void load_stars(const EmissionPanel<Real>& panel, const StarScores<scalar_t>& stars, index_t first_frame,
                             index_t frames) {
  for (index_t i = 0; i < frames; ++i) {
    const Real star = load_emission<Real>(stars.at(first_frame + i));
    const Real blank = panel.at(i, panel.star_class);
    panel.at(i, panel.star_class) = star;
    panel.at(i, panel.blank_class) = blank;
    if (panel.wild_class >= 0) {
      panel.at(i, panel.wild_class) = wild_emission(star, blank);
    }
  }
}

}  // namespace ctc_align
