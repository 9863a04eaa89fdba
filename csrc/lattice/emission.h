// Emissions on their way into the sweep: a panel of some frames by the classes that occur in the target.
//
// The sweep looks up an emission for every pair and frame. The panel makes that one contiguous row a frame, whatever
// the strides, the dtype and the number of classes of log_probs: only classes of the target are read, and each value
// is widened once a frame instead of once a pair. Class ids inside the panel: 0 is the blank, then the labels in
// increasing order.
//
//     panel row t:   [ blank | label class a | label class b | ... ]     `row_length` wide, accumulation dtype
//
// An emission that is no log-probability, NaN or infinite or 2^100 and more, becomes -inf here: no alignment may pass
// through it. After that no sum can reach +inf (2^27 frames of 2^100 stay below it), so no NaN can arise anywhere in the
// lattice, and cells that no path can reach yet stay at -inf.
#pragma once

#include <limits>

#include "lattice.h"

namespace ctc_align {

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

// Widens exactly (half types to float32), and turns whatever is no log-probability into -inf.
template <class Real, class scalar_t>
CTC_ALIGN_FN Real load_emission(const scalar_t& stored) {
  constexpr Real kTooLarge = static_cast<Real>(0x1p100);
  const Real value = static_cast<Real>(stored);
  return value < kTooLarge ? value : -std::numeric_limits<Real>::infinity();  // NaN is not less either
}

template <class Real>
struct EmissionPanel {
  Real* values;
  index_t row_length;      // how many classes are in use, the blank included
  const int64_t* classes;  // panel class -> class of log_probs

  CTC_ALIGN_FN Real* row(index_t i) const { return values + i * row_length; }
};

template <class Real, class scalar_t>
CTC_ALIGN_FN void load_panel(const EmissionPanel<Real>& panel, const Emissions<scalar_t>& emissions,
                             index_t first_frame, index_t frames) {
  for (index_t i = 0; i < frames; ++i) {
    Real* row = panel.row(i);
    for (index_t c = 0; c < panel.row_length; ++c) {
      row[c] = load_emission<Real>(emissions.at(first_frame + i, panel.classes[c]));
    }
  }
}

}  // namespace ctc_align
