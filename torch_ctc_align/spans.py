"""From paths to tokens: spans of one item or of a batch, the token of every frame, and durations."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from torch_ctc_align import _mistakes
from torch_ctc_align._arguments import Lengths, as_lengths, brief, check_blank, check_tensor, dtype_name
from torch_ctc_align._forced_align import MARKED
from torch_ctc_align._refusals import refusal
from torch_ctc_align._torch_seam import is_plain, name_for_export

Blanks = Literal["split", "before", "after", "drop"]
Frames = TypeVar("Frames", float, Tensor)


@dataclass
class TokenSpan:
    """A token and the frames it was aligned to, as ``torchaudio.functional.TokenSpan``.

    Attributes:
        token (int): the class.
        start (int): first frame.
        end (int): the frame after the last one.
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
        list of TokenSpan: one for every run of equal tokens other than ``blank``, in order; start and end in frames.

    Raises:
        AlignmentError: an argument does not have one dimension, or their lengths differ.
        TypeError: ``tokens`` or ``scores`` is not a tensor, or ``blank`` is not an int.

    Warns:
        AlignmentWarning: another class looks like the blank of the path. Shown once a process.

    Example::

        >>> merge_tokens(torch.tensor([1, 1, 0, 2]), torch.tensor([0.5, 0.75, 1.0, 1.0]))
        [TokenSpan(token=1, start=0, end=2, score=0.625), TokenSpan(token=2, start=3, end=4, score=1.0)]
    """
    check_blank("merge_tokens", blank)
    runs, values = read_runs("merge_tokens", tokens, scores)
    spans = []
    start = 0
    for token, count in runs:
        end = start + count
        if token != blank and token >= 0:  # a marked item spells nothing, nor does the star of a gap
            spans.append(TokenSpan(token, start, end, sum(values[start:end]) / count))
        start = end
    if len(spans) == len(runs):
        _mistakes.look_at_path("merge_tokens", runs, blank)
    return spans


def read_runs(name: str, tokens: Tensor, scores: Tensor) -> tuple[list[tuple[int, int]], list[float]]:
    """Returns the runs of a path, (token, frames) each, and its scores."""
    check_tensor(name, "tokens", tokens, "(T,)")
    check_tensor(name, "scores", scores, "(T,)")
    theirs = name == "merge_tokens"  # torchaudio has it, and phrases for its mistakes
    if tokens.dim() != 1 or scores.dim() != 1:
        raise refusal(
            name,
            "`tokens` and `scores` must be 1D Tensor" if theirs else None,
            f"tokens and scores must have shape (T,), found {tuple(tokens.shape)} and {tuple(scores.shape)}",
        )
    if len(tokens) != len(scores):
        raise refusal(
            name,
            "`tokens` and `scores` must be the same length" if theirs else None,
            f"tokens and scores must have the same length, found {len(tokens)} and {len(scores)}",
        )
    # All go to Python at once: reading an element of a tensor costs as much as reading a hundred of a list.
    first, counts = torch.unique_consecutive(tokens, return_counts=True)
    return list(zip(first.tolist(), counts.tolist(), strict=True)), scores.tolist()


class TokenSpans(NamedTuple):
    """Where each target token of a batch was spoken.

    Attributes:
        starts (Tensor): ``(B, L)`` int64, first frame; -1 for padding and for marked items.
        ends (Tensor): ``(B, L)`` int64, the frame after the last one; -1 for padding and for marked items.
        scores (Tensor): ``(B, L)``, dtype of the scores given; mean log-probability over the span (nats); 0 for
            padding, -inf for marked items.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor


name_for_export(TokenSpans, "torch_ctc_align.TokenSpans")


def token_spans(paths: Tensor, scores: Tensor, targets: Tensor, blank: int = 0) -> TokenSpans:
    """Finds the frames of every target token of a batch, without leaving the device.

    A token begins where the path enters a label and ends where it leaves it. There is no loop over tokens, and nothing
    waits for the device: the function compiles into one graph with the code around it.

    Args:
        paths (Tensor): ``(B, T)`` from :func:`forced_align`.
        scores (Tensor): ``(B, T)`` from :func:`forced_align`.
        targets (Tensor): ``(B, L)``, the targets that were aligned.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        TokenSpans: start frame, end frame (exclusive) and mean log-probability, each ``(B, L)``.

    Raises:
        AlignmentError: the shapes do not fit together; or, on the CPU and outside of graphs, a path does not spell its
            target, for example because ``blank`` was forgotten. Elsewhere such an item is marked.
        TypeError: an argument is not a tensor, or ``blank`` is not an int.
    """
    check_paths_and_scores("token_spans", paths, scores)
    token, marked = find_tokens("token_spans", paths, targets, blank)
    raise_for_wrong_path("token_spans", paths, marked, blank)
    return spans_of(token, marked, scores, targets.shape[1])


