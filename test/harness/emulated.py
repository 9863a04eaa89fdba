"""The Python side of the emulator: compiles the CUDA kernels' text for the host and calls it as the operator.

``emulated_align.cpp`` is compiled here and called through ctypes. The kernels' results must not depend on their
*conditions*: pairs a thread, how a batch is cut into passes and tasks, how many blocks of threads are resident, and the
order in which they run. Each case of the tests runs under several, drawn at random.

CTC_ALIGN_LAUNCHES=20    that many times more conditions a case
CTC_ALIGN_ASAN=1         build with AddressSanitizer, which has to be preloaded (test_cuda_emulated.py does that)
"""

import ctypes
import itertools
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import kept
import pytest
import torch

HARNESS = Path(__file__).parent / "emulated_align.cpp"
CSRC = Path(__file__).parents[2] / "csrc"

UNDER_ASAN = os.environ.get("CTC_ALIGN_ASAN", "0") == "1"
MORE = int(os.environ.get("CTC_ALIGN_LAUNCHES", "1"))
REALS = {torch.float32: "float"} if UNDER_ASAN else {torch.float32: "float", torch.float64: "double"}
HALVES = {torch.float16: "StoredHalf", torch.bfloat16: "StoredBFloat16"}
STORED = REALS | HALVES  # the type of log_probs as the C++ calls it


@dataclass(frozen=True)
class Conditions:
    pairs: int | str = "kPairsPerThread"  # a thread; by default as in the library
    # Frame blocks in the regions of a second and a third pass, 0: none; task_frame_blocks, ring_tasks, skew (plan.h),
    # 0: as the library would choose, one task a column wherever possible.
    cut: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    resident: int = 2
    schedule: int = 0  # in order, reversed, random
    seed: int = 0


def is_legal(tasks: tuple[int, int, int]) -> bool:
    """Whatever the number of tasks: a reader of the ring must have an earlier ticket than its next writer."""
    _, ring_tasks, skew = tasks
    return ring_tasks * skew > 1


TASKS = [*filter(is_legal, itertools.product([1, 2, 3], [1, 2, 3], [1, 2, 5])), (99, 1, 1)]
ONE_PASS = [(0, 0, 0, 0, 0), *((0, 0, *tasks) for tasks in TASKS)]
TWO_PASSES = [(n, 0, 0, 0, 0) for n in (1, 2, 3, 4)]
TWO_PASSES += [(1, 0, 1, 1, 2), (2, 0, 1, 1, 2), (2, 0, 1, 2, 5), (4, 0, 1, 2, 1), (3, 0, 1, 3, 2)]
THREE_PASSES = [(2, 1, 0, 0, 0), (3, 1, 0, 0, 0), (4, 2, 0, 0, 0), (4, 1, 1, 1, 2), (2, 1, 1, 2, 1), (4, 2, 1, 2, 5)]
CUTS = ONE_PASS + TWO_PASSES + THREE_PASSES
AS_CHOSEN = (-1, 0, 0, 0, 0)


def draw_conditions(draw: random.Random, pairs: int | str) -> Conditions:
    cut = draw.choice(draw.choice([ONE_PASS, TWO_PASSES, THREE_PASSES]))
    return Conditions(pairs, cut, draw.choice([1, 2, 5]), draw.choice([0, 1, 2, 2]), draw.randrange(2**32))


def structure(name: str, *fields: str | tuple[str, type]) -> type:
    """A struct; a string of names stands for as many int64 or pointers."""
    typed = []
    for field in fields:
        typed += [(word, ctypes.c_int64) for word in field.split()] if isinstance(field, str) else [field]
    return type(name, (ctypes.Structure,), {"_fields_": typed})


# As in emulated_align.cpp.
PlanArguments = structure("PlanArguments", "batch frames labels second third task_frame_blocks ring_tasks skew")
Call = structure(
    "Call",
    ("plan", PlanArguments),
    "log_probs item_stride frame_stride class_stride classes",
    "targets wide target_item_stride label_stride",
    "input_lengths target_lengths input_wide target_wide lengths_stride",
    "blank",
    "star_scores star_item_stride star_frame_stride",
    "wild_gaps wild_item_stride gap_stride",
    "paths scores replay resident_blocks schedule seed",
)
LaunchArguments = structure("LaunchArguments", "kernel pass_ blocks threads whole_rows least_shared")


def compile_harness(output: Path, stored: str, pairs: int | str, csrc: Path = CSRC) -> Path:
    macros = {"CTC_ALIGN_STORED": stored, "CTC_ALIGN_PAIRS": str(pairs)}
    return compile_for_host(HARNESS, output, macros, csrc, "-O2")


