// Edges: the label alpha of the last pair of a warp or a column, and its origin, on the way to the right neighbour.
//
// Within a block of threads they lie in shared memory, one for each frame of a stage:
//
//     producer 0 -> [0] -> consumer 0 -> [1] -> consumer 1 -> ... -> [kWarps] -> last producer       two stages in turn
//
// Between blocks an edge travels in words that are written and read whole, and that are not all ones once they are
// written. So there is no flag and no fence. float: one word. double: one for the alpha, one for the origin.
#pragma once

#include "task.cuh"

namespace ctc_align {

template <class Real>
struct alignas(2 * sizeof(Real)) Edge {
  Real alpha;
  uint32_t origin;
};

// In shared memory. Consumer w reads those into w in the step after they were written. They are written again in that
// same step, for the next stage, in the other half.
template <class Real, int kWarps>
struct EdgeBuffers {
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kToNextWarp = 2 * kStage;  // from the edges into a warp to those into the next one

  Edge<Real> into_warp[kWarps + 1][2][kStage];

  CTC_ALIGN_FN Edge<Real>* into(int warp, int stage) { return into_warp[warp][stage % 2]; }
};

template <DeviceWords Device>
struct EdgeWords {
  CTC_ALIGN_FN static constexpr int count(float) { return 1; }
  CTC_ALIGN_FN static constexpr int count(double) { return 2; }

  CTC_ALIGN_FN static void send(uint64_t* words, Edge<float> edge) {
    Device::store_relaxed(words, static_cast<uint64_t>(edge.origin) << 32 | same_bits<uint32_t>(edge.alpha));
  }
  CTC_ALIGN_FN static void send(uint64_t* words, Edge<double> edge) {
    Device::store_relaxed(words, same_bits<uint64_t>(edge.alpha));
    Device::store_relaxed(words + 1, edge.origin);
  }
  // Words as they were found, perhaps too early.
  struct Found {
    uint64_t word[2];
  };
  CTC_ALIGN_FN static Found look(const uint64_t* words, float) { return {{Device::load_relaxed(words), 0}}; }
  CTC_ALIGN_FN static Found look(const uint64_t* words, double) {
    return {{Device::load_relaxed(words), Device::load_relaxed(words + 1)}};
  }
  CTC_ALIGN_FN static bool is_there(const Found& found) {
    return found.word[0] != ~uint64_t{0} && found.word[1] != ~uint64_t{0};
  }
  CTC_ALIGN_FN static void read(const Found& found, Edge<float>& edge) {
    edge = {same_bits<float>(static_cast<uint32_t>(found.word[0])), static_cast<uint32_t>(found.word[0] >> 32)};
  }
  CTC_ALIGN_FN static void read(const Found& found, Edge<double>& edge) {
    edge = {same_bits<double>(found.word[0]), static_cast<uint32_t>(found.word[1])};
  }
};

// The edges that cross the borders of a task's column. Producer 0 receives them, the last one sends them.
//
// The words of a column, for each item and region:   [ring_tasks][frame block of a task][frame]
template <DeviceWords Device, class Real, int kWarps>
struct Edges {
  using Words = EdgeWords<Device>;
  using Found = typename Words::Found;
  static constexpr int kStage = kStageFrames<Real>;
  static constexpr int kWords = Words::count(Real{});
  static constexpr index_t kWordsPerFrameBlock = kEdgesPerFrameBlock * kWords;

  EdgeBuffers<Real, kWarps>& buffers;
  uint64_t *words_in, *words_out;  // of the present frame block
  bool reuses_ring;                // whether a later task writes the words again

  // In the present frame block:
  int count;      // frames
  bool has_left;  // whether any edges come
  Real offset;    // of an edge that crosses into the column: the difference of the bases
  Found found;    // of the stage to be received next

  // Places the edges at the task's first frame block in the band; advance() goes on to the next one.
  CTC_ALIGN_FN Edges(const Task<Device, Real>& task, EdgeBuffers<Real, kWarps>& buffers, int32_t first)
      : buffers(buffers) {
    const Plan& plan = task.plan();
    const TaskIndex& index = task.index;
    const index_t of_column = index_t{plan.ring_tasks} * plan.task_frame_blocks;
    const index_t in_ring = index_t{index.number % plan.ring_tasks} * plan.task_frame_blocks;
    const index_t frame_block = task.pass.slot(index.item, index.region, index.column) * of_column + in_ring +
                                (first - task.first_of(index.number));
    words_out = task.pass.edges + frame_block * kWordsPerFrameBlock;
    words_in = words_out - of_column * kWordsPerFrameBlock;
    reuses_ring = plan.tasks() > plan.ring_tasks;
  }
  CTC_ALIGN_FN void advance() {
    words_in += kWordsPerFrameBlock;
    words_out += kWordsPerFrameBlock;
  }

  // Begins a frame block, and looks for the edges of its first stage.
  CTC_ALIGN_FN void begin(const TaskFrames& frames, Real crossing_offset, bool receives) {
    count = frames.count;
    has_left = frames.has_left;
    offset = crossing_offset;
    found = {{0, 0}};
    if (receives && has_left) {
      look(0);
    }
  }

  // Brings the stage's edges into shared memory, in this column's units, and looks for those of the next stage.
  //   Called by    all lanes of producer 0, in the step in which it produces the stage.
  //   Waits for    the words of the left neighbour.
  //   Afterwards   consumer 0 finds its edges in the next step.
  //   Reuse        of a ring's words: they are unset here, and the task publishes that.
  CTC_ALIGN_FN void receive(int stage) {
    Edge<Real> edge{kMinusInfinity<Real>, 0};
    if (has_left) {
      while (Device::any(!Words::is_there(found))) {
        Device::pause();
        look(stage);
      }
      Words::read(found, edge);
      if (reuses_ring && Device::lane() < kStage) {
        for (int w = 0; w < kWords; ++w) {
          Device::store_relaxed(words_in + own_words(stage) + w, ~uint64_t{0});
        }
      }
      look(stage + 1);
    }
    if (Device::lane() < kStage) {
      buffers.into(0, stage)[Device::lane()] = {edge.alpha + offset, edge.origin};
    }
  }

  // Takes the stage's edges on to the right neighbour.
  //   Called by    all lanes of the last producer, in a step after the one in which the last consumer ran the stage.
  //   Waits for    nothing.
  //   Afterwards   the words are there; each says so itself.
  //   Reuse        the last consumer writes the buffer again two stages later.
  CTC_ALIGN_FN void send(int stage) const {
    if (Device::lane() < kStage) {
      Words::send(words_out + own_words(stage), buffers.into(kWarps, stage)[Device::lane()]);
    }
  }

 private:
  // Looks at the words of a stage, whether or not they are there yet. Called by all lanes of producer 0; receive() judges.
  CTC_ALIGN_FN void look(int stage) {
    found = {{0, 0}};  // nothing to wait for
    if (Device::lane() < kStage && stage * kStage + Device::lane() < count) {
      found = Words::look(words_in + own_words(stage), Real{});
    }
  }
  // Where a lane's words of a stage begin in those of the frame block.
  CTC_ALIGN_FN static int own_words(int stage) { return (stage * kStage + Device::lane()) * kWords; }
};

}  // namespace ctc_align
