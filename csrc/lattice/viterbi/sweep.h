// The forward pass: tiles of (pairs x frames), alphas in registers, one edge value a frame.
//
// Contents: 1 a tile  2 the rebase of a column  3 a strip of frames
//
// Order of work. Frames are taken in STRIPS, at most a frame block of the rebase grid; inside a strip tiles go from
// left to right. A tile keeps its pairs' alphas in registers for the whole strip, and only the label alpha of its
// last pair leaves it, one value a frame: the EDGE.
//
//                 tile j-1        tile j
//     t0     ...  b y b y b y  >  b y b y b y  >        '>' edge[0]: the label alpha of frame t0-1
//     t0+1   ...  b y b y b y  >  b y b y b y  >            edge[1]: of frame t0
//
// Each tile replaces the edges it has read by its own, so one array of edges serves the whole row of tiles.
// Dependencies only come from the left and from the past, so this order, or any other one of rectangles, is legal:
// another thread may sweep the next strip as soon as this one has gone far enough to the right
// (csrc/cpu/viterbi/schedule.h).
//
// The band decides which tiles are visited, in which of their frames, and which records are stored. There every pair of
// the tile is computed. No result reads a value outside the band: pairs not reached yet are -inf, pairs left of the band
// cannot lead back into it (lattice.h), and nothing leads back from the right of blank L.
//
// Tried and slower: hardware gathers for the emissions, a quarter of the speed with 32 classes (AVX-512, Zen 5); with
// AVX2 tiles of at most 2 or 3 words instead of 4, 0.85 and 0.9 of the speed. Without effect: asking for the next strip's
// log_probs in the loop of a tile (prefetch).
#pragma once

#include "pair_step.h"
#include "sweep_job.h"
#include "tile_emissions.h"

