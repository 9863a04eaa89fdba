// ctc_align::forced_align on CPU tensors.
#include <atomic>
#include <tuple>

#include "batch.h"
#include "viterbi/align_item.h"

namespace ctc_align {
namespace {

// What a call saw on its way, for the function over the operator: looking for it in the results takes longer than a
// small alignment.
struct Report {
  const void* paths = nullptr;  // whose report it is
  bool any_marked = false;
  bool any_positive = false;  // scores that no log-probability has
};

thread_local Report last_report;

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  std::atomic<bool> any_marked{false}, any_positive_score{false};
  last_report = {};
  const auto make = [&] {
    const std::array<int64_t, 2> sizes = {arguments.batch(), arguments.frames()};
    return std::make_tuple(empty_tensor(sizes, targets), empty_tensor(sizes, log_probs));
  };
  const auto align = [&](const auto& item, index_t b, const auto& outputs, const Options& options, const Crew& crew) {
    using scalar_t = std::decay_t<decltype(item.emissions.at(0, 0))>;
    using label_t = std::decay_t<decltype(item.target[0])>;
    const index_t row = b * arguments.frames();
    const AlignedRows<scalar_t, label_t> rows{static_cast<label_t*>(std::get<0>(outputs).mutable_data_ptr()) + row,
                                              static_cast<scalar_t*>(std::get<1>(outputs).mutable_data_ptr()) + row,
                                              arguments.frames()};
    if (!align_item(item, options, crew, rows)) {
      any_marked.store(true, std::memory_order_relaxed);
    } else if (any_positive(rows.scores, item.frames)) {
      any_positive_score.store(true, std::memory_order_relaxed);
    }
  };
  // A stretch goes some columns ahead of the next one (schedule.h): of a few columns there is nothing to share.
  const auto splits = [](const auto& item) { return item.labels >= 4 * kColumnPairs; };
  const auto outputs = run_batch("forced_align", arguments, make, splits, align);
  last_report = {std::get<0>(outputs).const_data_ptr(), any_marked, any_positive_score};
  return outputs;
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}

// What this thread's last call saw, if `paths` is where its paths lie: 1 any item is marked, 2 any score is positive, 3
// both, 0 neither. -1: that call made other paths, or these are empty.
extern "C" __attribute__((visibility("default"))) int ctc_align_report(const void* paths) {
  const ctc_align::Report& report = ctc_align::last_report;
  return paths && report.paths == paths ? int{report.any_marked} + 2 * int{report.any_positive} : -1;
}
