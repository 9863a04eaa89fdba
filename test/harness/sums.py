"""The Python side of the emulated sums: compiles the CUDA kernels' text for the host and calls it as the operators.

As in emulated.py, the results must not depend on their *conditions*: how a batch is cut into groups, segments and
chapters, how many blocks of threads are resident, and the order in which they run. The tests on a GPU use the cases.
"""

import ctypes
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.emulated import CSRC, UNDER_ASAN, compile_for_host, structure

HARNESS = Path(__file__).parent / "emulated_sums.cpp"
PLANS = Path(__file__).parent / "sum_plans.cpp"
STORAGES = {torch.float32: 0, torch.float64: 0, torch.float16: 1, torch.bfloat16: 2}
KINDS = {"posteriors": 1, "class_posteriors": 0, "span_posteriors": 2, "occupancies": 0, "posteriors_backward": 0}

# ------------------------------------------------------------------------------------------------------- cases


@dataclass
class SumCase:
    """The arguments of all operators. `starts`, `ends` and `path_values` have what some of them need."""

    log_probs: Tensor
    targets: Tensor
    input_lengths: Tensor | None = None
    target_lengths: Tensor | None = None
    blank: int = 0
    star_scores: Tensor | None = None
    wild_gaps: Tensor | None = None
    starts: Tensor | None = None
    ends: Tensor | None = None
    path_values: Tensor | None = None

    def names(self) -> list[str]:
        """The operators that take such a case."""
        return [name for name in KINDS if name != "occupancies" or self.star_scores is not None]

    def arguments(self, name: str) -> list:
        before = [self.path_values] if name == "posteriors_backward" else []
        spans = [self.starts, self.ends] if name == "span_posteriors" else []
        rest = [self.input_lengths, self.target_lengths, self.blank, self.star_scores, self.wild_gaps]
        return [*before, self.log_probs, self.targets, *spans, *rest]

    def run(self, name: str, device: str = "cpu") -> tuple[Tensor, ...]:
        """The operator's outputs."""
        moved = [x.to(device) if isinstance(x, Tensor) else x for x in self.arguments(name)]
        outputs = getattr(torch.ops.ctc_align, name)(*moved)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def item(self, b: int) -> "SumCase":
        """An item alone."""
        tensors = {name: x[b : b + 1] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)

    def copy(self) -> "SumCase":
        return replace(self, **{name: x.clone() for name, x in vars(self).items() if isinstance(x, Tensor)})


