"""Soft alignment: what all paths say together, where :func:`~torch_ctc_align.forced_align` follows the best one."""

import torch
from torch import Tensor

from torch_ctc_align import _posteriors as _posteriors
from torch_ctc_align._refusals import explain
from torch_ctc_align.functional import Lengths, as_lengths


def posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""How probable it is, at every frame, to be in each target token, over all CTC paths that spell the target.

    The forward-backward algorithm, in a number format that neither underflows nor loses precision over many frames
    (``csrc/lattice/forward_backward/scaled.h``). Items of a batch are independent, as in :func:`forced_align`.

    Args:
        log_probs (Tensor): ``(B, T, C)`` float16, bfloat16, float32 or float64, natural-log probabilities; any
            strides. They need not sum to one. An entry that is NaN, infinite, or of magnitude 2^18 and more counts as
            probability 0.
        targets (Tensor): ``(B, L)`` int32 or int64, classes other than ``blank``; entries behind the target length
            may hold anything.
        input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
        target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
        blank (int): the class that spells nothing. Default: 0.

    Returns:
        posteriors (Tensor): ``(B, T, L + 1)``, float64 for float64 ``log_probs`` and float32 for all others. Entry
            ``[b, t, k]`` is the probability that frame t belongs to token k, entry ``[b, t, L]`` that it is a blank.
            They sum to 1 over a frame in use, and are 0 in padding. Differentiable.
        log_likelihoods (Tensor): ``(B,)``, same dtype; log of the sum of the probabilities of all paths (nats): the
            negative of ``torch.nn.functional.ctc_loss`` with ``reduction="none"``. Differentiable twice.

        An item without any path has posteriors 0 and log-likelihood -inf, and no gradient; the others are not
        affected. Mask it: ``torch.where(log_likelihoods.isfinite(), log_likelihoods, 0)``.

    Raises:
        AlignmentError: as :func:`forced_align` does for arguments it cannot take, on the CPU for bad values too.
        TypeError: likewise.
        MemoryError: there is no memory for the results, or for the work.
        NotImplementedError: the tensors are not on the CPU; or a third derivative is asked for, or one in forward
            mode (:func:`class_posteriors` has that).
        KeyboardInterrupt: Ctrl-C during a long call, as in :func:`forced_align`.

    The gradient of ``log_likelihoods`` with respect to ``log_probs`` is the true one: the posterior of every class at
    every frame. (That of ``ctc_loss`` is the gradient with respect to what went into ``log_softmax``; see
    https://github.com/pytorch/pytorch/issues/52241. Behind a ``log_softmax`` both are the same.)

    Time is :math:`O(T L)` an item. Memory beside the results: what :func:`set_memory_budget` says, by default 16 bytes
    (float64: 32) for each label and frame up to 4 MiB or 1024 bytes a frame; beyond, rows of frames are kept at
    checkpoints and the rest is computed again, two or three times. For recordings of hours the result itself is too
    large: use :func:`class_posteriors` or :func:`span_posteriors`. Source: Graves et al. 2006, section 4.1, equations
    5 to 14; ``docs/posteriors.md``.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> tokens, log_likelihoods = posteriors(log_probs[None], torch.tensor([[1, 2]]))
        >>> tokens  # of the labels 1 and 2, and of the blank
        tensor([[[0.9883, 0.0000, 0.0117],
                 [0.1052, 0.2404, 0.6544],
                 [0.0000, 0.9466, 0.0534]]])
        >>> log_likelihoods.exp()  # of all five paths
        tensor([0.5990])
    """
    return _run("posteriors", log_probs, targets, (), input_lengths, target_lengths, blank)


def class_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""How probable each class is at every frame, over all CTC paths that spell the target.

    :func:`posteriors`, summed over the tokens of the same class: the derivative of the log-likelihood with respect to
    ``log_probs``. As a loss, ``-class_posteriors(...)[1]`` is ``ctc_loss`` with a true gradient, which may be
    differentiated once more; its result is of the size of ``log_probs``, however long the target. (A second derivative
    takes ``B * T * (L + 1)`` values.)

    Args:
        log_probs, targets, input_lengths, target_lengths, blank: as for :func:`posteriors`.

    Returns:
        posteriors (Tensor): ``(B, T, C)``; entry ``[b, t, c]`` is the probability that the path is in class c at frame
            t. Sums to 1 over a frame in use; 0 in padding and for an item without a path. Differentiable.
        log_likelihoods (Tensor): ``(B,)``, as :func:`posteriors`.

    Raises:
        As :func:`posteriors`.

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
    return _run("class_posteriors", log_probs, targets, (), input_lengths, target_lengths, blank)


def span_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Lengths | None = None,
    target_lengths: Lengths | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""How sure the model is of each token's place: the token's mean posterior over the frames of its span.

    A confidence in [0, 1] that asks whether *this* token was spoken *here* rather than anything else of the target, as
    all paths have it. The score of a span, the mean log-probability along the best path, asks how well the sound
    fits the token, and says nothing about the alternatives. Works for recordings of any length: the posteriors
    themselves are never there all at once.

    Args:
        log_probs, targets, input_lengths, target_lengths, blank: as for :func:`posteriors`.
        starts (Tensor): ``(B, L)`` int64, first frame of every token, from :func:`token_spans`.
        ends (Tensor): ``(B, L)`` int64, the frame behind its last one. Of a span only frames in use count; an empty
            one, such as -1 to -1 of padding, has confidence 0.

    Returns:
        confidences (Tensor): ``(B, L)``, float64 for float64 ``log_probs`` and float32 for all others; 0 for padding
            and for an item without a path. Differentiable with respect to ``log_probs``, with the spans held fixed; the
            backward pass takes ``B * T * (L + 1)`` values.
        log_likelihoods (Tensor): ``(B,)``, as :func:`posteriors`.

    Raises:
        As :func:`posteriors`; and AlignmentError if ``starts`` or ``ends`` has another shape, dtype or device.

    Example::

        >>> log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()[None]
        >>> targets = torch.tensor([[1, 2]])
        >>> spans = token_spans(*forced_align(log_probs, targets), targets)
        >>> span_posteriors(log_probs, targets, spans.starts, spans.ends)[0]
        tensor([[0.9883, 0.9466]])
    """
    return _run("span_posteriors", log_probs, targets, (starts, ends), input_lengths, target_lengths, blank)


def _run(
    name: str,
    log_probs: Tensor,
    targets: Tensor,
    spans: tuple[Tensor, ...],
    input_lengths: Lengths | None,
    target_lengths: Lengths | None,
    blank: int,
) -> tuple[Tensor, Tensor]:
    """Calls the operator of that name, with lengths as they come and errors as they are to be."""
    if input_lengths is not None:
        input_lengths = as_lengths(name, "input_lengths", input_lengths, log_probs)
    if target_lengths is not None:
        target_lengths = as_lengths(name, "target_lengths", target_lengths, log_probs)
    operator = getattr(torch.ops.ctc_align, name)
    try:
        first, log_likelihoods = operator(log_probs, targets, *spans, input_lengths, target_lengths, blank)
    except Exception as error:
        raise explain(name, error, log_probs, targets, target_lengths, blank) from None
    return first, log_likelihoods
