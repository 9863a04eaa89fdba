// What the kernels of the sums are given, and what they leave for one another in global memory.
#pragma once

#include <limits>
#include <type_traits>

#include "../../lattice/forward_backward/pair_sums.h"
#include "../inputs.cuh"
#include "../thread_lanes.cuh"
#include "plan.h"

namespace ctc_align {

// ------------------------------------------------------------------------------------------------- 1 inputs

// How log_probs and star_scores are stored. float64 is summed in float64, everything else in float32; so a kernel for
// float32 reads three types, and asks which at every value. It costs little beside what a value goes through.
enum class Storage { kReal, kHalf, kBFloat16 };

template <class Real>
struct StoredReals {
  using Raw = std::conditional_t<sizeof(Real) == 4, uint32_t, uint64_t>;
  const void* data;

  CTC_ALIGN_FN Raw raw(Storage storage, index_t at) const {
    return storage == Storage::kReal ? static_cast<const Raw*>(data)[at] : Raw{static_cast<const uint16_t*>(data)[at]};
  }
  CTC_ALIGN_FN StoredReals from(Storage storage, index_t at) const {
    return {static_cast<const uint8_t*>(data) +
            at * static_cast<index_t>(storage == Storage::kReal ? sizeof(Real) : 2)};
  }
  // A value is used long after it is loaded, so the two are apart.
  CTC_ALIGN_FN static Real value(Storage storage, Raw raw) {
    const uint16_t half = static_cast<uint16_t>(raw);
    return storage == Storage::kReal   ? same_bits<Real>(raw)
           : storage == Storage::kHalf ? static_cast<Real>(widen(StoredHalf{half}))
                                       : static_cast<Real>(widen(StoredBFloat16{half}));
  }
};

// What comes out beside the log-likelihoods.
enum class SumOutput { kClasses, kTokens, kSpans };

// log_probs and star_scores have the type `storage`. Without stars star_scores is nullptr, and nothing else of them is read.
template <class Real>
struct SumInputs : Inputs<void, true> {
  Storage storage;
  const Real* path_values;  // nullptr: paths have none
  index_t values_item_stride, values_frame_stride, values_column_stride;
  SumOutput kind;
  const int64_t *starts, *ends;  // of spans
  index_t starts_strides[2], ends_strides[2];
  Real* out;  // [B][T][columns], or [B][L]; zeros
  index_t out_columns;
  Real* log_likelihoods;  // [B]

  CTC_ALIGN_FN bool has_stars() const { return star_scores != nullptr; }
  // A class that a label may have.
  CTC_ALIGN_FN bool is_spoken(index_t c) const { return 0 <= c && c < classes + (has_stars() ? 1 : 0) && c != blank; }
  CTC_ALIGN_FN index_t log_prob_at(index_t b, index_t t, index_t c) const {
    return b * item_stride + t * frame_stride + c * class_stride;
  }
  CTC_ALIGN_FN index_t star_at(index_t b, index_t t) const { return b * star_item_stride + t * star_frame_stride; }
  CTC_ALIGN_FN bool is_wild_gap(index_t b, index_t k) const {
    return has_stars() && wild_gaps != nullptr && wild_gaps[b * wild_item_stride + k * gap_stride] != 0;
  }
  CTC_ALIGN_FN Real path_value(index_t b, index_t t, index_t column) const {
    return path_values[b * values_item_stride + t * values_frame_stride + column * values_column_stride];
  }
};

// ---------------------------------------------------------------------------------------------- 2 weights

template <DeviceWords Device, class Real, bool kHasMean>
using SumWeight =
    std::conditional_t<kHasMean, ExpectationWeight<ThreadLanes<Device, Real>>, ScaledWeight<ThreadLanes<Device, Real>>>;

// A weight in memory. Exponents are whole numbers in the place of Reals.
template <class Real>
struct alignas(2 * sizeof(Real)) PackedScaled {
  Real mantissa, exponent;
};

template <class Weight>
CTC_ALIGN_FN void pack(const Weight& weight, typename Weight::Real* to) {
  to[0] = weight.scaled().mantissa;
  to[1] = weight.scaled().exponent;
  if constexpr (Weight::kHasMean) {
    to[2] = weight.mean;
  }
}
template <class Weight>
CTC_ALIGN_FN Weight unpack(const typename Weight::Real* from) {
  if constexpr (Weight::kHasMean) {
    return {{from[0], from[1]}, from[2]};
  } else {
    return {from[0], from[1]};
  }
}

// A pair in a row: its blank, then its label. A thread's two pairs are neighbours, and stored at once.
template <class Weight>
struct alignas(16) PackedPairs {
  typename Weight::Real of[kSumPairs][2][Weight::kPlanes];
};

// Weights between blocks of threads travel in words that are never all ones, as edges do in viterbi/edges.cuh. Mantissas
// are not negative. An exponent of float64 is moved above 0.
template <class Weight>
struct WeightWords {
  using Real = typename Weight::Real;
  static constexpr bool kIsFloat = sizeof(Real) == 4;
  static constexpr int kCount = (kIsFloat ? 1 : 2) + (Weight::kHasMean ? 1 : 0);
  static constexpr uint64_t kUnset = ~uint64_t{0};
  static constexpr uint64_t kMoved = uint64_t{1} << 40;

  uint64_t of[kCount];

