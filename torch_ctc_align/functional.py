"""The typed functions: align a batch, and turn paths into spans of tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Lengths = Tensor | Sequence[int]


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    strict: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Finds the most probable CTC path that spells each target.

    Every item of the batch is aligned over its own frames and labels, as if it were alone. When several paths are
    equally good, staying in a state wins over advancing, advancing over skipping a blank, and ending in the last
    label over ending in the last blank. Argument for argument compatible with
    ``torchaudio.functional.forced_align``.

    Args:
        log_probs (Tensor): ``(B, T, C)`` float16, bfloat16, float32 or float64, natural-log probabilities; any
            strides. No path goes through an entry that is NaN, infinite, or 2^100 and more.
        targets (Tensor): ``(B, L)`` int32 or int64, classes other than ``blank``; entries behind the target length
            may hold anything.
        input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
        blank (int): the class that spells nothing. Default: 0.
        strict (bool): raise if any item has no path. If false, such an item is marked instead, and the other items
            are returned as usual. Default: true.

    Returns:
        paths (Tensor): ``(B, T)``, dtype of ``targets``; the class of every frame, ``blank`` behind the input length.
        scores (Tensor): ``(B, T)``, dtype of ``log_probs``; the log-probability of every path entry (nats), 0 behind
            the input length. Differentiable with respect to ``log_probs``.

        An item without any path is marked: its row of ``paths`` is -1, its row of ``scores`` -inf.

    Raises:
        ValueError: an argument has another shape, dtype or device than above; a length lies outside its range; a
            label is the blank or no class; with ``strict``, an item has fewer frames than labels and neighbouring
            repeats, or no path of finite score. The message names the argument and the item. On CUDA the values of
            lengths and labels are looked at with ``strict`` alone; without it an item with a bad one is marked.
        MemoryError: there is no memory for the results, or for the work.
        KeyboardInterrupt: Ctrl-C during a long call on the CPU, within a second of it. (From the operator itself,
            ``torch.ops.ctc_align.forced_align``, it comes as the cause of a RuntimeError.)

    The result does not depend on the number of threads, nor on the other items. Time is
    :math:`O((T - L) L)` an item. Memory beside the outputs is a quarter of a byte for each of about
    :math:`(T - L) L` cells on short recordings, and some 160 bytes a frame on long ones; on the CPU
    :func:`set_memory_budget` makes it less. Source: Graves et al. 2006, section 4.1, with a maximum for the sum;
    ``docs/semantics.md``.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> paths, scores = forced_align(log_probs[None], torch.tensor([[1, 2]]))
        >>> paths
        tensor([[1, 0, 2]])
        >>> scores.exp()
        tensor([[0.8000, 0.7000, 0.7000]])
    """
    input_lengths = as_lengths(input_lengths, log_probs)
    target_lengths = as_lengths(target_lengths, log_probs)
    with interruptible():
        paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets, input_lengths, target_lengths, blank)
    if strict:
        _raise_for_marked_items(paths, log_probs, targets, input_lengths, target_lengths, blank)
    return paths, scores


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C during a long call of an operator comes out as KeyboardInterrupt, which an operator cannot raise."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None
        raise


