"""What PyTorch needs to know about ``ctc_align::forced_align`` beside its kernels: fake tensors, gradients, vmap."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _load(name: str) -> Path | None:
    """Loads a library of the package, if it has been built, and says where it is."""
    library = next(Path(__file__).parent.glob(f"{name}.*so"), None)
    if library is not None:
        torch.ops.load_library(str(library))
    return library


def _refuse_cuda(*_: Any) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "forced_align: this installation of torch_ctc_align has no CUDA library; move the tensors to the CPU, or "
        "install from source where nvcc is: CTC_ALIGN_CUDA=1 pip install --no-build-isolation --force-reinstall "
        "--no-deps ."
    )


CPU_LIBRARY = _load("_C")
if CPU_LIBRARY is None:
    raise ImportError("torch_ctc_align: the CPU library is not built; run make build, or pip install .")
HAS_CUDA_LIBRARY = torch.version.cuda is not None and _load("_C_cuda") is not None
if torch.version.cuda is not None and not HAS_CUDA_LIBRARY:
    torch.library.register_kernel("ctc_align::forced_align", "cuda", _refuse_cuda)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@torch.library.register_fake("ctc_align::forced_align")
def _forced_align_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the result. The checks, and their words, are those of csrc/arguments.h."""

    def check(holds: Any, message: str) -> None:
        torch._check_value(holds, lambda: f"forced_align: {message}")

    check(log_probs.dim() == 3, f"log_probs must have shape (B, T, C), found {_shape(log_probs)}")
    batch, frames, classes = log_probs.shape
    check(
        log_probs.dtype in _FLOATS,
        f"log_probs must be float16, bfloat16, float32 or float64, found {_dtype(log_probs)}",
    )
    check(
        targets.dim() == 2 and targets.shape[0] == batch,
        f"targets must have shape (B, L) with B = {batch} as in log_probs, found {_shape(targets)}",
    )
    check(targets.dtype in _INTEGERS, f"targets must be int32 or int64, found {_dtype(targets)}")
    for name, tensor in (("targets", targets), ("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if tensor is None:
            continue
        if tensor is not targets:
            check(
                tensor.dim() == 1 and tensor.shape[0] == batch,
                f"{name} must have shape (B,) = ({batch},), found {_shape(tensor)}",
            )
            check(tensor.dtype in _INTEGERS, f"{name} must be int32 or int64, found {_dtype(tensor)}")
        check(
            tensor.device == log_probs.device,
            f"{name} must be on the device of log_probs, expected {log_probs.device}, found {tensor.device}",
        )
    check(
        blank >= 0 and blank < classes,
        f"blank must be a class of log_probs, expected 0 <= blank < C = {classes}, found {blank}",
    )
    return targets.new_empty((batch, frames)), log_probs.new_empty((batch, frames))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    log_probs, _, input_lengths, _, _ = inputs
    paths, _ = output
    ctx.mark_non_differentiable(paths)
    ctx.save_for_backward(paths, input_lengths)
    ctx.classes = log_probs.shape[2]


def _forced_align_backward(ctx: Any, _: None, grad_scores: Tensor) -> tuple[Tensor, None, None, None, None]:
    """A score is one entry of log_probs, so its gradient goes to that entry. Padding and marked items get none."""
    paths, input_lengths = ctx.saved_tensors
    used = paths >= 0
    if input_lengths is not None:
        frame = torch.arange(paths.shape[1], device=paths.device)
        used = used & (frame < input_lengths[:, None])
    # where(), not a product: the score of a marked item is -inf, and 0 * inf is NaN.
    grad_scores = torch.where(used, grad_scores, 0)
    grad_log_probs = grad_scores.new_zeros((*paths.shape, ctx.classes))
    index = paths.clamp(min=0).long().unsqueeze(-1)
    return grad_log_probs.scatter(2, index, grad_scores.unsqueeze(-1)), None, None, None, None


torch.library.register_autograd("ctc_align::forced_align", _forced_align_backward, setup_context=_save_for_backward)


@torch.library.register_vmap("ctc_align::forced_align")
def _forced_align_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    size = info.batch_size

    def join(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        if dim is None:
            tensor = tensor.expand(size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        return tensor.reshape(size * tensor.shape[1], *tensor.shape[2:])

    arguments = (log_probs, targets, input_lengths, target_lengths)
    in_dims = (*in_dims, None, None)[:4]  # trailing arguments at their defaults come without a dimension
    joined = [join(tensor, dim) for tensor, dim in zip(arguments, in_dims, strict=True)]
    paths, scores = torch.ops.ctc_align.forced_align(*joined, blank)
    batch = paths.shape[0] // size
    return (paths.unflatten(0, (size, batch)), scores.unflatten(0, (size, batch))), (0, 0)
