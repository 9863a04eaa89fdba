// The forward pass over one lattice: tiles of (pairs x frames), alphas in registers, one edge value a frame.
//
// Contents: 1 a tile  2 the row of alphas and its rebase  3 the whole lattice
//
// Order of work. Frames are taken in stretches (at most a block of the rebase grid, and what the emission panel
// holds); inside a stretch tiles go from left to right. A tile keeps its pairs' alphas in registers for the whole
// stretch, and only the label alpha of its last pair leaves it, one value a frame: the EDGE.
//
//                 tile j-1        tile j
//     t0     ...  b y b y b y  >  b y b y b y  >        '>' edge[0]: the label alpha of frame t0-1
//     t0+1   ...  b y b y b y  >  b y b y b y  >            edge[1]: of frame t0
//
// Each tile replaces the edges it has read by its own, so one array of edges serves the whole row of tiles.
// Dependencies only come from the left and from the past, so this order, or any other one of rectangles, is legal.
//
// The band decides which tiles are visited and which records are stored. Inside a visited tile every pair is
// computed. What stands outside the band is never read by a result: pairs not reached yet are -inf, pairs left of the
// band cannot lead back into it (lattice.h), and behind blank L nothing leads to the left.
#pragma once

#include <limits>

#include "emission.h"
#include "lattice.h"
#include "pair_step.h"
#include "rebase.h"
#include "records.h"

namespace ctc_align {

// ------------------------------------------------------------------------------------------------- 1 a tile

// The target as the sweep wants it, padded to whole tiles: ids of panel classes, and 16 skip bits a record word.
struct SweepTarget {
  const int32_t* class_ids;
  const uint16_t* skip_bits;
};

// A stretch of frames: what every tile in it reads and writes.
template <class Real>
struct Stretch {
  index_t first_frame;  // >= 1
  index_t frames;
  const Real* emissions;       // the panel's row of the first frame
  index_t row_length;          // of the panel
  Real* edges;                 // [frames]
  RecordWord* records;         // all rows
  const index_t* row_offsets;  // [frames] record word w of the frame is records[row_offset + w]
};

// Sweeps the pairs of one tile, `Lanes::kTileWords` record words from `first_word`, over a stretch.
// blank, label: alphas of the tile's pairs at frame first_frame-1 on entry, at the last frame on return.
// kRagged: the band's border runs through the tile, so some of its record words have no place in their row.
template <class Lanes, bool kRecords, bool kRagged>
CTC_ALIGN_FN void sweep_tile(const Stretch<typename Lanes::Real>& stretch, const RecordRows& rows,
                             const SweepTarget& target, index_t first_word, typename Lanes::Real* blank,
                             typename Lanes::Real* label) {
  constexpr int kWords = Lanes::kTileWords;
  constexpr int kVectorsPerWord = kPairsPerWord / Lanes::kWidth;
  constexpr int kVectors = kWords * kVectorsPerWord;

  typename Lanes::Value blanks[kVectors], labels[kVectors];
  typename Lanes::Mask skips[kVectors];
  const int32_t* classes = target.class_ids + first_word * kPairsPerWord;
  for (int v = 0; v < kVectors; ++v) {
    blanks[v] = Lanes::load(blank + v * Lanes::kWidth);
    labels[v] = Lanes::load(label + v * Lanes::kWidth);
    skips[v] = Lanes::mask(target.skip_bits[first_word + v / kVectorsPerWord] >> (v % kVectorsPerWord * Lanes::kWidth));
  }

  for (index_t i = 0; i < stretch.frames; ++i) {
    const typename Lanes::Real* row = stretch.emissions + i * stretch.row_length;
    const auto blank_emission = Lanes::broadcast(row[0]);
    auto left = Lanes::broadcast(stretch.edges[i]);
    stretch.edges[i] = Lanes::last(labels[kVectors - 1]);

    for (int w = 0; w < kWords; ++w) {
      PairRecords<Lanes> records[kVectorsPerWord];
      for (int u = 0; u < kVectorsPerWord; ++u) {
        const int v = w * kVectorsPerWord + u;
        const auto from_left = Lanes::shift_in(left, labels[v]);  // label alphas of pairs k-1
        left = labels[v];
        records[u] = pair_step<Lanes>(from_left, skips[v], blank_emission,
                                      Lanes::lookup(row, classes + v * Lanes::kWidth), blanks[v], labels[v]);
      }
      if constexpr (kRecords) {
        const index_t word = first_word + w;
        const index_t t = stretch.first_frame + i;
        if (!kRagged || (rows.first_word(t) <= word && word <= rows.last_word(t))) {
          stretch.records[stretch.row_offsets[i] + word] = Lanes::pack(records);
        }
      }
    }
  }

  for (int v = 0; v < kVectors; ++v) {
    Lanes::store(blank + v * Lanes::kWidth, blanks[v]);
    Lanes::store(label + v * Lanes::kWidth, labels[v]);
  }
}

// --------------------------------------------------------------------- 2 the row of alphas and its rebase

// Alphas of one frame, padded to whole tiles, and the base of every column.
template <class Real>
struct AlphaRow {
  Real* blank;
  Real* label;
  double* bases;  // [columns]; all 0 where Real is double
};

CTC_ALIGN_FN index_t columns_of(index_t labels) { return labels / kColumnPairs + 1; }

// Starts a row at frame 0: blank 0 or label 0.
template <class Real>
CTC_ALIGN_FN void start_row(const AlphaRow<Real>& row, index_t padded_pairs, const Band& band, const Real* emissions,
                            const SweepTarget& target) {
  constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();
  for (index_t k = 0; k < padded_pairs; ++k) {
    row.blank[k] = row.label[k] = kMinusInfinity;
  }
  for (index_t j = 0; j < columns_of(band.labels); ++j) {
    row.bases[j] = 0;
  }
  row.blank[0] = emissions[0];
  if (band.labels > 0) {
    row.label[0] = emissions[target.class_ids[0]];
  }
}

// Moves every column's maximum into its base, by the rule of rebase.h. `t` is the frame that the row holds.
CTC_ALIGN_FN void rebase_row(const AlphaRow<float>& row, const Band& band, index_t t) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const index_t first_column = band.first(t) / kColumnPairs;
  for (index_t j = first_column; j < columns_of(band.labels); ++j) {
    const index_t begin = larger(j * kColumnPairs, band.first(t));
    const index_t end = smaller((j + 1) * kColumnPairs, band.last(t) + 1);
    float best = kMinusInfinity;
    for (index_t k = begin; k < end; ++k) {
      best = row.blank[k] > best ? row.blank[k] : best;
      if (k < band.labels) {
        best = row.label[k] > best ? row.label[k] : best;
      }
    }
    const bool has_left = j > first_column;
    const double next = next_base(row.bases[j], best, has_left, has_left ? row.bases[j - 1] : 0);
    if (next > -std::numeric_limits<double>::infinity()) {
      const float moved = static_cast<float>(next - row.bases[j]);
      for (index_t k = begin; k < end; ++k) {
        row.blank[k] -= moved;
        row.label[k] -= moved;
      }
      row.bases[j] = next;
    }
  }
}

