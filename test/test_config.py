"""What can be chosen for a process: the instruction set and the memory budget. Neither changes a result."""

import json
import platform
from dataclasses import FrozenInstanceError
from pathlib import Path

import expecttest
import pytest
import torch

import torch_ctc_align
from torch_ctc_align import config, reference, set_memory_budget
from torch_ctc_align.config import _forced

forced_align = torch.ops.ctc_align.forced_align


@pytest.fixture(autouse=True)
def budget():
    """There is no budget, even if the environment sets one; afterwards there is the one from before."""
    before = config().memory_budget
    set_memory_budget(None)
    yield
    set_memory_budget(before)


# Torch is imported once; then each environment gets a process of its own, which imports the package.
IMPORT_IN_EACH = """
import json, os, sys
import torch

for environment in {environments!r}:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.environ |= environment
        try:
            import torch_ctc_align
            generator = torch.Generator().manual_seed(0)
            log_probs = torch.randint(-3, 1, (2, 1200, 40), generator=generator) / 3
            targets = torch.randint(1, 40, (2, 500), generator=generator)
            paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets)
            found = torch_ctc_align.config()
            said = [found.cpu, found.memory_budget, paths.tolist(), scores.tolist()]
        except ValueError as error:
            said = str(error)
        print(json.dumps(said), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def import_in(fresh_python):
    """import_in(environment, ...) -> for each the cpu, the budget, paths and scores, or the message of a ValueError."""

    def run(*environments: dict[str, str]):
        clean = {"CTC_ALIGN_CPU": "", "CTC_ALIGN_MEMORY_BUDGET": ""}
        said = fresh_python(IMPORT_IN_EACH.format(environments=[clean | x for x in environments])).splitlines()
        assert len(said) == len(environments)
        return [json.loads(line) for line in said]

    return run


def refusal(function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- config()


def test_config_says_what_is_in_use():
    found = config()
    assert found.cpus == tuple(cpu for cpu in ("avx512", "avx2", "portable") if cpu in found.cpus)
    assert found.cpus[-1] == "portable", "runs everywhere"
    assert found.cpu in found.cpus
    assert found.memory_budget is None
    assert found.cuda == (torch.version.cuda is not None and found.cuda)
    assert isinstance(found, torch_ctc_align.Config)


def test_config_is_a_picture_and_no_handle():
    with pytest.raises(FrozenInstanceError):
        config().cpu = "portable"


def test_an_instruction_set_is_there_if_the_processor_has_it():
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        pytest.skip("only /proc/cpuinfo of x86-64 tells")
    flags = set(next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")).split())
    assert ("avx2" in config().cpus) == ("avx2" in flags)
    assert ("avx512" in config().cpus) == (flags >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"})


# ----------------------------------------------------------------------------------------------- the instruction set


def test_the_environment_chooses_the_instruction_set(import_in):
    """The fastest is the default. What was chosen ran, and the results are the same."""
    default, *chosen = import_in({}, *({"CTC_ALIGN_CPU": cpu} for cpu in config().cpus))
    assert default[0] == config().cpus[0]
    assert [cpu for cpu, *_ in chosen] == list(config().cpus)
    for found in chosen:
        assert found[1:] == default[1:]


def test_an_unknown_instruction_set_is_refused_on_import(import_in):
    said = import_in(*({"CTC_ALIGN_CPU": name} for name in ("sse9", "AVX2", "portable ")))
    choices = ", ".join(config().cpus)
    assert said == [
        f"CTC_ALIGN_CPU must be one of {choices} on this machine, found {name!r}"
        for name in ("sse9", "AVX2", "portable ")
    ]


def test_tests_choose_the_instruction_set_and_leave_no_trace(random_case):
    before = config()
    for cpu in before.cpus:
        with _forced(cpu=cpu):
            assert config().cpu == cpu
        assert config() == before
    with pytest.raises(ValueError), _forced(cpu="sse9"):
        pass
    assert config() == before


# ------------------------------------------------------------------------------------------------ the memory budget


def test_the_environment_sets_the_memory_budget(import_in):
    default, *chosen = import_in({}, *({"CTC_ALIGN_MEMORY_BUDGET": x} for x in ("1", "100000", str(2**63 - 1))))
    assert default[1] is None
    assert [budget for _, budget, *_ in chosen] == [1, 100_000, 2**63 - 1]
    for found in chosen:
        assert found[2:] == default[2:]


BAD_BUDGETS = ["0", "-1", "1.5 GB", "1e6", "none", " 5", str(2**63)]


def test_a_bad_memory_budget_is_refused_on_import(import_in):
    messages = import_in(*({"CTC_ALIGN_MEMORY_BUDGET": budget} for budget in BAD_BUDGETS))
    for budget, message in zip(BAD_BUDGETS, messages, strict=True):
        assert isinstance(message, str), f"{budget} was taken"
        assert "must be a positive number of bytes" in message
        assert message.endswith((f"found {budget!r}", f"found {budget}"))


class RefusalTest(expecttest.TestCase):
    def test_no_bytes(self):
        self.assertExpectedInline(
            refusal(set_memory_budget, 0),
            """set_memory_budget: budget must be a positive number of bytes or None, found 0""",
        )

    def test_less_than_no_bytes(self):
        self.assertExpectedInline(
            refusal(set_memory_budget, -1),
            """set_memory_budget: budget must be a positive number of bytes or None, found -1""",
        )

    def test_more_bytes_than_64_bits_count(self):
        self.assertExpectedInline(
            refusal(set_memory_budget, 2**63),
            """set_memory_budget: budget must be a positive number of bytes or None, found 9223372036854775808""",
        )

    def test_half_a_byte(self):
        with pytest.raises(TypeError) as error:
            set_memory_budget(1.5)
        self.assertExpectedInline(str(error.value), """set_memory_budget: budget must be an int or None, found 1.5""")

    def test_a_refused_budget_leaves_the_old_one(self):
        set_memory_budget(12345)
        for budget in (0, -1, 2**63):
            refusal(set_memory_budget, budget)
        assert config().memory_budget == 12345


@pytest.mark.parametrize("budget", [1, 2**31, 2**63 - 1, None])
def test_any_number_of_bytes_is_a_budget(budget):
    set_memory_budget(budget)
    assert config().memory_budget == budget


def test_a_budget_changes_no_result(random_case):
    log_probs, targets = random_case(3, 3000, 1200, 32, steps=3)
    lengths = torch.tensor([3000, 2900, 2000]), torch.tensor([1200, 700, 1100])
    expected = reference.forced_align(log_probs, targets, *lengths)
    for budget in (1, 100_000, 300_000, 10**6, 2**63 - 1, None):
        set_memory_budget(budget)
        found = forced_align(log_probs, targets, *lengths)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
