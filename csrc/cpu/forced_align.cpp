// ctc_align::forced_align on CPU tensors.
#include <tuple>

#include "align_item.h"
#include "batch.h"

namespace ctc_align {
namespace {

std::tuple<Tensor, Tensor> forced_align(const Tensor& log_probs, const Tensor& targets,
                                        const std::optional<Tensor>& input_lengths,
                                        const std::optional<Tensor>& target_lengths, int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  const auto make = [&] {
    const std::array<int64_t, 2> sizes = {arguments.batch(), arguments.frames()};
    return std::make_tuple(empty_tensor(sizes, targets), empty_tensor(sizes, log_probs));
  };
  const auto align = [&](const auto& item, index_t b, const auto& outputs, const Options& options, const Crew& crew) {
    using scalar_t = std::decay_t<decltype(item.emissions.at(0, 0))>;
    using label_t = std::decay_t<decltype(item.target[0])>;
    const index_t row = b * arguments.frames();
    align_item(item, options, crew,
               AlignedRows<scalar_t, label_t>{static_cast<label_t*>(std::get<0>(outputs).mutable_data_ptr()) + row,
                                              static_cast<scalar_t*>(std::get<1>(outputs).mutable_data_ptr()) + row,
                                              arguments.frames()});
  };
  // A stretch goes some columns ahead of the next one (schedule.h): of a few columns there is nothing to share.
  const auto splits = [](const auto& item) { return item.labels >= 4 * kColumnPairs; };
  return run_batch("forced_align", arguments, make, splits, align);
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("forced_align", TORCH_BOX(&ctc_align::forced_align));
}