def make_case(generator, B, T, L, C, *, dtype=torch.float32, blank=0, stars=False, scale=1.0, ragged=False) -> SumCase:
    """Random numbers. With stars a fifth of the labels are stars, and half of the gaps are wild."""

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    log_probs = (torch.randn(B, T, C, generator=generator, dtype=torch.float64) * scale).log_softmax(-1)
    targets = torch.randint(0, max(C - 1, 1), (B, L), generator=generator)
    case = SumCase(log_probs.to(dtype), targets + (targets >= blank), blank=blank)
    if stars:
        case.targets[rand(B, L) < (1 if C == 1 else 0.2)] = C
        case.star_scores = (torch.randn(B, T, generator=generator, dtype=torch.float64) * scale).to(dtype)
        case.wild_gaps = rand(B, L + 1) < 0.5
    if ragged:
        case.input_lengths = torch.randint(T - T // 3, T + 1, (B,), generator=generator)
        case.target_lengths = torch.randint(L // 2, L + 1, (B,), generator=generator)
        case.input_lengths[0], case.target_lengths[0] = T, L
    case.starts = torch.randint(0, T + 1, (B, L), generator=generator)
    case.ends = case.starts + torch.randint(-1, 20, (B, L), generator=generator)
    real = torch.promote_types(dtype, torch.float32)
    case.path_values = torch.randn(B, T, L + 1 + stars, generator=generator, dtype=torch.float64).to(real)
    return case


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """All NaNs are alike."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    integers = torch.int64 if found.dtype == torch.float64 else torch.int32
    are_alike = found.contiguous().view(integers) == expected.contiguous().view(integers)
    return bool((are_alike | (found.isnan() & expected.isnan())).all())


# -------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class SumConditions:
    # Items of a group, frames of a segment and of a chapter (plan.h); 0: as the library would choose.
    sizes: tuple[int, int, int] = (0, 0, 0)
    resident: int = 2
    schedule: int = 0  # in order, reversed, random
    seed: int = 0
    slots: int = 0  # the most pieces of memory for alphas of segments; 0: as the library would choose


SIZES = [(0, 0, 0), (1, 0, 0), (0, 16, 16), (0, 16, 48), (2, 32, 64), (0, 64, 64), (1, 16, 16), (0, 128, 128)]


def draw_conditions(draw: random.Random) -> SumConditions:
    order = draw.choice([1, 2, 5]), draw.choice([0, 1, 2, 2]), draw.randrange(2**32)
    return SumConditions(draw.choice(SIZES), *order, slots=draw.choice([0, 0, 1, 2, 3]))


# ---------------------------------------------------------------------------------------------------- the calls

# As in emulated_sums.cpp.
Call = structure(
    "Call",
    "batch frames labels classes",
    "group segment chapter slots",
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
    "replay resident_blocks schedule seed",
)


def compile_sums(output: Path, real: str, csrc: Path = CSRC, harness: Path = HARNESS) -> Path:
    return compile_for_host(harness, output, {"CTC_ALIGN_REAL": real}, csrc, "-O1")  # -O2 compiles twice as long


def load_sums(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emulated_sum.restype = ctypes.c_char_p
    return library


def pointer_and_strides(tensor, dimensions):
    return (0,) * (1 + dimensions) if tensor is None else (tensor.data_ptr(), *tensor.stride())


CANARIES = 0 if UNDER_ASAN else 64  # numbers around each output; AddressSanitizer sees more without them
CANARY = -77.5


class Output:
    """A tensor amid numbers that nobody may change."""

    def __init__(self, shape, dtype, value):
        self.count = torch.Size(shape).numel()
        self.all = torch.full((self.count + 2 * CANARIES,), CANARY, dtype=dtype)
        self.tensor = self.all[CANARIES : CANARIES + self.count].view(shape).fill_(value)

    def is_alone_changed(self):
        return bool((self.all[:CANARIES] == CANARY).all() and (self.all[CANARIES + self.count :] == CANARY).all())


def prepare(name: str, case: SumCase, conditions=SumConditions(), replay=False):
    """The call, and its outputs."""
    (B, T, C), L = case.log_probs.shape, case.targets.shape[1]
    dtype = torch.promote_types(case.log_probs.dtype, torch.float32)
    stars = int(case.star_scores is not None and name in ("occupancies", "posteriors_backward"))
    shape = {0: (B, T, C + stars), 1: (B, T, L + 1), 2: (B, L)}[KINDS[name]]
    outputs = Output(shape, dtype, 0), Output((B,), dtype, 77)
    lengths = [x for x in (case.input_lengths, case.target_lengths) if x is not None]
    pointers = [0 if x is None else x.data_ptr() for x in (case.input_lengths, case.target_lengths)]
    borders = (case.starts, case.ends) if name == "span_posteriors" else (None, None)
    call = Call(
        *(B, T, L, C),
        *conditions.sizes,
        conditions.slots,
        *(case.log_probs.data_ptr(), STORAGES[case.log_probs.dtype], *case.log_probs.stride()),
        *(case.targets.data_ptr(), case.targets.dtype == torch.int64, *case.targets.stride()),
        *pointers,
        *(x is not None and x.dtype == torch.int64 for x in (case.input_lengths, case.target_lengths)),
        lengths[0].stride(0) if lengths else 0,
        case.blank,
        *pointer_and_strides(case.star_scores, 2),
        *pointer_and_strides(case.wild_gaps, 2),
        *pointer_and_strides(case.path_values if name == "posteriors_backward" else None, 3),
        KINDS[name],
        *(0 if x is None else x.data_ptr() for x in borders),
        *(n for x in borders for n in ((0, 0) if x is None else x.stride())),
        *(outputs[0].tensor.data_ptr(), shape[-1], outputs[1].tensor.data_ptr()),
        *(replay, conditions.resident, conditions.schedule, conditions.seed),
    )
    return call, outputs


class EmulatedSums:
    """sums(name, case, conditions=SumConditions()): the outputs of the operator `name`, without its checks."""

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

    def __call__(self, name: str, case: SumCase, conditions=SumConditions(), *, replay=False) -> tuple[Tensor, ...]:
        call, outputs = prepare(name, case, conditions, replay)
        error = self.library(case.log_probs.dtype).emulated_sum(ctypes.byref(call))
        assert error is None, f"{name}, {conditions}: {error.decode()}"
        assert all(output.is_alone_changed() for output in outputs), f"{name}, {conditions}: wrote beside its output"
        tensors = tuple(output.tensor for output in outputs)
        return tensors[:1] if name == "posteriors_backward" else tensors


# --------------------------------------------------------------------------------------------------------- plans

# As in sum_plans.cpp.
PlanArguments = structure(
    "PlanArguments", "batch frames labels planes group segment chapter has_second_pass rows slots is_single"
)
LaunchArguments = structure("LaunchArguments", "kernel first_item blocks threads unset begin end row row_to keeps_rows")


class SumPlans:
    """plans(B, T, L): the bytes of the workspace, the plan, and its launches; of float32."""

    def __init__(self, folder: Path):
        self.library = ctypes.CDLL(str(compile_sums(folder / "sum_plans.so", "float", harness=PLANS)))
        self.library.sum_plan.restype = self.library.sum_launches.restype = ctypes.c_int64
        self.library.sum_launches.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def __call__(self, B, T, L, *, planes=2, sizes=(0, 0, 0), spans=False):
        plan = PlanArguments(B, T, L, planes, *sizes, spans)
        count = self.library.sum_launches(ctypes.addressof(plan), None, 0)
        launches = (LaunchArguments * count)()
        self.library.sum_launches(ctypes.addressof(plan), ctypes.addressof(launches), count)
        return self.library.sum_plan(ctypes.byref(plan)), plan, list(launches)
