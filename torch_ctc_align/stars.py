"""Stars: a score for anything, the gaps of a target that may take it, and where a path took it."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torch_ctc_align._arguments import (
    FLOATS,
    INTEGERS,
    Lengths,
    brief,
    check_blank,
    check_targets,
    check_tensor,
    dtype_name,
    index_of,
    kind_of,
)
from torch_ctc_align._forced_align import GAP_STAR
from torch_ctc_align._refusals import refusal
from torch_ctc_align._torch_seam import is_plain
from torch_ctc_align.spans import (
    TokenSpan,
    TokenSpans,
    check_paths_and_scores,
    find_tokens,
    raise_for_wrong_path,
    read_runs,
    spans_of,
)

__all__ = ["GAP_STAR", "merge_stars", "star_scores", "star_spans", "wild_gaps"]

Where = Literal["ends", "words", "all"]
TokensPerWord = Tensor | Sequence[int] | Sequence[Sequence[int]]


def star_scores(log_probs: Tensor, penalty: float = 0.5) -> Tensor:
    r"""Scores a star at every frame: the log-probability of the frame's best class, less a penalty.

    A star stands for anything: sound that the transcript leaves out, or a token whose spelling is unknown. Its score
    has to follow how sure the model is, so it is not a constant: 0, the usual choice, is what a model that is sure
    gives, and takes frames away from one that is not. By how much the borders of words moved, the mean in frames of
    20 ms and the share that moved by more than 100 ms (115 recordings, a phoneme model, ``docs/measurements/stars.md``;
    "unsure" is the same model, with its log-probabilities times 0.35):

    =============================================  ============  =============  =============  ============
    transcript; gaps that are wild                 no star       constant 0     best - 0.5     best - 2
    =============================================  ============  =============  =============  ============
    right; between all words                       0             0.14, 0.03 %   0.002, 0 %     0
    right; between all words; unsure               0             1.31, 9.4 %    0              0
    foreign sound in front; both ends              3.10, 1.6 %   0.005, 0 %     0              0.16, 0.2 %
    four words left out; the one at their place    1.62, 3.7 %   0.02, 0 %      0.01, 0.04 %   0.02, 0.2 %
    four words left out; that one; unsure          1.62, 3.7 %   10.85, 21 %    0.02, 0.2 %    0.58, 1.8 %
    =============================================  ============  =============  =============  ============

    Penalties from 0.25 to 1 do nearly the same. A smaller one takes frames of right words, a larger one squeezes the
    words beside what was left out. Hence 0.5.

    Args:
        log_probs (Tensor): ``(B, T, C)`` float16, bfloat16, float32 or float64, natural-log probabilities.
        penalty (float): nats, at least 0; ``math.inf`` is a star that is never taken. Default: 0.5.

    Returns:
        Tensor: ``(B, T)``, dtype of ``log_probs``; the argument ``star_scores`` of :func:`forced_align`. Differentiable
        with respect to ``log_probs``. A frame with NaN or an infinite probability has no star.

    Raises:
        AlignmentError: ``log_probs`` does not have the shape or dtype above, or ``penalty`` is negative or NaN.
        TypeError: ``log_probs`` is not a tensor.

    Works in graphs and on any device, and waits for nothing.

    Example::

        >>> star_scores(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log(), penalty=1.0).exp()
        tensor([[0.2759, 0.1839]])
    """
    return score_stars("star_scores", "penalty", log_probs, penalty)


def score_stars(name: str, argument: str, log_probs: Tensor, penalty: float) -> Tensor:
    """:func:`star_scores` for any public function, which calls the penalty ``argument``."""
    check_tensor(name, "log_probs", log_probs, "(B, T, C)")
    if log_probs.dim() != 3 or log_probs.shape[2] == 0:
        raise refusal(name, None, f"log_probs must have shape (B, T, C), found {tuple(log_probs.shape)}")
    if log_probs.dtype not in FLOATS:
        raise refusal(
            name, None, f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}"
        )
    if not isinstance(penalty, Tensor) and not penalty >= 0:
        raise refusal(name, None, f"{argument} must be at least 0, found {penalty}")
    return log_probs.amax(-1) - penalty


def wild_gaps(
    targets: Tensor,
    target_lengths: Lengths | None = None,
    where: Where = "ends",
    separator: int | None = None,
    tokens_per_word: TokensPerWord | None = None,
) -> Tensor:
    """Chooses the gaps of a batch of targets that are wild: in which a path may take the star instead of the blank.

    Gap k lies before label k, and gap ``target_lengths[b]`` after the last label. The two gaps at the ends are what is
    called free ends: the recording may hold anything before and after the transcript. Works in graphs, on any device,
    without a loop over tokens and without waiting for the device.

    Args:
        targets (Tensor): ``(B, L)`` int32 or int64; entries after the target length may hold anything.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``. The values are
            not checked.
        where (str): ``"ends"``: the first gap and the last one. ``"all"``: every gap. ``"words"``: both ends and
            every gap between two words, which ``separator`` or ``tokens_per_word`` tell. Default: ``"ends"``.
        separator (int, optional): the label between words. The gap before and the gap after it are wild.
        tokens_per_word (optional): how many labels spell each word, as in :func:`merge_words`. One sequence of int for
            a batch of one, a list of sequences, or a tensor ``(B, W)`` of int32 or int64, padded with 0; in a graph
            only the tensor. If ``separator`` is given as well, the counts are without separators, and a separator
            within a word does not make a gap wild.

    Returns:
        Tensor: ``(B, L + 1)`` bool, on the device of ``targets``; false after gap ``target_lengths[b]``. The argument
        ``wild_gaps`` of :func:`forced_align`.

    Raises:
        AlignmentError: a tensor does not have the shape or dtype above; ``where`` is not one of the three; what tells
            the words is missing, or given without ``"words"``; a count is below 1; on the CPU and outside of graphs,
            the counts of an item do not add up to its labels. Elsewhere such an item has other wild gaps than meant.
        TypeError: ``targets`` is not a tensor, ``separator`` is not an int, lengths or counts are not numbers.

    Example::

        >>> targets = torch.tensor([[5, 6, 4, 7], [8, 4, 8, 9]])  # the separator is 4
        >>> wild_gaps(targets, where="words", separator=4).int()
        tensor([[1, 0, 1, 1, 1],
                [1, 1, 1, 0, 1]], dtype=torch.int32)
        >>> wild_gaps(targets, [4, 2], where="words", tokens_per_word=[[1, 3], [2]]).int()
        tensor([[1, 1, 0, 0, 1],
                [1, 0, 1, 0, 0]], dtype=torch.int32)
    """
    return choose_gaps("wild_gaps", "where", targets, target_lengths, where, separator, tokens_per_word)


def choose_gaps(
    name: str,
    argument: str,
    targets: Tensor,
    target_lengths: Lengths | None,
    where: str,
    separator: int | None,
    tokens_per_word: TokensPerWord | None,
) -> Tensor:
    """:func:`wild_gaps` for any public function, in which ``argument`` says where."""
    check_where(name, argument, where, separator, tokens_per_word)
    if where == "words" and separator is None and tokens_per_word is None:
        raise refusal(name, None, "separator or tokens_per_word must be given, to say where a word ends")
    lengths = check_targets(name, targets, target_lengths)
    batch, labels = targets.shape
    if lengths is None:
        lengths = torch.full((batch,), labels, dtype=torch.int64, device=targets.device)
    gap, last = torch.arange(labels + 1, device=targets.device), lengths[:, None]
    if where == "all":
        return gap <= last
    ends = (gap == 0) | (gap == last)
    if where == "ends":
        return ends

    pad = torch.nn.functional.pad
    in_word = torch.ones_like(targets, dtype=torch.bool) if separator is None else targets != separator
    if tokens_per_word is None:
        between = pad(~in_word, (0, 1)) | pad(~in_word, (1, 0))
    else:
        counts = _as_counts(name, tokens_per_word, targets)
        _raise_for_wrong_counts(name, counts, in_word & (gap[:labels] < last))
        # A gap lies between two words if as many labels of words come before it as the first words have.
        spelled = pad(counts.long().cumsum(1).clamp(0, labels), (1, 0))
        borders = torch.zeros_like(ends).scatter(1, spelled, True)
        between = borders.gather(1, pad(in_word.cumsum(1), (1, 0)))
    return ends | (between & (gap <= last))


def check_where(
    name: str, argument: str, where: object, separator: object, tokens_per_word: object, *, optional: bool = False
) -> None:
    """Checks which gaps are asked for, and whether that agrees with what tells the words. None is for no gap."""
    if not (optional and where is None) and (not isinstance(where, str) or where not in get_args(Where)):
        raise refusal(name, None, f"{argument} must be one of {', '.join(get_args(Where))}, found {where!r}")
    if separator is not None and (isinstance(separator, bool) or index_of(separator) is None):
        raise TypeError(f"{name}: separator must be an int, a label of targets, found {brief(separator)}")
    for other, value in (("separator", separator), ("tokens_per_word", tokens_per_word)):
        if value is not None and where != "words":
            raise refusal(
                name, None, f'{other} says where a word ends, expected {argument}="words" with it, found {where!r}'
            )


def _as_counts(name: str, tokens_per_word: Any, targets: Tensor) -> Tensor:
    """Returns the counts as a tensor (B, W), padded with 0, on the device of targets."""
    batch = targets.shape[0]
    if hasattr(tokens_per_word, "__array__"):
        is_tensor = isinstance(tokens_per_word, Tensor)
        counts = tokens_per_word if is_tensor else torch.as_tensor(tokens_per_word, device="cpu")
        if counts.dtype not in INTEGERS:
            raise refusal(name, None, f"tokens_per_word must be int32 or int64, found {dtype_name(counts)}")
        if counts.dim() == 1 and batch == 1:
            counts = counts[None]
        if counts.dim() != 2 or counts.shape[0] != batch:
            raise refusal(
                name,
                None,
                f"tokens_per_word must have shape (B, W) with B = {batch} as in targets, found {tuple(counts.shape)}",
            )
        return counts.to(targets.device)
    if isinstance(tokens_per_word, str | bytes | dict | set) or not hasattr(tokens_per_word, "__len__"):
        raise TypeError(
            f"{name}: tokens_per_word must be a tensor or sequences of int, one for each item, "
            f"found {kind_of(tokens_per_word)}"
        )
    rows = list(tokens_per_word)
    alone = not any(hasattr(row, "__len__") for row in rows) and (len(rows) > 0 or batch == 1)
    if alone:
        rows = [rows]
    if len(rows) != batch:
        found = "the counts of one item" if alone else len(rows)
        raise refusal(
            name, None, f"tokens_per_word must be one sequence for each of the B = {batch} items, found {found}"
        )
    width = max([0, *map(len, rows)])
    numbers = []
    for b, row in enumerate(rows):
        for position, count in enumerate(row):
            number = index_of(count)
            if number is None:
                raise TypeError(f"{name}: tokens_per_word must be numbers of tokens, found {brief(count)}")
            if number < 1:
                place = f"[{position}]" if alone else f"[{b}][{position}]"
                raise refusal(
                    name,
                    None,
                    f"tokens_per_word{place} must be a number of tokens, expected at least 1, found {number}",
                )
            numbers.append(number)
        numbers += [0] * (width - len(row))
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").reshape(batch, width).to(targets.device)


def _raise_for_wrong_counts(name: str, counts: Tensor, in_word: Tensor) -> None:
    """Raises if an item's counts are not those of its labels. Only on the CPU: elsewhere this would wait."""
    if torch.compiler.is_compiling() or not (counts.is_cpu and in_word.is_cpu and is_plain(counts, in_word)):
        return
    if bool((counts < 0).any()):
        b, word = (counts < 0).nonzero()[0].tolist()
        raise refusal(
            name,
            None,
            f"tokens_per_word[{b}, {word}] must be a number of tokens, expected at least 1, or 0 for padding, "
            f"found {int(counts[b, word])}",
        )
    expected, found = in_word.sum(1), counts.sum(1)
    if not torch.equal(expected, found):
        b = int((expected != found).nonzero()[0, 0])
        raise refusal(
            name,
            None,
            f"tokens_per_word must sum to the labels of words, expected {int(expected[b])} in item {b}, "
            f"found {int(found[b])}",
        )


