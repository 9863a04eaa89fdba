"""Kernels broken on purpose: all mistakes of a list written into one copy of csrc, of which a variable chooses one.

A list maps what is broken to the file of csrc/cuda, a pattern, and the new text. Every match of the pattern in the file
is replaced, and there has to be one. In the new text {broken} is true when this mistake is asked for, and \\g<0> is the
old text.
"""

import ctypes
import faulthandler
import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from harness.emulated import CSRC

SLOWLY = "for (int i = 0; i < 4; ++i) { Device::pause(); }"
UNLESS = r"if (!{broken}) { \g<0> }"
Mistakes = dict[str, tuple[str, str, str]]


def write_breakable(folder: Path, mistakes: Mistakes) -> None:
    """csrc with all mistakes in it. The variable ctc_align_broken chooses one of them by its number; 0 is none."""
    for part in ("lattice", "cuda"):
        shutil.copytree(CSRC / part, folder / part)
    lattice = folder / "lattice" / "lattice.h"  # every other file includes it
    lattice.write_text('extern "C" { inline int ctc_align_broken = 0; }\n' + lattice.read_text())
    for i, (name, (file, pattern, broken)) in enumerate(mistakes.items(), 1):
        path = folder / "cuda" / file
        text, found = re.subn(pattern, broken.replace("{broken}", f"(ctc_align_broken == {i})"), path.read_text())
        assert found == 1, f"{name}: the pattern is found {found} times in {file}"
        path.write_text(text)


def choose_mistake(library: ctypes.CDLL, number: int) -> None:
    ctypes.c_int.in_dll(library, "ctc_align_broken").value = number


def in_process_of_its_own(work: Callable[[], bytes]) -> str:
    """What work() returns, or the name of the signal that ended its process. It may not use torch."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "multi-threaded, use of fork() may lead to deadlocks"
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        signal.alarm(20)
        os.write(write, work())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said
