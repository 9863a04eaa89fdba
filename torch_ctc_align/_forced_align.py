"""What PyTorch needs to know about ``ctc_align::forced_align`` beside its kernels: fake tensors, gradients, vmap."""

from typing import Any

import torch
from torch import Tensor

from torch_ctc_align._arguments import check_arguments, join_batch, split_batch, warn_in_onnx_export
from torch_ctc_align._library import as_raised, refuse_cuda_without_library
from torch_ctc_align._torch_seam import below_autograd, is_in_forward_mode, kernel_of

refuse_cuda_without_library("forced_align")

MARKED = -1  # a row of paths without a path
GAP_STAR = -2  # a frame that the star of a wild gap explains


@torch.library.register_fake("ctc_align::forced_align")
def _forced_align_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    warn_in_onnx_export("forced_align")
    check_arguments("forced_align", log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps)
    batch, frames, _ = log_probs.shape
    return targets.new_empty((batch, frames)), log_probs.new_empty((batch, frames))


# Looked up once: a small call spends most of its time on the way to the kernel.
_align = kernel_of(torch.ops.ctc_align.forced_align.default)


def call_forced_align(log_probs: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Calls the operator with plain tensors and no stars, past its autograd kernel where nothing is differentiated.

    That saves a quarter of the time of a small call.
    """
    if log_probs.requires_grad or is_in_forward_mode():
        return _align(log_probs, *others)  # type: ignore[no-any-return]
    with below_autograd():
        return _align(log_probs, *others)  # type: ignore[no-any-return]


def _forced_align_autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The autograd kernel. Where scores are differentiated, they are gathered once more, from log_probs and the stars.

    So the gradient, its gradient and the tangent are torch's own, and all of torch.func works. It would refuse an
    autograd.Function, that of torch.library.register_autograd as well: the generated one has no setup_context. Its
    backward pass in Python also took longer.

    Errors get their kinds back here (:func:`as_raised`). Calls in inference mode do not pass through here.
    """
    try:
        with below_autograd():
            results = _align(*arguments)
    except RuntimeError as error:
        raise as_raised(error) from None
    log_probs = arguments[0]
    star_scores: Tensor | None = arguments[5] if len(arguments) > 5 else None
    requires_grad = log_probs.requires_grad or (star_scores is not None and star_scores.requires_grad)
    if not is_in_forward_mode() and not (requires_grad and torch.is_grad_enabled()):
        return results  # type: ignore[no-any-return]
    paths, scores = results
    input_lengths = arguments[2] if len(arguments) > 2 else None
    on_path = paths != MARKED
    if input_lengths is not None:
        count = paths.new_ones(paths.shape[1]).cumsum(0)  # 1, 2, ...: a DTensor if paths is one, unlike arange()
        on_path = on_path & (count <= input_lengths[:, None])
    classes = paths.clamp(min=0)
    if star_scores is not None:
        is_star = (paths == GAP_STAR) | (paths == log_probs.shape[2])
        classes = torch.where(is_star, 0, classes)
    entries = log_probs.gather(2, classes.long().unsqueeze(2)).squeeze(2)
    if star_scores is not None:
        entries = torch.where(is_star, star_scores, entries)
    # Padding and marked items get no gradient, whatever gradient comes in: 0 * inf would be NaN, where() gives 0.
    return paths, torch.where(on_path, entries, scores)


_registered = torch.library.Library("ctc_align", "IMPL")  # a registration lasts as long as its library
_registered.impl("forced_align", _forced_align_autograd, "Autograd")


@torch.library.register_vmap("ctc_align::forced_align")
def _forced_align_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    size = info.batch_size
    tensors = (log_probs, targets, input_lengths, target_lengths, star_scores, wild_gaps)
    *joined, stars, wild = join_batch(size, (*in_dims[:4], *in_dims[5:]), *tensors)
    return split_batch(size, log_probs, in_dims[0], *torch.ops.ctc_align.forced_align(*joined, blank, stars, wild))
