"""Arguments that all functions and operators share: their checks, lists of lengths, and the batch under vmap.

A check that needs no values raises the same text as csrc/arguments.h does.
"""

import operator
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align._torch_seam import check_value
from torch_ctc_align.errors import AlignmentError, warn_once

Lengths = Tensor | Sequence[int]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


# ------------------------------------------------------------------------------------------------- of the functions


def as_lengths(name: str, argument: str, lengths: Lengths, log_probs: Tensor) -> Tensor:
    """Returns lengths as a tensor on the device of log_probs. Lists, arrays and CPU tensors are welcome."""
    if not isinstance(log_probs, Tensor):  # the operator will refuse it
        return lengths
    if not isinstance(lengths, Tensor):
        lengths = tensor_of_lengths(name, argument, lengths)
    if lengths.is_cpu and log_probs.is_cpu:
        return lengths
    return copy_to(log_probs.device, lengths)


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Returns the tensor on another device. A copy from the CPU to CUDA does not wait for the device.

    It need not: of memory that is not pinned the copy has read everything when it returns, and a clone is not pinned.
    """
    return tensor.clone().to(device, non_blocking=True) if tensor.is_cpu else tensor.to(device)


def tensor_of_lengths(name: str, argument: str, lengths: Sequence[int]) -> Tensor:
    """Returns a list or an array of lengths as a tensor on the CPU."""
    if not hasattr(lengths, "__len__") or isinstance(lengths, str | bytes | dict | set) or _is_scalar(lengths):
        number = index_of(lengths)
        found, advice = (kind_of(lengths), "a list") if number is None else (number, f"[{number}]")
        raise TypeError(
            f"{name}: {argument} must be a tensor or a sequence of int, one for each item, found {found}; pass {advice}"
        )
    if len(lengths) == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    try:
        return torch.tensor(lengths, device="cpu")  # whatever the default device is
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: {argument} must be numbers of frames or labels, found {brief(lengths)}") from error


def _is_scalar(lengths: object) -> bool:
    return getattr(lengths, "ndim", 1) == 0  # an array of no dimension has __len__, but len() raises


def check_tensor(name: str, argument: str, value: object, shape: str) -> None:
    """Raises TypeError if the argument of a function is not a tensor. The text leaves out the value: it may be long."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: {argument} must be a tensor of shape {shape}, found {kind_of(value)}; use torch.as_tensor"
        )


def check_targets(name: str, targets: Tensor, target_lengths: Lengths | None) -> Tensor | None:
    """Checks the targets of a function without log_probs; returns their lengths as a tensor on the same device."""
    check_tensor(name, "targets", targets, "(B, L)")
    if targets.dim() != 2:
        raise AlignmentError(f"{name}: targets must have shape (B, L), found {_shape(targets)}")
    if targets.dtype not in INTEGERS:
        raise AlignmentError(f"{name}: targets must be int32 or int64, found {dtype_name(targets)}")
    if target_lengths is None:
        return None
    batch = targets.shape[0]
    lengths = as_lengths(name, "target_lengths", target_lengths, targets)
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise AlignmentError(f"{name}: target_lengths must have shape (B,) = ({batch},), found {_shape(lengths)}")
    if lengths.dtype not in INTEGERS:
        raise AlignmentError(f"{name}: target_lengths must be int32 or int64, found {dtype_name(lengths)}")
    return lengths


def check_blank(name: str, blank: object) -> None:
    """Raises TypeError if the argument is neither an int of 64 bits nor a scalar of numpy or torch that means one."""
    index = blank if isinstance(blank, int) else index_of(blank)
    if index is None or not -(2**63) <= index < 2**63:
        raise TypeError(f"{name}: blank must be an int, the index of a class, found {brief(blank)}")


