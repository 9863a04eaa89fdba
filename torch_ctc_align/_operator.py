"""What PyTorch needs to know about ``ctc_align::forced_align`` beside its kernels: fake tensors, gradients, vmap.

The checks, the vmap helpers and :func:`refuse_cuda` serve every operator of the package that takes
``(log_probs, targets, input_lengths, target_lengths, blank)``.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_ctc_align.errors import warn_once


def _load(name: str) -> Path | None:
    """Loads a library of the package, if it has been built, and says where it is."""
    library = next(Path(__file__).parent.glob(f"{name}.*so"), None)
    if library is not None:
        torch.ops.load_library(str(library))
    return library


def refuse_cuda(name: str, why: str) -> None:
    """Makes ``ctc_align::name`` say why, and what to do, when it is called with CUDA tensors."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name}: {why}")

    torch.library.register_kernel(f"ctc_align::{name}", "cuda", refuse)


CPU_LIBRARY = _load("_C")
if CPU_LIBRARY is None:
    raise ImportError("torch_ctc_align: the CPU library is not built; run make build, or pip install .")
HAS_CUDA_LIBRARY = torch.version.cuda is not None and _load("_C_cuda") is not None
if torch.version.cuda is not None and not HAS_CUDA_LIBRARY:
    refuse_cuda(
        "forced_align",
        "this installation of torch_ctc_align has no CUDA library; move the tensors to the CPU, or install from source "
        "where nvcc is: CTC_ALIGN_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps .",
    )

# Functions that need Python's lock, or are too short to let go of it.
_with_lock = ctypes.PyDLL(str(CPU_LIBRARY))  # the library that torch has loaded: the same handle
_with_lock.ctc_align_take_exception.restype = ctypes.c_void_p
report = _with_lock.ctc_align_report  # report(paths.data_ptr()): what csrc/cpu/forced_align.cpp says of its last call
report.argtypes = [ctypes.c_void_p]


def _take_exception() -> BaseException | None:
    """What a signal handler raised during the last call that it ended, if nobody has taken it yet."""
    address = _with_lock.ctc_align_take_exception()
    if address is None:
        return None
    exception: BaseException = ctypes.cast(address, ctypes.py_object).value
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(exception))  # the reference that the library held
    return exception


def as_raised(error: RuntimeError) -> BaseException:
    """What a kernel raised, or a signal handler during it, where torch has made a RuntimeError of it.

    torch up to 2.14 keeps ValueError and MemoryError of a kernel, later ones keep no kind; the text is the same. None
    keeps what a signal handler raised, KeyboardInterrupt among them.
    """
    if type(error) is not RuntimeError:
        return error
    name, _, text = str(error).partition(": ")
    if not hasattr(torch.ops.ctc_align, name):
        return error
    if text == "interrupted":
        return _take_exception() or error
    if text.startswith("no memory"):
        return MemoryError(str(error))
    if text.startswith("CUDA failed"):
        return error
    return ValueError(str(error))


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_arguments(
    name: str,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    blank: int,
) -> None:
    """What can be checked without values: shapes, dtypes, devices. The words are those of csrc/arguments.h.

    Raises ValueError with a message that begins with ``name``, while a graph is traced as well.
    """

    def check(holds: Any, message: str) -> None:
        torch._check_value(holds, lambda: f"{name}: {message}")

    check(log_probs.dim() == 3, f"log_probs must have shape (B, T, C), found {_shape(log_probs)}")
    batch, _, classes = log_probs.shape
    check(
        log_probs.dtype in _FLOATS,
        f"log_probs must be float16, bfloat16, float32 or float64, found {dtype_name(log_probs)}",
    )
    check(
        targets.dim() == 2 and targets.shape[0] == batch,
        f"targets must have shape (B, L) with B = {batch} as in log_probs, found {_shape(targets)}",
    )
    check(targets.dtype in INTEGERS, f"targets must be int32 or int64, found {dtype_name(targets)}")
    arguments = (("targets", targets), ("input_lengths", input_lengths), ("target_lengths", target_lengths))
    for argument, tensor in arguments:
        if tensor is None:
            continue
        if tensor is not targets:
            check(
                tensor.dim() == 1 and tensor.shape[0] == batch,
                f"{argument} must have shape (B,) = ({batch},), found {_shape(tensor)}",
            )
            check(tensor.dtype in INTEGERS, f"{argument} must be int32 or int64, found {dtype_name(tensor)}")
        check(
            tensor.device == log_probs.device,
            f"{argument} must be on the device of log_probs, expected {log_probs.device}, found {tensor.device}",
        )
    check(
        blank >= 0 and blank < classes,
        f"blank must be a class of log_probs, expected 0 <= blank < C = {classes}, found {blank}",
    )


def warn_in_onnx_export(name: str) -> None:
    """Says what to do when ``torch.onnx.export`` traces ``ctc_align::name``, before torch says that it cannot.

    A warning, because ``custom_translation_table`` may hold a translation; where it does not, torch raises.
    """
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        warn_once(
            f"{name}: ONNX",
            f"{name}: ONNX has no such operator. Export the model up to log_probs and align what it returns with "
            f"torch_ctc_align (docs/exporting.md), unless custom_translation_table names ctc_align::{name}",
        )


