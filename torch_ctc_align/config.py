"""Choices for the whole process: the instruction set of the CPU kernel and its memory budget.

They change time and memory, and not a single bit of a result.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch_ctc_align._library import CPU_LIBRARY, HAS_CUDA_LIBRARY

_settings = ctypes.CDLL(str(CPU_LIBRARY))  # the one that torch has loaded: the same handle
_settings.ctc_align_cpus.restype = ctypes.c_char_p
_settings.ctc_align_cpu.restype = ctypes.c_char_p
_settings.ctc_align_set_cpu.argtypes = [ctypes.c_char_p]
_settings.ctc_align_memory_budget.restype = ctypes.c_int64
_settings.ctc_align_set_memory_budget.argtypes = [ctypes.c_int64]
_settings.ctc_align_set_memory_budget.restype = None
_settings.ctc_align_set_cuts.argtypes = [ctypes.POINTER(ctypes.c_int64), *[ctypes.c_int64] * 3]
_settings.ctc_align_set_cuts.restype = None


@dataclass(frozen=True)
class Config:
    """How the package works in this process.

    Attributes:
        cpu (str): instruction set of the CPU kernel: ``avx512``, ``avx2`` or ``portable``.
        cpus (tuple[str, ...]): the instruction sets that this machine can use, the fastest first.
        memory_budget (int | None): bytes that a call may use beside its inputs and outputs; see
            :func:`set_memory_budget`.
        cuda (bool): whether the CUDA kernel is installed.
    """

    cpu: str
    cpus: tuple[str, ...]
    memory_budget: int | None
    cuda: bool


def config() -> Config:
    """Returns the choices that are in use, and the instruction sets to choose from."""
    return Config(
        cpu=_settings.ctc_align_cpu().decode(),
        cpus=tuple(_settings.ctc_align_cpus().decode().split(",")),
        memory_budget=_settings.ctc_align_memory_budget() or None,
        cuda=HAS_CUDA_LIBRARY,
    )


def set_memory_budget(budget: int | None) -> None:
    """Limits the working memory of the CPU kernel, for long recordings on small machines.

    With less memory, more of the lattice is swept a second time; the result stays the same, bit for bit. By default an
    item gets 160 bytes a frame (at least 4 MiB) for parts that can be swept again, which costs a few per cent of time:
    an hour of speech takes some 20 MB, ten hours some 330 MB. A third of that costs some 10 per cent of time.

    The budget counts everything that a call allocates beside inputs and outputs, and is kept as far as possible: the
    alphas of one frame (8 bytes a label), the target (6 bytes a label) and the bases of the rebase grid (8 bytes for
    each 512 frames and 256 labels) are always needed. Items that are aligned side by side share it.

    :func:`posteriors` and its relatives keep to it as well, down to some 40 rows of 16 bytes a label. By default they
    get 1024 bytes a frame, at least 4 MiB (``docs/posteriors.md``).

    Args:
        budget (int, optional): bytes, at least 1. ``None``: the default. The environment variable
            ``CTC_ALIGN_MEMORY_BUDGET`` sets it when the package is imported.

    Raises:
        TypeError: the budget is not an int.
        ValueError: the budget is not a positive number of bytes.
    """
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise TypeError(f"set_memory_budget: budget must be an int or None, found {budget!r}")
    if budget is not None and not 0 < budget < 2**63:
        raise ValueError(f"set_memory_budget: budget must be a positive number of bytes or None, found {budget}")
    _settings.ctc_align_set_memory_budget(budget or 0)


def _set_cpu(name: str) -> None:
    if _settings.ctc_align_set_cpu(name.encode()) != 0:
        raise ValueError(f"CTC_ALIGN_CPU must be one of {', '.join(config().cpus)} on this machine, found {name!r}")


@contextmanager
def _forced(
    cpu: str | None = None,
    cuts: Sequence[int] | None = None,
    strip_frames: int = 0,
    group_columns: int = 0,
) -> Iterator[None]:
    """Sets an instruction set, the frames of a piece on each memory level (ladder.h) and sizes of work, for tests."""
    before = config().cpu
    if cpu is not None:
        _set_cpu(cpu)
    count = -1 if cuts is None else len(cuts)
    _settings.ctc_align_set_cuts((ctypes.c_int64 * max(count, 0))(*(cuts or ())), count, strip_frames, group_columns)
    try:
        yield
    finally:
        _set_cpu(before)
        _settings.ctc_align_set_cuts((ctypes.c_int64 * 0)(), -1, 0, 0)


def _read_environment() -> None:
    if cpu := os.environ.get("CTC_ALIGN_CPU"):
        _set_cpu(cpu)
    if budget := os.environ.get("CTC_ALIGN_MEMORY_BUDGET"):
        if not budget.isdecimal() or int(budget) == 0:
            raise ValueError(f"CTC_ALIGN_MEMORY_BUDGET must be a positive number of bytes, found {budget!r}")
        set_memory_budget(int(budget))


_read_environment()