def make_stars(
    name: str,
    log_probs: Tensor,
    targets: Tensor,
    target_lengths: Tensor | None,
    blank: int,
    star: str | None,
    star_penalty: float,
    separator: int | None,
    tokens_per_word: TokensPerWord | None,
    star_scores: Tensor | None,
    wild_gaps: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns ``star_scores`` and ``wild_gaps`` of a call: those given, or those that ``star`` stands for."""
    for argument, tensor, shape in (("star_scores", star_scores, "(B, T)"), ("wild_gaps", wild_gaps, "(B, L + 1)")):
        if tensor is not None:
            check_tensor(name, argument, tensor, shape)
    check_where(name, "star", star, separator, tokens_per_word, optional=True)
    if star is None:
        return star_scores, wild_gaps
    if wild_gaps is not None:
        raise refusal(name, None, f"wild_gaps must not be given together with star, found both, star={star!r}")
    if separator is not None and index_of(separator) == index_of(blank):
        raise refusal(name, None, f"separator must not be the blank, expected a label of targets, found {separator}")
    check_tensor(name, "log_probs", log_probs, "(B, T, C)")
    check_tensor(name, "targets", targets, "(B, L)")
    check_blank(name, blank)
    if not _fit(log_probs, targets, target_lengths):
        return log_probs, None  # the operator refuses the arguments before these, in its own words
    if star_scores is None:
        star_scores = score_stars(name, "star_penalty", log_probs, star_penalty)
    gaps = choose_gaps(name, "star", targets, target_lengths, star, separator, tokens_per_word)
    return star_scores, gaps


def _fit(log_probs: Tensor, targets: Tensor, target_lengths: Tensor | None) -> bool:
    """Returns whether shapes and dtypes are such that stars can be made."""
    return (
        log_probs.dim() == 3
        and log_probs.shape[2] > 0
        and log_probs.dtype in FLOATS
        and targets.dim() == 2
        and targets.dtype in INTEGERS
        and (
            target_lengths is None
            or (
                target_lengths.dim() == 1
                and target_lengths.shape[0] == targets.shape[0]
                and target_lengths.dtype in INTEGERS
            )
        )
    )


def star_spans(paths: Tensor, scores: Tensor, targets: Tensor, blank: int = 0) -> TokenSpans:
    """Finds the stars of every gap of a batch: sound that the transcript does not explain.

    Within a gap a path may change between star and blank. The span reaches from the first star to the last one. A star
    label is a token, and :func:`token_spans` has its span. Works in graphs, on any device, without a loop over tokens
    and without waiting for the device.

    Args:
        paths (Tensor): ``(B, T)`` from :func:`forced_align`.
        scores (Tensor): ``(B, T)`` from :func:`forced_align`.
        targets (Tensor): ``(B, L)``, the targets that were aligned.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        TokenSpans: ``(B, L + 1)`` each, one column for each gap; gap k lies before token k. First frame with a star,
        the frame after the last one with a star, and the mean score of the frames with a star (nats). A gap without a
        star holds -1, -1, 0, and so does padding; a marked item holds -1, -1, -inf.

    Raises:
        AlignmentError, TypeError: as :func:`token_spans`.

    Example::

        >>> paths = torch.tensor([[-2, -2, 0, -2, 1, 0, 2]])
        >>> scores = torch.tensor([[-0.5, -1.0, 0.0, -1.5, 0.0, 0.0, 0.0]])
        >>> star_spans(paths, scores, torch.tensor([[1, 2]]))
        TokenSpans(starts=tensor([[ 0, -1, -1]]), ends=tensor([[ 4, -1, -1]]), scores=tensor([[-1.,  0.,  0.]]))
    """
    check_paths_and_scores("star_spans", paths, scores)
    token, marked = find_tokens("star_spans", paths, targets, blank)
    raise_for_wrong_path("star_spans", paths, marked, blank)
    return stars_of(paths, token, marked, scores, targets.shape[1])


def stars_of(paths: Tensor, token: Tensor, marked: Tensor, scores: Tensor, labels: int) -> TokenSpans:
    """Returns the spans of stars, from the token of every frame."""
    gap = token.cummax(1).values + 1  # after the token before it
    return spans_of(torch.where(paths == GAP_STAR, gap, -1), marked, scores, labels + 1, in_one_piece=False)


def merge_stars(tokens: Tensor, scores: Tensor) -> list[TokenSpan]:
    """Lists the runs of gap stars in the path of one item, as :func:`merge_tokens` lists those of tokens.

    Args:
        tokens (Tensor): ``(T,)`` a path, for example ``paths[b, :input_lengths[b]]``.
        scores (Tensor): ``(T,)`` a score for each of its entries.

    Returns:
        list of TokenSpan: one for every run of :data:`GAP_STAR`, in order, with ``token=-2``; start and end in frames.
        A gap holds several runs where the path takes the blank between them.

    Raises:
        AlignmentError: an argument does not have one dimension, or their lengths differ.
        TypeError: ``tokens`` or ``scores`` is not a tensor.

    Example::

        >>> merge_stars(torch.tensor([-2, -2, 1, 0, -2]), torch.tensor([-0.5, -1.0, 0.0, 0.0, -2.0]))
        [TokenSpan(token=-2, start=0, end=2, score=-0.75), TokenSpan(token=-2, start=4, end=5, score=-2.0)]
    """
    runs, values = read_runs("merge_stars", tokens, scores)
    spans = []
    start = 0
    for token, count in runs:
        end = start + count
        if token == GAP_STAR:
            spans.append(TokenSpan(token, start, end, sum(values[start:end]) / count))
        start = end
    return spans
