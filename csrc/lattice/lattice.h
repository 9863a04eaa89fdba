// The CTC lattice of one item: its pairs, its band, and how a state is reached.
//
// Contents: 1 names  2 the band  3 the target  4 states and backpointers  5 where a path starts and ends
//
// A target of L labels gives 2L+1 states: blank 0, label 0, blank 1, label 1, ..., label L-1, blank L.
// Blank k and label k are one PAIR, pair k = 0..L; the last pair has only its blank:
//
//     pair 0          pair 1                    pair L
//     blank0 label0   blank1 label1     ...     blankL
//
// Frames are numbered t = 0..T-1. Frame 0 only starts the lattice (blank 0 or label 0).
#pragma once

#include <cstdint>
#include <limits>

// Every function of the lattice is compiled into its caller: the copies made for different instruction sets never meet
// in the linker, and the same text serves host and device.
#if defined(__CUDACC__)
#define CTC_ALIGN_FN __host__ __device__ __forceinline__
#else
#define CTC_ALIGN_FN inline __attribute__((always_inline))
#endif

namespace ctc_align {

// -------------------------------------------------------------------------------------------------- 1 names

// Counts of frames, pairs and record words, and every product of them: T * L passes 2^31 in half an hour of speech.
using index_t = int64_t;

template <class Real>
constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();

// std::bit_cast would be a function of the library: the linker could take the copy of one instruction set for all.
template <class To, class From>
CTC_ALIGN_FN To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
CTC_ALIGN_FN T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
CTC_ALIGN_FN T larger(T a, T b) {
  return a < b ? b : a;
}

// ----------------------------------------------------------------------------------------------- 2 the band
//
//   pair
//    L |            . ######     The band holds every pair that has a state on a complete path. Pair k takes k frames
//      |        . ########       to be reached, and label k needs L-1-k more frames after it:
//      |    . ########
//      |. ########                   first(t) = max(0, L - T + t)       last(t) = min(L, t)
//    0 | ######
//      +----------------- t      Repeats shrink it by a little more; that is not used, to keep these two lines.
//
// A cell of the band depends on cells of the band alone: pair k at frame t reads pairs k-1 and k at t-1, and
// first(t-1) is 0 or first(t) - 1. So the values left of the band never reach a result.
//
// More generally a band has a GOAL: it holds the pairs from which pair `labels` can be reached at frame `frames`. The
// whole lattice's goal is the last blank, one frame after the last. If a path is known to be in pair p at frame t, the
// goal is (p, t) and the band is the CONE of that state: a part of the whole band, with the same two lines.
struct Band {
  index_t frames;
  index_t labels;

  CTC_ALIGN_FN index_t first(index_t t) const { return larger<index_t>(0, labels - frames + t); }
  CTC_ALIGN_FN index_t last(index_t t) const { return smaller<index_t>(labels, t); }

  // Cells of the frames from `begin` to `end - 1`, 0 <= begin <= end <= frames + 1.
  CTC_ALIGN_FN index_t cells(index_t begin, index_t end) const { return cells_before(end) - cells_before(begin); }

 private:
  CTC_ALIGN_FN index_t cells_before(index_t t) const {
    const index_t rising = smaller(t, labels + 1);                      // frames 0..rising-1 have last(t) = t
    const index_t leaving = larger<index_t>(0, t - (frames - labels));  // frames since first(t) was last 0
    return rising * (rising - 1) / 2 + (t - rising) * labels - leaving * (leaving - 1) / 2 + t;
  }
};

// --------------------------------------------------------------------------------------------- 3 the target

// The SKIP RULE: a path may go from label k-1 to label k without the blank between them if they are different classes.
CTC_ALIGN_FN bool may_skip_into(index_t pair, index_t label_class, index_t class_before) {
  return pair > 0 && label_class != class_before;
}

// The fewest frames that spell a target: one for each label, and one for each blank between equal neighbours.
CTC_ALIGN_FN index_t shortest_path(index_t labels, index_t repeats) { return labels + repeats; }

// What `paths` holds where no class of log_probs and no label is: the mark of an item without a path, and a frame that the
// star of a wild gap explains (emission.h).
constexpr int kMarked = -1;
constexpr int kGapStar = -2;

// ------------------------------------------------------------------------------- 4 states and backpointers

struct State {
  index_t pair;
  bool is_label;
};

// The two stored bits of one cell, written by pair_step.h, and what they mean for each state of the pair:
//
//     state      from_left  enters   skip_allowed  |  came from
//     blank k        0        .           .        |  blank k       (stay)
//     blank k        1        .           .        |  label k-1     (advance)
//     label k        .        0           .        |  label k       (stay)
//     label k        0        1           .        |  blank k       (advance)
//     label k        1        1           0        |  blank k       (advance: k-1 spells the same label)
//     label k        1        1           1        |  label k-1     (skip)
struct Record {
  bool from_left;
  bool enters;
};

// Without branches: half of a path's moves cannot be guessed.
CTC_ALIGN_FN State previous_state(State state, Record record, bool skip_allowed) {
  const unsigned is_label = state.is_label, from_left = record.from_left, enters = record.enters;
  const unsigned to_left = from_left & ((is_label ^ 1u) | (enters & static_cast<unsigned>(skip_allowed)));
  const unsigned stays_in_label = is_label & (enters ^ 1u);
  return {state.pair - static_cast<index_t>(to_left), (to_left | stays_in_label) != 0};
}

// ------------------------------------------------------------------------- 5 where a path starts and ends

// The START RULE: before frame 0 a path is in blank 0. So at frame 0 it is in blank 0 (stay) or, if the target has
// labels, in label 0 (advance).
constexpr State kBeforeFirstFrame = {0, false};

// Sets frame 0's alphas in a row that is -inf. `emission_of(is_label)` returns the emission of blank 0 or of label 0.
template <class Real, class EmissionOf>
CTC_ALIGN_FN void start_paths(index_t labels, const EmissionOf& emission_of, Real& blank_alpha, Real& label_alpha) {
  blank_alpha = emission_of(false);
  if (labels > 0) {
    label_alpha = emission_of(true);
  }
}

// The END RULE: a path ends in blank L or, if the target has labels, in label L-1.
struct PathEnds {
  State blank, label;  // the label's pair is -1 if there are no labels
};
CTC_ALIGN_FN PathEnds path_ends(index_t labels) { return {{labels, false}, {labels - 1, true}}; }

// The better end. The label wins a tie. label_alpha is not read if there are no labels.
template <class Real>
struct PathEnd {
  State state;
  Real alpha;

  // Returns whether there is a path: one that goes through no emission of -inf.
  CTC_ALIGN_FN bool is_finite() const { return alpha - alpha == 0; }
};
template <class Real>
CTC_ALIGN_FN PathEnd<Real> best_path_end(index_t labels, Real blank_alpha, Real label_alpha) {
  const PathEnds ends = path_ends(labels);
  return labels == 0 || blank_alpha > label_alpha ? PathEnd<Real>{ends.blank, blank_alpha}
                                                  : PathEnd<Real>{ends.label, label_alpha};
}

}  // namespace ctc_align