def token_indices(paths: Tensor, targets: Tensor, blank: int = 0) -> Tensor:
    """Finds the token of the target that every frame of a batch belongs to.

    Works in graphs, on any device, without a loop over tokens and without waiting for the device. If ``index`` is the
    result, the state of the path in the lattice of 2L + 1 states (``docs/semantics.md``) is ``2 * index + 1`` where
    ``index >= 0``. In a blank after k tokens it is 2k, which is ``2 * (torch.cummax(index, 1).values + 1)``.

    Args:
        paths (Tensor): ``(B, T)`` from :func:`forced_align`.
        targets (Tensor): ``(B, L)``, the targets that were aligned.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        Tensor: ``(B, T)`` int64, the index into ``targets[b]`` at every frame; -1 in blanks, in padding and for marked
        items.

    Raises:
        AlignmentError, TypeError: as :func:`token_spans`.

    Example::

        >>> token_indices(torch.tensor([[0, 3, 3, 0, 3, 5, 0]]), torch.tensor([[3, 3, 5]]))
        tensor([[-1,  0,  0, -1,  1,  2, -1]])
    """
    token, marked = find_tokens("token_indices", paths, targets, blank)
    raise_for_wrong_path("token_indices", paths, marked, blank)
    return token


def check_paths_and_scores(name: str, paths: Tensor, scores: Tensor) -> None:
    """Raises unless both are tensors of the same shape (B, T)."""
    check_tensor(name, "paths", paths, "(B, T)")
    check_tensor(name, "scores", scores, "(B, T)")
    if paths.dim() != 2 or paths.shape != scores.shape:
        raise refusal(
            name,
            None,
            f"paths and scores must have the same shape (B, T), found {tuple(paths.shape)} and {tuple(scores.shape)}",
        )


