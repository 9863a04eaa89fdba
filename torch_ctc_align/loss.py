"""The CTC loss with the arguments of torch's own: :func:`ctc_loss`, and :class:`CTCLoss`, the module."""

import re
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torch_ctc_align._arguments import (
    FLOATS,
    INTEGERS,
    Lengths,
    as_lengths,
    brief,
    check_blank,
    check_tensor,
    copy_to,
    dtype_name,
    tensor_of_lengths,
)
from torch_ctc_align._refusals import explain, refusal
from torch_ctc_align._torch_seam import is_plain
from torch_ctc_align.errors import AlignmentError

__all__ = ["CTCLoss", "ctc_loss"]

_REDUCTIONS = ("none", "mean", "sum")
_SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    r"""Computes the Connectionist Temporal Classification loss: argument for argument ``torch.nn.functional.ctc_loss``.

    The negative logarithm of the probability of all paths that spell the target, from :func:`class_posteriors`. The
    gradient is the true one, whether or not ``log_probs`` come out of a ``log_softmax``, and it can be differentiated
    once more. Works in ``torch.compile(fullgraph=True)``, ``torch.export`` and ``torch.func``, and never waits for the
    device.

    Args:
        log_probs (Tensor): ``(T, N, C)``, or ``(T, C)`` for one item; float16, bfloat16, float32 or float64,
            natural-log probabilities; any strides, so ``(N, T, C)`` is welcome as ``log_probs.transpose(0, 1)``. They
            need not sum to one. An entry that is NaN, infinite, or of magnitude 2^18 and more counts as probability 0.
        targets (Tensor): ``(N, S)``, or in a row (concatenated), ``(sum(target_lengths),)``, or ``(S,)`` for one item;
            integers, classes other than ``blank``; entries after the target length may hold anything. May
            be on the CPU where ``log_probs`` are on another device.
        input_lengths (Tensor or sequence of int): ``(N,)`` frames in use, at most T; ``()`` for one item.
        target_lengths (Tensor or sequence of int): ``(N,)`` labels in use; ``()`` for one item.
        blank (int): the class that spells nothing. Default: 0.
        reduction (str): ``"none"``: the losses of the items; ``"sum"``: their sum; ``"mean"``: each is divided by its
            target length (at least 1), then the mean over the batch. Default: ``"mean"``.
        zero_infinity (bool): whether the loss of an item without any path is 0 instead of infinite. Its gradient is 0
            in either case. Default: false.

    Returns:
        Tensor: ``(N,)`` with ``reduction="none"`` (``()`` for one item), else ``()``; float64 for float64
        ``log_probs`` and float32 for all others, in and out of autocast. Differentiable twice.

    Raises:
        AlignmentError: a ValueError and a RuntimeError. An argument does not have the shape, dtype or device above; a
            length lies outside its range; a label is the blank or not a class. On CUDA values are only checked where
            they come from the host: the loss of an item with a bad value is that of an item without a path.
        TypeError: what should be a tensor is none, lengths are not numbers, ``blank`` is not an int.
        MemoryError: there is not enough memory for the posteriors, or for the work.
        KeyboardInterrupt: Ctrl-C during a long call on the CPU, as in :func:`forced_align`.

    Targets in a row become a padded tensor. Its width is the longest target where lengths are a list, or a tensor on
    the CPU outside of a graph. Elsewhere their values are not read, and it is T + 1, or all labels if they are fewer:
    longer targets have no path. There an item whose labels are missing in the row has a bad value. On CUDA pass padded
    targets, or the lengths as a list: that takes less memory.

    Where it differs from torch: ``docs/posteriors.md``. Time and memory are those of :func:`class_posteriors`.

    Example::

        >>> log_probs = torch.randn(50, 16, 20).log_softmax(2).requires_grad_()
        >>> targets = torch.randint(1, 20, (16, 30))
        >>> loss = ctc_loss(log_probs, targets, [50] * 16, torch.randint(10, 30, (16,)))
        >>> loss.backward()
    """
    name = "ctc_loss"
    _check_reduction(name, reduction)
    check_tensor(name, "log_probs", log_probs, "(T, N, C)")
    check_tensor(name, "targets", targets, "(N, S)")
    check_blank(name, blank)
    one_item = log_probs.dim() == 2
    if one_item:
        log_probs = log_probs.unsqueeze(1)
        if targets.dim() == 1:
            targets = targets.unsqueeze(0)
    _check_emissions(name, log_probs, blank)
    targets = _as_targets(name, targets, log_probs, one_item)
    in_a_row = targets.dim() == 1
    of_inputs = _as_lengths(name, "input_lengths", input_lengths, log_probs, one_item, "T", log_probs.shape[0])
    most = targets.shape[-1]
    of_targets = used = _as_lengths(name, "target_lengths", target_lengths, log_probs, one_item, "S", most)
    if in_a_row:
        targets, used = _pad(name, targets, of_targets, target_lengths, log_probs.shape[0])
    emissions = log_probs.transpose(0, 1)
    try:
        _, log_likelihoods = torch.ops.ctc_align.class_posteriors(emissions, targets, of_inputs, used, blank)
    except Exception as error:
        explained = explain(name, error, emissions, targets, used, blank, operator="class_posteriors")
        starts = of_targets.cumsum(0) - of_targets if in_a_row else None
        raise _in_our_words(explained, starts) from None
    losses: Tensor = -log_likelihoods
    if zero_infinity:
        losses = torch.where(losses.isfinite(), losses, 0)
    if reduction == "mean":
        return (losses / of_targets.clamp(min=1)).mean()
    if reduction == "sum":
        return losses.sum()
    return losses.squeeze(0) if one_item else losses


