"""Memory: how much a call takes beside its inputs and outputs, and how it fails if there is too little.

Each test has a process of its own: peaks, limits and crashes concern a whole process.
"""

from pathlib import Path

import pytest

# ------------------------------------------------------------------------------------------------- how much it takes

# 17 minutes of speech. Every call is the first one of a process that is forked for it, so that nothing is left over in
# the allocator. The peak of resident memory is reset before the call; what the process holds then, and the outputs, are
# subtracted from the peak.
MEASURE = """
import json, os, torch, torch_ctc_align
from torch_ctc_align.config import _forced

def resident(name):
    line = next(x for x in open("/proc/self/status") if x.startswith(name + ":"))
    return 1024 * int(line.split()[1])

def measure():
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets)
    peak = resident("VmHWM")
    assert (paths >= 0).all()
    return peak - before - paths.nbytes - scores.nbytes

generator = torch.Generator().manual_seed(0)
B, T, L, C = {B}, 50_000, 25_000, 32
log_probs = torch.randn(1, T, C, generator=generator).expand(B, -1, -1)
targets = torch.randint(1, C, (B, L), generator=generator)
torch.set_num_threads(1)
few = log_probs[:1, :20], targets[:1, :5]
torch.ops.ctc_align.forced_align(*few)  # so that all that is set up once is there
for budget in {budgets}:
    if os.fork() == 0:
        torch.set_num_threads({threads})
        torch.ops.ctc_align.forced_align(*few)
        if budget == "all records":
            with _forced(cuts=()):
                print(measure(), flush=True)
        else:
            torch_ctc_align.set_memory_budget(budget)
            print(measure(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture
def measure(fresh_python):
    """measure(budgets, B, threads) -> the bytes that a call takes, for each of the budgets."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc/self/clear_refs to reset the peak of memory with")

    def run(budgets, B=1, threads=1):
        said = fresh_python(MEASURE.format(budgets=budgets, B=B, threads=threads), CTC_ALIGN_MEMORY_BUDGET="")
        return [int(line) for line in said.splitlines()]

    return run


def test_a_long_recording_takes_twelve_megabytes(measure):
    """Its records would take 156 MB; a call that is made to keep them all shows that the gauge can see them."""
    by_default, all_records = measure([None, "all records"])
    assert by_default <= 12e6
    assert all_records >= 150e6


def test_two_threads_that_share_a_recording_take_eight_megabytes_more(measure):
    assert measure([None], threads=2)[0] <= 20e6


def test_a_budget_is_kept(measure):
    """2.5 MB are enough for at most 3 MB. Half a megabyte is for pages that are used in part, and for code."""
    taken = dict(zip(budgets := [1, 1_500_000, 2_500_000], measure(budgets), strict=True))
    assert taken[2_500_000] <= 3e6
    assert taken[1_500_000] <= 2e6
    assert taken[1] <= 1.5e6, "what must be there: see set_memory_budget"


def test_items_side_by_side_share_a_budget(measure):
    """Each of two threads gets half of it, and has half a megabyte of its own as above."""
    assert measure([2_500_000], B=8, threads=2)[0] <= 3.5e6


# --------------------------------------------------------------------------------------------- where there is none

# The outputs fit and 24 MB beside them, so that what fails is an allocation of ours: 156 MB for all records.
RUN_OUT = """
import resource, torch, torch_ctc_align
from torch_ctc_align.config import _forced

forced_align = torch.ops.ctc_align.forced_align
torch.set_num_threads({threads})
B, T, L = {B}, 50_000, 25_000
case = torch.zeros(1, 1, 1).expand(B, T, 32), torch.randint(1, 32, (1, L)).expand(B, L)
small = torch.randn(40, 300, 32).log_softmax(-1), torch.randint(1, 32, (40, 100))
expected = forced_align(*small)  # by all threads there will be

in_use = 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmSize:")).split()[1])
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (in_use + 12 * B * T + 24_000_000, unlimited[1]))
for cuts in [(), (1,)]:
    with _forced(cuts=cuts):
        try:
            forced_align(*case)
        except MemoryError as error:
            assert str(error).startswith(f"forced_align: no memory to align ({B}, 50000, 32) log_probs with"), error
            print("MemoryError")
    found = forced_align(*small)
    assert all(torch.equal(x, y) for x, y in zip(found, expected))
resource.setrlimit(resource.RLIMIT_AS, (in_use + 1_000_000, unlimited[1]))
try:
    forced_align(torch.zeros(1, 1, 1).expand(B, 10 * T, 32), case[1])  # the outputs take 6 MB an item
except MemoryError as error:
    assert str(error) == f"forced_align: no memory for a tensor of shape ({B}, 500000)", error
    print("no outputs")
resource.setrlimit(resource.RLIMIT_AS, unlimited)
paths, _ = forced_align(*case)
assert (paths >= 0).all()
"""


@pytest.mark.parametrize("B, threads", [(1, 1), (1, 2), (6, 2)])
def test_no_memory_is_an_error_and_the_next_call_works(fresh_python, B, threads):
    """The caller's thread asks for it, for itself or for others too, or a thread with an item of its own does."""
    said = fresh_python(RUN_OUT.format(B=B, threads=threads), CTC_ALIGN_MEMORY_BUDGET="")
    assert said.split("\n") == ["MemoryError", "MemoryError", "no outputs", ""]


# Sizes for which an output, or a table of the items, cannot exist. 8 GB are far less than any of these would take.
ABSURD = """
import resource, torch, torch_ctc_align

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
zero, label = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.int64)
for B, T, C, L in {sizes}:
    try:
        torch.ops.ctc_align.forced_align(zero.expand(B, T, C), label.expand(B, L))
        print("aligned", B, T, C, L)
    except MemoryError:
        pass
    paths, _ = torch.ops.ctc_align.forced_align(zero.expand(1, 3, 2), label)
    assert paths.tolist() == [[1, 1, 1]]
print("done")
"""
ABSURD_SIZES = [
    (1, 2**40, 32, 2**38),
    (1, 2**40, 32, 0),
    (1, 2**62, 1, 0),
    (1, 2**60, 4, 2**60),
    (2**40, 5, 4, 2),
    (2**40, 0, 4, 0),
    (2**61, 0, 4, 2),
    (2**58, 4, 4, 0),
]


def test_absurd_sizes_are_errors(fresh_python):
    assert fresh_python(ABSURD.format(sizes=ABSURD_SIZES)) == "done\n"


def test_padding_of_an_absurd_size_costs_nothing(fresh_python):
    """2^62 labels; two of them are in use."""
    code = """
import torch, torch_ctc_align
targets = torch.ones(1, 1, dtype=torch.int64).expand(1, 2**62)
paths, _ = torch.ops.ctc_align.forced_align(torch.zeros(1, 3, 2), targets, None, torch.tensor([2]))
print(paths.tolist())
"""
    assert fresh_python(code) == "[[1, 0, 1]]\n"
