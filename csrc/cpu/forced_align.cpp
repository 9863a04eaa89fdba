// ctc_align::forced_align on CPU tensors.
#include <atomic>
#include <tuple>

#include "batch.h"
#include "viterbi/align_item.h"

namespace ctc_align {
namespace {

// Findings of a call, for the Python function that calls the operator: searching the results for them takes longer than
// a small alignment.
struct Report {
  const void* paths = nullptr;  // the call's
  bool any_marked = false;
  bool any_positive = false;  // a score that no log-probability has
};

thread_local Report last_report;

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank,
                                        const std::optional<Tensor>& star_scores,
                                        const std::optional<Tensor>& wild_gaps) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps};
  std::atomic<bool> any_marked{false}, any_positive_score{false};
  last_report = {};
  const auto make = [&] {
    const std::array<int64_t, 2> sizes = {arguments.batch(), arguments.frames()};
    return std::make_tuple(empty_tensor(sizes, targets), empty_tensor(sizes, log_probs));
  };
  const auto align = [&]<class Item>(const Item& item, index_t b, const auto& outputs, const Options& options,
                                     const Workers& workers) {
    using Scalar = typename Item::Scalar;
    using Label = typename Item::Label;
    const index_t row = b * arguments.frames();
    const AlignedRows<Scalar, Label> rows{static_cast<Label*>(std::get<0>(outputs).mutable_data_ptr()) + row,
                                          static_cast<Scalar*>(std::get<1>(outputs).mutable_data_ptr()) + row,
                                          arguments.frames()};
    if (!align_item(item, options, workers, rows)) {
      any_marked.store(true, std::memory_order_relaxed);
    } else if (any_positive(rows.scores, item.frames)) {
      any_positive_score.store(true, std::memory_order_relaxed);
    }
  };
  // A strip goes some columns ahead of the next one (schedule.h): a few columns leave nothing to share.
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

// The report of this thread's last call, if its paths are at `paths`: 1 any item is marked, 2 any score is positive, 3
// both, 0 neither. -1: that call made other paths, or these are empty.
extern "C" __attribute__((visibility("default"))) int ctc_align_report(const void* paths) {
  const ctc_align::Report& report = ctc_align::last_report;
  return paths && report.paths == paths ? int{report.any_marked} + 2 * int{report.any_positive} : -1;
}
