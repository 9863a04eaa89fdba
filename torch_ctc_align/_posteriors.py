"""What PyTorch needs to know about the operators of the posteriors: fake tensors, gradients, vmap.

With ``occupancies`` for the first output of ``class_posteriors``, the gradients are

    d log_likelihoods / d log_probs = occupancies
    d <g, posteriors> / d log_probs = posteriors_backward(g)

and both are differentiable once more, because ``occupancies`` are sums of posteriors.

With stars there is one more column, that of ``star_scores``: in the result of ``posteriors_backward``, and in the first
output of the operator ``occupancies``, which is otherwise ``class_posteriors``. That operator is for this module alone,
and its errors bear the name of ``class_posteriors``. So the formulas hold for ``log_probs`` and ``star_scores`` as if
they were one tensor (B, T, C + 1).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_ctc_align._arguments import (
    check_arguments,
    check_device,
    check_dtype,
    check_shape,
    join_batch,
    split_batch,
    warn_in_onnx_export,
)
from torch_ctc_align._library import as_raised, refuse_cuda_without_library
from torch_ctc_align._torch_seam import (
    SingleLevelNode,
    call_below_autograd,
    forward_mode,
    is_in_forward_mode,
    schema_of,
    single_level_nodes,
)

_operators = torch.ops.ctc_align
_registered = torch.library.Library("ctc_align", "IMPL")  # a registration lasts as long as its library


def _sums_dtype(log_probs: Tensor) -> torch.dtype:
    """Returns the dtype of sums and results: float32 for half types."""
    return torch.promote_types(log_probs.dtype, torch.float32)


# ------------------------------------------------------------------------------------------------- fake tensors


def _sums(log_probs: Tensor, *shapes: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(log_probs.new_empty(shape, dtype=_sums_dtype(log_probs)) for shape in shapes)


@torch.library.register_fake("ctc_align::posteriors")
def _posteriors_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    warn_in_onnx_export("posteriors")
    check_arguments("posteriors", log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps)
    batch, frames, _ = log_probs.shape
    return _sums(log_probs, (batch, frames, targets.shape[1] + 1), (batch,))


@torch.library.register_fake("ctc_align::class_posteriors")
def _class_posteriors_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    warn_in_onnx_export("class_posteriors")
    check_arguments(
        "class_posteriors", log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps
    )
    return _sums(log_probs, tuple(log_probs.shape), (log_probs.shape[0],))


@torch.library.register_fake("ctc_align::occupancies")
def _occupancies_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
    star_scores: Tensor,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    name = "class_posteriors"
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps)
    batch, frames, classes = log_probs.shape
    return _sums(log_probs, (batch, frames, classes + 1), (batch,))


@torch.library.register_fake("ctc_align::span_posteriors")
def _span_posteriors_fake(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    name = "span_posteriors"
    warn_in_onnx_export(name)
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps)
    shape = tuple(targets.shape)
    for argument, borders in (("starts", starts), ("ends", ends)):
        check_shape(name, argument, borders, shape, f"the shape of targets, expected {shape}")
        check_dtype(name, argument, borders, torch.int64, "be int64")
        check_device(name, argument, borders, log_probs)
    return _sums(log_probs, shape, shape[:1])


@torch.library.register_fake("ctc_align::posteriors_backward")
def _posteriors_backward_fake(
    grad_posteriors: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> Tensor:
    name = "posteriors_backward"
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps)
    stars = 0 if star_scores is None else 1
    shape = (*log_probs.shape[:2], targets.shape[1] + 1 + stars)
    check_shape(name, "grad_posteriors", grad_posteriors, shape, f"shape (B, T, L + {1 + stars}) = {shape}")
    check_dtype(name, "grad_posteriors", grad_posteriors, _sums_dtype(log_probs), "have the dtype of the posteriors")
    check_device(name, "grad_posteriors", grad_posteriors, log_probs)
    return _sums(log_probs, (*log_probs.shape[:2], log_probs.shape[2] + stars))[0]


# ---------------------------------------------------------------------------------------------------- gradients


def _register_autograd(
    name: str,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Tensor | None],
    tangents_of: Callable[..., tuple[Tensor, ...]],
) -> None:
    """Registers the derivatives with respect to log_probs and star_scores, in a way that torch.func can use as well.

    torch.func refuses the node that torch.library.register_autograd makes. A call has already passed through torch.func
    when it reaches an autograd kernel, and is at a single level of it, so the node must be one for a single level.

    Args:
        name: the name of the operator.
        save: save(ctx, inputs, outputs), called after the operator.
        backward: backward(ctx, *grads) returns the gradient, (B, T, C) or with stars (B, T, C + 1). The grad of an
            unused output is None.
        tangents_of: tangents_of(ctx, *tangents) returns the tangents of the outputs from those of log_probs and
            star_scores, of which one may be None.
    """
    operator = getattr(_operators, name).default
    arguments_of = schema_of(operator).arguments
    names = [argument.name for argument in arguments_of]
    log_probs_at, star_scores_at = names.index("log_probs"), names.index("star_scores")
    defaults = [argument.default_value for argument in arguments_of]

    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        # A node runs its forward without derivatives; the levels of torch.func outside this one need theirs.
        with torch.enable_grad(), forward_mode(True):
            outputs = call_below_autograd(operator, keyset, arguments)
        ctx.dtype, ctx.has_stars = arguments[log_probs_at].dtype, arguments[star_scores_at] is not None
        save(ctx, arguments, outputs)
        return outputs

    def node_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * (1 + len(arguments_of))  # of the keyset, and of the arguments
        gradient = backward(ctx, *grads)
        if gradient is not None:
            gradient = gradient.to(ctx.dtype)
            gradients[1 + log_probs_at] = gradient[:, :, :-1] if ctx.has_stars else gradient
            gradients[1 + star_scores_at] = gradient[:, :, -1] if ctx.has_stars else None
        return tuple(gradients)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        return tangents_of(ctx, tangents[1 + log_probs_at], tangents[1 + star_scores_at])

    functions: dict[str, Any] = {"forward": forward, "backward": node_backward, "jvp": jvp}
    node: Any = type(
        f"ctc_align_{name}_",
        (SingleLevelNode,),
        {key: staticmethod(function) for key, function in functions.items()},
    )

    def kernel(keyset: Any, *arguments: Any) -> Any:
        try:
            if not _are_differentiated(arguments):
                return call_below_autograd(operator, keyset, arguments)
            if name == "class_posteriors" and len(arguments) > star_scores_at and arguments[star_scores_at] is not None:
                return _first_columns(*_operators.occupancies(*arguments))
            with single_level_nodes():
                return node.apply(keyset, *arguments, *defaults[len(arguments) :])
        except RuntimeError as error:
            raise as_raised(error) from None

    _registered.impl(name, kernel, "Autograd", with_keyset=True)


def _are_differentiated(arguments: tuple[Any, ...]) -> bool:
    return is_in_forward_mode() or (
        torch.is_grad_enabled()
        and any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
    )


def _first_columns(occupancies: Tensor, log_likelihoods: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the outputs of ``occupancies`` into those of ``class_posteriors``, which lack the star's column."""
    return occupancies[:, :, :-1].clone(memory_format=torch.contiguous_format), log_likelihoods