namespace ctc_align {

// --------------------------------------------------------------------------------------------------- 1 a tile

// Sweeps one tile, kWords record words of pairs from `first_word`, over the frames begin..end-1 of the strip. The row
// holds frame begin-1 (counted in the strip) before, and frame end-1 afterwards.
// kRagged: the band's border runs through the tile, so some of its record words have no place in their row.
// kSomeWild: the gaps of some of its pairs are wild.
//
// A function of its own: GCC 12 spills in the loops of a function that holds several of them.
template <class Lanes, int kWords, bool kInRegisters, bool kRecords, bool kRagged, bool kSomeWild>
__attribute__((noinline)) void sweep_tile(const SweepJob<typename Lanes::Real>& job,
                                          const Strip<typename Lanes::Real>& strip, index_t first_word, index_t begin,
                                          index_t end) {
  constexpr int kVectorsPerWord = kPairsPerWord / Lanes::kWidth;
  constexpr int kVectors = kWords * kVectorsPerWord;
  const RecordRows rows{job.band};
  const index_t first_pair = first_word * kPairsPerWord;
  typename Lanes::Real* const edges = strip.edges;
  const index_t* const row_offsets = strip.row_offsets;
  RecordWord* const records_of_tile = job.records + first_word;

  TileEmissions<Lanes, kVectors, kInRegisters> emissions(strip.panel, job.target.class_ids + first_pair);
  typename Lanes::Value blanks[kVectors], labels[kVectors];
  typename Lanes::Choice skips[kVectors];
  [[maybe_unused]] typename Lanes::Mask wilds[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    blanks[v] = Lanes::load(&job.row.blank(first_pair + v * Lanes::kWidth));
    labels[v] = Lanes::load(&job.row.label(first_pair + v * Lanes::kWidth));
    skips[v] =
        Lanes::choice(job.target.skip_bits[first_word + v / kVectorsPerWord] >> (v % kVectorsPerWord * Lanes::kWidth));
    if constexpr (kSomeWild) {
      wilds[v] =
          Lanes::mask(job.target.wild_bits[first_word + v / kVectorsPerWord] >> (v % kVectorsPerWord * Lanes::kWidth));
    }
  }

  for (index_t group = begin / emissions.kGroup * emissions.kGroup; group < end; group += emissions.kGroup) {
    emissions.prepare(group);
    const index_t group_end = smaller<index_t>(end, group + emissions.kGroup);
    for (index_t i = larger(begin, group); i < group_end; ++i) {
      const auto blank_emission = emissions.begin_frame(i);
      [[maybe_unused]] typename Lanes::Value wild_emission;
      if constexpr (kSomeWild) {
        wild_emission = emissions.wild_gap(i);
      }
      const typename Lanes::Real edge = edges[i];
      auto left = labels[0];  // the vector before, of which the first has the last lane: the edge
      edges[i] = Lanes::last(labels[kVectors - 1]);
      [[maybe_unused]] RecordWord* words = nullptr;
      if constexpr (kRecords) {
        words = records_of_tile + row_offsets[i];
      }

      for (int w = 0; w < kWords; ++w) {
        PairRecords<Lanes> records[kVectorsPerWord];
        for (int u = 0; u < kVectorsPerWord; ++u) {
          const int v = w * kVectorsPerWord + u;
          const auto from_left = v == 0 ? Lanes::shift_in(edge, labels[v]) : Lanes::shift_in(left, labels[v]);
          left = labels[v];
          auto own_blank_emission = blank_emission;
          if constexpr (kSomeWild) {
            own_blank_emission = Lanes::select(wilds[v], wild_emission, blank_emission);
          }
          records[u] =
              pair_step<Lanes>(from_left, skips[v], own_blank_emission, emissions.label(i, v), blanks[v], labels[v]);
        }
        if constexpr (kRecords) {
          const index_t t = strip.first_frame + i;
          if (!kRagged || (rows.first_word(t) <= first_word + w && first_word + w <= rows.last_word(t))) {
            Lanes::store_records(words + w, records);
          }
        }
      }
    }
  }

  for (int v = 0; v < kVectors; ++v) {
    Lanes::store(&job.row.blank(first_pair + v * Lanes::kWidth), blanks[v]);
    Lanes::store(&job.row.label(first_pair + v * Lanes::kWidth), labels[v]);
  }
}

// ------------------------------------------------------------------------------------ 2 the rebase of a column

// The largest alpha of the pairs begin..end-1. (A maximum does not depend on the order.)
template <class Lanes>
CTC_ALIGN_FN typename Lanes::Real largest(const typename Lanes::Real* alphas, index_t count) {
  using Real = typename Lanes::Real;
  Real best = kMinusInfinity<Real>;
  index_t k = 0;
  if (count >= Lanes::kWidth) {
    auto bests = Lanes::broadcast(kMinusInfinity<Real>);
    for (; k + Lanes::kWidth <= count; k += Lanes::kWidth) {
      bests = Lanes::greater(Lanes::load(alphas + k), bests);
    }
    alignas(64) Real lanes[Lanes::kWidth];
    Lanes::store(lanes, bests);
    for (int l = 0; l < Lanes::kWidth; ++l) {
      best = lanes[l] > best ? lanes[l] : best;
    }
  }
  for (; k < count; ++k) {
    best = alphas[k] > best ? alphas[k] : best;
  }
  return best;
}

// Moves column j's maximum into its base, by the rule of rebase.h, where `frame_block` begins. The row holds the frame
// before. Where the bases are settled already it only moves the alphas.
template <class Lanes>
CTC_ALIGN_FN void rebase_column(const SweepJob<float>& job, index_t frame_block, index_t j) {
  const index_t t = frame_block * kFrameBlock;
  const bool known =
      BaseGrid::first_column(job.whole, frame_block - 1) <= j && j <= BaseGrid::last_column(job.whole, frame_block - 1);
  const double base = known ? job.bases.at(frame_block - 1, j) : 0;  // 0: all of the column is still -inf
  if (job.settle_bases) {
    const index_t begin = larger(j * kColumnPairs, job.whole.first(t));
    const index_t end = smaller((j + 1) * kColumnPairs, job.whole.last(t) + 1);
    const index_t label_end = smaller(end, job.whole.labels);  // pair L has no label
    float best = kMinusInfinity<float>;
    if (begin < end) {
      best = largest<Lanes>(&job.row.blank(begin), end - begin);
    }
    if (begin < label_end) {
      const float label = largest<Lanes>(&job.row.label(begin), label_end - begin);
      best = label > best ? label : best;
    }
    const bool has_left = j > BaseGrid::first_column(job.whole, frame_block);
    const double next = next_base(base, best, has_left, has_left ? job.bases.at(frame_block, j - 1) : 0);
    job.bases.at(frame_block, j) = next > kMinusInfinity<double> ? next : base;
  }
  // A column that nothing has reached stays at -inf. (Its base may be below what a float32 holds: -inf less -inf is NaN.)
  const float moved = known ? base_move(base, job.bases.at(frame_block, j)) : 0;
  const index_t begin = larger(j * kColumnPairs, job.row.first_pair);
  const index_t end = smaller((j + 1) * kColumnPairs, job.row.first_pair + job.row.pairs);
  for (index_t k = begin; k < end; ++k) {
    job.row.blank(k) -= moved;
    job.row.label(k) -= moved;
  }
}

// ----------------------------------------------------------------------------------- 3 a strip of frames

// Prepares the edges and the offsets of the records for the tiles of a strip.
template <class Real>
CTC_ALIGN_FN void begin_strip(const SweepJob<Real>& job, const Strip<Real>& strip) {
  for (index_t i = 0; i < strip.frames; ++i) {
    strip.edges[i] = kMinusInfinity<Real>;
  }
  if (!job.records) {
    return;
  }
  const RecordRows rows{job.band};
  index_t row_begin = rows.begin(strip.first_frame) - job.record_begin;
  for (index_t i = 0; i < strip.frames;) {
    const index_t t = strip.first_frame + i;
    const index_t first = rows.first_word(t), words = rows.last_word(t) - first + 1;
    const index_t end = smaller(strip.frames, rows.next_change(t) - strip.first_frame);
    for (; i < end; ++i) {
      strip.row_offsets[i] = row_begin - first;
      row_begin += words;
    }
  }
}

// The columns that the tiles of a strip lie in: its first frame reads pair first(t-1), its last one reaches last(t).
struct ColumnRange {
  index_t first, last;
};
template <class Real>
CTC_ALIGN_FN ColumnRange columns_of_strip(const SweepJob<Real>& job, index_t first_frame, index_t last_frame) {
  return {job.band.first(first_frame - 1) / kColumnPairs, job.band.last(last_frame) / kColumnPairs};
}

// Words of pairs that lie side by side.
struct WordRange {
  index_t first;
  int count;
};

// Sweeps a tile in those frames of the strip in which it has pairs in the band.
template <class Lanes, int kWords, bool kInRegisters, bool kSomeWild>
CTC_ALIGN_FN void sweep_tile_in_band(const SweepJob<typename Lanes::Real>& job,
                                     const Strip<typename Lanes::Real>& strip, index_t first_word) {
  const Band& band = job.band;
  const index_t t0 = strip.first_frame;
  const index_t last_word = first_word + kWords - 1;
  const index_t first_pair = first_word * kPairsPerWord;
  const index_t last_pair = (last_word + 1) * kPairsPerWord - 1;
  const index_t slack = band.frames - band.labels;

  // Before frame first_pair no path has come here, and the edges are still -inf. The last frame with a pair in the band
  // is last_pair + T - L; one more frame leaves the edge that the next tile reads after it.
  const index_t begin = smaller(larger<index_t>(first_pair - t0, 0), strip.frames);
  const index_t end = smaller(larger(last_pair + slack - t0 + 2, begin), strip.frames);
  if constexpr (kWords == Lanes::kTileWords) {
    if (!job.records) {
      return sweep_tile<Lanes, kWords, kInRegisters, false, false, kSomeWild>(job, strip, first_word, begin, end);
    }
  }
  // Rows hold all of its words from the frame that reaches its last word to the last frame that needs its first.
  const index_t whole_begin = smaller(larger(last_word * kPairsPerWord - t0, begin), end);
  const index_t whole_end = smaller(larger((first_word + 1) * kPairsPerWord + slack - t0, whole_begin), end);
  const index_t borders[] = {begin, whole_begin, whole_end, end};
  for (int n = 0; n < 3; ++n) {
    if (borders[n] == borders[n + 1]) {
      continue;
    }
    if (n == 1) {
      sweep_tile<Lanes, kWords, kInRegisters, true, false, kSomeWild>(job, strip, first_word, borders[1], borders[2]);
    } else {
      sweep_tile<Lanes, kWords, kInRegisters, true, true, kSomeWild>(job, strip, first_word, borders[n],
                                                                     borders[n + 1]);
    }
  }
}

// Sweeps one tile. kWild: some gaps of the target are wild. Where those of all its pairs are, or of none, the blank is
// one class.
template <class Lanes, int kWords, bool kInRegisters, bool kWild>
CTC_ALIGN_FN void sweep_tile_of_target(const SweepJob<typename Lanes::Real>& job,
                                       const Strip<typename Lanes::Real>& strip, index_t first_word) {
  if constexpr (!kWild) {
    return sweep_tile_in_band<Lanes, kWords, kInRegisters, false>(job, strip, first_word);
  }
  bool any_wild = false, all_wild = true;
  for (int w = 0; w < kWords; ++w) {
    const uint16_t wild = job.target.wild_bits[first_word + w];
    any_wild = any_wild || wild != 0;
    all_wild = all_wild && wild == 0xFFFF;
  }
  if (any_wild && !all_wild) {
    return sweep_tile_in_band<Lanes, kWords, kInRegisters, true>(job, strip, first_word);
  }
  Strip<typename Lanes::Real> own = strip;
  own.panel.blank_class = all_wild ? strip.panel.wild_class : strip.panel.blank_class;
  sweep_tile_in_band<Lanes, kWords, kInRegisters, false>(job, own, first_word);
}

// Sweeps a tile of any size up to kTileWords.
template <class Lanes, bool kWild, int kWords = Lanes::kTileWords>
CTC_ALIGN_FN void sweep_tile_of_size(const SweepJob<typename Lanes::Real>& job,
                                     const Strip<typename Lanes::Real>& strip, WordRange words) {
  if constexpr (kWords > 1) {
    if (words.count < kWords) {
      return sweep_tile_of_size<Lanes, kWild, kWords - 1>(job, strip, words);
    }
  }
  if constexpr (Lanes::kTableClasses > 0) {
    if (strip.panel.by_frame) {
      return sweep_tile_of_target<Lanes, kWords, true, kWild>(job, strip, words.first);
    }
  }
  sweep_tile_of_target<Lanes, kWords, false, kWild>(job, strip, words.first);
}

// Sweeps some columns of a strip; those on their left are done. kWild is not chosen in here: a function with the loops of
// both would make the one without wild gaps slower.
template <class Lanes, bool kWild>
CTC_ALIGN_FN void sweep_columns(const SweepJob<typename Lanes::Real>& job, const Strip<typename Lanes::Real>& strip,
                                ColumnRange columns) {
  using Real = typename Lanes::Real;
  constexpr index_t kColumnWords = kColumnPairs / kPairsPerWord;  // a tile lies in one column
  const index_t t = strip.first_frame;
  const ColumnRange all = columns_of_strip(job, t, strip.last_frame());
  // With records the tiles fit the words that are needed. Long items, without, have whole tiles alone: that is enough, and
  // half the code.
  const index_t grain = job.records ? 1 : Lanes::kTileWords;
  const index_t first_word = job.band.first(t - 1) / kPairsPerWord / grain * grain;
  const index_t end_word = (job.band.last(strip.last_frame()) / kPairsPerWord / grain + 1) * grain;

  for (index_t j = columns.first; j <= columns.last; ++j) {
    if constexpr (kRebases<Real>) {
      const index_t frame_block = (t - 1) / kFrameBlock;
      if (starts_frame_block(t)) {
        rebase_column<Lanes>(job, frame_block, j);
      }
      if (j > all.first) {
        const float offset = crossing_offset(job.bases.at(frame_block, j - 1), job.bases.at(frame_block, j));
        for (index_t i = 0; i < strip.frames; ++i) {
          strip.edges[i] += offset;
        }
      }
    }
    // No two tiles of a column differ by more than a word.
    const index_t begin = larger(first_word, j * kColumnWords);
    index_t words = smaller(end_word, (j + 1) * kColumnWords) - begin;
    for (index_t tiles = (words + Lanes::kTileWords - 1) / Lanes::kTileWords, word = begin; tiles > 0; --tiles) {
      const index_t own = (words + tiles - 1) / tiles;
      sweep_tile_of_size<Lanes, kWild>(job, strip, {word, static_cast<int>(own)});
      word += own;
      words -= own;
    }
  }

  // A later strip of this frame block may go further to the right; the border is here.
  if constexpr (kRebases<Real>) {
    if (job.settle_bases && starts_frame_block(t) && columns.last == all.last) {
      const index_t frame_block = (t - 1) / kFrameBlock;
      for (index_t j = all.last + 1; j <= BaseGrid::last_column(job.whole, frame_block); ++j) {
        rebase_column<Lanes>(job, frame_block, j);
      }
    }
  }
}

}  // namespace ctc_align
