// What a sweep reads and writes (sweep.h): the target, rows of alphas, the grid of bases, a job, a strip.
#pragma once

#include "../emission.h"
#include "../lattice.h"
#include "rebase.h"
#include "records.h"

namespace ctc_align {

// The target for the sweep, padded to whole tiles: ids of panel classes, and 16 bits a record word.
struct SweepTarget {
  const int32_t* class_ids;
  const uint16_t* skip_bits;
  const uint16_t* wild_bits;  // read with kWild
};

// Alphas of one frame, of the pairs from first_pair on. Whole tiles.
template <class Real>
struct AlphaRow {
  Real* blanks;
  Real* labels;
  index_t first_pair;
  index_t pairs;

  CTC_ALIGN_FN Real& blank(index_t pair) const { return blanks[pair - first_pair]; }
  CTC_ALIGN_FN Real& label(index_t pair) const { return labels[pair - first_pair]; }
};

// The base of every column in every frame block, for the columns that are visited in the frame block and one more (where
// the last label has its blank). The first sweep of an item computes the bases. Later sweeps of a part of it see less of
// each column: they read the bases here, and so round identically.
struct BaseGrid {
  double* values;
  const index_t* row_begins;  // [frame_blocks], values[row_begins[n] + j] is column j's base in frame block n

  CTC_ALIGN_FN double& at(index_t frame_block, index_t column) const {
    return values[row_begins[frame_block] + column];
  }
  CTC_ALIGN_FN static index_t first_column(const Band& band, index_t frame_block) {
    return band.first(frame_block * kFrameBlock) / kColumnPairs;
  }
  CTC_ALIGN_FN static index_t last_column(const Band& band, index_t frame_block) {
    return band.last(smaller((frame_block + 1) * kFrameBlock + 1, band.frames)) / kColumnPairs;
  }
  CTC_ALIGN_FN static index_t frame_blocks(index_t frames) { return (frames + kFrameBlock - 2) / kFrameBlock; }
};

// What is swept, and what is kept of it.
template <class Real>
struct SweepJob {
  Band whole;  // of the item
  Band band;   // of what is swept: the same, or a cone in it
  SweepTarget target;
  AlphaRow<Real> row;    // of the frame before the first one; of the last one afterwards
  BaseGrid bases;        // float32 only
  bool settle_bases;     // compute the bases, instead of reading them from the grid
  RecordWord* records;   // null: no records
  index_t record_begin;  // RecordRows::begin of the first frame's row
};

// A strip of frames: what every tile in it reads and writes.
template <class Real>
struct Strip {
  index_t first_frame;  // >= 1; a strip lies in one frame block
  index_t frames;
  EmissionPanel<Real> panel;
  Real* edges;           // [frames]
  index_t* row_offsets;  // [frames] record word w of the frame is records[row_offset + w]

  CTC_ALIGN_FN index_t last_frame() const { return first_frame + frames - 1; }
};

}  // namespace ctc_align