def compile_for_host(source: Path, output: Path, macros: dict[str, str], csrc: Path, level: str) -> Path:
    flags = ["-O1", "-g", "-fsanitize=address"] if UNDER_ASAN else [level]
    flags = ["-std=c++20", "-Wall", "-Wextra", *flags, "-ffp-contract=off", "-Wno-missing-field-initializers"]
    flags += [*(f"-D{name}={value}" for name, value in macros.items()), f"-I{csrc}", "-shared", "-fPIC"]
    compiler = os.environ.get("CXX", "g++").split()
    result = kept.compile_program(compiler, flags, [source], output, None if csrc == CSRC else csrc)
    assert result.returncode == 0, result.stderr[:5000]
    return output


def load_harness(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emulated_align.restype = library.emulated_tickets.restype = ctypes.c_char_p
    library.emulated_plan.restype = library.emulated_launches.restype = ctypes.c_int64
    library.emulated_launches.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


def pointer_and_strides(matrix):
    return (0, 0, 0) if matrix is None else (matrix.data_ptr(), *matrix.stride())


def prepare(
    log_probs,
    targets,
    input_lengths,
    target_lengths,
    blank=0,
    star_scores=None,
    wild_gaps=None,
    *,
    conditions=Conditions(),
    replay=False,
):
    """The call, and the paths and scores that it will write."""
    B, T, C = log_probs.shape
    paths = torch.full((B, T), -77, dtype=targets.dtype)
    scores = torch.full((B, T), 77, dtype=log_probs.dtype)
    lengths = [x for x in (input_lengths, target_lengths) if x is not None]
    pointers = [0 if x is None else x.data_ptr() for x in (input_lengths, target_lengths)]
    call = Call(
        PlanArguments(B, T, targets.shape[1], *conditions.cut),
        *(log_probs.data_ptr(), *log_probs.stride(), C),
        *(targets.data_ptr(), targets.dtype == torch.int64, *targets.stride()),
        *pointers,
        *(x is not None and x.dtype == torch.int64 for x in (input_lengths, target_lengths)),
        lengths[0].stride(0) if lengths else 0,
        blank,
        *pointer_and_strides(star_scores),
        *pointer_and_strides(wild_gaps),
        *(paths.data_ptr(), scores.data_ptr()),
        *(replay, conditions.resident, conditions.schedule, conditions.seed),
    )
    return call, paths, scores


class Emulated:
    """emulated(log_probs, targets, ..., conditions=Conditions()) as the operator, without its checks."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory):
        self.folder = tmp_path_factory.getbasetemp() / "emulated"  # the same for all files of tests
        self.folder.mkdir(exist_ok=True)
        self.libraries: dict[tuple[torch.dtype, int | str], ctypes.CDLL] = {}

    def library(self, dtype=torch.float32, pairs=Conditions.pairs) -> ctypes.CDLL:
        """Compiled when it is first asked for."""
        if (dtype, pairs) not in self.libraries:
            output = self.folder / f"{STORED[dtype]}-{pairs}.so"
            path = output if output.exists() else compile_harness(output, STORED[dtype], pairs)
            self.libraries[dtype, pairs] = load_harness(path)
        return self.libraries[dtype, pairs]

    def __call__(
        self,
        log_probs,
        targets,
        input_lengths=None,
        target_lengths=None,
        blank=0,
        star_scores=None,
        wild_gaps=None,
        *,
        conditions=Conditions(),
        **options,
    ):
        case = log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps
        call, paths, scores = prepare(*case, conditions=conditions, **options)
        error = self.library(log_probs.dtype, conditions.pairs).emulated_align(ctypes.byref(call))
        assert error is None, error.decode()
        return paths, scores


def without_repeats(targets, C):
    """Other targets of the same shape, in which no two neighbours are equal (blank 0)."""
    return 1 + (targets % (C - 2) + 1).cumsum(1) % (C - 1)


def mostly_slow(values, fast):
    """Parameters, all but the fast ones marked slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def start_under_address_sanitizer(files: list[str], cases: str) -> subprocess.Popen | None:
    """Begins to run those cases of the files' tests with a harness that has AddressSanitizer in it.

    Returns None if the compiler has no AddressSanitizer, or if this is such a run.
    """
    compiler = os.environ.get("CXX", "g++").split()
    # With the C++ library beside it: torch throws and catches while it is imported, and ASan has to know its functions.
    names = [f"-print-file-name={library}" for library in ("libasan.so", "libstdc++.so")]
    preload = [subprocess.run([*compiler, name], capture_output=True, text=True).stdout.strip() for name in names]
    if UNDER_ASAN or not all(Path(library).is_absolute() for library in preload):
        return None
    environment = os.environ | {"CTC_ALIGN_ASAN": "1", "ASAN_OPTIONS": "detect_leaks=0"}
    environment["LD_PRELOAD"] = ":".join(preload)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *files,
        "-k",
        cases,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
