"""The operators as typed functions: the best path, and sums over all paths; and the frames that a target needs."""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torch_ctc_align import _mistakes
from torch_ctc_align import _posteriors as _posteriors  # registers what torch must know of its operators
from torch_ctc_align._arguments import Lengths, as_lengths, check_targets, check_tensor
from torch_ctc_align._forced_align import MARKED, call_forced_align
from torch_ctc_align._library import report
from torch_ctc_align._refusals import TOO_LONG, explain, find_bad_label, refusal
from torch_ctc_align._torch_seam import is_plain

# Pickles and programs made before spans.py name these here.
from torch_ctc_align.spans import TokenSpan, TokenSpans, merge_tokens, token_indices, token_spans
from torch_ctc_align.stars import TokensPerWord, Where, make_stars

__all__ = [
    "Lengths",
    "TokenSpan",
    "TokenSpans",
    "class_posteriors",
    "forced_align",
    "merge_tokens",
    "min_frames",
    "posteriors",
    "span_posteriors",
    "token_indices",
    "token_spans",
]

_ANY_MARKED, _ANY_POSITIVE, _UNKNOWN = 1, 2, -1  # bits of what a call of the operator reports of its results


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    strict: bool = True,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
    star: Where | None = None,
    star_penalty: float = 0.5,
    separator: int | None = None,
    tokens_per_word: TokensPerWord | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds the most probable CTC path that spells each target.

    Every item of the batch is aligned over its own frames and labels, as it would be alone. When several paths are
    equally good, staying in a state wins over advancing, advancing over skipping a blank, and ending in the last
    label over ending in the last blank. Argument for argument compatible with
    ``torchaudio.functional.forced_align``.

    Args:
        log_probs (Tensor): ``(B, T, C)`` float16, bfloat16, float32 or float64, natural-log probabilities; any
            strides. No path goes through an entry that is NaN, infinite, or 2^100 and more.
        targets (Tensor): ``(B, L)`` int32 or int64, classes other than ``blank``; entries after the target length
            may hold anything.
        input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
        blank (int): the class that spells nothing. Default: 0.
        strict (bool): whether to raise if any item has no path. If false, such an item is marked instead, and the
            other items are returned as usual. Default: true.
        star_scores (Tensor, optional): ``(B, T)``, dtype of ``log_probs``; what a *star*, which stands for anything,
            scores at every frame, as from :func:`star_scores`. With it the label C is the star: a token whose spelling
            is unknown, for one frame or more. Default: no stars, or with ``star`` those of :func:`star_scores`.
        wild_gaps (Tensor, optional): ``(B, L + 1)`` bool, as from :func:`wild_gaps`; the gaps before, between and after
            the labels in which a path takes the star wherever it scores more than the blank. Not together with
            ``star``. Default: none.
        star (str, optional): ``"ends"``, ``"words"`` or ``"all"``: makes ``wild_gaps`` of both ends, of both ends and
            all gaps between words, or of all gaps. For recordings that hold more than the transcript. Default: None.
        star_penalty (float): nats; :func:`star_scores` has how it was chosen. Only for star scores that are made here.
            Default: 0.5.
        separator, tokens_per_word (optional): what tells the words for ``star="words"``, as in :func:`wild_gaps`.

    Returns:
        paths (Tensor): ``(B, T)``, dtype of ``targets``; the class of every frame, ``blank`` after the input length.
            C at a star label, -2 (``GAP_STAR``) where a wild gap took the star.
        scores (Tensor): ``(B, T)``, dtype of ``log_probs``; the log-probability of every path entry (nats), 0 after
            the input length. That of a star is its entry of ``star_scores``. Differentiable with respect to
            ``log_probs`` and ``star_scores``.

        An item without any path is marked: its row of ``paths`` is -1, its row of ``scores`` -inf.

    Raises:
        AlignmentError: a ValueError and a RuntimeError. An argument does not have the shape, dtype or device above; a
            length lies outside its range; a label is the blank or not a class; ``log_probs`` are probabilities or
            negative log-probabilities; with ``strict``, an item has fewer frames than labels and neighbouring
            repeats, or no path of finite score. The message names the argument and the item, and begins with
            torchaudio's phrase where torchaudio has one. On CUDA the values of lengths and labels are checked only
            with ``strict``; without it an item with a bad value is marked. Also for what :func:`star_scores` and
            :func:`wild_gaps` refuse.
        TypeError: what should be a tensor is none, lengths or counts are not numbers, ``blank`` or ``separator`` is not
            an int.
        MemoryError: there is not enough memory for the results, or for the work.
        KeyboardInterrupt: Ctrl-C during a long call on the CPU, within a second of it. The exception of any other
            signal handler ends the call in the same way.

    Warns:
        AlignmentWarning: a score is above 0, so ``log_probs`` are not log-probabilities; or the layout looks like
            ``(B, C, T)``. Each is shown once a process; :class:`AlignmentWarning` says how to turn them off.

    The result depends neither on the number of threads nor on the other items. Time is ``O((T - L) L)`` an item.
    Memory beside the outputs is a quarter of a byte for each of about ``(T - L) L`` cells on short recordings, and
    some 160 bytes a frame on long ones; on the CPU :func:`set_memory_budget` makes it less. Source: Graves et al. 2006,
    section 4.1, with a maximum for the sum; ``docs/semantics.md``, and ``reference.py`` in a page of Python.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> paths, scores = forced_align(log_probs[None], torch.tensor([[1, 2]]))
        >>> paths
        tensor([[1, 0, 2]])
        >>> scores.exp()
        tensor([[0.8000, 0.7000, 0.7000]])

    The recording begins with something that is not in the target, here class 2::

        >>> speech = torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.7, 0.1, 0.2]]).log()
        >>> forced_align(speech[None], torch.tensor([[1]]), star="ends")[0]
        tensor([[-2, -2,  1,  0]])
    """
    if input_lengths is not None:
        input_lengths = as_lengths("forced_align", "input_lengths", input_lengths, log_probs)
    if target_lengths is not None:
        target_lengths = as_lengths("forced_align", "target_lengths", target_lengths, log_probs)
    plain = not is_compiling() and is_plain(log_probs, targets, input_lengths, target_lengths)
    align = call_forced_align if plain else torch.ops.ctc_align.forced_align
    has_stars = (
        star is not None
        or star_scores is not None
        or wild_gaps is not None
        or separator is not None
        or tokens_per_word is not None
    )
    if has_stars:
        star_scores, wild_gaps = make_stars(
            "forced_align",
            log_probs,
            targets,
            target_lengths,
            blank,
            star,
            star_penalty,
            separator,
            tokens_per_word,
            star_scores,
            wild_gaps,
        )
        plain = plain and is_plain(log_probs, targets, star_scores, wild_gaps)
    try:
        if has_stars:
            paths, scores = torch.ops.ctc_align.forced_align(
                log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps
            )
        else:
            paths, scores = align(log_probs, targets, input_lengths, target_lengths, blank)
    except Exception as error:
        raise explain("forced_align", error, log_probs, targets, target_lengths, blank, star_scores) from None
    # Graphs and tracers look at no values, and fake tensors have none; with strict they end below.
    seen = report(paths.data_ptr()) if plain and paths.is_cpu else _UNKNOWN
    if seen >= _ANY_POSITIVE or (seen != _UNKNOWN and _mistakes.is_due()):
        with_stars = paths if has_stars else None
        _mistakes.look_at("forced_align", seen >= _ANY_POSITIVE, log_probs, scores, input_lengths, with_stars)
    if strict and seen & _ANY_MARKED:
        _raise_for_marked_items(paths, log_probs, targets, input_lengths, target_lengths, blank, star_scores)
    return paths, scores


def _raise_for_marked_items(
    paths: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
    star_scores: Tensor | None,
) -> None:
    """Raises if any item is marked, and says why the first one is. If none is, only the marks are read."""
    batch, frames = paths.shape
    if frames == 0:  # no entry to mark: items with labels do not fit, and all other lengths are bad
        marked = torch.full((batch,), targets.shape[1] > 0, device=paths.device)
        if target_lengths is not None:
            marked = target_lengths != 0
        if input_lengths is not None:
            marked = marked | (input_lengths != 0)
    else:
        marked = paths[:, 0] == MARKED
    if not bool(marked.any()):
        return
    name = "forced_align"
    # The CUDA operator marks what the CPU operator refuses. The labels come first, as in `explain`.
    mistake = find_bad_label(log_probs, targets, target_lengths, blank, star_scores)
    if mistake is not None:
        raise refusal(name, *mistake)
    _raise_for_bad_lengths(log_probs, targets, input_lengths, target_lengths, blank)
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
    emissions = "log_probs" if star_scores is None else "log_probs and star_scores"
    raise refusal(
        name,
        None,
        f"item {item} has no path of finite score, expected one that meets no NaN and no infinity in {emissions}, "
        f"{found}",
        **sizes,
    )


def _raise_for_bad_lengths(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor | None, target_lengths: Tensor | None, blank: int
) -> None:
    """Raises for a length out of range, in the words of the CPU operator: it reads a copy of the lengths.

    Of the other tensors it gets only the extents. It checks lengths first and labels next, and here all labels are the
    blank, so it refuses before it aligns anything.
    """
    emissions = torch.zeros((), device="cpu").expand(log_probs.shape)
    blanks = torch.full((), blank, device="cpu").expand(targets.shape)
    lengths = [None if tensor is None else tensor.cpu() for tensor in (input_lengths, target_lengths)]
    try:
        torch.ops.ctc_align.forced_align(emissions, blanks, *lengths, blank)
    except (ValueError, RuntimeError) as error:
        if "_lengths[" in str(error):
            raise explain("forced_align", error, log_probs, targets, target_lengths, blank) from None


def min_frames(targets: Tensor, target_lengths: Lengths | None = None) -> Tensor:
    """Counts the frames that each target needs at least: one for each label, one between two equal neighbours.

    An item can be aligned only if its input length is at least that. Works in graphs, on any device, without waiting
    for the device.

    Args:
        targets (Tensor): ``(B, L)`` int32 or int64; entries after the target length may hold anything.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``. The values are
            not checked.

    Returns:
        Tensor: ``(B,)`` int64, L + R of each item: labels, and labels that equal the one before them.

    Raises:
        AlignmentError: a tensor does not have the shape or dtype above.
        TypeError: ``targets`` is not a tensor, or ``target_lengths`` are not numbers of labels.

    Example::

        >>> min_frames(torch.tensor([[1, 2, 2, 2], [1, 1, 0, 0]]), [4, 1])
        tensor([6, 1])
    """
    lengths = check_targets("min_frames", targets, target_lengths)
    labels = targets.shape[1]
    repeats = targets[:, 1:] == targets[:, :-1]
    if lengths is None:
        return repeats.sum(1) + labels
    position = torch.arange(labels, device=targets.device)[1:]
    return (repeats & (position < lengths[:, None])).sum(1) + lengths.long()


def posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds the probability of being in each target token at every frame, over all CTC paths that spell the target.

    The forward-backward algorithm, in a number format that neither underflows nor loses precision over many frames
    (``csrc/lattice/forward_backward``). Items of a batch are independent, as in :func:`forced_align`.

    Args:
        log_probs (Tensor): ``(B, T, C)`` float16, bfloat16, float32 or float64, natural-log probabilities; any
            strides. They need not sum to one. An entry that is NaN, infinite, or of magnitude 2^18 and more counts as
            probability 0.
        targets (Tensor): ``(B, L)`` int32 or int64, classes other than ``blank``; entries after the target length
            may hold anything.
        input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
        blank (int): the class that spells nothing. Default: 0.
        star_scores (Tensor, optional): ``(B, T)``, dtype of ``log_probs``, any strides; the log-probability at every
            frame of a *star*, which stands for anything. With it the label C is the star: a token whose spelling is
            unknown. Entries count as those of ``log_probs`` do. Default: no stars.
        wild_gaps (Tensor, optional): ``(B, L + 1)`` bool; gap k lies before label k. In a wild gap a path may be in the
            star or in the blank, frame by frame, so the two probabilities add up. Needs ``star_scores``. Default: none.

    Returns:
        posteriors (Tensor): ``(B, T, L + 1)``, float64 for float64 ``log_probs`` and float32 for all others. Entry
            ``[b, t, k]`` is the probability that frame t belongs to token k, entry ``[b, t, L]`` that it is a blank, or
            the star of a wild gap. They sum to 1 over a frame in use, and are 0 in padding. Differentiable.
        log_likelihoods (Tensor): ``(B,)``, same dtype; logarithm of the sum of the probabilities of all paths (nats),
            which without stars is the negative of ``torch.nn.functional.ctc_loss`` with ``reduction="none"``.
            Differentiable twice.

        An item without any path has posteriors 0, log-likelihood -inf and gradient 0; the other items are not
        affected. Mask it: ``torch.where(log_likelihoods.isfinite(), log_likelihoods, 0)``.

    Raises:
        AlignmentError, TypeError: for the same shapes, dtypes, devices, lengths, labels and stars as
            :func:`forced_align`.
        MemoryError: there is not enough memory for the results, or for the work.
        NotImplementedError: the tensors are not on the CPU; or a third derivative is asked for, or a derivative in
            forward mode (:func:`class_posteriors` has that).
        KeyboardInterrupt: Ctrl-C during a long call, as in :func:`forced_align`.

    The gradient of ``log_likelihoods`` is the true one: with respect to ``log_probs``, the posterior of every class at
    every frame, and with respect to ``star_scores``, that of the star. (``ctc_loss`` returns the gradient with respect
    to the input of a ``log_softmax``; see https://github.com/pytorch/pytorch/issues/52241. After a ``log_softmax`` both
    are the same.)

    Time is ``O(T L)`` an item. Memory beside the results is limited by :func:`set_memory_budget`; the default is 16
    bytes (float64: 32) for each label and frame, up to 4 MiB or 1024 bytes a frame. Beyond that, rows of frames are
    kept at checkpoints and the others are computed again, two or three times. For recordings of hours the result itself
    is too large: use :func:`class_posteriors` or :func:`span_posteriors`. Source: Graves et al. 2006, section 4.1,
    equations 5 to 14; ``docs/posteriors.md``, and ``reference_posteriors.py`` in a page of Python.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> tokens, log_likelihoods = posteriors(log_probs[None], torch.tensor([[1, 2]]))
        >>> tokens  # label 1, label 2, blank
        tensor([[[0.9883, 0.0000, 0.0117],
                 [0.1052, 0.2404, 0.6544],
                 [0.0000, 0.9466, 0.0534]]])
        >>> log_likelihoods.exp()  # of all five paths
        tensor([0.5990])
    """
    rest = input_lengths, target_lengths, blank, star_scores, wild_gaps
    return _run("posteriors", log_probs, targets, (), *rest)