@torch.library.register_fake("ctc_align::forced_align")
def _forced_align_fake(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    warn_in_onnx_export("forced_align")
    check_arguments("forced_align", log_probs, targets, input_lengths, target_lengths, blank)
    batch, frames, _ = log_probs.shape
    return targets.new_empty((batch, frames)), log_probs.new_empty((batch, frames))


# Looked up once, and handed on as they come: most of what a small call takes is on the way to the kernel.
_forced_align = torch.ops.ctc_align.forced_align.default._op
_below_autograd = torch._C._AutoDispatchBelowAutograd
_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_tracer = torch._C._get_tracing_state


def _forced_align_autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """A score is one entry of log_probs. Where somebody differentiates, it is gathered from there once more.

    So the gradient, its gradient, and the tangent are torch's own, for all of torch.func too. With an
    autograd.Function, torch.library.register_autograd's among them, torch.func refuses: the one that is generated has
    no setup_context. Besides, its backward in Python took longer.

    Errors get their kinds back here (:func:`as_raised`). Calls in inference mode do not come by.
    """
    try:
        with _below_autograd():
            results = _forced_align(*arguments)
    except RuntimeError as error:
        raise as_raised(error) from None
    log_probs = arguments[0]
    if forward_ad._current_level < 0 and not (log_probs.requires_grad and torch.is_grad_enabled()):
        return results  # type: ignore[no-any-return]
    paths, scores = results
    input_lengths = arguments[2] if len(arguments) > 2 else None
    on_path = paths >= 0
    if input_lengths is not None:
        count = paths.new_ones(paths.shape[1]).cumsum(0)  # 1, 2, ...; of a DTensor it is one, which arange() is not
        on_path = on_path & (count <= input_lengths[:, None])
    entries = log_probs.gather(2, paths.clamp(min=0).long().unsqueeze(2)).squeeze(2)
    # Padding and marked items get no gradient, whatever comes from above: 0 * inf would be NaN, where() is 0.
    return paths, torch.where(on_path, entries, scores)


def is_plain(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor | None = None, target_lengths: Tensor | None = None
) -> bool:
    """Are these plain tensors, of no subclass, and is no transform of torch.func, no mode and no tracer at work?"""
    return (
        type(log_probs) is Tensor
        and type(targets) is Tensor
        and (input_lengths is None or type(input_lengths) is Tensor)
        and (target_lengths is None or type(target_lengths) is Tensor)
        and _transform() is None
        and not _dispatch_modes()
        and not _function_modes()
        and _tracer() is None
    )


def call_forced_align(log_probs: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The operator for plain tensors, past its autograd kernel where nobody differentiates.

    That is a quarter of the time of a small call.
    """
    if log_probs.requires_grad or forward_ad._current_level >= 0:
        return _forced_align(log_probs, *others)  # type: ignore[no-any-return]
    with _below_autograd():
        return _forced_align(log_probs, *others)  # type: ignore[no-any-return]


_library = torch.library.Library("ctc_align", "IMPL")  # a registration lasts as long as its library
_library.impl("forced_align", _forced_align_autograd, "Autograd")


def join_batch(size: int, in_dims: tuple[int | None, ...], *tensors: Tensor | None) -> list[Tensor | None]:
    """Makes a mapped dimension part of the batch, for a vmap rule of an operator whose items are independent.

    Args:
        size: extent of the mapped dimension, ``info.batch_size``.
        in_dims: where it lies in each tensor, None where it does not; dimensions missing at the end count as None.
        tensors: ``(B, ...)`` beside the mapped dimension, or None.

    Returns:
        The tensors as ``(size * B, ...)``, with the mapped dimension outside; None stays None.
    """

    def join(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        if dim is None:
            tensor = tensor.expand(size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        return tensor.reshape(size * tensor.shape[1], *tensor.shape[2:])

    dims = (*in_dims, *[None] * len(tensors))[: len(tensors)]
    return [join(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]


def split_batch(
    size: int, first: Tensor, first_dim: int | None, *tensors: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The way back from :func:`join_batch`: what a vmap rule returns for these ``(size * B, ...)`` outputs.

    B is that of the first argument: nothing else tells it where the mapped dimension is empty.
    """
    batch = first.shape[1 if first_dim == 0 else 0]
    outputs = tuple(tensor.reshape(size, batch, *tensor.shape[1:]) for tensor in tensors)
    return outputs, (0,) * len(tensors)


@torch.library.register_vmap("ctc_align::forced_align")
def _forced_align_vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Items are independent, so the mapped dimension joins the batch and one call serves all of it."""
    size = info.batch_size
    joined = join_batch(size, in_dims, log_probs, targets, input_lengths, target_lengths)
    return split_batch(size, log_probs, in_dims[0], *torch.ops.ctc_align.forced_align(*joined, blank))
