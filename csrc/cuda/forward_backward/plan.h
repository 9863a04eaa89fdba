// How the sums over a batch are cut for the GPU, and the list of launches that do it.
//
// Contents: 1 the grids  2 the plan  3 launches
//
// Everything here follows from the padded sizes, as in viterbi/plan.h, so a CUDA graph may replay the launches.
//
//     column    256 pairs    what one block of threads keeps in registers
//     stage     4 frames     between two hand-overs of edges (fewer, where weights are larger)
//     segment   n frames     whose alphas a block has in memory, on the way back
//     chapter   n segments   that are swept by one launch forward and one back
//
// Utterances of one column are one segment, and take a single launch: two blocks of threads meet in the middle, or one
// goes forward and back. Anything else goes forward first, and keeps a row of alphas before each segment; on the way back
// every block sweeps its segments again, the last one first, and this time has all their alphas. Where the rows of a whole
// recording are too many, it is cut into chapters, the last one first; the rows before chapters come from sweeps that keep
// nothing else, at two levels if need be.
#pragma once

#include <vector>

#include "../../lattice/viterbi/rebase.h"
#include "../device.cuh"

namespace ctc_align {

// ---------------------------------------------------------------------------------------------- 1 the grids

// Frames of a stage. Shared memory has room for the posteriors of five stages (SumShared in keep.cuh).
template <class Real, bool kHasMean>
constexpr int kSumStage = 4 * static_cast<int>(sizeof(float)) / static_cast<int>(sizeof(Real)) / (kHasMean ? 2 : 1);

constexpr int kSumPairs = 2;  // a thread holds
// Warps of a block that hold pairs. It has as many more.
constexpr int kSumWarps = static_cast<int>(kColumnPairs) / kSumPairs / kWarp;
constexpr int kSumThreads = 2 * kSumWarps * kWarp;
constexpr index_t kWidestSumRow = kWarp;  // classes of whole rows

// Mantissas are normalized, and rows may be kept, at multiples of this.
constexpr index_t kChapterGrid = 16;

// Frame and pair indices are int32, and may point a little beyond the last.
constexpr index_t kMostSumFrames = index_t{1} << 30;

// ------------------------------------------------------------------------------------------------ 2 the plan

struct SumPlan {
  index_t batch;   // items of one launch, a GROUP of those of the call
  index_t frames;  // padded T
  index_t labels;  // padded L
  index_t planes;  // of a weight: 2, with path values 3

  index_t segment_frames;
  index_t chapter_frames;
  index_t rows;   // of all columns that are kept before chapters, at both levels
  index_t slots;  // pieces of memory for the alphas of a segment
  bool meets;     // two blocks of threads an item

  CTC_ALIGN_FN index_t columns() const { return labels / kColumnPairs + 1; }
  CTC_ALIGN_FN index_t blocks() const { return batch * columns(); }
  // Returns whether one launch does everything.
  CTC_ALIGN_FN bool is_single() const { return columns() == 1 && segment_frames >= frames; }
  // Pairs of a column whose alphas are kept. An even number: a thread stores two at a time.
  CTC_ALIGN_FN index_t kept_pairs() const { return columns() == 1 ? (labels + 2) / 2 * 2 : kColumnPairs; }
  // Rows of q that are kept on the way back: after a chapter and in it, or in the middle.
  CTC_ALIGN_FN index_t later_rows() const { return !is_single() ? 2 : meets ? 1 : 0; }
  CTC_ALIGN_FN index_t segments() const { return (chapter_frames + segment_frames - 1) / segment_frames; }
};

constexpr index_t kSumBytes = index_t{896} << 20;      // as far as that is possible
constexpr index_t kSegmentBytes = index_t{256} << 20;  // of one item whose segment is the whole of it
constexpr index_t kSegment = 128;
constexpr index_t kMostSlots = 384;   // at least as many blocks as any GPU runs at a time, two on a multiprocessor
constexpr index_t kManyBlocks = 512;  // that keep any GPU busy
constexpr index_t kFewItems = 64;     // a group of fewer does not

CTC_ALIGN_FN index_t rounded_up(index_t n, index_t unit) { return (n + unit - 1) / unit * unit; }

// The sizes of segments and chapters that a test may ask for; 0: as the memory allows.
struct SumSizes {
  index_t group = 0, segment = 0, chapter = 0;
};

// The rows that are kept before chapters: `rows` at the lower level, and one before each part of so many chapters.
struct ChapterRows {
  index_t chapters, rows, parts;

