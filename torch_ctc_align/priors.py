"""Priors of classes: how often a model says each, and emissions in which that counts less.

A model trained with the CTC loss says the blank in most frames and every label in one: its alignments are peaky. Huang
et al. 2024 ("Less Peaky and More Accurate CTC Forced Alignment by Label Priors", arXiv:2406.02560) divide posteriors by
priors while they train, so that the blank is no longer the cheapest way through a frame.

Training with priors is what helps. For a model that was trained without them they do next to nothing in the alignment:
see :func:`subtract_priors`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_ctc_align._arguments import FLOATS, Lengths, as_lengths, check_tensor, dtype_name
from torch_ctc_align._refusals import refusal

__all__ = ["label_priors", "subtract_priors"]

ENTRIES = 1 << 22  # log-probabilities that become float64 at once: 32 MB


def label_priors(log_probs: Tensor | Iterable[Tensor], input_lengths: Lengths | None = None) -> Tensor:
    """Returns the log of each class's mean posterior over all frames in use: its prior, as the model has it.

    Args:
        log_probs (Tensor or iterable of Tensor): natural-log probabilities ``(B, T, C)`` or ``(T, C)``, float16,
            bfloat16, float32 or float64; or several such items, which are read one after the other and not kept.
        input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use of a ``(B, T, C)`` tensor. What lies
            after them is not read. Default: all.

    Returns:
        Tensor: ``(C,)`` float64 on the device of the first item. The exponentials sum to 1, if those of a frame do. A
        class that is never said has -inf.

    Raises:
        AlignmentError: a shape, dtype or length is not one of the above; there is no frame.
        TypeError: an item is not a tensor.

    Deterministic; sums in float64, some frames at a time. Lengths are read, so a GPU is waited for.

    Example::

        >>> log_probs = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
        >>> label_priors(log_probs).exp()
        tensor([0.7000, 0.3000], dtype=torch.float64)
    """
    name = "label_priors"
    if isinstance(log_probs, Tensor):
        items: Iterable[Tensor] = [log_probs]
    else:
        if input_lengths is not None:
            raise refusal(name, None, "input_lengths must be left out where log_probs are several items")
        if not isinstance(log_probs, Iterable) or hasattr(log_probs, "__array__"):
            check_tensor(name, "log_probs", log_probs, "(B, T, C)")
        items = log_probs
    sums, frames = None, 0
    for item in items:
        check_tensor(name, "log_probs", item, "(B, T, C) or (T, C)")
        if item.dim() not in (2, 3) or item.shape[-1] == 0:
            raise refusal(name, None, f"log_probs must have shape (B, T, C) or (T, C), found {tuple(item.shape)}")
        if item.dtype not in FLOATS:
            raise refusal(
                name, None, f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(item)}"
            )
        if sums is None:
            sums = torch.zeros(item.shape[-1], dtype=torch.float64, device=item.device)
        if len(sums) != item.shape[-1]:
            raise refusal(name, None, f"log_probs must have C = {len(sums)} in every item, found {item.shape[-1]}")
        for part in _frames_in_use(name, item.detach(), input_lengths):
            for chunk in part.split(max(1, ENTRIES // len(sums))):
                sums += chunk.double().exp().sum(0)
            frames += len(part)
    if sums is None or frames == 0:
        raise refusal(name, None, "log_probs must have a frame in use, found none")
    return (sums / frames).log()


def _frames_in_use(name: str, item: Tensor, input_lengths: Lengths | None) -> list[Tensor]:
    batch = item if item.dim() == 3 else item[None]
    if input_lengths is None:
        return list(batch)
    lengths = as_lengths(name, "input_lengths", input_lengths, batch).tolist()
    if not isinstance(lengths, list) or len(lengths) != len(batch):
        raise refusal(name, None, f"input_lengths must have shape (B,) = ({len(batch)},), found {lengths}")
    for b, length in enumerate(lengths):
        if not isinstance(length, int) or not 0 <= length <= batch.shape[1]:
            raise refusal(name, None, f"input_lengths[{b}] must be in 0 to T = {batch.shape[1]}, found {length}")
    return [part[:length] for part, length in zip(batch, lengths, strict=True)]


def subtract_priors(log_probs: Tensor, log_priors: Tensor, scale: float = 1.0) -> Tensor:
    """Divides the probabilities of each class by a power of its prior: ``log_probs - scale * log_priors``.

    This is for training: in ``examples/train_ctc.py``, alignments with priors are the targets, and the mean error of
    word borders falls from 40 to 30 ms. In the alignment alone it is not worth it. Mean errors of word borders against
    another aligner, of a phoneme model that was trained without priors (1,001 words, ``docs/measurements/priors.md``):

    ====================  =======  =======  =======  =======  =======
    scale                 0        0.25     0.5      0.75     1
    ====================  =======  =======  =======  =======  =======
    borders ``Pauses()``  21.7 ms  21.8 ms  21.8 ms  22.1 ms  22.5 ms
    borders ``"drop"``    53.1 ms  52.7 ms  52.0 ms  51.4 ms  50.3 ms
    ====================  =======  =======  =======  =======  =======

    So leave it out there, and let :class:`Pauses` place the borders. One model gained in the alignment alone, a small
    one of characters: from 39.9 to 37.2 ms (``docs/in_training_pipelines.md``).

    Args:
        log_probs (Tensor): ``(..., C)`` float16, bfloat16, float32 or float64, natural-log probabilities.
        log_priors (Tensor): ``(C,)``, of :func:`label_priors`; it is moved to the device of ``log_probs``.
        scale (float): the power; 0 changes nothing. Default: 1.

    Returns:
        Tensor: the shape and dtype of ``log_probs``; not normalised, so entries may be above 0. For an alignment whose
        scores are log-probabilities take ``.log_softmax(-1)`` of it: the path stays, since every path has one class a
        frame. A class with prior 0 (-inf) keeps its log-probabilities. Differentiable with respect to ``log_probs``.

    Raises:
        AlignmentError: a shape or dtype is not one of the above.
        TypeError: an argument is not a tensor.

    Example::

        >>> log_priors = torch.tensor([0.8, 0.2]).log()
        >>> subtract_priors(torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log(), log_priors).softmax(-1)
        tensor([[0.5000, 0.5000],
                [0.1429, 0.8571]])
    """
    name = "subtract_priors"
    check_tensor(name, "log_probs", log_probs, "(..., C)")
    check_tensor(name, "log_priors", log_priors, "(C,)")
    if log_probs.dtype not in FLOATS:
        raise refusal(
            name, None, f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}"
        )
    if log_probs.dim() == 0 or tuple(log_priors.shape) != tuple(log_probs.shape[-1:]):
        raise refusal(
            name,
            None,
            f"log_priors must have shape (C,) = {tuple(log_probs.shape[-1:])}, found {tuple(log_priors.shape)}",
        )
    if not log_priors.dtype.is_floating_point:
        raise refusal(name, None, f"log_priors must be floating point, found {dtype_name(log_priors)}")
    shift = scale * log_priors.masked_fill(log_priors == -torch.inf, 0)
    return log_probs - shift.to(log_probs)
