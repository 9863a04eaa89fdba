// ctc_align::posteriors, class_posteriors, span_posteriors and posteriors_backward on CPU tensors: one sum over all
// paths, and four ways to keep what it says about a frame.
#include <tuple>

#include "batch.h"
#include "forward_backward/sum_item.h"

namespace ctc_align {
namespace {

template <class T>
using RealOf = AccumulationType<std::decay_t<decltype(std::declval<T>().emissions.at(0, 0))>>;

// Half types are summed in float32, and that is what they get.
int32_t sums_dtype(const Tensor& log_probs) {
  return log_probs.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// For operators whose paths collect nothing.
struct NoGains {
  template <class I>
  Gains<RealOf<I>> operator()(const I&, index_t) const {
    return {};
  }
};

// A compiled graph asks for the gradient of every output, also of one that nothing came of.
template <class Real, class I>
bool all_zero(const Gains<Real>& gains, const I& item) {
  for (index_t t = 0; t < item.frames; ++t) {
    bool found = gains.values.at(t, gains.blank_column) != 0;
    for (index_t k = 0; k < item.labels; ++k) {
      found |= gains.values.at(t, k) != 0;
    }
    if (found) {
      return false;
    }
  }
  return true;
}

// Runs an operator. Its first output has the shape sizes(), all zero where keep() leaves it: keep(item, target, b, part)
// returns what is to be done with the sums of a frame of item b, whose part of the output begins at `part`. The second
// output are the log-likelihoods.
template <class Sizes, class GainsOf, class Keep>
std::tuple<Tensor, Tensor> run_soft(const char* name, const Arguments& arguments, const Sizes& sizes,
                                    const GainsOf& gains_of, const Keep& keep) {
  const auto make = [&] {
    const int32_t dtype = sums_dtype(arguments.log_probs);
    return std::make_tuple(empty_tensor(sizes(), arguments.log_probs, dtype),
                           empty_tensor<1>({arguments.batch()}, arguments.log_probs, dtype));
  };
  const auto sum = [&](const auto& item, index_t b, const auto& outputs, const Options& options, const Crew& crew) {
    using Real = RealOf<decltype(item)>;
    const StandardFloats standard_floats;  // for the results' last rounding too
    const index_t size = std::get<0>(outputs).numel() / arguments.batch();
    Real* part = static_cast<Real*>(std::get<0>(outputs).mutable_data_ptr()) + b * size;
    fill(part, size, Real{0}, crew);
    double log_likelihood = -std::numeric_limits<double>::infinity();
    const Gains<Real> gains = gains_of(item, b);
    if (gains.values.data && all_zero(gains, item)) {
      return;  // nobody asks for the log-likelihood beside a gradient
    }
    if (item.labels <= item.frames) {  // before anything is sized by a target that cannot fit
      const CompactTarget target(item, kPairsPerWord);
      const auto sum_in = [&](auto real) {
        return sum_over_paths<decltype(real)>(item, target, gains, options, crew, keep(item, target, b, part));
      };
      std::optional<double> sum = sum_in(Real{});
      if (!sum) {
        fill(part, size, Real{0}, crew);
        sum = sum_in(double{});
      }
      log_likelihood = *sum;
    }
    static_cast<Real*>(std::get<1>(outputs).mutable_data_ptr())[b] = static_cast<Real>(log_likelihood);
  };
  const auto splits = [](const auto&) { return false; };
  return run_batch(name, arguments, make, splits, sum);
}

// The labels of a frame that are labels, and not the place beside the last blank.
template <class Real>
index_t end_of_labels(const FrameSums<Real>& sums, index_t labels) {
  return std::min(sums.last + 1, labels);
}

// By class: keeps (T, C).
struct KeepClasses {
  template <class I, class Real>
  auto operator()(const I& item, const CompactTarget& target, index_t, Real* part) const {
    return [&item, &target, part](index_t t, const auto& sums) {
      Real* row = part + t * item.classes;
      for (index_t k = sums.first; k < end_of_labels(sums, item.labels); ++k) {
        row[target.class_of(k)] += static_cast<Real>(sums.labels[k] * sums.factor);
      }
      row[item.blank] = static_cast<Real>(sums.blank * sums.factor);
    };
  }
};

std::tuple<Tensor, Tensor> posteriors(const Tensor& log_probs, const Tensor& targets,
                                      const std::optional<Tensor>& input_lengths,
                                      const std::optional<Tensor>& target_lengths, int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.labels() + 1}; };
  const auto keep = [&](const auto& item, const CompactTarget&, index_t, auto* part) {
    return [&item, part, padded = arguments.labels()](index_t t, const auto& sums) {
      using Real = std::decay_t<decltype(*part)>;
      Real* row = part + t * (padded + 1);
      for (index_t k = sums.first; k < end_of_labels(sums, item.labels); ++k) {
        row[k] = static_cast<Real>(sums.labels[k] * sums.factor);
      }
      row[padded] = static_cast<Real>(sums.blank * sums.factor);
    };
  };
  return run_soft("posteriors", arguments, sizes, NoGains(), keep);
}

std::tuple<Tensor, Tensor> class_posteriors(const Tensor& log_probs, const Tensor& targets,
                                            const std::optional<Tensor>& input_lengths,
                                            const std::optional<Tensor>& target_lengths, int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  const auto sizes = [&] { return std::array{arguments.batch(), arguments.frames(), arguments.classes()}; };
  return run_soft("class_posteriors", arguments, sizes, NoGains(), KeepClasses());
}

void check_borders(const char* name, const Tensor& borders, const Arguments& arguments) {
  check(borders.dim() == 2 && borders.size(0) == arguments.batch() && borders.size(1) == arguments.labels(), name,
        " must have the shape of targets, expected ", ShapeOf{arguments.targets}, ", found ", ShapeOf{borders});
  check(dtype_of(borders) == aoti_torch_dtype_int64(), name, " must be int64, found ", DtypeOf{borders});
  check_same_device(name, borders, arguments.log_probs);
}

Strided<const int64_t> row_of(const Tensor& matrix, index_t row) {
  return {static_cast<const int64_t*>(matrix.const_data_ptr()) + row * matrix.stride(0), matrix.stride(1)};
}

std::tuple<Tensor, Tensor> span_posteriors(const Tensor& log_probs, const Tensor& targets, const Tensor& starts,
                                           const Tensor& ends, const std::optional<Tensor>& input_lengths,
                                           const std::optional<Tensor>& target_lengths, int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  const auto sizes = [&] {
    check_borders("starts", starts, arguments);
    check_borders("ends", ends, arguments);
    return std::array{arguments.batch(), arguments.labels()};
  };
  const auto keep = [&](const auto& item, const CompactTarget&, index_t b, auto* part) {
    return [&item, part, start = row_of(starts, b), end = row_of(ends, b)](index_t t, const auto& sums) {
      for (index_t k = sums.first; k < end_of_labels(sums, item.labels); ++k) {
        if (start[k] <= t && t < end[k]) {
          using Real = std::decay_t<decltype(*part)>;
          const index_t frames = std::min(end[k], item.frames) - std::max<index_t>(start[k], 0);
          part[k] += static_cast<Real>(sums.labels[k] * sums.factor / static_cast<Real>(frames));
        }
      }
    };
  };
  return run_soft("span_posteriors", arguments, sizes, NoGains(), keep);
}

Tensor posteriors_backward(const Tensor& grad_posteriors, const Tensor& log_probs, const Tensor& targets,
                           const std::optional<Tensor>& input_lengths, const std::optional<Tensor>& target_lengths,
                           int64_t blank) {
  const Arguments arguments{log_probs, targets, input_lengths, target_lengths, blank};
  const auto sizes = [&] {
    const bool fits = grad_posteriors.dim() == 3 && grad_posteriors.size(0) == arguments.batch() &&
                      grad_posteriors.size(1) == arguments.frames() &&
                      grad_posteriors.size(2) == arguments.labels() + 1;
    check(fits, "grad_posteriors must have shape (B, T, L + 1) = (", arguments.batch(), ", ", arguments.frames(), ", ",
          arguments.labels() + 1, "), found ", ShapeOf{grad_posteriors});
    check(dtype_of(grad_posteriors) == sums_dtype(log_probs),
          "grad_posteriors must have the dtype of the posteriors, found ", DtypeOf{grad_posteriors});
    check_same_device("grad_posteriors", grad_posteriors, log_probs);
    return std::array{arguments.batch(), arguments.frames(), arguments.classes()};
  };
  const auto gains = [&](const auto& item, index_t b) {
    using Real = RealOf<decltype(item)>;
    const auto* data = static_cast<const Real*>(grad_posteriors.const_data_ptr()) + b * grad_posteriors.stride(0);
    return Gains<Real>{{data, grad_posteriors.stride(1), grad_posteriors.stride(2)}, arguments.labels()};
  };
  return std::get<0>(run_soft("posteriors_backward", arguments, sizes, gains, KeepClasses()));
}

}  // namespace
}  // namespace ctc_align

STABLE_TORCH_LIBRARY_IMPL(ctc_align, CPU, library) {
  library.impl("posteriors", TORCH_BOX(&ctc_align::posteriors));
  library.impl("class_posteriors", TORCH_BOX(&ctc_align::class_posteriors));
  library.impl("span_posteriors", TORCH_BOX(&ctc_align::span_posteriors));
  library.impl("posteriors_backward", TORCH_BOX(&ctc_align::posteriors_backward));
}