def class_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds the probability of every class at every frame, over all CTC paths that spell the target.

    This is :func:`posteriors`, summed over the tokens of the same class, and also the derivative of the log-likelihood
    with respect to ``log_probs``. As a loss, ``-class_posteriors(...)[1]`` is ``ctc_loss`` with a true gradient, which
    can be differentiated once more. The result has the size of ``log_probs``, however long the target is. (A second
    derivative takes ``B * T * (L + 1)`` values.)

    Args:
        log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps: as for :func:`posteriors`.

    Returns:
        posteriors (Tensor): ``(B, T, C)``, float64 for float64 ``log_probs`` and float32 for all others; entry
            ``[b, t, c]`` is the probability that the path is in class c at frame t. Sums to 1 over a frame in use; 0 in
            padding and for an item without a path. With stars the sum lacks the star's share, which is the gradient of
            ``log_likelihoods`` with respect to ``star_scores``. Differentiable.
        log_likelihoods (Tensor): ``(B,)``, as :func:`posteriors`.

    Raises:
        AlignmentError: as :func:`posteriors`.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> log_probs.requires_grad_()
        tensor([[-2.3026, -0.2231, -2.3026],
                [-0.3567, -2.3026, -1.6094],
                [-1.6094, -2.3026, -0.3567]], requires_grad=True)
        >>> classes, log_likelihoods = class_posteriors(log_probs[None], torch.tensor([[1, 2]]))
        >>> torch.equal(torch.autograd.grad(log_likelihoods.sum(), log_probs)[0], classes[0])
        True
    """
    rest = input_lengths, target_lengths, blank, star_scores, wild_gaps
    return _run("class_posteriors", log_probs, targets, (), *rest)


def span_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
    *,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Finds how sure the model is of each token's place: the token's mean posterior over the frames of its span.

    This confidence in [0, 1] compares all paths: was *this* token spoken *here*, or another part of the target? The
    score of a span, the mean log-probability along the best path, says how well the sound fits the token, and nothing
    about the alternatives. Works for recordings of any length: the posteriors of all frames are never in memory at
    once.

    Args:
        log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps: as for :func:`posteriors`.
        starts (Tensor): ``(B, L)`` int64, first frame of every token, from :func:`token_spans`.
        ends (Tensor): ``(B, L)`` int64, the frame after its last one. Only the frames of a span that are in use count;
            an empty span, such as -1 to -1 for padding, has confidence 0.

    Returns:
        confidences (Tensor): ``(B, L)``, float64 for float64 ``log_probs`` and float32 for all others; 0 for padding
            and for an item without a path. Differentiable, with the spans held fixed; the backward pass takes memory
            for ``B * T * (L + 1)`` values.
        log_likelihoods (Tensor): ``(B,)``, as :func:`posteriors`.

    Raises:
        AlignmentError: as :func:`posteriors`; or ``starts`` or ``ends`` does not have the shape, dtype or device above.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()[None]
        >>> targets = torch.tensor([[1, 2]])
        >>> spans = token_spans(*forced_align(log_probs, targets), targets)
        >>> span_posteriors(log_probs, targets, spans.starts, spans.ends)[0]
        tensor([[0.9883, 0.9466]])
    """
    rest = input_lengths, target_lengths, blank, star_scores, wild_gaps
    return _run("span_posteriors", log_probs, targets, (starts, ends), *rest)


def _run(
    name: str,
    log_probs: Tensor,
    targets: Tensor,
    spans: tuple[Tensor, ...],
    input_lengths: Lengths | None,
    target_lengths: Lengths | None,
    blank: int,
    star_scores: Tensor | None,
    wild_gaps: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Calls the operator of that name. Lengths may be lists, and errors become those of the functions."""
    if input_lengths is not None:
        input_lengths = as_lengths(name, "input_lengths", input_lengths, log_probs)
    if target_lengths is not None:
        target_lengths = as_lengths(name, "target_lengths", target_lengths, log_probs)
    if star_scores is not None:
        check_tensor(name, "star_scores", star_scores, "(B, T)")
    if wild_gaps is not None:
        check_tensor(name, "wild_gaps", wild_gaps, "(B, L + 1)")
    operator = getattr(torch.ops.ctc_align, name)
    rest = input_lengths, target_lengths, blank, star_scores, wild_gaps
    try:
        first, log_likelihoods = operator(log_probs, targets, *spans, *rest)
    except Exception as error:
        raise explain(name, error, log_probs, targets, target_lengths, blank, star_scores) from None
    return first, log_likelihoods
