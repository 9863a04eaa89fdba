"""The two compiled libraries: loading them, and what their operators leave for Python after a call."""

import ctypes
import re
from pathlib import Path
from typing import Any

import torch

OLDEST_TORCH = 2, 10  # the first whose stable C functions the libraries call; pyproject.toml has it, too


def _refuse_old_torch(version: str) -> None:
    """Says in a sentence what pip would have said: an older torch cannot load the libraries, nor name the reason."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"torch_ctc_align needs torch {oldest} or newer, found {version}; run pip install --upgrade torch"
        )


def _load(name: str) -> Path | None:
    """Loads a library of the package if it has been built, and returns its path."""
    library = next(Path(__file__).parent.glob(f"{name}.*so"), None)
    if library is not None:
        torch.ops.load_library(str(library))
    return library


_refuse_old_torch(torch.__version__)
CPU_LIBRARY = _load("_C")
if CPU_LIBRARY is None:
    raise ImportError("torch_ctc_align: the CPU library is not built; run make build, or pip install .")
HAS_CUDA_LIBRARY = torch.version.cuda is not None and _load("_C_cuda") is not None


def refuse_cuda_without_library(name: str) -> None:
    """Makes ``ctc_align::name`` raise a NotImplementedError that helps, if torch has CUDA and the package has not."""
    if torch.version.cuda is None or HAS_CUDA_LIBRARY:
        return

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"{name}: this installation of torch_ctc_align has no CUDA library; move the tensors to the CPU, or "
            "install from source where nvcc is: CTC_ALIGN_CUDA=1 pip install --no-build-isolation --force-reinstall "
            "--no-deps ."
        )

    torch.library.register_kernel(f"ctc_align::{name}", "cuda", refuse)


# Functions that need Python's lock, or are too short to release it.
_with_lock = ctypes.PyDLL(str(CPU_LIBRARY))  # the library that torch has loaded: the same handle
_with_lock.ctc_align_take_exception.restype = ctypes.c_void_p
report = _with_lock.ctc_align_report  # report(paths.data_ptr()): see the end of csrc/cpu/forced_align.cpp
report.argtypes = [ctypes.c_void_p]


def take_exception() -> BaseException | None:
    """Returns the exception with which a signal handler ended the last call; None if there is none, or it was taken."""
    address = _with_lock.ctc_align_take_exception()
    if address is None:
        return None
    exception: BaseException = ctypes.cast(address, ctypes.py_object).value
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(exception))  # the reference that the library held
    return exception


def as_raised(error: RuntimeError) -> BaseException:
    """Returns the exception that a kernel raised, or a signal handler during it, where torch made a RuntimeError of it.

    torch up to 2.14 keeps the ValueError and the MemoryError of a kernel, later ones turn both into a RuntimeError of
    the same text. No torch keeps the exception of a signal handler, such as KeyboardInterrupt.
    """
    if type(error) is not RuntimeError:
        return error
    name, _, text = str(error).partition(": ")
    if not hasattr(torch.ops.ctc_align, name):
        return error
    if text == "interrupted":
        return take_exception() or error
    if text.startswith("no memory"):
        return MemoryError(str(error))
    if text.startswith("CUDA failed"):
        return error
    return ValueError(str(error))
