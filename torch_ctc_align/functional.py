"""The typed functions: align a batch, and turn paths into spans of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_ctc_align import _mistakes
from torch_ctc_align._operator import INTEGERS, call_forced_align, dtype_name, is_plain, report
from torch_ctc_align._refusals import (
    PHRASES,
    TOO_LONG,
    brief,
    check_blank,
    check_tensor,
    explain,
    find_bad_label,
    index_of,
    kind_of,
    refusal,
)

Lengths = Tensor | Sequence[int]

_ANY_MARKED, _ANY_POSITIVE, _UNKNOWN = 1, 2, -1  # what a call of the operator reports of its results, in bits


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
        AlignmentError: a ValueError and a RuntimeError. An argument has another shape, dtype or device than above; a
            length lies outside its range; a label is the blank or no class; ``log_probs`` are probabilities or
            negative log-probabilities; with ``strict``, an item has fewer frames than labels and neighbouring
            repeats, or no path of finite score. The message names the argument and the item, and begins with
            torchaudio's phrase where torchaudio has one. On CUDA the values of lengths and labels are looked at with
            ``strict`` alone; without it an item with a bad one is marked.
        TypeError: ``log_probs`` or ``targets`` is not a tensor, lengths are not lengths, ``blank`` is not an int.
        MemoryError: there is no memory for the results, or for the work.
        KeyboardInterrupt: Ctrl-C during a long call on the CPU, within a second of it; likewise whatever another
            signal's handler raises.

    Warns:
        AlignmentWarning: scores above 0, which no log-probability has, or a layout that looks like ``(B, C, T)``; each
            once a process. They may be meant: see :class:`AlignmentWarning` for how to turn them off.

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
    if input_lengths is not None:
        input_lengths = as_lengths("forced_align", "input_lengths", input_lengths, log_probs)
    if target_lengths is not None:
        target_lengths = as_lengths("forced_align", "target_lengths", target_lengths, log_probs)
    plain = not torch.compiler.is_compiling() and is_plain(log_probs, targets, input_lengths, target_lengths)
    align = call_forced_align if plain else torch.ops.ctc_align.forced_align
    try:
        paths, scores = align(log_probs, targets, input_lengths, target_lengths, blank)
    except Exception as error:
        raise explain("forced_align", error, log_probs, targets, target_lengths, blank) from None
    # A graph or a tracer looks at no value, and a fake tensor has none; with strict they end below.
    seen = report(paths.data_ptr()) if plain and paths.is_cpu else _UNKNOWN
    if seen >= _ANY_POSITIVE or (seen != _UNKNOWN and _mistakes.is_due()):
        _mistakes.look_at("forced_align", seen >= _ANY_POSITIVE, log_probs, scores, input_lengths)
    if strict and seen & _ANY_MARKED:
        _raise_for_marked_items(paths, log_probs, targets, input_lengths, target_lengths, blank)
    return paths, scores


def as_lengths(name: str, argument: str, lengths: Lengths, log_probs: Tensor) -> Tensor:
    """Lengths on the device of log_probs: lists, arrays and CPU tensors are welcome."""
    if not isinstance(log_probs, Tensor):  # for the operator to refuse
        return lengths
    if isinstance(lengths, Tensor):
        if lengths.is_cpu and log_probs.is_cpu:
            return lengths
    elif not hasattr(lengths, "__len__") or isinstance(lengths, str | bytes | dict | set) or _is_scalar(lengths):
        number = index_of(lengths)
        found, advice = (kind_of(lengths), "a list") if number is None else (number, f"[{number}]")
        raise TypeError(
            f"{name}: {argument} must be a tensor or a sequence of int, one for each item, found {found}; pass {advice}"
        )
    elif len(lengths) == 0:
        lengths = torch.empty(0, dtype=torch.int64, device="cpu")
    else:
        try:
            lengths = torch.tensor(lengths, device="cpu")  # whatever the default device is
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name}: {argument} must be numbers of frames or labels, found {brief(lengths)}"
            ) from error
    return lengths.to(log_probs.device)


def _is_scalar(lengths: object) -> bool:
    return getattr(lengths, "ndim", 1) == 0  # an array of no dimension has __len__, and no length


def _raise_for_marked_items(
    paths: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
) -> None:
    """Raises if any item is marked, and says why the first of them is. Reads the marks alone if there are none."""
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
    name = "forced_align"
    # The CUDA operator marks what the CPU operator refuses. In the order of `explain`: the labels first.
    mistake = find_bad_label(log_probs, targets, target_lengths, blank)
    if mistake is not None:
        raise refusal(name, *mistake)
    _raise_for_bad_lengths(name, log_probs.shape[1], targets.shape[1], input_lengths, target_lengths)
    item = int(marked.nonzero()[0, 0])
    t = frames if input_lengths is None else int(input_lengths[item])
    labels = targets.shape[1] if target_lengths is None else int(target_lengths[item])
    repeats = int(min_frames(targets[item : item + 1], [labels])) - labels
    sizes = {"item": item, "frames": t, "labels": labels, "repeats": repeats}
    found = f"found T = {t} frames, L = {labels} labels, R = {repeats} neighbouring repeats"
    if t < labels + repeats:
        raise refusal(
            name,
            TOO_LONG,
            f"item {item} is too short for its target, expected T >= L + R = {labels + repeats}, {found}",
            **sizes,
        )
    raise refusal(
        name,
        None,
        f"item {item} has no path of finite score, expected one that meets no NaN and no infinity in log_probs, "
        f"{found}",
        **sizes,
    )


def _raise_for_bad_lengths(
    name: str, frames: int, labels: int, input_lengths: Tensor | None, target_lengths: Tensor | None
) -> None:
    """What the CPU operator refuses and the CUDA operator marks, in the words of csrc/cpu."""
    for argument, lengths, letter, extent in (
        ("input_lengths", input_lengths, "T", frames),
        ("target_lengths", target_lengths, "L", labels),
    ):
        for b, length in enumerate([] if lengths is None else lengths.tolist()):
            if not 0 <= length <= extent:
                text = f"{argument}[{b}] must be between 0 and {letter} = {extent}, found {length}"
                raise refusal(name, PHRASES[f"{argument}["], text)


def min_frames(targets: Tensor, target_lengths: Lengths | None = None) -> Tensor:
    """Counts the frames that each target needs at least: one for each label, one between two equal neighbours.

    An item can be aligned only if its input length is not below that. No synchronisation; in graphs, on any device.

    Args:
        targets (Tensor): ``(B, L)`` int32 or int64; entries behind the target length may hold anything.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``. The values are
            not checked.

    Returns:
        Tensor: ``(B,)`` int64, L + R of each item: labels, and labels that equal the one before them.

    Raises:
        AlignmentError: the shapes or dtypes are others than above.

    Example::

        >>> min_frames(torch.tensor([[1, 2, 2, 2], [1, 1, 0, 0]]), [4, 1])
        tensor([6, 1])
    """
    check_tensor("min_frames", "targets", targets, "(B, L)")
    if targets.dim() != 2:
        raise refusal("min_frames", None, f"targets must have shape (B, L), found {tuple(targets.shape)}")
    if targets.dtype not in INTEGERS:
        raise refusal("min_frames", None, f"targets must be int32 or int64, found {dtype_name(targets)}")
    batch, labels = targets.shape
    repeats = targets[:, 1:] == targets[:, :-1]
    if target_lengths is None:
        return repeats.sum(1) + labels
    lengths = as_lengths("min_frames", "target_lengths", target_lengths, targets)
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise refusal(
            "min_frames", None, f"target_lengths must have shape (B,) = ({batch},), found {tuple(lengths.shape)}"
        )
    if lengths.dtype not in INTEGERS:
        raise refusal("min_frames", None, f"target_lengths must be int32 or int64, found {dtype_name(lengths)}")
    position = torch.arange(labels, device=targets.device)[1:]
    return (repeats & (position < lengths[:, None])).sum(1) + lengths.long()


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
        AlignmentError: the arguments do not have one dimension, or not the same length.

    Warns:
        AlignmentWarning: the path looks as if another class were the blank.

    Example::

        >>> merge_tokens(torch.tensor([1, 1, 0, 2]), torch.tensor([0.5, 0.75, 1.0, 1.0]))
        [TokenSpan(token=1, start=0, end=2, score=0.625), TokenSpan(token=2, start=3, end=4, score=1.0)]
    """
    check_tensor("merge_tokens", "tokens", tokens, "(T,)")
    check_tensor("merge_tokens", "scores", scores, "(T,)")
    check_blank("merge_tokens", blank)
    if tokens.dim() != 1 or scores.dim() != 1:
        raise refusal(
            "merge_tokens",
            "`tokens` and `scores` must be 1D Tensor",
            f"tokens and scores must have shape (T,), found {tuple(tokens.shape)} and {tuple(scores.shape)}",
        )
    if len(tokens) != len(scores):
        raise refusal(
            "merge_tokens",
            "`tokens` and `scores` must be the same length",
            f"tokens and scores must have the same length, found {len(tokens)} and {len(scores)}",
        )
    # All at once to Python: an element of a tensor costs as much as a hundred of a list.
    first, counts = torch.unique_consecutive(tokens, return_counts=True)
    runs = list(zip(first.tolist(), counts.tolist(), strict=True))
    values = scores.tolist()
    spans = []
    start = 0
    for token, count in runs:
        end = start + count
        if token != blank and token >= 0:  # the row of a marked item is -1 and spells nothing
            spans.append(TokenSpan(token, start, end, sum(values[start:end]) / count))
        start = end
    if len(spans) == len(runs):
        _mistakes.look_at_path("merge_tokens", runs, blank)
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
        targets (Tensor): ``(B, L)``, the targets that were aligned.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        TokenSpans: start frame, end frame (exclusive) and mean log-probability, each ``(B, L)``.

    Raises:
        AlignmentError: the shapes do not belong together; or, on the CPU and outside of graphs, a path does not spell
            its target, as when ``blank`` was forgotten. Elsewhere such an item is marked.
    """
    check_tensor("token_spans", "paths", paths, "(B, T)")
    check_tensor("token_spans", "scores", scores, "(B, T)")
    if paths.dim() != 2 or paths.shape != scores.shape:
        raise refusal(
            "token_spans",
            None,
            f"paths and scores must have the same shape (B, T), found {tuple(paths.shape)} and {tuple(scores.shape)}",
        )
    token, marked = _find_tokens("token_spans", paths, targets, blank)
    _raise_for_wrong_path("token_spans", paths, marked, blank)
    return _spans_of(token, marked, scores, targets.shape[1])


def token_indices(paths: Tensor, targets: Tensor, blank: int = 0) -> Tensor:
    """Finds which token of its target every frame of a batch belongs to.

    No loop over tokens and no synchronisation; in graphs, on any device. With ``index`` the result, the state of the
    path in the lattice of 2L + 1 states (``docs/semantics.md``) is 2 * index + 1 where ``index >= 0``. In a blank it is
    2k behind k tokens, which ``2 * (torch.cummax(index, 1).values + 1)`` gives.

    Args:
        paths (Tensor): ``(B, T)`` from :func:`forced_align`.
        targets (Tensor): ``(B, L)``, the targets that were aligned.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        Tensor: ``(B, T)`` int64, the index into ``targets[b]`` at every frame; -1 in blanks, in padding and for marked
        items.

    Raises:
        AlignmentError: as :func:`token_spans`.

    Example::

        >>> token_indices(torch.tensor([[0, 3, 3, 0, 3, 5, 0]]), torch.tensor([[3, 3, 5]]))
        tensor([[-1,  0,  0, -1,  1,  2, -1]])
    """
    token, marked = _find_tokens("token_indices", paths, targets, blank)
    _raise_for_wrong_path("token_indices", paths, marked, blank)
    return token


def _find_tokens(name: str, paths: Tensor, targets: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """The token of every frame, (B, T), -1 where there is none; and which items are marked, (B, 1).

    An item whose path does not spell its target is marked as well.
    """
    check_blank(name, blank)
    check_tensor(name, "paths", paths, "(B, T)")
    check_tensor(name, "targets", targets, "(B, L)")
    if paths.dim() != 2:
        raise refusal(name, None, f"paths must have shape (B, T), found {tuple(paths.shape)}")
    if targets.dim() != 2 or targets.shape[0] != paths.shape[0]:
        raise refusal(
            name,
            None,
            f"targets must have shape (B, L) with B = {paths.shape[0]} as in paths, found {tuple(targets.shape)}",
        )
    labels = targets.shape[1]
    spoken = (paths != blank) & (paths >= 0)
    before = torch.nn.functional.pad(paths, (1, 0), value=blank)[:, :-1]
    token = torch.where(spoken, (spoken & (paths != before)).cumsum(1) - 1, -1)
    # Of another blank, or of other targets, the path spells something else: more labels than there are, or others.
    spelled = torch.nn.functional.pad(targets, (0, 1)).gather(1, token.clamp(0, labels))
    wrong = (spoken & ((token >= labels) | (spelled != paths))).any(1, keepdim=True)
    return torch.where(wrong, -1, token), wrong | (paths < 0).any(1, keepdim=True)


def _raise_for_wrong_path(name: str, paths: Tensor, marked: Tensor, blank: int) -> None:
    """Raises if an item is marked that has a path. On the CPU alone: elsewhere that would be to wait."""
    if torch.compiler.is_compiling() or not (paths.is_cpu and is_plain(paths, marked)):
        return
    wrong = marked & (paths >= 0).any(1, keepdim=True)
    if not bool(wrong.any()):
        return
    item = int(wrong.nonzero()[0, 0])
    raise refusal(
        name,
        None,
        f"paths[{item}] does not spell targets[{item}] with blank = {blank}; pass the blank and the targets that were "
        "aligned",
    )


def _spans_of(token: Tensor, marked: Tensor, scores: Tensor, labels: int) -> TokenSpans:
    """The spans of tokens, from the token of every frame."""
    batch, frames = token.shape
    spoken = token >= 0
    column = torch.where(spoken, token, labels)  # frames without a token fall into one more column
    frame = torch.arange(frames, device=token.device).expand(batch, frames)
    empty = torch.full((batch, labels + 1), -1, dtype=torch.int64, device=token.device)
    starts = empty.scatter_reduce(1, column, frame, "amin", include_self=False)[:, :labels]
    ends = empty.scatter_reduce(1, column, frame + 1, "amax", include_self=False)[:, :labels]
    # Half types would lose digits in a sum over a long span.
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    sums = wide.new_zeros((batch, labels + 1)).scatter_add(1, column, torch.where(spoken, wide, 0))[:, :labels]
    means = sums / (ends - starts).clamp(min=1)
    means = torch.where(marked, -torch.inf, means)
    return TokenSpans(torch.where(marked, -1, starts), torch.where(marked, -1, ends), means.to(scores.dtype))
