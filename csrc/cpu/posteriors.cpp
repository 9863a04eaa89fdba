// ctc_align::posteriors, class_posteriors, span_posteriors, and what their derivatives call, occupancies and
// posteriors_backward, on CPU tensors: one sum over all paths, and five ways to keep a frame's sums.
#include <tuple>
#include <type_traits>

#include "batch.h"
#include "forward_backward/sum_item.h"

namespace ctc_align {
namespace {

// For operators whose paths collect nothing.
struct NoPathValues {
  template <class Item>
  PathValues<typename Item::Real> operator()(const Item&, index_t) const {
    return {};
  }
};

// A compiled graph asks for the gradient of every output, even of an unused one: there all path values are 0.
template <class Item>
bool all_zero(const PathValues<typename Item::Real>& path_values, const Item& item) {
  for (index_t t = 0; t < item.frames; ++t) {
    bool found = path_values.blank_at(t) != 0 || path_values.star_at(t) != 0;
    for (index_t k = 0; k < item.labels; ++k) {
      found |= path_values.at(t, k) != 0;
    }
    if (found) {
      return false;
    }
  }
  return true;
}

// For operators whose arguments are those of all operators.
struct NoCheck {
  void operator()() const {}
};

// Runs an operator; check_rest() throws if its other arguments do not fit. Its first output has the shape sizes(), all
// zero where keep() leaves it: keep(item, target, b, part) returns a visit(t, sums) for the frames of item b, whose part
// of the output begins at `part`. The second output is the log-likelihoods.
template <class Check, class Sizes, class PathValuesOf, class Keep>
std::tuple<Tensor, Tensor> run_forward_backward(const char* name, const Arguments& arguments, const Check& check_rest,
                                                const Sizes& sizes, const PathValuesOf& path_values_of,
                                                const Keep& keep) {
  const auto make = [&] {
    check_rest();
    const int32_t dtype = sums_dtype(arguments.log_probs);
    return std::make_tuple(empty_tensor(sizes(), arguments.log_probs, dtype),
                           empty_tensor<1>({arguments.batch()}, arguments.log_probs, dtype));
  };
  const auto sum = [&]<class Item>(const Item& item, index_t b, const auto& outputs, const Options& options,
                                   const Workers& workers) {
    using Real = typename Item::Real;
    const StandardFloats standard_floats;  // for the results' last rounding too
    const index_t size = std::get<0>(outputs).numel() / arguments.batch();
    Real* part = static_cast<Real*>(std::get<0>(outputs).mutable_data_ptr()) + b * size;
    fill(part, size, Real{0}, workers);
    double log_likelihood = kMinusInfinity<double>;
    const PathValues<Real> path_values = path_values_of(item, b);
    if (path_values.data && all_zero(path_values, item)) {
      return;  // beside a gradient the log-likelihood is not used
    }
    if (item.labels <= item.frames) {  // before anything is sized by a target that cannot fit
      const CompactTarget target(item, kPairsPerWord);
      log_likelihood = sum_over_paths(item, target, path_values, options, workers, keep(item, target, b, part));
    }
    static_cast<Real*>(std::get<1>(outputs).mutable_data_ptr())[b] = static_cast<Real>(log_likelihood);
  };
  const auto splits = [](const auto&) { return false; };
  return run_batch(name, arguments, make, splits, sum);
}

// The end of a frame's labels: pair L has a blank only.
template <class Real>
index_t end_of_labels(const FrameSums<Real>& sums, index_t labels) {
  return std::min(sums.last + 1, labels);
}

// By class: keeps (T, C), or (T, C + 1) with a column for the star. A class's labels are added up as frame.h orders sums:
// those of the last column first, and in a column one after the other.
struct KeepClasses {
  index_t star_columns = 0;

  template <class Item, class Real>
  auto operator()(const Item& item, const CompactTarget& target, index_t, Real* part) const {
    // Of panel classes, where these are not those of the row. Star labels have the place of the blank, which no label has.
    auto in_panel = uninitialized<Real>(target.classes.size());
    return [&item, &target, part, columns = item.classes + star_columns, in_panel = std::move(in_panel)](
               index_t t, const auto& sums) {
      Real* const row = part + t * columns;
      const index_t count = target.class_count;
      Real* const class_sums = target.classes.empty() ? row : in_panel.get();
      std::fill_n(in_panel.get(), target.classes.size(), Real{0});
      const index_t end = end_of_labels(sums, item.labels);
      for (index_t last = end; last > sums.first;) {
        const index_t begin = std::max(sums.first, (last - 1) / kColumnPairs * kColumnPairs);
        // Unrolled: the loop around it took 2 to 3 % of the whole call.
#pragma GCC unroll 8
        for (index_t k = begin; k < last; ++k) {
          class_sums[target.class_ids[k]] += sums.label_sums[k];
        }
        last = begin;
      }
      if (columns > item.classes) {
        row[item.classes] = sums.normalized(class_sums[target.star_class] + sums.star_sum);
      }
      for (index_t c = 0; c < count; ++c) {
        class_sums[c] = sums.normalized(class_sums[c]);
      }
      for (size_t c = 0; c < target.classes.size(); ++c) {
        row[target.classes[c]] = class_sums[c];
      }
      row[item.blank] = sums.normalized(sums.blank_sum);
    };
  }
};

std::tuple<Tensor, Tensor> posteriors(const Tensor& log_probs, const Tensor& targets,
                                      const std::optional<Tensor>& input_lengths,
                                      const std::optional<Tensor>& target_lengths, int64_t blank,
                                      const std::optional<Tensor>& star_scores,
                                      const std::optional<Tensor>& wild_gaps) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps};
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.labels() + 1}; };
  const auto keep = [&](const auto& item, const CompactTarget&, index_t, auto* part) {
    return [&item, part, padded = arguments.labels()](index_t t, const auto& sums) {
      auto* row = part + t * (padded + 1);
      for (index_t k = sums.first; k < end_of_labels(sums, item.labels); ++k) {
        row[k] = sums.normalized(sums.label_sums[k]);
      }
      row[padded] = sums.normalized(sums.blank_sum + sums.star_sum);
    };
  };
  return run_forward_backward("posteriors", arguments, NoCheck(), sizes, NoPathValues(), keep);
}