def index_of(value: Any) -> int | None:
    """Returns the int that a value means, or None."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def kind_of(value: object) -> str:
    """Returns the type of a value with its article: "a list", "a numpy.ndarray", "None"."""
    if value is None:
        return "None"
    kind = type(value)
    text = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"


def brief(value: object) -> str:
    """Returns a value in one line of at most 80 characters."""
    return textwrap.shorten(repr(value), 80, placeholder=" ...")


def dtype_name(tensor: Tensor) -> str:
    """Returns the dtype of a tensor without "torch."."""
    return str(tensor.dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------- of the operators


def check_arguments(
    name: str,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> None:
    """Checks shapes, dtypes, devices and the blank: all that can be checked without the values in tensors.

    Raises ValueError with a message that begins with ``name``, while a graph is traced as well.
    """

    def check(holds: Any, message: str) -> None:
        check_value(holds, lambda: f"{name}: {message}")

    check(log_probs.dim() == 3, f"log_probs must have shape (B, T, C), found {_shape(log_probs)}")
    batch, _, classes = log_probs.shape
    check(
        log_probs.dtype in FLOATS,
        f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}",
    )
    check(
        targets.dim() == 2 and targets.shape[0] == batch,
        f"targets must have shape (B, L) with B = {batch} as in log_probs, found {_shape(targets)}",
    )
    check(targets.dtype in INTEGERS, f"targets must be int32 or int64, found {dtype_name(targets)}")
    check_device(name, "targets", targets, log_probs)
    for argument, lengths in (("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if lengths is None:
            continue
        check(
            lengths.dim() == 1 and lengths.shape[0] == batch,
            f"{argument} must have shape (B,) = ({batch},), found {_shape(lengths)}",
        )
        check(lengths.dtype in INTEGERS, f"{argument} must be int32 or int64, found {dtype_name(lengths)}")
        check_device(name, argument, lengths, log_probs)
    check(
        blank >= 0 and blank < classes,
        f"blank must be a class of log_probs, expected 0 <= blank < C = {classes}, found {blank}",
    )
    if star_scores is not None or wild_gaps is not None:
        _check_stars(name, star_scores, wild_gaps, log_probs, targets)


def _check_stars(
    name: str, star_scores: Tensor | None, wild_gaps: Tensor | None, log_probs: Tensor, targets: Tensor
) -> None:
    if star_scores is None:
        message = f"{name}: wild_gaps need star_scores, which say what a frame of a wild gap scores; found None"
        check_value(False, lambda: message)
        return
    shape = tuple(log_probs.shape[:2])
    check_shape(name, "star_scores", star_scores, shape, f"shape (B, T) = {shape}")
    expected = f"have the dtype of log_probs, expected {dtype_name(log_probs)}"
    check_dtype(name, "star_scores", star_scores, log_probs.dtype, expected)
    check_device(name, "star_scores", star_scores, log_probs)
    if wild_gaps is not None:
        shape = (targets.shape[0], targets.shape[1] + 1)
        check_shape(name, "wild_gaps", wild_gaps, shape, f"shape (B, L + 1) = {shape}")
        check_dtype(name, "wild_gaps", wild_gaps, torch.bool, "be bool")
        check_device(name, "wild_gaps", wild_gaps, log_probs)


def check_device(name: str, argument: str, tensor: Tensor, log_probs: Tensor) -> None:
    """Raises ValueError unless the tensor is on the device of log_probs."""
    devices = f"expected {log_probs.device}, found {tensor.device}"
    message = f"{name}: {argument} must be on the device of log_probs, {devices}"
    check_value(tensor.device == log_probs.device, lambda: message)


def check_dtype(name: str, argument: str, tensor: Tensor, dtype: torch.dtype, expected: str) -> None:
    """Raises ValueError unless the tensor has this dtype: "must be int64" where ``expected`` is "be int64"."""
    check_value(tensor.dtype == dtype, lambda: f"{name}: {argument} must {expected}, found {dtype_name(tensor)}")


def check_shape(name: str, argument: str, tensor: Tensor, shape: tuple[Any, ...], expected: str) -> None:
    """Raises ValueError unless the tensor has this shape, which the text calls ``expected``."""
    same = tensor.dim() == len(shape)
    for extent, wanted in zip(tensor.shape, shape, strict=False):
        same = same and extent == wanted
    check_value(same, lambda: f"{name}: {argument} must have {expected}, found {_shape(tensor)}")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def warn_in_onnx_export(name: str) -> None:
    """Says what to do when ``torch.onnx.export`` traces ``ctc_align::name``, before torch says that it cannot.

    A warning, because ``custom_translation_table`` may hold a translation. Without one torch raises.
    """
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        warn_once(
            f"{name}: ONNX",
            f"{name}: ONNX has no such operator. Export the model up to log_probs and align what it returns with "
            f"torch_ctc_align (docs/exporting.md), unless custom_translation_table names ctc_align::{name}",
        )


# ------------------------------------------------------------------------------------------------------------- vmap


def join_batch(size: int, in_dims: tuple[int | None, ...], *tensors: Tensor | None) -> list[Tensor | None]:
    """Makes a mapped dimension part of the batch, for the vmap rule of an operator whose items are independent.

    Args:
        size: extent of the mapped dimension, ``info.batch_size``.
        in_dims: its position in each tensor, None where a tensor lacks it; positions missing at the end count as None.
        tensors: ``(B, ...)`` and the mapped dimension, or None.

    Returns:
        The tensors as ``(size * B, ...)``, with the mapped dimension outside; None stays None.
    """

    def join(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        if dim is None:
            tensor = tensor.expand(size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        return tensor.reshape(size * tensor.shape[1], *tensor.shape[2:])

    dims = (*in_dims, *[None] * len(tensors))[: len(tensors)]
    return [join(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]


def split_batch(
    size: int, first: Tensor, first_dim: int | None, *tensors: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Undoes :func:`join_batch`: returns the results of a vmap rule for these ``(size * B, ...)`` outputs.

    B comes from the first argument: an empty mapped dimension leaves no other source for it.
    """
    batch = first.shape[1 if first_dim == 0 else 0]
    outputs = tuple(tensor.reshape(size, batch, *tensor.shape[1:]) for tensor in tensors)
    return outputs, (0,) * len(tensors)