// ----------------------------------------------------------------------------------------- 3 the whole lattice

template <class Real>
struct SweepArea {  // the memory that a sweep needs
  AlphaRow<Real> row;
  Real* edges;           // [stretch_frames]
  index_t* row_offsets;  // [stretch_frames]
  index_t stretch_frames;
  RecordWord* records;  // rows.words() words
};

// Where the best path ends, and whether there is one.
struct PathEnd {
  State state;
  bool feasible;
};

// Sweeps the whole lattice of an item of at least one frame and stores its records.
// load(first_frame, frames) fills the panel from that frame on.
template <class Lanes, class LoadPanel>
CTC_ALIGN_FN PathEnd sweep_lattice(const Band& band, const SweepTarget& target,
                                   const EmissionPanel<typename Lanes::Real>& panel,
                                   const SweepArea<typename Lanes::Real>& area, const LoadPanel& load) {
  using Real = typename Lanes::Real;
  constexpr bool kRebases = sizeof(Real) == sizeof(float);
  constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();
  constexpr index_t kTilePairs = Lanes::kTileWords * kPairsPerWord;
  static_assert(kColumnPairs % kTilePairs == 0, "a tile lies in one column");
  const RecordRows rows{band};
  const AlphaRow<Real>& row = area.row;

  load(0, 1);
  start_row(row, (band.labels / kTilePairs + 1) * kTilePairs, band, panel.row(0), target);

  index_t frames = 0;
  for (index_t t = 1; t < band.frames; t += frames) {
    if constexpr (kRebases) {
      if (starts_new_block(t)) {
        rebase_row(row, band, t - 1);
      }
    }
    frames = smaller(smaller(area.stretch_frames, end_of_block(t) - t), band.frames - t);
    load(t, frames);
    const Stretch<Real> stretch{t, frames, panel.row(0), panel.row_length, area.edges, area.records, area.row_offsets};
    index_t row_begin = rows.begin(t);
    for (index_t i = 0; i < frames; ++i) {
      area.edges[i] = kMinusInfinity;
      area.row_offsets[i] = row_begin - rows.first_word(t + i);
      row_begin += rows.last_word(t + i) - rows.first_word(t + i) + 1;
    }

    // Frame t reads pair first(t-1) of the row; the stretch's last frame reaches pair last(t + frames - 1).
    const index_t first_tile = band.first(t - 1) / kTilePairs;
    const index_t last_tile = band.last(t + frames - 1) / kTilePairs;
    for (index_t tile = first_tile; tile <= last_tile; ++tile) {
      const index_t begin_pair = tile * kTilePairs;
      if constexpr (kRebases) {
        if (begin_pair % kColumnPairs == 0 && tile > first_tile) {
          const index_t j = begin_pair / kColumnPairs;
          const float offset = crossing_offset(row.bases[j - 1], row.bases[j]);
          for (index_t i = 0; i < frames; ++i) {
            stretch.edges[i] += offset;
          }
        }
      }
      const bool inside = band.first(t + frames - 1) <= begin_pair && begin_pair + kTilePairs - 1 <= band.last(t);
      const index_t word = begin_pair / kPairsPerWord;
      if (inside) {
        sweep_tile<Lanes, true, false>(stretch, rows, target, word, row.blank + begin_pair, row.label + begin_pair);
      } else {
        sweep_tile<Lanes, true, true>(stretch, rows, target, word, row.blank + begin_pair, row.label + begin_pair);
      }
    }
  }

  // The last label wins a tie with the last blank. Where a column border lies between them the label crosses it.
  const index_t labels = band.labels;
  const Real blank = row.blank[labels];
  Real label = labels > 0 ? row.label[labels - 1] : kMinusInfinity;
  if (kRebases && labels > 0 && labels % kColumnPairs == 0) {
    const index_t j = labels / kColumnPairs;
    label += crossing_offset(row.bases[j - 1], row.bases[j]);
  }
  const bool ends_in_blank = labels == 0 || blank > label;
  const Real total = ends_in_blank ? blank : label;
  const bool feasible = total - total == 0;  // neither an infinity nor NaN
  return {{ends_in_blank ? labels : labels - 1, !ends_in_blank}, feasible};
}

}  // namespace ctc_align
