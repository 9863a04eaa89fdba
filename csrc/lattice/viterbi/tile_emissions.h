// The emissions of a tile's pairs, frame by frame, from the panel (emission.h): two ways of looking up.
#pragma once

#include "../emission.h"
#include "../lattice.h"
#include "rebase.h"

namespace ctc_align {

// Small vocabularies: a frame's row of the panel sits in registers, and a permutation looks up a vector of labels.
template <class Lanes, int kVectors, bool kInRegisters>
struct TileEmissions {
  using Real = typename Lanes::Real;
  static constexpr index_t kGroup = kFrameBlock;  // frames between two calls of prepare

  const EmissionPanel<Real>& panel;
  typename Lanes::Index ids[kVectors];
  typename Lanes::Table table;

  CTC_ALIGN_FN TileEmissions(const EmissionPanel<Real>& from, const int32_t* class_ids) : panel(from) {
    for (int v = 0; v < kVectors; ++v) {
      ids[v] = Lanes::load_index(class_ids + v * Lanes::kWidth);
    }
  }
  CTC_ALIGN_FN void prepare(index_t) {}
  CTC_ALIGN_FN typename Lanes::Value begin_frame(index_t i) {  // returns the blank's emission
    const Real* row = panel.values + i * panel.row_length;
    table = Lanes::load_table(row);
    return Lanes::broadcast(row[panel.blank_class]);
  }
  CTC_ALIGN_FN typename Lanes::Value wild_gap(index_t i) const {
    return Lanes::broadcast(panel.values[i * panel.row_length + panel.wild_class]);
  }
  CTC_ALIGN_FN typename Lanes::Value label(index_t, int v) const { return Lanes::look_up(table, ids[v]); }
};

// Any vocabulary: a vector of frames for each label, and kWidth of these transposed give kWidth vectors of labels.
template <class Lanes, int kVectors>
struct TileEmissions<Lanes, kVectors, false> {
  using Real = typename Lanes::Real;
  static constexpr index_t kGroup = Lanes::kWidth;

  const EmissionPanel<Real>& panel;
  const Real* rows[kVectors * Lanes::kWidth];  // of the labels' classes
  alignas(64) Real group[kGroup][kVectors * Lanes::kWidth];

  CTC_ALIGN_FN TileEmissions(const EmissionPanel<Real>& from, const int32_t* ids) : panel(from) {
    for (int l = 0; l < kVectors * Lanes::kWidth; ++l) {
      rows[l] = panel.values + ids[l] * panel.row_length;
    }
  }
  CTC_ALIGN_FN void prepare(index_t begin) {
    for (int v = 0; v < kVectors; ++v) {
      typename Lanes::Value square[Lanes::kWidth];
      Lanes::load_columns(rows + v * Lanes::kWidth, begin, square);
      for (int i = 0; i < Lanes::kWidth; ++i) {
        Lanes::store(&group[i][v * Lanes::kWidth], square[i]);
      }
    }
  }
  CTC_ALIGN_FN typename Lanes::Value begin_frame(index_t i) const {
    return Lanes::broadcast(panel.values[panel.blank_class * panel.row_length + i]);
  }
  CTC_ALIGN_FN typename Lanes::Value wild_gap(index_t i) const {
    return Lanes::broadcast(panel.values[panel.wild_class * panel.row_length + i]);
  }
  CTC_ALIGN_FN typename Lanes::Value label(index_t i, int v) const {
    return Lanes::load(&group[i % kGroup][v * Lanes::kWidth]);
  }
};

}  // namespace ctc_align