class CTCLoss(torch.nn.Module):
    """The CTC loss as a module, with the arguments of ``torch.nn.CTCLoss``. :func:`ctc_loss` describes it.

    Args:
        blank (int): the class that spells nothing. Default: 0.
        reduction (str): ``"none"``, ``"mean"`` or ``"sum"``. Default: ``"mean"``.
        zero_infinity (bool): whether the loss of an item without any path is 0. Default: false.

    Raises:
        AlignmentError: ``blank`` is negative, or ``reduction`` is not one of the three.
        TypeError: ``blank`` is not an int.

    Example::

        >>> criterion = CTCLoss(zero_infinity=True)
        >>> log_probs = torch.zeros(1, 2, 3).log_softmax(-1)
        >>> criterion(log_probs, torch.tensor([1, 2, 1]), [1, 1], [1, 2])  # the second target takes two frames
        tensor(0.5493)
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        super().__init__()
        check_blank("CTCLoss", blank)
        if blank < 0:
            raise _refusal("CTCLoss", f"blank must be a class, expected 0 <= blank, found {blank}")
        _check_reduction("CTCLoss", reduction)
        self.blank = blank
        self.reduction = reduction
        self.zero_infinity = zero_infinity

    def extra_repr(self) -> str:
        """Returns the text that ``print`` shows between the brackets."""
        return f"blank={self.blank}, reduction={self.reduction!r}, zero_infinity={self.zero_infinity}"

    def __prepare_scriptable__(self) -> None:
        """Called by torch.jit.script, for this module and for modules that contain it."""
        raise NotImplementedError(
            "CTCLoss: TorchScript cannot compile this module; call torch.ops.ctc_align.class_posteriors in the "
            "scripted code, or use torch.jit.trace or torch.export (docs/exporting.md)"
        )

    def forward(self, log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths) -> Tensor:
        """Computes the loss of a batch; the arguments are those of :func:`ctc_loss`."""
        if isinstance(log_probs, torch.fx.Proxy) and log_probs.tracer.root is not self:
            # torch.fx.symbolic_trace sees a leaf, like the modules of torch.nn.
            arguments = log_probs, targets, input_lengths, target_lengths
            return log_probs.tracer.create_proxy("call_module", log_probs.tracer.path_of_module(self), arguments, {})
        return ctc_loss(
            log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction, self.zero_infinity
        )


# ------------------------------------------------------------------------------------------------------- arguments


def _check_reduction(name: str, reduction: object) -> None:
    """Raises AlignmentError if the reduction is not one of the three."""
    if reduction not in _REDUCTIONS:
        raise _refusal(name, f'reduction must be "none", "mean" or "sum", found {brief(reduction)}')


def _refusal(name: str, text: str) -> AlignmentError:
    """Returns the error of a function. In a graph it raises a ValueError, which torch.compile can trace."""
    if is_compiling():
        raise ValueError(f"{name}: {text}")
    return refusal(name, None, text)


def _shape(tensor: Tensor) -> str:
    extents = [f"{extent}" for extent in tensor.shape]  # torch.compile cannot trace str() of a tuple
    return f"({', '.join(extents)}{',' if len(extents) == 1 else ''})"


def _check_emissions(name: str, log_probs: Tensor, blank: int) -> None:
    if log_probs.dim() != 3:
        raise _refusal(name, f"log_probs must have shape (T, N, C), or (T, C) for one item, found {_shape(log_probs)}")
    if log_probs.dtype not in FLOATS:
        raise _refusal(name, f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}")
    classes = log_probs.shape[2]
    if not 0 <= blank < classes:
        raise _refusal(name, f"blank must be a class of log_probs, expected 0 <= blank < C = {classes}, found {blank}")


def _as_targets(name: str, targets: Tensor, log_probs: Tensor, one_item: bool) -> Tensor:
    """Returns targets (N, S), or in a row, as int32 or int64 on the device of log_probs."""
    frames, batch, _ = log_probs.shape
    if targets.dim() != 1 and (targets.dim() != 2 or targets.shape[0] != batch):
        expected = "(S,) for one item" if one_item else f"(N, S) with N = {batch} as in log_probs, or be in a row"
        advice = ""
        if targets.dim() == 2 and targets.shape[0] == frames and not one_item:
            advice = "; if log_probs are (N, T, C), pass log_probs.transpose(0, 1)"
        raise _refusal(name, f"targets must have shape {expected}, found {_shape(targets)}{advice}")
    if targets.dtype in _SMALL_INTEGERS:
        targets = targets.long()
    elif targets.dtype not in INTEGERS:
        raise _refusal(name, f"targets must be integers, found {dtype_name(targets)}; pass targets.long()")
    if targets.device != log_probs.device:
        if not targets.is_cpu:
            raise _refusal(
                name,
                f"targets must be on the device of log_probs or on the CPU, expected {log_probs.device}, found "
                f"{targets.device}",
            )
        targets = copy_to(log_probs.device, targets)
    return targets


def _as_lengths(
    name: str, argument: str, lengths: Lengths, log_probs: Tensor, one_item: bool, extent: str, most: int
) -> Tensor:
    """Returns lengths (N,) as int32 or int64 on the device of log_probs."""
    tensor = as_lengths(name, argument, lengths, log_probs)
    batch = log_probs.shape[1]
    if tensor.dim() == 0 and (one_item or batch == 1):
        tensor = tensor.unsqueeze(0)
    if tensor.dim() != 1 or tensor.shape[0] != batch:
        expected = "() or (1,)" if one_item else f"(N,) = ({batch},)"
        raise _refusal(name, f"{argument} must have shape {expected}, found {_shape(tensor)}")
    if tensor.dtype in _SMALL_INTEGERS:
        tensor = tensor.long()
    elif tensor.dtype not in INTEGERS:
        raise _refusal(name, f"{argument} must be integers, found {dtype_name(tensor)}")
    if not log_probs.is_cpu:  # the operator of the CPU checks the values, others do not
        for b, length in enumerate(_known_lengths(lengths) or ()):
            if not 0 <= length <= most:
                raise _refusal(name, f"{argument}[{b}] must be between 0 and {extent} = {most}, found {length}")
    return tensor


def _known_lengths(lengths: Lengths) -> list[int] | None:
    """Returns the lengths as numbers, or None where reading them would wait for a device or break a graph."""
    if not isinstance(lengths, Tensor):
        if all(isinstance(length, int) for length in lengths):
            return list(lengths)
        if is_compiling():
            return None
        lengths = tensor_of_lengths("ctc_loss", "target_lengths", lengths)
    if is_compiling() or not lengths.is_cpu or not is_plain(lengths, lengths):
        return None
    return lengths.reshape(-1).tolist()


def _in_our_words(error: BaseException, starts: Tensor | None) -> BaseException:
    """Turns what the operator said of a padded tensor with optional lengths into what it means here.

    ``starts`` are those of the items, where targets are in a row.
    """
    if not isinstance(error, AlignmentError):
        return error
    text = str(error).replace("pass target_lengths", "target_lengths must not count it").replace(" L = ", " S = ")
    found = re.search(r"targets\[(\d+), (\d+)\]", text)
    if starts is not None and found is not None:
        b, k = map(int, found.groups())
        text = text.replace(found[0], f"targets[{int(starts[b]) + k}], label {k} of item {b},")
    return AlignmentError(text)


# ------------------------------------------------------------------------------------------------- targets in a row


def _pad(name: str, targets: Tensor, of_targets: Tensor, given: Lengths, frames: Any) -> tuple[Tensor, Tensor]:
    """Turns targets in a row into (N, S), and returns them with their lengths.

    An entry that the row does not have is -1: where lengths add up to more labels than there are, the operator refuses
    or marks the item.
    """
    total = targets.shape[0]
    known = _known_lengths(given)
    if known is not None:
        width = max([0, *known])
        if sum(known) != total:
            raise _refusal(
                name,
                f"targets in a row must hold the labels of all items, expected sum(target_lengths) = {sum(known)}, "
                f"found {total}",
            )
        used = of_targets
    else:
        # A target of more than T labels has no path. Cut to T + 1 labels it still has none.
        width = torch.sym_min(frames + 1, total)
        used = of_targets.clamp(max=frames + 1)
    starts = of_targets.cumsum(0) - of_targets
    index = starts[:, None] + torch.arange(width, device=targets.device)
    padded = torch.nn.functional.pad(targets, (0, 1), value=-1)  # the last entry stands for all that are missing
    return padded[index.clamp(0, total)], used
