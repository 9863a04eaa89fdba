// The whole way forward and back, in as little memory as asked for: which rows of alphas are kept, and the total.
//
// The way back needs the alphas of every frame, from the last to the first. With one MEMORY LEVEL all are kept. With
// more, the item is cut into `rows` parts: the way forward keeps the row before each part, and the parts are swept again,
// the last one first, each with the levels that are left.
//
//     level 1   | . . . . . . . . | . . . . . . . . | . . . . . . . . |    '|' kept, '.' swept and forgotten
//     level 0                                         | | | | | | | | |    the last part again, all of it kept
//
// Memory rows * levels; every level but one costs another sweep forward.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "frame.h"

namespace ctc_align {

struct MemoryLevels {
  int levels;
  index_t rows;  // of each level: rows^levels >= frames

  // The fewest levels that fit into `bytes`, or those that take least.
  static MemoryLevels choose(index_t frames, index_t row_bytes, index_t bytes) {
    MemoryLevels best{1, std::max<index_t>(frames, 1)};
    index_t rows = best.rows;
    for (int levels = 2; best.levels * best.rows * row_bytes > bytes && rows > 2; ++levels) {
      rows = fewest_rows(frames, levels);
      if (levels * rows < best.levels * best.rows) {
        best = {levels, rows};
      }
    }
    return best;
  }
  // The fewest rows with rows^levels >= frames.
  static index_t fewest_rows(index_t frames, int levels) {
    index_t fewest = 1;
    for (index_t most = frames; fewest < most;) {
      const index_t middle = fewest + (most - fewest) / 2;
      if (power(middle, levels) < frames) {
        fewest = middle + 1;
      } else {
        most = middle;
      }
    }
    return fewest;
  }
  // rows^levels, or a number greater than any item's frames.
  static index_t power(index_t rows, int levels) {
    index_t product = 1;
    for (int i = 0; i < levels && product < (index_t{1} << 40); ++i) {
      product *= std::min<index_t>(rows, 1 << 20);
    }
    return product;
  }
};

// The rows of an item, all in one array.
template <class Real>
struct RowMemory {
  Real* values;
  index_t words;
  index_t planes;
  index_t class_room;

  WeightRow<Real> row(index_t n) const {
    return {values + n * WeightRow<Real>::size_for(words, planes, class_room), WeightRow<Real>::width_for(words),
            planes};
  }
};

// Sums over the paths of an item of at least one frame.
//
// steps.forward(t, from, to) makes frame t's alphas from those of frame t-1. steps.backward(t, alphas, total, from, to)
// makes q of frame t from that of frame t+1, and hands on the sums of the frame: from the last frame to the first, unless
// there is no path.
template <class Real, class Steps>
class ForwardBackward {
 public:
  using Row = WeightRow<Real>;

  static constexpr index_t kLooseRows = 5;  // before the frames, two of q, two of a sweep that forgets
  static index_t row_count(const MemoryLevels& levels) { return kLooseRows + levels.levels * levels.rows; }

  // `memory` has room for row_count(levels) rows.
  ForwardBackward(const Band& band, const MemoryLevels& levels, const RowMemory<Real>& memory, Steps& steps)
      : band_(band), levels_(levels), memory_(memory), steps_(steps) {}

  // The log-likelihood in nats; -inf if there is no path.
  double run() {
    Row start = memory_.row(0);
    begin_row(start, memory_.words, kBeforeFirstFrame);
    later_ = memory_.row(1);
    begin_row(later_, memory_.words, path_ends(band_.labels).blank);
    earlier_ = memory_.row(2);
    run(0, band_.frames, levels_.levels - 1, start);
    return total_.log();
  }

 private:
  Row kept_row(int level, index_t i) const { return memory_.row(kLooseRows + level * levels_.rows + i); }

  // Runs frames begin..end-1, `start` the alphas of the frame before. False if the item has no path, or is too wide.
  bool run(index_t begin, index_t end, int level, const Row& start) {
    if (level == 0) {
      return run_kept(begin, end, start);
    }
    const index_t part = MemoryLevels::power(levels_.rows, level);
    std::vector<Row> starts;
    starts.reserve(levels_.rows);
    starts.push_back(start);
    Row from = start;
    for (index_t t = begin; t + part < end || (t - begin) % part != 0; ++t) {
      const bool keep = (t + 1 - begin) % part == 0;
      Row to = keep ? kept_row(level, static_cast<index_t>(starts.size()) - 1) : memory_.row(3 + t % 2);
      steps_.forward(t, from, to);
      from = to;
      if (keep) {
        starts.push_back(to);
      }
    }
    for (auto p = static_cast<index_t>(starts.size()) - 1; p >= 0; --p) {
      if (!run(begin + p * part, std::min(begin + (p + 1) * part, end), level - 1, starts[p])) {
        return false;
      }
    }
    return true;
  }

  // The same with room for all alphas.
  bool run_kept(index_t begin, index_t end, const Row& start) {
    std::vector<Row> alphas;
    alphas.reserve(end - begin + 1);
    alphas.push_back(start);
    for (index_t t = begin; t < end; ++t) {
      Row to = kept_row(0, t - begin);
      steps_.forward(t, alphas.back(), to);
      alphas.push_back(to);
    }
    if (end == band_.frames) {
      const auto [last_blank, last_label] = path_ends(band_.labels);
      total_ = total_of(alphas.back().weight(last_blank), alphas.back().weight(last_label));  // label -1 is zero
      if (!total_.has_path()) {
        return false;
      }
    }
    for (index_t t = end - 1; t >= begin; --t) {
      steps_.backward(t, alphas[t - begin + 1], total_, later_, earlier_);
      std::swap(later_, earlier_);
    }
    return true;
  }

  const Band band_;
  const MemoryLevels levels_;
  const RowMemory<Real> memory_;
  Steps& steps_;
  Row later_ = {}, earlier_ = {};  // q
  Total total_ = {};
};

}  // namespace ctc_align
