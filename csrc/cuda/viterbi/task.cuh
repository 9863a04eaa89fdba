// A task: where a block of threads is, what of its columns and frame blocks is in the band, and which other tasks it
// waits for.
//
//          pair |            column 2 .-------.-------.        A task reads the edges of the column on its left and the
//               |     column 1 .------|-------|                row of its own column's past. Both have earlier tickets,
//               |       .------|------|                        so they run or are done: no deadlock, however few blocks
//          col 0|-------|------|                               of threads fit on the machine.
//               +----------------------------------- frame
//
// Everything here is the same for all threads of the block.
#pragma once

#include "../inputs.cuh"
#include "workspace.cuh"

namespace ctc_align {

// A frame block of the task. The item's last one ends with a PSEUDO-FRAME T: nothing is added there, but the edges of
// frame T - 1 cross.
struct TaskFrames {
  int32_t frame_block;
  int32_t first;
  int count;                 // the pseudo-frame included
  bool has_left, has_right;  // whether the neighbouring columns are in the band
  bool rebases;              // at its start
};

template <DeviceWords Device, class Real>
struct Task {
  const Workspace<Real>& work;
  const Pass<Real>& pass;
  int pass_number;
  TaskIndex index;
  int32_t end_frame;                                                      // T: one after the last
  int32_t last_pair;                                                      // L
  int32_t first_frame_block, end_frame_block, first_column, last_column;  // of the region

  CTC_ALIGN_FN const Plan& plan() const { return pass.plan; }
  CTC_ALIGN_FN bool is_first_pass() const { return pass_number == 0; }

  // Places the task in its item, whose column becomes a column of the item. Returns whether there is anything to do.
  CTC_ALIGN_FN bool begin(const ItemLattice& item) {
    end_frame = static_cast<int32_t>(item.band.frames);
    last_pair = static_cast<int32_t>(item.band.labels);
    first_frame_block = index.region * static_cast<int32_t>(plan().region_frame_blocks);
    end_frame_block = first_frame_block + static_cast<int32_t>(plan().region_frame_blocks);
    first_column = 0;
    last_column = last_pair / static_cast<int32_t>(kColumnPairs);
    if (!item.possible || (!is_first_pass() && !find_columns())) {
      return false;
    }
    index.column += first_column;
    return true;
  }

  CTC_ALIGN_FN Band band() const { return {end_frame, last_pair}; }
  CTC_ALIGN_FN int32_t first_pair() const { return index.column * static_cast<int32_t>(kColumnPairs); }
  CTC_ALIGN_FN bool in_band(int32_t column, int32_t frame_block) const {
    return first_column <= column && column <= last_column && first_frame_block <= frame_block &&
           frame_block < end_frame_block && column_in_band(end_frame, last_pair, column, frame_block);
  }
  CTC_ALIGN_FN bool task_in_band(int32_t column, int32_t number) const {
    const int32_t begin = first_of(number);
    for (int32_t q = begin; q < begin + plan().task_frame_blocks; ++q) {
      if (in_band(column, q)) {
        return true;
      }
    }
    return false;
  }

  CTC_ALIGN_FN int32_t first_of(int32_t number) const { return first_frame_block + number * plan().task_frame_blocks; }
  // The first of the task's frame blocks that is in the band; `end` is one after the task's last.
  CTC_ALIGN_FN int32_t first(int32_t end) const {
    int32_t q = first_of(index.number);
    while (q < end && !in_band(index.column, q)) {
      ++q;
    }
    return q;
  }
  CTC_ALIGN_FN int32_t end() const {
    return smaller(first_of(index.number) + plan().task_frame_blocks, static_cast<int32_t>(plan().frame_blocks()));
  }
  // Returns whether the column's task before has left its row where this one begins.
  CTC_ALIGN_FN bool continues(int32_t first) const {
    return first == first_of(index.number) && index.number > 0 && task_in_band(index.column, index.number - 1);
  }

  CTC_ALIGN_FN static int32_t first_frame_of(int32_t frame_block) {
    return frame_block * static_cast<int32_t>(kFrameBlock) + 1;
  }
  CTC_ALIGN_FN TaskFrames frames_of(int32_t frame_block) const {
    const int32_t first = first_frame_of(frame_block);
    const int32_t last = smaller<int32_t>(first + static_cast<int32_t>(kFrameBlock) - 1, end_frame - 1);
    const int count = last - first + (last == end_frame - 1 ? 2 : 1);
    return {frame_block,
            first,
            count,
            in_band(index.column - 1, frame_block),
            in_band(index.column + 1, frame_block),
            kRebases<Real> && frame_block > 0};
  }

  // Waits until the memory that the task needs is its own.
  //   Called by    thread 0 of the block; a barrier of the block comes after it.
  //   Waits for    the column's task before, and for the last reader of the ring's place that this task will overwrite.
  //   Afterwards   that row, and that those edges are unset, is visible to thread 0, and by the barrier to the block.
  //   Reuse        the row and the edges are this task's until it publishes its number.
  CTC_ALIGN_FN void wait_for_others(bool continues) const {
    if (continues) {
      wait_until_done(index.column, index.number - 1);
    }
    const int32_t reader = index.column + 1, before = index.number - plan().ring_tasks;
    if (before >= 0 && task_in_band(reader, before)) {
      wait_until_done(reader, before);
    }
  }

  // Publishes that the task is done.
  //   Called by    thread 0 of the block, after a barrier of the block.
  //   Waits for    nothing.
  //   Afterwards   what the block has written is visible to any task that waits for this number.
  //   Reuse        the column's next task takes the row, and the left neighbour the unset edges.
  CTC_ALIGN_FN void publish() const { Device::store_release(done(index.column), static_cast<uint32_t>(index.number)); }

 private:
  CTC_ALIGN_FN uint32_t* done(index_t column) const { return pass.done + pass.slot(index.item, index.region, column); }

  CTC_ALIGN_FN void wait_until_done(index_t column, index_t number) const {
    // done is all ones, that is -1, before the column's first task.
    while (static_cast<int32_t>(Device::load_acquire(done(column))) < static_cast<int32_t>(number)) {
      Device::pause();
    }
  }

  // Finds the columns between the states in which the path enters and leaves the region, if it comes there.
  CTC_ALIGN_FN bool find_columns() {
    const index_t frame_before = first_frame_block * kFrameBlock;
    if (work.path_ends[index.item] == kNoPath || frame_before + 1 >= end_frame) {
      return false;
    }
    const uint32_t* states = work.passes[pass_number - 1].states(index.item);
    first_column = static_cast<int32_t>(unpack_state(states[index.region]).pair / kColumnPairs);
    last_column = static_cast<int32_t>(unpack_state(states[index.region + 1]).pair / kColumnPairs);
    return true;
  }
};

}  // namespace ctc_align
