// Checks of the arguments that every device makes: shapes, dtypes, devices, and the range of `blank`.
//
// Values inside tensors (lengths, labels) are checked by each kernel: the CPU kernel raises, the CUDA kernel marks.
// Messages name the argument, the expected and the found. The fake kernel in _arguments.py says the same.
#pragma once

#include <stdexcept>
#include <string>

#include "torch_seam.h"

namespace ctc_align {

// Parts of a message, worked out only when it is thrown.
struct ShapeOf {
  const Tensor& tensor;
};
struct DtypeOf {
  const Tensor& tensor;
};
struct DeviceOf {
  const Tensor& tensor;
};

// torch's name, as Python prints it. `dtype` comes from the C shim (dtype_of): torch::stable knows fewer types, and throws
// for the others.
inline const char* dtype_name(int32_t dtype) {
  switch (static_cast<ScalarType>(dtype)) {
    case ScalarType::Byte:             return "uint8";
    case ScalarType::Char:             return "int8";
    case ScalarType::Short:            return "int16";
    case ScalarType::Int:              return "int32";
    case ScalarType::Long:             return "int64";
    case ScalarType::UInt16:           return "uint16";
    case ScalarType::UInt32:           return "uint32";
    case ScalarType::UInt64:           return "uint64";
    case ScalarType::Half:             return "float16";
    case ScalarType::BFloat16:         return "bfloat16";
    case ScalarType::Float:            return "float32";
    case ScalarType::Double:           return "float64";
    case ScalarType::Float8_e4m3fn:    return "float8_e4m3fn";
    case ScalarType::Float8_e4m3fnuz:  return "float8_e4m3fnuz";
    case ScalarType::Float8_e5m2:      return "float8_e5m2";
    case ScalarType::Float8_e5m2fnuz:  return "float8_e5m2fnuz";
    case ScalarType::Float8_e8m0fnu:   return "float8_e8m0fnu";
    case ScalarType::Float4_e2m1fn_x2: return "float4_e2m1fn_x2";
    case ScalarType::ComplexHalf:      return "complex32";
    case ScalarType::ComplexFloat:     return "complex64";
    case ScalarType::ComplexDouble:    return "complex128";
    case ScalarType::Bool:             return "bool";
    default:                           return "another dtype";
  }
}

// Text of one part of a message. Without streams: they would bring in locales.
inline std::string text_of(const char* text) { return text; }
inline std::string text_of(int64_t number) { return std::to_string(number); }
inline std::string text_of(DtypeOf of) { return dtype_name(dtype_of(of.tensor)); }
inline std::string text_of(ShapeOf of) {
  std::string text = "(";
  for (int64_t i = 0; i < of.tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(of.tensor.size(i));
  }
  return text + (of.tensor.dim() == 1 ? ",)" : ")");
}
inline std::string text_of(DeviceOf of) {
  const auto device = of.tensor.device();
  switch (device.type()) {
    case torch::headeronly::DeviceType::CPU:  return "cpu";
    case torch::headeronly::DeviceType::Meta: return "meta";
    case torch::headeronly::DeviceType::CUDA: return "cuda:" + std::to_string(device.index());
    default:                                  return "device type " + std::to_string(static_cast<int>(device.type()));
  }
}

// Throws an error that Python sees as ValueError. (STD_TORCH_CHECK would put the path of this file into the message.)
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::invalid_argument((std::string() + ... + text_of(parts)));
}

// Runs the work of an operator, and puts its name before the message of an error.
template <class Work>
auto as_operator(const char* name, const Work& work) {
  const std::string prefix = std::string(name) + ": ";
  try {
    return work();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(prefix + error.what());
  } catch (const NoMemory& error) {
    throw NoMemory(prefix + error.what());
  }
}

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) {
    fail(parts...);
  }
}

inline bool is_index_dtype(const Tensor& tensor) {
  const int32_t dtype = dtype_of(tensor);
  return dtype == aoti_torch_dtype_int32() || dtype == aoti_torch_dtype_int64();
}

inline void check_same_device(const char* name, const Tensor& tensor, const Tensor& log_probs) {
  check(tensor.device() == log_probs.device(), name, " must be on the device of log_probs, expected ",
        DeviceOf{log_probs}, ", found ", DeviceOf{tensor});
}

inline void check_lengths(const char* name, const std::optional<Tensor>& lengths, const Tensor& log_probs) {
  if (!lengths) {
    return;
  }
  check(lengths->dim() == 1 && lengths->size(0) == log_probs.size(0), name, " must have shape (B,) = (",
        log_probs.size(0), ",), found ", ShapeOf{*lengths});
  check(is_index_dtype(*lengths), name, " must be int32 or int64, found ", DtypeOf{*lengths});
  check_same_device(name, *lengths, log_probs);
}