std::tuple<Tensor, Tensor> class_posteriors(const Tensor& log_probs, const Tensor& targets,
                                            const std::optional<Tensor>& input_lengths,
                                            const std::optional<Tensor>& target_lengths, int64_t blank,
                                            const std::optional<Tensor>& star_scores,
                                            const std::optional<Tensor>& wild_gaps) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps};
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.classes()}; };
  return run_forward_backward("class_posteriors", arguments, NoCheck(), sizes, NoPathValues(), KeepClasses());
}

// class_posteriors with the star's share as one more column: the gradient of the log-likelihood by both inputs. It stands
// in for class_posteriors where that is differentiated, so its errors bear that name.
std::tuple<Tensor, Tensor> occupancies(const Tensor& log_probs, const Tensor& targets,
                                       const std::optional<Tensor>& input_lengths,
                                       const std::optional<Tensor>& target_lengths, int64_t blank,
                                       const Tensor& star_scores, const std::optional<Tensor>& wild_gaps) {
  const std::optional<Tensor> stars = star_scores;
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, stars, wild_gaps};
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.classes() + 1}; };
  return run_forward_backward("class_posteriors", arguments, NoCheck(), sizes, NoPathValues(), KeepClasses{1});
}

Strided<const int64_t> row_of(const Tensor& matrix, index_t row) {
  return {static_cast<const int64_t*>(matrix.const_data_ptr()) + row * matrix.stride(0), matrix.stride(1)};
}

std::tuple<Tensor, Tensor> span_posteriors(const Tensor& log_probs, const Tensor& targets, const Tensor& starts,
                                           const Tensor& ends, const std::optional<Tensor>& input_lengths,
                                           const std::optional<Tensor>& target_lengths, int64_t blank,
                                           const std::optional<Tensor>& star_scores,
                                           const std::optional<Tensor>& wild_gaps) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps};
  const auto check_rest = [&] {
    check_borders("starts", starts, log_probs, targets);
    check_borders("ends", ends, log_probs, targets);
  };
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.labels()}; };
  const auto keep = [&](const auto& item, const CompactTarget&, index_t b, auto* part) {
    return [&item, part, start = row_of(starts, b), end = row_of(ends, b)](index_t t, const auto& sums) {
      for (index_t k = sums.first; k < end_of_labels(sums, item.labels); ++k) {
        if (start[k] <= t && t < end[k]) {
          using Real = std::decay_t<decltype(*part)>;
          const index_t frames = std::min(end[k], item.frames) - std::max<index_t>(start[k], 0);
          part[k] += sums.normalized(sums.label_sums[k]) / static_cast<Real>(frames);
        }
      }
    };
  };
  return run_forward_backward("span_posteriors", arguments, check_rest, sizes, NoPathValues(), keep);
}

// With stars the values of paths have one more column, that of the star in a wild gap, and so has the result.
Tensor posteriors_backward(const Tensor& grad_posteriors, const Tensor& log_probs, const Tensor& targets,
                           const std::optional<Tensor>& input_lengths, const std::optional<Tensor>& target_lengths,
                           int64_t blank, const std::optional<Tensor>& star_scores,
                           const std::optional<Tensor>& wild_gaps) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps};
  const index_t stars = star_scores ? 1 : 0;
  const auto check_rest = [&] { check_path_values(grad_posteriors, log_probs, targets, stars > 0); };
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.classes() + stars}; };
  const auto path_values_of = [&]<class Item>(const Item&, index_t b) {
    using Real = typename Item::Real;
    const auto* data = static_cast<const Real*>(grad_posteriors.const_data_ptr()) + b * grad_posteriors.stride(0);
    return PathValues<Real>{.data = data,
                            .frame_stride = grad_posteriors.stride(1),
                            .column_stride = grad_posteriors.stride(2),
                            .blank_column = arguments.labels(),
                            .star_column = arguments.labels() + stars};
  };
  return std::get<0>(
      run_forward_backward("posteriors_backward", arguments, check_rest, sizes, path_values_of, KeepClasses{stars}));
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("posteriors", TORCH_BOX(&ctc_align::posteriors));
  library.impl("class_posteriors", TORCH_BOX(&ctc_align::class_posteriors));
  library.impl("occupancies", TORCH_BOX(&ctc_align::occupancies));
  library.impl("span_posteriors", TORCH_BOX(&ctc_align::span_posteriors));
  library.impl("posteriors_backward", TORCH_BOX(&ctc_align::posteriors_backward));
}