  static ChapterRows of(index_t chapters) {
    constexpr index_t kFewRows = 24;
    index_t rows = chapters;
    for (rows = smaller(chapters, kFewRows); rows > 0 && rows * rows < chapters; ++rows) {
    }
    return {chapters, rows, rows > 0 ? (chapters + rows - 1) / rows : 0};
  }
  index_t all() const { return chapters > 1 ? rows + parts : 0; }
};

// Chapters as long as memory has room for, edges and rows included; or those that take least.
inline void choose_chapters(SumPlan& plan, index_t whole, index_t real_bytes) {
  const index_t pair_bytes = 2 * plan.planes * real_bytes, row_bytes = plan.blocks() * kColumnPairs * pair_bytes;
  const index_t edge_bytes = plan.columns() > 1 ? 3 * 8 * (real_bytes / 4 + plan.planes - 2) : 0;
  index_t least = 0;
  for (index_t chapters = 1;; ++chapters) {
    const index_t frames = rounded_up((whole + chapters - 1) / chapters, plan.segment_frames);
    const index_t used = plan.slots * plan.segment_frames * plan.kept_pairs() * pair_bytes +
                         frames * plan.blocks() * edge_bytes +
                         (frames / plan.segment_frames + ChapterRows::of(chapters).all() + 2) * row_bytes;
    if (least == 0 || used < least) {
      least = used;
      plan.chapter_frames = smaller(frames, rounded_up(whole, plan.segment_frames));
    }
    if (used <= kSumBytes || frames <= plan.segment_frames) {
      return;
    }
  }
}

// may_meet: outputs do not need the sums of whole frames before.
inline SumPlan plan_sums(index_t batch, index_t frames, index_t labels, index_t planes, index_t real_bytes,
                         bool may_meet, SumSizes sizes = {}) {
  SumPlan plan{batch, frames, labels, planes, 0, 0, 0, 0, false};
  const index_t whole = larger<index_t>(rounded_up(frames, kChapterGrid), kChapterGrid);
  const index_t item_bytes = whole * plan.kept_pairs() * 2 * planes * real_bytes;
  const index_t affordable = sizes.group > 0 ? sizes.group : larger<index_t>(1, kSumBytes / item_bytes);
  const bool fits = plan.columns() == 1 && affordable >= smaller(batch, kFewItems) && item_bytes <= kSegmentBytes;
  if (plan.columns() == 1 && (sizes.segment > 0 ? sizes.segment >= whole : fits || sizes.group > 0)) {
    plan.segment_frames = plan.chapter_frames = whole;
    const index_t groups = (batch + affordable - 1) / affordable;  // of equal size, but for the last
    plan.batch = groups > 0 ? (batch + groups - 1) / groups : 0;
    plan.slots = plan.blocks();
    plan.meets = may_meet && planes == 2;
    return plan;
  }
  plan.segment_frames = smaller(sizes.segment > 0 ? sizes.segment : kSegment, whole);
  plan.batch = smaller(batch, sizes.group > 0 ? sizes.group : larger<index_t>(1, kManyBlocks / plan.columns()));
  plan.slots = smaller(plan.blocks(), kMostSlots);
  if (sizes.chapter > 0) {
    plan.chapter_frames = smaller(sizes.chapter, whole);
  } else {
    choose_chapters(plan, whole, real_bytes);
  }
  return plan;
}

// ------------------------------------------------------------------------------------------------ 3 launches

enum class SumKernel { kForward, kBackward, kSpans, kMeeting, kFinish };  // kSpans: the second pass back

// Pieces of memory that are set to all ones before a launch: words that say "not there yet".
enum class Unset { kNothing, kForward, kBackward };

struct SumLaunch {
  SumKernel kernel;
  index_t first_item;
  index_t blocks;
  int threads;
  Unset unset;
  index_t begin, end;  // frames
  index_t row;         // of those kept before chapters, to begin with; -1: none
  index_t row_to;      // forward, the one to leave, or -1; on the way back the chapter, which says where q is kept
  bool keeps_rows;     // before segments
};

// In the order of the stream. has_second_pass: posteriors of spans need the sums of whole frames. needs_finish: a frame's
// outputs are divided when all columns have added to its sum.
inline std::vector<SumLaunch> plan_sum_launches(SumPlan& plan, index_t batch, bool has_second_pass, bool needs_finish) {
  std::vector<SumLaunch> launches;
  const index_t chapters = larger<index_t>(1, (plan.frames + plan.chapter_frames - 1) / plan.chapter_frames);
  const auto [_, rows, parts] = ChapterRows::of(chapters);
  plan.rows = ChapterRows::of(chapters).all();
  for (index_t item = 0; item < batch; item += plan.batch) {
    const index_t items = smaller(plan.batch, batch - item);
    const auto add = [&](SumKernel kernel, index_t from, index_t to, index_t row, index_t row_to, bool keeps) {
      const bool is_finish = kernel == SumKernel::kFinish;
      const bool is_alone = (kernel == SumKernel::kBackward || kernel == SumKernel::kSpans) && plan.is_single();
      const Unset unset = is_finish || is_alone           ? Unset::kNothing
                          : kernel == SumKernel::kForward ? Unset::kForward
                                                          : Unset::kBackward;
      const index_t begin = from * plan.chapter_frames, end = smaller(to * plan.chapter_frames, plan.frames);
      const index_t blocks = is_finish                       ? items * larger<index_t>(0, end - begin)
                             : kernel == SumKernel::kMeeting ? 2 * items
                                                             : items * plan.columns();
      launches.push_back(
          {kernel, item, blocks, is_finish ? kWarp : kSumThreads, unset, begin, end, row, row_to, keeps});
    };
    // Row p < parts: before part p. Row parts + i: before chapter i of a part. The first ones begin with the item.
    for (index_t p = 0; p + 1 < parts; ++p) {
      for (index_t c = p * rows; c < (p + 1) * rows; ++c) {
        const bool is_first = c == p * rows, is_last = c + 1 == (p + 1) * rows;
        add(SumKernel::kForward, c, c + 1, is_first ? (p > 0 ? p : -1) : parts, is_last ? p + 1 : parts, false);
      }
    }
    for (index_t p = parts - 1; p >= 0; --p) {
      const index_t first = p * rows, last = smaller((p + 1) * rows, chapters) - 1;
      const auto row_before = [&](index_t c) { return c > first ? parts + c - first : p > 0 ? p : index_t{-1}; };
      for (index_t c = first; c < last; ++c) {
        add(SumKernel::kForward, c, c + 1, row_before(c), row_before(c + 1), false);
      }
      for (index_t c = last; c >= first; --c) {
        if (!plan.is_single()) {
          add(SumKernel::kForward, c, c + 1, row_before(c), -1, true);
        }
        add(plan.meets ? SumKernel::kMeeting : SumKernel::kBackward, c, c + 1, row_before(c), c, false);
        if (has_second_pass) {
          add(SumKernel::kSpans, c, c + 1, row_before(c), c, false);
        } else if (needs_finish) {
          add(SumKernel::kFinish, c, c + 1, -1, -1, false);
        }
      }
    }
  }
  return launches;
}

}  // namespace ctc_align
