"""The emulator that runs kernel text on the host: right kernels pass under every schedule, broken ones are caught.

``harness/emulator_test.cpp`` holds the kernels and prints one outcome a schedule. In the slow set everything runs once
more, with AddressSanitizer, which then watches the fibers' stacks and the shared memory.
"""

import os
import subprocess
from pathlib import Path

import kept
import pytest

SOURCE = Path(__file__).parent / "harness" / "emulator_test.cpp"
CSRC = Path(__file__).parents[1] / "csrc"
FLAGS = {"plain": ["-O2"], "asan": ["-O1", "-g", "-fsanitize=address"]}


@pytest.fixture(scope="module", params=["plain", pytest.param("asan", marks=pytest.mark.slow)])
def program(request, tmp_path_factory):
    """The compiled program; None where the compiler has no AddressSanitizer."""
    path = tmp_path_factory.mktemp(request.param) / "emulator_test"
    compiler = os.environ.get("CXX", "c++").split()
    flags = ["-std=c++20", "-Wall", "-Wextra", *FLAGS[request.param], f"-I{CSRC}"]
    result = kept.compile_program(compiler, flags, [SOURCE], path)
    if request.param == "asan" and "asan" in result.stderr:
        return None
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return path


@pytest.fixture
def outcomes(program, missing):
    """outcomes(kernel) -> {schedule: "right", "wrong" or the error}."""
    if program is None:
        missing("asan", "the compiler cannot link AddressSanitizer")

    def run(kernel: str) -> dict[str, str]:
        # A program that hangs is a failure as well.
        result = subprocess.run([program, kernel], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return dict(line.split(": ", 1) for line in result.stdout.splitlines())

    return run


@pytest.mark.parametrize("kernel", ["every_warp_word", "exchange", "block_sum", "chain", "slow_warp"])
def test_right_kernels_are_right_under_every_schedule(outcomes, kernel):
    found = outcomes(kernel)
    assert {"in order", "reversed", "random 0"} <= found.keys()
    assert set(found.values()) == {"right"}


@pytest.mark.parametrize(
    "kernel",
    [
        "exchange_without_barrier",
        "block_sum_without_first_barrier",
        "block_sum_without_second_barrier",
        "chain_published_too_early",
    ],
)
def test_some_schedule_shows_a_missing_order(outcomes, kernel):
    found = outcomes(kernel)
    assert "wrong" in found.values()
    assert set(found.values()) <= {"right", "wrong"}


def test_block_that_waits_for_a_later_one_is_a_deadlock(outcomes):
    """Blocks number themselves and arrive in any order: none may hold the place that the awaited block needs."""
    found = outcomes("chain_without_ticket")
    assert found["in order"] == "right"
    assert found["reversed"].startswith(
        "emulator: deadlock: every warp waits or polls;  block 6 warp 0: lanes 0-0 at pause()"
    )


def test_word_that_is_never_published_is_a_deadlock(outcomes):
    for outcome in outcomes("chain_without_publishing").values():
        assert outcome.startswith("emulator: deadlock: every warp waits or polls; ")
        assert "lanes 0-0 at pause() in emulator_test.cpp:" in outcome
        assert "lanes 1-31 at warp_barrier() in emulator_test.cpp:" in outcome


LANES, WARPS = "emulator: the lanes of a warp do not meet", "emulator: the warps of a block do not meet"


@pytest.mark.parametrize(
    "kernel, error, details",
    [
        (
            "different_words",
            LANES,
            ["lanes 0-15 at any() in emulator_test.cpp:", "lanes 16-31 at shuffle() in emulator_test.cpp:"],
        ),
        ("different_numbers", LANES, ["lanes 0-15 at shuffle_up(1) in", "lanes 16-31 at shuffle_up(2) in"]),
        ("different_lines", LANES, ["lanes 3-3 at warp_barrier() in", "lanes 4-31 at warp_barrier() in"]),
        (
            "different_barriers",
            WARPS,
            ["warp 0: lanes 0-31 at block_barrier() in", "warp 1: lanes 0-31 at block_barrier() in"],
        ),
        ("lane_exits", LANES, ["lanes 0-30 at shuffle_up(1) in", "lanes 31-31 have finished"]),
        ("warp_exits", WARPS, ["warp 0: lanes 0-31 at block_barrier() in", "warp 1: lanes 0-31 have finished"]),
        ("kernel_throws", "thrown by kernel text", []),
    ],
)
def test_error_says_where_lanes_stand(outcomes, kernel, error, details):
    for outcome in outcomes(kernel).values():
        assert outcome.startswith(error)
        for detail in details:
            assert detail in outcome