inline void check_stars(const std::optional<Tensor>& star_scores, const std::optional<Tensor>& wild_gaps,
                        const Tensor& log_probs, const Tensor& targets) {
  check(star_scores.has_value(), "wild_gaps need star_scores, which say what a frame of a wild gap scores; found None");
  check(
      star_scores->dim() == 2 && star_scores->size(0) == log_probs.size(0) && star_scores->size(1) == log_probs.size(1),
      "star_scores must have shape (B, T) = (", log_probs.size(0), ", ", log_probs.size(1), "), found ",
      ShapeOf{*star_scores});
  check(dtype_of(*star_scores) == dtype_of(log_probs), "star_scores must have the dtype of log_probs, expected ",
        DtypeOf{log_probs}, ", found ", DtypeOf{*star_scores});
  check_same_device("star_scores", *star_scores, log_probs);
  if (wild_gaps) {
    check(wild_gaps->dim() == 2 && wild_gaps->size(0) == targets.size(0) && wild_gaps->size(1) == targets.size(1) + 1,
          "wild_gaps must have shape (B, L + 1) = (", targets.size(0), ", ", targets.size(1) + 1, "), found ",
          ShapeOf{*wild_gaps});
    check(dtype_of(*wild_gaps) == aoti_torch_dtype_bool(), "wild_gaps must be bool, found ", DtypeOf{*wild_gaps});
    check_same_device("wild_gaps", *wild_gaps, log_probs);
  }
}

inline void check_arguments(const Tensor& log_probs, const Tensor& targets, const std::optional<Tensor>& input_lengths,
                            const std::optional<Tensor>& target_lengths, int64_t blank,
                            const std::optional<Tensor>& star_scores = std::nullopt,
                            const std::optional<Tensor>& wild_gaps = std::nullopt) {
  check(log_probs.dim() == 3, "log_probs must have shape (B, T, C), found ", ShapeOf{log_probs});
  const int32_t dtype = dtype_of(log_probs);
  check(dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16() ||
            dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_float64(),
        "log_probs must be float16, bfloat16, float32 or float64, found ", DtypeOf{log_probs});
  check(targets.dim() == 2 && targets.size(0) == log_probs.size(0),
        "targets must have shape (B, L) with B = ", log_probs.size(0), " as in log_probs, found ", ShapeOf{targets});
  check(is_index_dtype(targets), "targets must be int32 or int64, found ", DtypeOf{targets});
  check_same_device("targets", targets, log_probs);
  check_lengths("input_lengths", input_lengths, log_probs);
  check_lengths("target_lengths", target_lengths, log_probs);
  check(0 <= blank && blank < log_probs.size(2),
        "blank must be a class of log_probs, expected 0 <= blank < C = ", log_probs.size(2), ", found ", blank);
  if (star_scores || wild_gaps) {
    check_stars(star_scores, wild_gaps, log_probs, targets);
  }
}

// ------------------------------------------------------------------------------- sums over all paths alone

// Half types are summed in float32, and so are their results.
inline int32_t sums_dtype(const Tensor& log_probs) {
  return dtype_of(log_probs) == aoti_torch_dtype_float64() ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// `name`: starts or ends of spans.
inline void check_borders(const char* name, const Tensor& borders, const Tensor& log_probs, const Tensor& targets) {
  check(borders.dim() == 2 && borders.size(0) == targets.size(0) && borders.size(1) == targets.size(1), name,
        " must have the shape of targets, expected ", ShapeOf{targets}, ", found ", ShapeOf{borders});
  check(dtype_of(borders) == aoti_torch_dtype_int64(), name, " must be int64, found ", DtypeOf{borders});
  check_same_device(name, borders, log_probs);
}

// With stars the values of paths have one more column, that of the star in a wild gap.
inline void check_path_values(const Tensor& grad_posteriors, const Tensor& log_probs, const Tensor& targets,
                              bool has_stars) {
  const int64_t others = has_stars ? 2 : 1, columns = targets.size(1) + others;
  const bool fits = grad_posteriors.dim() == 3 && grad_posteriors.size(0) == log_probs.size(0) &&
                    grad_posteriors.size(1) == log_probs.size(1) && grad_posteriors.size(2) == columns;
  check(fits, "grad_posteriors must have shape (B, T, L + ", others, ") = (", log_probs.size(0), ", ",
        log_probs.size(1), ", ", columns, "), found ", ShapeOf{grad_posteriors});
  check(dtype_of(grad_posteriors) == sums_dtype(log_probs),
        "grad_posteriors must have the dtype of the posteriors, found ", DtypeOf{grad_posteriors});
  check_same_device("grad_posteriors", grad_posteriors, log_probs);
}

}  // namespace ctc_align
