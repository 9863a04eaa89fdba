"""Mistakes that would pass in silence: arguments of the right shape and type, but not with the intended contents.

A mistake that cannot be intended raises an error; one that may be intended gives a warning, once. Calls that succeed do
not pay for the search: the kernel reports positive scores (csrc/cpu/forced_align.cpp). What it cannot see - a layout,
probabilities so small that the rounding of half types hides them - is looked for in the first call, the second, the
fourth and so on.
"""

import itertools

import torch
from torch import Tensor

from torch_ctc_align import errors
from torch_ctc_align._refusals import refusal

_POSITIVE = "positive scores"
_LAYOUT = "layout"

_count = itertools.count(1).__next__


def is_due() -> bool:
    """Returns whether this is the first call of a function that asks, the second, the fourth, ..."""
    number = _count()
    return number & (number - 1) == 0


def look_at(
    name: str,
    any_positive: bool,
    log_probs: Tensor,
    scores: Tensor,
    input_lengths: Tensor | None,
    paths: Tensor | None = None,
) -> None:
    """Raises or warns if emissions do not look like natural-log probabilities of shape (B, T, C).

    ``paths`` are needed where there are stars: their scores are not entries of log_probs.
    """
    with torch.no_grad():
        if any_positive and paths is not None:
            scores = scores.masked_fill((paths < 0) | (paths >= log_probs.shape[2]), 0)
            any_positive = bool((scores > 0).any())
        if any_positive:
            _look_at_positive_scores(name, log_probs, scores, input_lengths)
        elif log_probs.numel() > 0:
            _raise_for_other_numbers(name, log_probs, 0, input_lengths)
            _look_at_layout(name, log_probs)


def _look_at_positive_scores(name: str, log_probs: Tensor, scores: Tensor, input_lengths: Tensor | None) -> None:
    b, t = (scores > 0).nonzero()[0].tolist()
    if errors.was_shown(_POSITIVE) and bool((log_probs[b, t] < 0).any()):
        return
    _raise_for_other_numbers(name, log_probs, b, input_lengths)
    errors.warn_once(
        _POSITIVE,
        f"{name}: log_probs do not look like natural-log probabilities: item {b} has a score of "
        f"{float(scores[b, t]):.3g} nats at frame {t}, expected at most 0. Logits have the path of their "
        "log_softmax(-1), but not its scores and confidences. If this is meant (energies, priors subtracted), turn "
        "AlignmentWarning off",
    )


def _tolerance(log_probs: Tensor) -> float:
    """Returns how far from 1 the sum of a frame may be: a model's output sums to 1 up to the rounding of its type."""
    return max(0.01, 8 * torch.finfo(log_probs.dtype).eps)


def _raise_for_other_numbers(name: str, log_probs: Tensor, b: int, input_lengths: Tensor | None) -> None:
    """Raises if item b holds probabilities or negative log-probabilities: nothing below 0, and all frames agree."""
    frames = log_probs.shape[1] if input_lengths is None else int(input_lengths[b])
    emission = log_probs[b, : frames : frames // 64 + 1].double()  # some frames are enough
    if not bool((emission >= 0).all()) or not bool((emission > 0).any()):
        return
    between = bool(((emission > 0) & (emission < 1)).any())  # energies of 0 and 1 may be meant
    if between and bool(((emission.sum(-1) - 1).abs() < _tolerance(log_probs)).all()):
        raise refusal(
            name,
            None,
            f"log_probs must be natural-log probabilities, found probabilities: item {b} has entries from 0 to 1 "
            "that sum to 1 at every frame; pass log_probs.log(), or log_softmax in place of softmax. If this is "
            "meant, torch.ops.ctc_align.forced_align adds up any numbers",
        )
    if bool((emission.neg().logsumexp(-1).abs() < _tolerance(log_probs)).all()):
        raise refusal(
            name,
            None,
            f"log_probs must be natural-log probabilities, found their negatives: item {b} has no entry below 0; "
            "pass -log_probs. If this is meant, torch.ops.ctc_align.forced_align adds up any numbers",
        )


def _look_at_layout(name: str, log_probs: Tensor) -> None:
    if log_probs.shape[1] < 2 or log_probs.shape[2] < 2:
        return

    def sums_to_one(entries: Tensor) -> bool:
        return abs(float(entries.double().logsumexp(0))) < _tolerance(log_probs)

    classes = log_probs.shape[2]
    if sums_to_one(log_probs[0, 0]) or not all(sums_to_one(log_probs[0, :, c]) for c in (0, classes // 2, classes - 1)):
        return
    errors.warn_once(
        _LAYOUT,
        f"{name}: log_probs of shape {tuple(log_probs.shape)} sum to 1 over dimension 1, and not over dimension 2: "
        "they look like (B, C, T), expected (B, T, C); pass log_probs.transpose(1, 2). If this is meant, turn "
        "AlignmentWarning off",
    )


def look_at_path(name: str, runs: list[tuple[int, int]], blank: int) -> None:
    """Warns if another class looks like the blank of a path that has no blank.

    Args:
        name: the public function.
        runs: (token, frames) of every run of the path.
        blank: the class that was passed as blank.
    """
    frames: dict[int, int] = {}
    times: dict[int, int] = {}
    for token, count in runs:
        frames[token] = frames.get(token, 0) + count
        times[token] = times.get(token, 0) + 1
    most = max(frames, key=frames.__getitem__, default=blank)
    total = sum(frames.values())
    if times.get(most, 0) > 2 and 2 * frames[most] > total:
        errors.warn_once(
            "blank",
            f"{name}: the path has no frame of class {blank}, the blank, and {frames[most]} of its {total} frames in "
            f"class {most}; if that is the blank, pass blank={most}",
        )
