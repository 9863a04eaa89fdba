"""What PyTorch needs to know about the operators of the posteriors: fake tensors, gradients, vmap.

With ``occupancies`` for the first output of ``class_posteriors``, the gradients are

    d log_likelihoods / d log_probs = occupancies
    d <g, posteriors> / d log_probs = posteriors_backward(g)

and both are differentiable once more, because ``occupancies`` are sums of posteriors.
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
from torch_ctc_align._library import as_raised, refuse_cuda
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
) -> tuple[Tensor, ...]:
    warn_in_onnx_export("posteriors")
    check_arguments("posteriors", log_probs, targets, input_lengths, target_lengths, blank)
    batch, frames, _ = log_probs.shape
    return _sums(log_probs, (batch, frames, targets.shape[1] + 1), (batch,))


@torch.library.register_fake("ctc_align::class_posteriors")
def _class_posteriors_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, ...]:
    warn_in_onnx_export("class_posteriors")
    check_arguments("class_posteriors", log_probs, targets, input_lengths, target_lengths, blank)
    return _sums(log_probs, tuple(log_probs.shape), (log_probs.shape[0],))


@torch.library.register_fake("ctc_align::span_posteriors")
def _span_posteriors_fake(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, ...]:
    name = "span_posteriors"
    warn_in_onnx_export(name)
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank)
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
) -> Tensor:
    name = "posteriors_backward"
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank)
    shape = (*log_probs.shape[:2], targets.shape[1] + 1)
    check_shape(name, "grad_posteriors", grad_posteriors, shape, f"shape (B, T, L + 1) = {shape}")
    check_dtype(name, "grad_posteriors", grad_posteriors, _sums_dtype(log_probs), "have the dtype of the posteriors")
    check_device(name, "grad_posteriors", grad_posteriors, log_probs)
    return _sums(log_probs, tuple(log_probs.shape))[0]


# ---------------------------------------------------------------------------------------------------- gradients


def _register_autograd(
    name: str,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Tensor | None],
    tangents_of: Callable[..., tuple[Tensor, ...]],
) -> None:
    """Registers the derivatives with respect to log_probs, in a way that torch.func can use as well.

    torch.func refuses the node that torch.library.register_autograd makes. A call has already passed through torch.func
    when it reaches an autograd kernel, and is at a single level of it, so the node must be one for a single level.

    Args:
        name: the name of the operator.
        save: save(ctx, inputs, outputs), called after the operator.
        backward: backward(ctx, *grads) returns the gradient. The grad of an unused output is None.
        tangents_of: tangents_of(ctx, tangent) returns the tangents of the outputs.
    """
    operator = getattr(_operators, name).default
    arguments_of = schema_of(operator).arguments
    position = [argument.name for argument in arguments_of].index("log_probs")
    defaults = [argument.default_value for argument in arguments_of]

    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
        ctx.set_materialize_grads(False)
        # A node runs its forward without derivatives; the levels of torch.func outside this one need theirs.
        with torch.enable_grad(), forward_mode(True):
            outputs = call_below_autograd(operator, keyset, arguments)
        save(ctx, arguments, outputs)
        return outputs

    def node_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * (1 + len(arguments_of))  # of the keyset, and of the arguments
        gradients[1 + position] = backward(ctx, *grads)
        return tuple(gradients)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        return tangents_of(ctx, tangents[1 + position])

    functions: dict[str, Any] = {"forward": forward, "backward": node_backward, "jvp": jvp}
    node: Any = type(
        f"ctc_align_{name}_",
        (SingleLevelNode,),
        {key: staticmethod(function) for key, function in functions.items()},
    )

    def kernel(keyset: Any, *arguments: Any) -> Any:
        backward = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        try:
            if not (backward or is_in_forward_mode()):
                return call_below_autograd(operator, keyset, arguments)
            with single_level_nodes():
                return node.apply(keyset, *arguments, *defaults[len(arguments) :])
        except RuntimeError as error:
            raise as_raised(error) from None

    _registered.impl(name, kernel, "Autograd", with_keyset=True)


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], blank: int) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.blank = blank


def _of_log_likelihoods(grad: Tensor, log_likelihoods: Tensor, occupancies: Tensor) -> Tensor:
    # where(): an item without a path gets no gradient, and 0 * inf would be NaN.
    return torch.where(log_likelihoods.isfinite(), grad, 0)[:, None, None] * occupancies


def _of_posteriors(grad: Tensor, posteriors: Tensor, arguments: list[Tensor | None], blank: int) -> Tensor:
    """The gradient through posteriors_backward. Its mean over the states of a frame adds nothing, but costs digits."""
    grad = grad - (posteriors * grad).sum(2, keepdim=True)
    return _operators.posteriors_backward(grad, *arguments, blank)  # type: ignore[no-any-return]


def _by_token(by_class: Tensor, targets: Tensor, blank: int) -> Tensor:
    """Turns (B, T, C) into (B, T, L + 1): the entry of the class of each token, and of the blank."""
    columns = targets.long().clamp(0, by_class.shape[2] - 1)  # padding may hold anything
    columns = torch.nn.functional.pad(columns, (0, 1), value=blank)
    return by_class.gather(2, columns[:, None].expand(-1, by_class.shape[1], -1))


def _total(gradients: list[Tensor], log_probs: Tensor) -> Tensor | None:
    return sum(gradients[1:], start=gradients[0]).to(log_probs.dtype) if gradients else None


def _save_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    _save(ctx, (*inputs[:4], *outputs), inputs[4])


def _posteriors_backward(
    ctx: Any, grad_posteriors: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    *arguments, posteriors, log_likelihoods = ctx.saved_tensors
    gradients = []
    if grad_log_likelihoods is not None:
        occupancies, _ = _operators.class_posteriors(*arguments, ctx.blank)
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_posteriors is not None:
        gradients.append(_of_posteriors(grad_posteriors, posteriors, arguments, ctx.blank))
    return _total(gradients, arguments[0])


def _save_class_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    _save(ctx, (*inputs[:4], *outputs), inputs[4])


def _occupancies_backward(grad: Tensor, occupancies: Tensor, arguments: list[Any], blank: int) -> Tensor:
    grad = grad - (occupancies * grad).sum(2, keepdim=True)  # as in _of_posteriors
    return _operators.posteriors_backward(  # type: ignore[no-any-return]
        _by_token(grad, arguments[1], blank), *arguments, blank
    )


def _class_posteriors_backward(
    ctx: Any, grad_occupancies: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    *arguments, occupancies, log_likelihoods = ctx.saved_tensors
    gradients = []
    if grad_log_likelihoods is not None:
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_occupancies is not None:
        gradients.append(_occupancies_backward(grad_occupancies, occupancies, arguments, ctx.blank))
    return _total(gradients, arguments[0])


def _class_posteriors_forward_mode(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """The occupancies are a gradient, so their Jacobian is symmetric: forward mode computes the same as backward."""
    log_probs, *rest, occupancies, log_likelihoods = ctx.saved_tensors
    arguments = [forward_ad.unpack_dual(log_probs).primal, *rest]
    tangent = tangent.to(occupancies.dtype)
    of_log_likelihoods = torch.where(log_likelihoods.isfinite(), (occupancies * tangent).sum((1, 2)), 0)
    return _occupancies_backward(tangent, occupancies, arguments, ctx.blank), of_log_likelihoods


def _save_span_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    _save(ctx, (*inputs[:6], outputs[1]), inputs[6])


def _span_posteriors_backward(
    ctx: Any, grad_spans: Tensor | None, grad_log_likelihoods: Tensor | None
) -> Tensor | None:
    log_probs, targets, starts, ends, *lengths, log_likelihoods = ctx.saved_tensors
    arguments = [log_probs, targets, *lengths]
    gradients = []
    if grad_log_likelihoods is not None:
        occupancies, _ = _operators.class_posteriors(*arguments, ctx.blank)
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_spans is not None:
        frames = log_probs.shape[1]
        last = ends.clamp(max=frames) if lengths[0] is None else ends.minimum(lengths[0][:, None])
        first = starts.clamp(min=0)
        frame = starts.new_ones(frames).cumsum(0)[:, None] - 1  # a DTensor if starts is one, unlike arange()
        inside = (first[:, None] <= frame) & (frame < last[:, None])
        grad = torch.where(inside, (grad_spans / (last - first).clamp(min=1))[:, None], 0)
        grad = torch.nn.functional.pad(grad, (0, 1))  # the blank has no span
        posteriors, _ = _operators.posteriors(*arguments, ctx.blank)
        gradients.append(_of_posteriors(grad, posteriors, arguments, ctx.blank))
    return _total(gradients, log_probs)


def _refuse_third_order(*_: Any) -> Any:
    raise NotImplementedError(
        "posteriors_backward: not differentiable; log_likelihoods are differentiable twice, posteriors once"
    )


def _refuse_forward_mode(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name}: no forward-mode derivatives; class_posteriors has them")

    return refuse


_register_autograd("posteriors", _save_posteriors, _posteriors_backward, _refuse_forward_mode("posteriors"))
_register_autograd(
    "class_posteriors", _save_class_posteriors, _class_posteriors_backward, _class_posteriors_forward_mode
)
_register_autograd(
    "span_posteriors", _save_span_posteriors, _span_posteriors_backward, _refuse_forward_mode("span_posteriors")
)
_register_autograd("posteriors_backward", lambda *_: None, _refuse_third_order, _refuse_third_order)


# --------------------------------------------------------------------------------------------------------- vmap


def _register_vmap(name: str, tensors: int) -> None:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    operator = getattr(_operators, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        joined = join_batch(size, in_dims, *arguments[:tensors])
        outputs = operator(*joined, *arguments[tensors:])
        if isinstance(outputs, Tensor):
            (output,), (dim,) = split_batch(size, arguments[0], in_dims[0], outputs)
            return output, dim
        return split_batch(size, arguments[0], in_dims[0], *outputs)

    torch.library.register_vmap(f"ctc_align::{name}", rule)


_register_vmap("posteriors", 4)
_register_vmap("class_posteriors", 4)
_register_vmap("span_posteriors", 6)
_register_vmap("posteriors_backward", 5)


# --------------------------------------------------------------------------------------------------------- CUDA


for _name in ("posteriors", "class_posteriors", "span_posteriors", "posteriors_backward"):
    refuse_cuda(_name, "has no CUDA kernel yet; move the tensors to the CPU")