def _save(ctx: Any, inputs: tuple[Any, ...], *others: Tensor) -> None:
    """Saves the arguments that all operators have, and other tensors. :func:`_saved` returns both."""
    *tensors, ctx.blank, star_scores, wild_gaps = inputs
    ctx.save_for_backward(*tensors, star_scores, wild_gaps, *others)
    ctx.save_for_forward(*tensors, star_scores, wild_gaps, *others)


def _saved(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    saved = ctx.saved_tensors
    return [*saved[:4], ctx.blank, *saved[4:6]], list(saved[6:])


def _of_log_likelihoods(grad: Tensor, log_likelihoods: Tensor, occupancies: Tensor) -> Tensor:
    # where(): an item without a path gets no gradient, and 0 * inf would be NaN.
    return torch.where(log_likelihoods.isfinite(), grad, 0)[:, None, None] * occupancies


def _occupancies(arguments: list[Any]) -> Tensor:
    """The gradient of the log-likelihoods, (B, T, C) or with stars (B, T, C + 1)."""
    has_stars = arguments[5] is not None
    operator = _operators.occupancies if has_stars else _operators.class_posteriors
    return operator(*arguments)[0]  # type: ignore[no-any-return]


def _of_posteriors(grad: Tensor, posteriors: Tensor, arguments: list[Any]) -> Tensor:
    """The gradient through posteriors_backward. Its mean over the states of a frame adds nothing, but costs digits."""
    grad = grad - (posteriors * grad).sum(2, keepdim=True)
    if arguments[5] is not None:  # the last column is that of blanks and of the stars of wild gaps
        grad = torch.cat((grad, grad[:, :, -1:]), 2)
    return _operators.posteriors_backward(grad, *arguments)  # type: ignore[no-any-return]


def _by_token(by_class: Tensor, targets: Tensor, blank: int, has_stars: bool) -> Tensor:
    """Turns (B, T, C) into (B, T, L + 1): the entry of the class of each token, and of the blank.

    With stars it turns (B, T, C + 1) into (B, T, L + 2): the entry of the star comes last.
    """
    last = by_class.shape[2] - 1
    columns = targets.long().clamp(0, last)  # padding may hold anything
    columns = torch.nn.functional.pad(columns, (0, 1), value=blank)
    if has_stars:
        columns = torch.nn.functional.pad(columns, (0, 1), value=last)
    return by_class.gather(2, columns[:, None].expand(-1, by_class.shape[1], -1))


def _total(gradients: list[Tensor]) -> Tensor | None:
    return sum(gradients[1:], start=gradients[0]) if gradients else None


def _save_all(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs, *outputs)


def _posteriors_backward(
    ctx: Any, grad_posteriors: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    arguments, (posteriors, log_likelihoods) = _saved(ctx)
    gradients = []
    if grad_log_likelihoods is not None:
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, _occupancies(arguments)))
    if grad_posteriors is not None:
        gradients.append(_of_posteriors(grad_posteriors, posteriors, arguments))
    return _total(gradients)