def find_tokens(name: str, paths: Tensor, targets: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Returns the token of every frame, (B, T), -1 where there is none; and whether each item is marked, (B, 1).

    An item whose path does not spell its target counts as marked as well.
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
    spoken = (paths != blank) & (paths >= 0)  # neither marked nor the star of a gap
    before = torch.nn.functional.pad(paths, (1, 0), value=blank)[:, :-1]
    token = torch.where(spoken, (spoken & (paths != before)).cumsum(1) - 1, -1)
    # With a wrong blank or wrong targets the path spells too many labels, or others.
    spelled = torch.nn.functional.pad(targets, (0, 1)).gather(1, token.clamp(0, labels))
    wrong = (spoken & ((token >= labels) | (spelled != paths))).any(1, keepdim=True)
    return torch.where(wrong, -1, token), wrong | (paths == MARKED).any(1, keepdim=True)


def raise_for_wrong_path(name: str, paths: Tensor, marked: Tensor, blank: int) -> None:
    """Raises if an item is marked that has a path. Only on the CPU: elsewhere this would wait for the device."""
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


def spans_of(token: Tensor, marked: Tensor, scores: Tensor, labels: int, *, in_one_piece: bool = True) -> TokenSpans:
    """Returns the spans of tokens, from the token of every frame, -1 where there is none.

    Scores are means over the frames of a token, which may be fewer than those of its span unless it is in one piece.
    """
    batch, frames = token.shape
    spoken = token >= 0
    column = torch.where(spoken, token, labels)  # frames without a token go into one more column
    frame = torch.arange(frames, device=token.device).expand(batch, frames)
    empty = torch.full((batch, labels + 1), -1, dtype=torch.int64, device=token.device)
    starts = empty.scatter_reduce(1, column, frame, "amin", include_self=False)[:, :labels]
    ends = empty.scatter_reduce(1, column, frame + 1, "amax", include_self=False)[:, :labels]
    # A sum over a long span would lose digits in a half type.
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    sums = wide.new_zeros((batch, labels + 1)).scatter_add(1, column, torch.where(spoken, wide, 0))[:, :labels]
    counts = ends - starts
    if not in_one_piece:
        counts = torch.zeros_like(empty).scatter_add(1, column, spoken.long())[:, :labels]
    means = sums / counts.clamp(min=1)
    means = torch.where(marked, -torch.inf, means)
    return TokenSpans(torch.where(marked, -1, starts), torch.where(marked, -1, ends), means.to(scores.dtype))


def token_durations(
    spans: TokenSpans,
    input_lengths: Lengths | int,
    *,
    blanks: Blanks = "split",
    stars: TokenSpans | tuple[()] | None = None,
) -> Tensor:
    """Counts the frames of every target token of a batch; the blanks between two tokens go to one of them, or to both.

    With ``"split"``, ``"before"`` and ``"after"`` the durations of an item add up to its input length, which the length
    regulator of a speech synthesiser needs: the first token begins at frame 0, and the last one ends with the input.
    Works in graphs, on any device, without a loop over tokens and without waiting for the device.

    Args:
        spans (TokenSpans): from :func:`token_spans`; ``(B, L)`` each.
        input_lengths (Tensor, sequence of int, or int): ``(B,)`` frames in use, those that were aligned; one number if
            all items have the same, ``log_probs.shape[1]`` if all frames were aligned. The values are not checked.
        blanks (str): which token gets the frames between tokens k and k + 1. ``"split"``: each gets half of them, with
            the border at ``(ends[k] + starts[k + 1]) // 2``. ``"before"``: the token before them, border
            ``starts[k + 1]``. ``"after"``: the token after them, border ``ends[k]``. ``"drop"``: neither; frames before
            the first token and after the last one are dropped as well, and a duration is ``ends - starts``. Default:
            ``"split"``.
        stars (TokenSpans, optional): from :func:`star_spans`; ``(B, L + 1)`` each. From the first star of a gap to its
            last one the frames belong to no token. The blanks between a token and a star go to that token, unless
            ``blanks`` is ``"drop"``; those before a star in the first gap, and after one in the last gap, belong to no
            token. So durations add up to the input length less these frames. Default: no stars.

    Returns:
        Tensor: ``(B, L)`` int64, frames of each token; 0 for padding and for marked items.

        An item of 0 labels has no token that could get its frames: all its durations are 0.

    Raises:
        ValueError: ``blanks`` is not one of the four; ``input_lengths`` or ``stars`` do not have the shape or dtype
            above.
        TypeError: ``input_lengths`` are not numbers of frames.

    Example::

        >>> spans = TokenSpans(torch.tensor([[2, 5]]), torch.tensor([[3, 7]]), torch.zeros(1, 2))
        >>> token_durations(spans, 9)  # frames 0 to 3, and 4 to 8
        tensor([[4, 5]])
        >>> token_durations(spans, 9, blanks="before"), token_durations(spans, 9, blanks="after")
        (tensor([[5, 4]]), tensor([[3, 6]]))
        >>> token_durations(spans, 9, blanks="drop")
        tensor([[1, 2]])
        >>> stars = TokenSpans(*(torch.tensor([[-1, x, -1]]) for x in (3, 4, 0)))  # frame 3 is a star
        >>> token_durations(spans, 9, stars=stars)
        tensor([[3, 5]])
    """
    check_blanks("token_durations", "blanks", blanks)
    starts, ends, _ = spans
    batch = starts.shape[0]
    if input_lengths is None:
        raise ValueError("token_durations: input_lengths must be given, log_probs.shape[1] for all frames, found None")
    if isinstance(input_lengths, int | torch.SymInt):
        lengths = starts.new_full((batch,), input_lengths)
    else:
        lengths = as_lengths("token_durations", "input_lengths", input_lengths, starts)
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise ValueError(
            f"token_durations: input_lengths must be a number or have shape (B,) = ({batch},) as in spans, "
            f"found {tuple(lengths.shape)}"
        )
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token_durations: input_lengths must be int32 or int64, found {dtype_name(lengths)}")
    if stars:
        check_stars("token_durations", stars, starts)
    if blanks == "drop":
        return ends - starts  # -1 - -1 for padding and for marked items

    def shift(tensor: Tensor, by: int) -> Tensor:
        """Moves column k to column k + by, and brings in zeros."""
        padded = torch.nn.functional.pad(tensor, (1, 1))
        return padded[:, 1 - by : padded.shape[1] - 1 - by]

    borders = borders_between(ends, shift(starts, -1), blanks)
    spoken = starts >= 0
    stops = torch.where(shift(spoken, -1), borders, lengths.long()[:, None])
    begins = shift(stops, 1)
    if stars:  # a token begins after the star of the gap before it, and stops at that of the gap after it
        begins = torch.where(stars[1][:, :-1] >= 0, stars[1][:, :-1], begins)
        stops = torch.where(stars[0][:, 1:] >= 0, stars[0][:, 1:], stops)
    return torch.where(spoken, stops - begins, 0)


def check_stars(name: str, stars: Any, starts: Tensor) -> None:
    """Raises ValueError unless there is a column of stars for each gap of these tokens."""
    expected = (starts.shape[0], starts.shape[1] + 1)
    if len(stars) != 3 or not all(isinstance(column, Tensor) for column in stars):
        raise ValueError(f"{name}: stars must be TokenSpans from star_spans, found {brief(stars)}")
    if any(column.shape != expected for column in stars):
        found = ", ".join(str(tuple(column.shape)) for column in stars)
        raise ValueError(f"{name}: stars must have shape (B, L + 1) = {expected}, found {found}")


def check_blanks(name: str, argument: str, blanks: object, *others: str) -> None:
    """Raises ValueError if an argument is not one of ``Blanks``; ``others`` are further choices of the function."""
    if not isinstance(blanks, str) or blanks not in get_args(Blanks):
        raise ValueError(
            f"{name}: {argument} must be one of {', '.join((*get_args(Blanks), *others))}, found {blanks!r}"
        )


def borders_between(ends: Frames, next_starts: Frames, blanks: Blanks) -> Frames:
    """Returns the frame at which two neighbouring tokens or words meet, for all of ``Blanks`` but ``"drop"``.

    Args:
        ends: the frame after the first neighbour.
        next_starts: the first frame of the second neighbour.
        blanks: which of them gets the frames between them.
    """
    if blanks == "split":
        return (ends + next_starts) // 2
    return next_starts if blanks == "before" else ends
