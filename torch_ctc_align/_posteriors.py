"""What PyTorch needs to know about the operators that sum over all paths: fake tensors, gradients, vmap.

With ``occupancies`` for the first output of ``class_posteriors``, the gradients are

    d log_likelihoods / d log_probs = occupancies
    d <g, posteriors> / d log_probs = posteriors_backward(g)

and both are differentiable once more, because ``occupancies`` are sums of posteriors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from torch_ctc_align._operator import check_arguments, join_batch, split_batch

_operators = torch.ops.ctc_align
_library = torch.library.Library("ctc_align", "IMPL")  # a registration lasts as long as its library


def _sums_dtype(log_probs: Tensor) -> torch.dtype:
    """Half types are summed in float32, and that is what they get."""
    return torch.promote_types(log_probs.dtype, torch.float32)


def _check_shape(name: str, argument: str, tensor: Tensor, shape: tuple[Any, ...], expected: str) -> None:
    same = tensor.dim() == len(shape)
    for extent, wanted in zip(tensor.shape, shape, strict=False):
        same = same and extent == wanted
    torch._check_value(same, lambda: f"{name}: {argument} must have {expected}, found {tuple(tensor.shape)}")


def _check_device(name: str, argument: str, tensor: Tensor, log_probs: Tensor) -> None:
    torch._check_value(
        tensor.device == log_probs.device,
        lambda: (
            f"{name}: {argument} must be on the device of log_probs, expected {log_probs.device}, found {tensor.device}"
        ),
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
    check_arguments(name, log_probs, targets, input_lengths, target_lengths, blank)
    shape = tuple(targets.shape)
    for argument, borders in (("starts", starts), ("ends", ends)):
        _check_shape(name, argument, borders, shape, f"the shape of targets, expected {shape}")
        torch._check_value(
            borders.dtype == torch.int64,
            lambda argument=argument, borders=borders: f"{name}: {argument} must be int64, found {_dtype(borders)}",
        )
        _check_device(name, argument, borders, log_probs)
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
    _check_shape(name, "grad_posteriors", grad_posteriors, shape, f"shape (B, T, L + 1) = {shape}")
    torch._check_value(
        grad_posteriors.dtype == _sums_dtype(log_probs),
        lambda: f"{name}: grad_posteriors must have the dtype of the posteriors, found {_dtype(grad_posteriors)}",
    )
    _check_device(name, "grad_posteriors", grad_posteriors, log_probs)
    return _sums(log_probs, tuple(log_probs.shape))[0]


# ---------------------------------------------------------------------------------------------------- gradients


def _register_autograd(
    name: str,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> None:
    """Registers a gradient that torch.func can use as well.

    The node that torch.library.register_autograd makes is one that torch.func refuses: a call has already passed
    through torch.func when it comes to an autograd kernel, and is at a single level of it. So the node has to be one
    for a single level.

    Args:
        name: of the operator.
        save: save(ctx, inputs, outputs), after the call.
        backward: backward(ctx, *grads) -> a gradient for each of the leading inputs, the rest have none. A gradient
            that nothing came of is None.
    """
    operator = getattr(_operators, name).default
    defaults = [argument.default_value for argument in operator._schema.arguments]

    def below(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        # A node's forward is run without gradients; the levels of torch.func that lie outside this one want theirs.
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Node(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            ctx.set_materialize_grads(False)
            outputs = below(keyset, arguments)
            save(ctx, arguments, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            gradients = backward(ctx, *grads)
            return None, *gradients, *[None] * (len(defaults) - len(gradients))

    Node.__name__ = f"CtcAlign_{name}"

    apply: Any = Node.apply  # type: ignore[attr-defined]

    def kernel(keyset: Any, *arguments: Any) -> Any:
        differentiates = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        if not differentiates:
            return below(keyset, arguments)
        with enable_single_level_autograd_function():
            return apply(keyset, *arguments, *defaults[len(arguments) :])

    _library.impl(name, kernel, "Autograd", with_keyset=True)


def _of_log_likelihoods(grad: Tensor, log_likelihoods: Tensor, occupancies: Tensor) -> Tensor:
    # where(): an item without a path has no gradient, and 0 * inf would be NaN.
    return torch.where(log_likelihoods.isfinite(), grad, 0)[:, None, None] * occupancies


def _total(gradients: list[Tensor], log_probs: Tensor) -> Tensor | None:
    return sum(gradients[1:], start=gradients[0]).to(log_probs.dtype) if gradients else None


def _save_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], outputs[1])
    ctx.blank = inputs[4]


def _posteriors_backward(
    ctx: Any, grad_posteriors: Tensor | None, grad_log_likelihoods: Tensor | None
) -> tuple[Tensor | None]:
    *arguments, log_likelihoods = ctx.saved_tensors
    gradients = []
    if grad_log_likelihoods is not None:
        occupancies, _ = _operators.class_posteriors(*arguments, ctx.blank)
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_posteriors is not None:
        gradients.append(_operators.posteriors_backward(grad_posteriors, *arguments, ctx.blank))
    return (_total(gradients, arguments[0]),)


def _save_class_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *outputs)
    ctx.blank = inputs[4]


def _class_posteriors_backward(
    ctx: Any, grad_occupancies: Tensor | None, grad_log_likelihoods: Tensor | None
) -> tuple[Tensor | None]:
    *arguments, occupancies, log_likelihoods = ctx.saved_tensors
    gradients = []
    if grad_log_likelihoods is not None:
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_occupancies is not None:
        log_probs, targets = arguments[:2]
        columns = targets.long().clamp(0, log_probs.shape[2] - 1)  # padding may hold anything
        columns = torch.nn.functional.pad(columns, (0, 1), value=ctx.blank)
        grad_posteriors = grad_occupancies.gather(2, columns[:, None].expand(-1, log_probs.shape[1], -1))
        gradients.append(_operators.posteriors_backward(grad_posteriors, *arguments, ctx.blank))
    return (_total(gradients, arguments[0]),)


def _save_span_posteriors(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], outputs[1])
    ctx.blank = inputs[6]


def _span_posteriors_backward(
    ctx: Any, grad_spans: Tensor | None, grad_log_likelihoods: Tensor | None
) -> tuple[Tensor | None]:
    log_probs, targets, starts, ends, *lengths, log_likelihoods = ctx.saved_tensors
    gradients = []
    if grad_log_likelihoods is not None:
        occupancies, _ = _operators.class_posteriors(log_probs, targets, *lengths, ctx.blank)
        gradients.append(_of_log_likelihoods(grad_log_likelihoods, log_likelihoods, occupancies))
    if grad_spans is not None:
        frames = log_probs.shape[1]
        last = ends.clamp(max=frames) if lengths[0] is None else ends.minimum(lengths[0][:, None])
        first = starts.clamp(min=0)
        frame = torch.arange(frames, device=log_probs.device)[:, None]
        inside = (first[:, None] <= frame) & (frame < last[:, None])
        grad = torch.where(inside, (grad_spans / (last - first).clamp(min=1))[:, None], 0)
        grad = torch.nn.functional.pad(grad, (0, 1))  # the blank has no span
        gradients.append(_operators.posteriors_backward(grad, log_probs, targets, *lengths, ctx.blank))
    return (_total(gradients, log_probs),)


def _refuse_third_order(*_: Any) -> tuple[Tensor | None]:
    raise NotImplementedError(
        "posteriors_backward: not differentiable; log_likelihoods are differentiable twice, posteriors once"
    )


_register_autograd("posteriors", _save_posteriors, _posteriors_backward)
_register_autograd("class_posteriors", _save_class_posteriors, _class_posteriors_backward)
_register_autograd("span_posteriors", _save_span_posteriors, _span_posteriors_backward)
_register_autograd("posteriors_backward", lambda *_: None, _refuse_third_order)


# --------------------------------------------------------------------------------------------------------- vmap


def _register_vmap(name: str, tensors: int) -> None:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    operator = getattr(_operators, name)

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        size = info.batch_size
        joined = join_batch(size, in_dims, *arguments[:tensors])
        outputs = operator(*joined, *arguments[tensors:])
        if isinstance(outputs, Tensor):
            (output,), (dim,) = split_batch(size, outputs)
            return output, dim
        return split_batch(size, *outputs)

    torch.library.register_vmap(f"ctc_align::{name}", rule)


_register_vmap("posteriors", 4)
_register_vmap("class_posteriors", 4)
_register_vmap("span_posteriors", 6)
_register_vmap("posteriors_backward", 5)


# --------------------------------------------------------------------------------------------------------- CUDA


def _refuse_cuda(name: str) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name}: has no CUDA kernel yet; move the tensors to the CPU")

    torch.library.register_kernel(f"ctc_align::{name}", "cuda", refuse)


for _name in ("posteriors", "class_posteriors", "span_posteriors", "posteriors_backward"):
    _refuse_cuda(_name)
