"""The Python side of the emulated sums: compiles the CUDA kernels' text for the host and calls it as the operators.

As in emulated.py, the results must not depend on their *conditions*: how a batch is cut into groups, segments and
chapters, how many blocks of threads are resident, and the order in which they run.
"""

import ctypes
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness.emulated import CSRC, UNDER_ASAN, structure

HARNESS = Path(__file__).parent / "emulated_sums.cpp"
STORAGES = {torch.float32: 0, torch.float64: 0, torch.float16: 1, torch.bfloat16: 2}
KINDS = {"class_posteriors": 0, "occupancies": 0, "posteriors_backward": 0, "posteriors": 1, "span_posteriors": 2}


@dataclass(frozen=True)
class SumConditions:
    # Items of a group, frames of a segment and of a chapter (plan.h); 0: as the library would choose.
    sizes: tuple[int, int, int] = (0, 0, 0)
    resident: int = 2
    schedule: int = 0  # in order, reversed, random
    seed: int = 0


SIZES = [(0, 0, 0), (1, 0, 0), (0, 16, 16), (0, 16, 48), (2, 32, 64), (0, 64, 64), (1, 16, 16)]


def draw_conditions(draw: random.Random) -> SumConditions:
    return SumConditions(draw.choice(SIZES), draw.choice([1, 2, 5]), draw.choice([0, 1, 2, 2]), draw.randrange(2**32))


# As in emulated_sums.cpp.
Call = structure(
    "Call",
    "batch frames labels classes",
    "group segment chapter",
    "log_probs storage item_stride frame_stride class_stride",
    "targets wide target_item_stride label_stride",
    "input_lengths target_lengths input_wide target_wide lengths_stride",
    "blank",
    "star_scores star_item_stride star_frame_stride",
    "wild_gaps wild_item_stride gap_stride",
    "path_values values_item_stride values_frame_stride values_column_stride",
    "kind",
    "starts ends starts_strides_0 starts_strides_1 ends_strides_0 ends_strides_1",
    "out out_columns log_likelihoods",
    "resident_blocks schedule seed",
)


def pointer_and_strides(tensor, dimensions):
    return (0,) * (1 + dimensions) if tensor is None else (tensor.data_ptr(), *tensor.stride())


def compile_sums(output: Path, real: str, csrc: Path = CSRC) -> Path:
    flags = ["-O1", "-g", "-fsanitize=address"] if UNDER_ASAN else ["-O2"]
    command = [*os.environ.get("CXX", "g++").split(), "-std=c++20", "-Wall", "-Wextra", *flags, "-ffp-contract=off"]
    command += ["-Wno-missing-field-initializers", f"-DCTC_ALIGN_REAL={real}", f"-I{csrc}"]
    command += ["-shared", "-fPIC", str(HARNESS), "-o", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[:5000]
    return output


def load_sums(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emulated_sum.restype = ctypes.c_char_p
    return library


def sum_emulated(
    library,
    name,
    log_probs,
    targets,
    input_lengths=None,
    target_lengths=None,
    blank=0,
    star_scores=None,
    wild_gaps=None,
    *,
    starts=None,
    ends=None,
    path_values=None,
    conditions=SumConditions(),
):
    """The outputs of the operator `name`, without its checks."""
    B, T, C = log_probs.shape
    L = targets.shape[1]
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    stars = int(star_scores is not None and name in ("occupancies", "posteriors_backward"))
    shape = {0: (B, T, C + stars), 1: (B, T, L + 1), 2: (B, L)}[KINDS[name]]
    out = torch.zeros(shape, dtype=dtype)
    log_likelihoods = torch.full((B,), 77, dtype=dtype)
    lengths = [x for x in (input_lengths, target_lengths) if x is not None]
    pointers = [0 if x is None else x.data_ptr() for x in (input_lengths, target_lengths)]
    borders = [0 if x is None else x.data_ptr() for x in (starts, ends)]
    border_strides = [n for x in (starts, ends) for n in ((0, 0) if x is None else x.stride())]
    call = Call(
        *(B, T, L, C),
        *conditions.sizes,
        *(log_probs.data_ptr(), STORAGES[log_probs.dtype], *log_probs.stride()),
        *(targets.data_ptr(), targets.dtype == torch.int64, *targets.stride()),
        *pointers,
        *(x is not None and x.dtype == torch.int64 for x in (input_lengths, target_lengths)),
        lengths[0].stride(0) if lengths else 0,
        blank,
        *pointer_and_strides(star_scores, 2),
        *pointer_and_strides(wild_gaps, 2),
        *pointer_and_strides(path_values, 3),
        KINDS[name],
        *borders,
        *border_strides,
        *(out.data_ptr(), shape[-1], log_likelihoods.data_ptr()),
        *(conditions.resident, conditions.schedule, conditions.seed),
    )
    error = library.emulated_sum(ctypes.byref(call))
    assert error is None, error.decode()
    return out if name == "posteriors_backward" else (out, log_likelihoods)


class EmulatedSums:
    """sums(name, log_probs, targets, ..., conditions=SumConditions()) as the operator `name`, without its checks."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory):
        self.folder = tmp_path_factory.getbasetemp() / "emulated_sums"
        self.folder.mkdir(exist_ok=True)
        self.libraries: dict[str, ctypes.CDLL] = {}

    def library(self, dtype=torch.float32) -> ctypes.CDLL:
        """Compiled when it is first asked for."""
        real = "double" if dtype == torch.float64 else "float"
        if real not in self.libraries:
            output = self.folder / f"{real}.so"
            self.libraries[real] = load_sums(output if output.exists() else compile_sums(output, real))
        return self.libraries[real]

    def __call__(self, name, log_probs, *arguments, **options):
        return sum_emulated(self.library(log_probs.dtype), name, log_probs, *arguments, **options)