def as_lengths(lengths: Lengths | None, log_probs: Tensor) -> Tensor | None:
    """Lengths on the device of log_probs: lists and CPU tensors are welcome."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths) if len(lengths) > 0 else torch.empty(0, dtype=torch.int64)
    return lengths.to(log_probs.device)


def _raise_for_marked_items(
    paths: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
) -> None:
    """Raises if any item is marked, and says why one of them is. Reads the marks alone if there are none."""
    batch, frames = paths.shape
    if frames == 0:  # no entry to mark: an item with labels cannot fit, and every other length is bad
        marked = torch.full((batch,), targets.shape[1] > 0, device=paths.device)
        if target_lengths is not None:
            marked = target_lengths != 0
        if input_lengths is not None:
            marked = marked | (input_lengths != 0)
    else:
        marked = paths[:, 0] < 0
    if not bool(marked.any()):
        return
    _raise_for_bad_values(log_probs, targets, input_lengths, target_lengths, blank)
    item = int(marked.nonzero()[0, 0])
    t = frames if input_lengths is None else int(input_lengths[item])
    length = targets.shape[1] if target_lengths is None else int(target_lengths[item])
    target = targets[item, :length]
    repeats = int((target[1:] == target[:-1]).sum())
    sizes = f"T = {t} frames, L = {length} labels, R = {repeats} neighbouring repeats"
    if t < length + repeats:
        raise ValueError(
            f"forced_align: item {item} is too short for its target, expected T >= L + R = {length + repeats}, "
            f"found {sizes}"
        )
    raise ValueError(
        f"forced_align: item {item} has no path of finite score, expected one that meets no NaN and no infinity in "
        f"log_probs, found {sizes}"
    )


def _raise_for_bad_values(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor | None, target_lengths: Tensor | None, blank: int
) -> None:
    """What the CPU operator refuses and the CUDA operator marks: the words, and the order, of csrc/cpu."""
    _, frames, classes = log_probs.shape
    labels = targets.shape[1]
    for name, lengths, letter, extent in (
        ("input_lengths", input_lengths, "T", frames),
        ("target_lengths", target_lengths, "L", labels),
    ):
        for b, length in enumerate([] if lengths is None else lengths.tolist()):
            if not 0 <= length <= extent:
                raise ValueError(f"forced_align: {name}[{b}] must be between 0 and {letter} = {extent}, found {length}")
    bad = (targets < 0) | (targets >= classes) | (targets == blank)
    if target_lengths is not None:
        bad &= torch.arange(labels, device=targets.device) < target_lengths[:, None]
    if not bool(bad.any()):
        return
    b, k = bad.nonzero()[0].tolist()
    label = int(targets[b, k])
    if label == blank:
        raise ValueError(
            f"forced_align: targets[{b}, {k}] must not be the blank, expected a label other than {blank}, found {label}"
        )
    raise ValueError(
        f"forced_align: targets[{b}, {k}] must be a class of log_probs, expected 0 <= label < C = {classes}, "
        f"found {label}"
    )


@dataclass
class TokenSpan:
    """A token and the frames it was aligned to, as ``torchaudio.functional.TokenSpan``.

    Attributes:
        token (int): the class.
        start (int): first frame.
        end (int): the frame behind the last one.
        score (float): mean of the scores over the span.
    """

    token: int
    start: int
    end: int
    score: float

    def __len__(self) -> int:
        """Length of the span in frames."""
        return self.end - self.start


def merge_tokens(tokens: Tensor, scores: Tensor, blank: int = 0) -> list[TokenSpan]:
    """Removes repeated tokens and blanks from the path of one item, as ``torchaudio.functional.merge_tokens``.

    Args:
        tokens (Tensor): ``(T,)`` a path, for example ``paths[b, :input_lengths[b]]``.
        scores (Tensor): ``(T,)`` a score for each of its entries, log-probabilities or probabilities.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        list of TokenSpan: one for every run of equal tokens other than ``blank``, from left to right.

    Raises:
        ValueError: the arguments do not have one dimension, or not the same length.

    Example::

        >>> merge_tokens(torch.tensor([1, 1, 0, 2]), torch.tensor([0.5, 0.75, 1.0, 1.0]))
        [TokenSpan(token=1, start=0, end=2, score=0.625), TokenSpan(token=2, start=3, end=4, score=1.0)]
    """
    if tokens.dim() != 1 or scores.dim() != 1:
        raise ValueError(
            "merge_tokens: tokens and scores must have shape (T,), "
            f"found {tuple(tokens.shape)} and {tuple(scores.shape)}"
        )
    if len(tokens) != len(scores):
        raise ValueError(
            f"merge_tokens: tokens and scores must have the same length, found {len(tokens)} and {len(scores)}"
        )
    if len(tokens) == 0:
        return []
    changes = (tokens[1:] != tokens[:-1]).nonzero().squeeze(1) + 1
    borders = [0, *changes.tolist(), len(tokens)]
    spans = []
    for start, end in pairwise(borders):
        token = int(tokens[start])
        if token != blank and token >= 0:  # the row of a marked item is -1 and spells nothing
            spans.append(TokenSpan(token, start, end, scores[start:end].mean().item()))
    return spans


class TokenSpans(NamedTuple):
    """Where every target token of a batch was spoken.

    Attributes:
        starts (Tensor): ``(B, L)`` int64, first frame; -1 for padding and for marked items.
        ends (Tensor): ``(B, L)`` int64, the frame behind the last one; -1 for padding and for marked items.
        scores (Tensor): ``(B, L)``, dtype of the scores given; mean log-probability over the span (nats); 0 for
            padding, -inf for marked items.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor


def token_spans(paths: Tensor, scores: Tensor, targets: Tensor, blank: int = 0) -> TokenSpans:
    """Finds the frames of every target token of a batch, without leaving the device.

    A token begins where the path enters a label and ends where it leaves it. No loop over tokens and no
    synchronisation: it compiles into one graph with whatever stands around it.

    Args:
        paths (Tensor): ``(B, T)`` from :func:`forced_align`.
        scores (Tensor): ``(B, T)`` from :func:`forced_align`.
        targets (Tensor): ``(B, L)``, the targets that were aligned; only its shape is used.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        TokenSpans: start frame, end frame (exclusive) and mean log-probability, each ``(B, L)``.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if paths.dim() != 2 or paths.shape != scores.shape:
        raise ValueError(
            "token_spans: paths and scores must have the same shape (B, T), "
            f"found {tuple(paths.shape)} and {tuple(scores.shape)}"
        )
    if targets.dim() != 2 or targets.shape[0] != paths.shape[0]:
        raise ValueError(
            f"token_spans: targets must have shape (B, L) with B = {paths.shape[0]} as in paths, "
            f"found {tuple(targets.shape)}"
        )
    batch, frames = paths.shape
    labels = targets.shape[1]
    spoken = (paths != blank) & (paths >= 0)
    before = torch.nn.functional.pad(paths, (1, 0), value=blank)[:, :-1]
    begins = spoken & (paths != before)
    # The token of every frame; frames that spell nothing, and the row of a marked item, fall into one more column.
    token = torch.where(spoken, begins.cumsum(1) - 1, labels)

    frame = torch.arange(frames, device=paths.device).expand(batch, frames)
    empty = torch.full((batch, labels + 1), -1, dtype=torch.int64, device=paths.device)
    starts = empty.scatter_reduce(1, token, frame, "amin", include_self=False)[:, :labels]
    ends = empty.scatter_reduce(1, token, frame + 1, "amax", include_self=False)[:, :labels]
    # Half types would lose digits in a sum over a long span.
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    sums = wide.new_zeros((batch, labels + 1)).scatter_add(1, token, torch.where(spoken, wide, 0))[:, :labels]
    means = sums / (ends - starts).clamp(min=1)
    means = torch.where((paths < 0).any(1, keepdim=True), -torch.inf, means)
    return TokenSpans(starts, ends, means.to(scores.dtype))
