"""What the tests share: one seed, random cases, the two aligners, and what happens when a peer is missing.

CTC_ALIGN_SEED=7                  another seed for every random case (printed at the top of a run)
CTC_ALIGN_REQUIRE=torchaudio      names, separated by commas, whose absence is a failure instead of a skip
"""

import os

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import reference

SEED = int(os.environ.get("CTC_ALIGN_SEED", "0"))
REQUIRED = os.environ.get("CTC_ALIGN_REQUIRE", "").split(",")


def pytest_report_header() -> str:
    return f"CTC_ALIGN_SEED={SEED}, torch {torch.__version__}, torch_ctc_align {torch_ctc_align.__version__}"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def random_case(generator):
    """make(B, T, L, C, ...) -> log_probs (B, T, C), targets (B, L).

    With ``steps=n`` every entry is 0, -1/n, -2/n or -3/n: full of ties. Thirds are not exact in binary, so that
    rounding breaks their ties, and only the same additions in the same order break them alike.
    """

    def make(B, T, L, C, *, blank=0, dtype=torch.float32, steps=None):
        if steps is None:
            log_probs = torch.randn(B, T, C, generator=generator, dtype=torch.float64).log_softmax(-1)
        else:
            log_probs = torch.randint(-3, 1, (B, T, C), generator=generator).double() / steps
        targets = torch.randint(0, max(C - 1, 1), (B, L), generator=generator)
        return log_probs.to(dtype), targets + (targets >= blank)

    return make


@pytest.fixture
def threads():
    """threads(n) sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "operator"])
def align(request, threads):
    """Tests that use this hold for the reference and for the operator: neither is trusted before it passed them."""
    if request.param == "operator":
        return torch.ops.ctc_align.forced_align
    threads(1)  # its tensors are tiny here: waking a second thread for each takes longer than the work
    return reference.forced_align


@pytest.fixture
def missing():
    """missing("torchaudio", reason): skips the test, or fails it where torchaudio is required."""

    def skip_or_fail(name: str, reason: str) -> None:
        (pytest.fail if name in REQUIRED else pytest.skip)(reason)

    return skip_or_fail
