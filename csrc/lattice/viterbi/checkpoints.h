// CHECKPOINTS: rows of alphas that are kept every n frames, each with the pairs in the band, to sweep from again.
//
//     | blanks first(t)..last(t) | labels first(t)..last(t) |  of the first frame,  | blanks | labels |  of the next, ...
#pragma once

#include <algorithm>
#include <vector>

#include "../memory.h"
#include "sweep.h"

namespace ctc_align {

// Rows at the frames from, from + every, from + 2 every, ... before `to`.
template <class Real>
class Checkpoints {
 public:
  Checkpoints(const Band& band, index_t from, index_t to, index_t every)
      : band_(band), from_(from), every_(every), begins_{0} {
    for (index_t t = from; t < to; t += every) {
      begins_.push_back(begins_.back() + 2 * (band.last(t) - band.first(t) + 1));
    }
    values_ = uninitialized<Real>(begins_.back());
  }

  index_t count() const { return static_cast<index_t>(begins_.size()) - 1; }
  index_t bytes() const {
    return begins_.back() * static_cast<index_t>(sizeof(Real)) + count() * static_cast<index_t>(sizeof(index_t));
  }
  index_t frame(index_t n) const { return from_ + n * every_; }

  // The first frame from t on that has a checkpoint, if checkpoints went on beyond `to`.
  index_t next_frame(index_t t) const { return from_ + (t - from_ + every_ - 1) / every_ * every_; }

  // Keeps the pairs begin..end-1 of frame t's row that are in the band, if t has a checkpoint.
  void save(const AlphaRow<Real>& row, index_t t, index_t begin, index_t end) const {
    const index_t n = (t - from_) / every_;
    if (t != frame(n) || n >= count()) {
      return;
    }
    begin = std::max(begin, band_.first(t));
    end = std::min(end, band_.last(t) + 1);
    if (begin < end) {
      std::copy(&row.blank(begin), &row.blank(begin) + (end - begin), blanks(n) + (begin - band_.first(t)));
      std::copy(&row.label(begin), &row.label(begin) + (end - begin), labels(n) + (begin - band_.first(t)));
    }
  }

  // Fills a row from checkpoint n. Pairs that are not in it are -inf.
  void restore(index_t n, const AlphaRow<Real>& row) const {
    const index_t first = band_.first(frame(n));
    const index_t begin = std::max(row.first_pair, first);
    const index_t end = std::min(row.first_pair + row.pairs, band_.last(frame(n)) + 1);
    std::fill_n(row.blanks, row.pairs, kMinusInfinity<Real>);
    std::fill_n(row.labels, row.pairs, kMinusInfinity<Real>);
    if (begin < end) {
      std::copy(blanks(n) + (begin - first), blanks(n) + (end - first), &row.blank(begin));
      std::copy(labels(n) + (begin - first), labels(n) + (end - first), &row.label(begin));
    }
  }

 private:
  Real* blanks(index_t n) const { return values_.get() + begins_[n]; }
  Real* labels(index_t n) const { return values_.get() + (begins_[n] + begins_[n + 1]) / 2; }

  Band band_;
  index_t from_;
  index_t every_;
  std::vector<index_t> begins_;
  Memory<Real> values_;
};

}  // namespace ctc_align