def _of_occupancies(grad: Tensor, occupancies: Tensor, arguments: list[Any]) -> Tensor:
    grad = grad - (occupancies * grad).sum(2, keepdim=True)  # as in _of_posteriors
    by_token = _by_token(grad, arguments[1], arguments[4], arguments[5] is not None)
    return _operators.posteriors_backward(by_token, *arguments)  # type: ignore[no-any-return]


def _occupancies_backward(
    ctx: Any, grad_occupancies: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    """Of class_posteriors without stars, and of occupancies."""
    arguments, (occupancies, log_likelihoods) = _saved(ctx)
    gradients = []
    if grad_log_likelihoods is not None:
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_occupancies is not None:
        gradients.append(_of_occupancies(grad_occupancies, occupancies, arguments))
    return _total(gradients)


def _occupancies_forward_mode(ctx: Any, tangent: Tensor | None, star_tangent: Tensor | None) -> tuple[Tensor, Tensor]:
    """The occupancies are a gradient, so their Jacobian is symmetric: forward mode computes the same as backward."""
    arguments, (occupancies, log_likelihoods) = _saved(ctx)
    log_probs = arguments[0] = forward_ad.unpack_dual(arguments[0]).primal
    if tangent is None:
        tangent = torch.zeros_like(log_probs)
    if arguments[5] is not None:
        star_scores = arguments[5] = forward_ad.unpack_dual(arguments[5]).primal
        star_tangent = torch.zeros_like(star_scores) if star_tangent is None else star_tangent
        tangent = torch.cat((tangent, star_tangent[:, :, None]), 2)
    tangent = tangent.to(occupancies.dtype)
    of_log_likelihoods = torch.where(log_likelihoods.isfinite(), (occupancies * tangent).sum((1, 2)), 0)
    return _of_occupancies(tangent, occupancies, arguments), of_log_likelihoods


def _save_span_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    log_probs, targets, starts, ends, *rest = inputs
    _save(ctx, (log_probs, targets, *rest), starts, ends, outputs[1])


def _span_posteriors_backward(
    ctx: Any, grad_spans: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    arguments, (starts, ends, log_likelihoods) = _saved(ctx)
    log_probs, _, input_lengths = arguments[:3]
    gradients = []
    if grad_log_likelihoods is not None:
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, _occupancies(arguments)))
    if grad_spans is not None:
        frames = log_probs.shape[1]
        last = ends.clamp(max=frames) if input_lengths is None else ends.minimum(input_lengths[:, None])
        first = starts.clamp(min=0)
        frame = starts.new_ones(frames).cumsum(0)[:, None] - 1  # a DTensor if starts is one, unlike arange()
        inside = (first[:, None] <= frame) & (frame < last[:, None])
        grad = torch.where(inside, (grad_spans / (last - first).clamp(min=1))[:, None], 0)
        grad = torch.nn.functional.pad(grad, (0, 1))  # the blank has no span
        posteriors, _ = _operators.posteriors(*arguments)
        gradients.append(_of_posteriors(grad, posteriors, arguments))
    return _total(gradients)


def _refuse_third_order(*_: Any) -> Any:
    raise NotImplementedError(
        "posteriors_backward: not differentiable; log_likelihoods are differentiable twice, posteriors once"
    )


def _refuse_forward_mode(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name}: no forward-mode derivatives; class_posteriors has them")

    return refuse


_register_autograd("posteriors", _save_all, _posteriors_backward, _refuse_forward_mode("posteriors"))
_register_autograd("class_posteriors", _save_all, _occupancies_backward, _occupancies_forward_mode)
_register_autograd("occupancies", _save_all, _occupancies_backward, _occupancies_forward_mode)
_register_autograd(
    "span_posteriors", _save_span_posteriors, _span_posteriors_backward, _refuse_forward_mode("span_posteriors")
)
_register_autograd("posteriors_backward", lambda *_: None, _refuse_third_order, _refuse_third_order)


# --------------------------------------------------------------------------------------------------------- vmap


def _register_vmap(name: str) -> None:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    operator = getattr(_operators, name)
    blank_at = [argument.name for argument in schema_of(operator.default).arguments].index("blank")

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        # All arguments are tensors or None but the blank. The rule may get fewer than the operator has.
        joined = join_batch(size, in_dims[:blank_at], *arguments[:blank_at])
        stars = join_batch(size, in_dims[blank_at + 1 :], *arguments[blank_at + 1 :])
        outputs = operator(*joined, *arguments[blank_at : blank_at + 1], *stars)
        if isinstance(outputs, Tensor):
            (output,), (dim,) = split_batch(size, arguments[0], in_dims[0], outputs)
            return output, dim
        return split_batch(size, arguments[0], in_dims[0], *outputs)

    torch.library.register_vmap(f"ctc_align::{name}", rule)


_names = "posteriors", "class_posteriors", "occupancies", "span_posteriors", "posteriors_backward"
for _name in _names:
    refuse_cuda_without_library(_name)
    _register_vmap(_name)