  CTC_ALIGN_FN static WeightWords from(const Weight& weight) {
    WeightWords words;
    const auto scaled = weight.scaled();
    if constexpr (kIsFloat) {
      words.of[0] = uint64_t{same_bits<uint32_t>(scaled.exponent)} << 32 | same_bits<uint32_t>(scaled.mantissa);
    } else {
      words.of[0] = same_bits<uint64_t>(scaled.mantissa);
      words.of[1] = same_bits<uint64_t>(scaled.exponent) + kMoved;
    }
    if constexpr (Weight::kHasMean && kIsFloat) {
      words.of[kCount - 1] = same_bits<uint32_t>(weight.mean);
    } else if constexpr (Weight::kHasMean) {
      const uint64_t mean = same_bits<uint64_t>(weight.mean);
      words.of[kCount - 1] = mean == kUnset ? mean - 1 : mean;  // another NaN
    }
    return words;
  }
  CTC_ALIGN_FN Weight weight() const {
    Real parts[3];
    if constexpr (kIsFloat) {
      parts[0] = same_bits<Real>(static_cast<uint32_t>(of[0]));
      parts[1] = same_bits<Real>(static_cast<uint32_t>(of[0] >> 32));
      parts[2] = same_bits<Real>(static_cast<uint32_t>(of[kCount - 1]));
    } else {
      parts[0] = same_bits<Real>(of[0]);
      parts[1] = same_bits<Real>(of[1] - kMoved);
      parts[2] = same_bits<Real>(of[kCount - 1]);
    }
    return unpack<Weight>(parts);
  }
};

// ------------------------------------------------------------------------------------------- 3 the workspace

// Layout: one piece of memory. N items of a group, J columns, F frames of a chapter, S segments of a chapter.
//
//     unset before a sweep forward   ticket | forward edges [N][J][F]
//     unset before a sweep back      ticket | kept_to [N][J] | finished [N J] | halves [N][4] | backward edges [N][J][F]
//     rows, [column][pair] each      before chapters [rows][N] | before segments [S][N] | q, of the way back [2][N]
//     others                         alphas of segments [slots][frames][pairs] | ends [N][2] | sums [N][F][3]
template <class Real>
struct SumWorkspace {
  SumPlan plan;
  uint32_t* forward_ticket;
  uint64_t* forward_edges;
  uint32_t* backward_ticket;
  uint32_t* kept_to;   // the lowest frame whose sums the column has added to
  uint32_t* finished;  // set when the block of a ticket is done with its slot
  uint32_t* halves;    // of an item, forward and back: set when that half has come to the middle; and who claims them
  uint64_t* backward_edges;
  Real *chapter_rows, *segment_rows, *later_rows;
  Real* alphas;
  Real* ends;  // of the last label, of the last blank
  Real* sums;  // of all posteriors, of blanks, of stars in gaps

  CTC_ALIGN_FN index_t pair_reals() const { return 2 * plan.planes; }
  CTC_ALIGN_FN index_t row_of(index_t row, index_t item, index_t pair) const {
    return ((row * plan.batch + item) * plan.columns() * kColumnPairs + pair) * pair_reals();
  }
  CTC_ALIGN_FN index_t edge_of(index_t item, index_t column, index_t frame_of_chapter) const {
    return (item * plan.columns() + column) * plan.chapter_frames + frame_of_chapter;
  }
  CTC_ALIGN_FN Real* sums_of(index_t item, index_t frame_of_chapter) const {
    return sums + (item * plan.chapter_frames + frame_of_chapter) * 3;
  }
};

// Z of an item that has been swept forward.
template <class Real>
CTC_ALIGN_FN Total total_of_item(const SumWorkspace<Real>& work, index_t item) {
  const index_t planes = work.plan.planes;
  const Real *const label = work.ends + item * 2 * planes, *const blank = label + planes;
  const Real means[] = {planes > 2 ? blank[2] : Real{0}, planes > 2 ? label[2] : Real{0}};
  return total_of(StoredWeight<Real>{blank[0], blank[1], means[0]}, StoredWeight<Real>{label[0], label[1], means[1]});
}

// Lays the workspace into one piece of memory. With memory = nullptr it only counts.
template <class Real>
struct SumWorkspaceLayout {
  SumWorkspace<Real> work;
  index_t forward_unset_bytes;  // from the beginning
  index_t backward_unset_at, backward_unset_bytes;
  index_t bytes;

  SumWorkspaceLayout(const SumPlan& plan, bool needs_sums, uint8_t* memory) {
    index_t used = 0;
    const auto reserve = [&](auto*& part, index_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
      used = rounded_up(used + count * static_cast<index_t>(sizeof *part), 16);
    };
    work.plan = plan;
    const bool crosses = plan.columns() > 1;
    const index_t weight_words = static_cast<index_t>(sizeof(Real) / 4) + plan.planes - 2;
    const index_t edges = crosses ? plan.blocks() * plan.chapter_frames * weight_words : 0;
    const index_t row = plan.batch * plan.columns() * kColumnPairs * 2 * plan.planes;
    reserve(work.forward_ticket, 1);
    reserve(work.forward_edges, edges);
    forward_unset_bytes = used;
    backward_unset_at = used;
    reserve(work.backward_ticket, 1);
    reserve(work.kept_to, plan.blocks());
    reserve(work.finished, plan.blocks());
    reserve(work.halves, plan.meets ? 4 * plan.batch : 0);
    reserve(work.backward_edges, 2 * edges);
    backward_unset_bytes = used - backward_unset_at;
    reserve(work.chapter_rows, plan.rows * row);
    reserve(work.segment_rows, plan.is_single() ? 0 : plan.segments() * row);
    reserve(work.later_rows, plan.later_rows() * row);
    reserve(work.alphas, plan.slots * plan.segment_frames * plan.kept_pairs() * 2 * plan.planes);
    reserve(work.ends, plan.batch * 2 * plan.planes);
    reserve(work.sums, needs_sums ? plan.batch * plan.chapter_frames * 3 : 0);
    bytes = used;
  }
};

}  // namespace ctc_align
