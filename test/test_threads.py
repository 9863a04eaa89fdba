"""Threads: several that call the operator at once, those that it uses itself, and others that go on meanwhile."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

forced_align = torch.ops.ctc_align.forced_align


def test_calls_from_several_python_threads(random_case, cpu, threads):
    """Different inputs at the same time, batches and long items, and each call gets the result of a call alone."""
    threads(2)
    cases = [
        random_case(B, T, L, C, steps=3) for B, T, L, C in [(9, 400, 150, 32), (1, 6000, 2500, 32), (3, 900, 300, 70)]
    ]
    cases += [(cases[1][0].double(), cases[1][1]), (cases[0][0].half(), cases[0][1])]
    expected = [forced_align(*case) for case in cases]
    assert all((paths >= 0).all() for paths, _ in expected)

    start = threading.Barrier(4)

    def work(number):
        torch.set_num_threads(2)  # torch keeps it for each thread
        start.wait()
        order = [(number + i) % len(cases) for i in range(4 * len(cases))]
        return [(i, forced_align(*cases[i])) for i in order]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    for i, (paths, scores) in (found for result in results for found in result):
        assert torch.equal(paths, expected[i][0])
        assert torch.equal(scores, expected[i][1])


@pytest.mark.alone
def test_other_python_threads_go_on_during_a_call(threads):
    """Python cannot take its lock from a thread here: another one runs only where the call lets go of it."""
    threads(1)
    log_probs, targets = torch.zeros(1, 1, 32).expand(1, 20_000, 32), torch.ones(1, 9000, dtype=torch.int64)
    begin, steps, wanted = threading.Event(), [], 500

    def other():
        begin.wait()
        while len(steps) < wanted:
            steps.append(None)
            time.sleep(0)  # lets go, and so gets the lock back during the call only if the call does not want it

    thread = threading.Thread(target=other)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        begin.set()
        for _ in range(100):
            forced_align(log_probs, targets)
            if len(steps) == wanted:
                break
        made = len(steps)
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert made == wanted


# A thread of Python's counts those of the process while the calls are made.
COUNT_THREADS = """
import os, threading, torch, torch_ctc_align

def count():
    return len(os.listdir("/proc/self/task"))

def watch():
    while not done.is_set():
        seen.append(count())

torch.set_num_threads({threads})
log_probs = torch.zeros(1, 1, 32).expand(8, 20_000, 32)  # expanded: to fill as many would need threads of torch's
targets = torch.ones(1, 1, dtype=torch.int64).expand(8, 9000)
done, seen, watcher = threading.Event(), [], threading.Thread(target=watch)
before = count() + 1
watcher.start()
for _ in range(20):
    torch.ops.ctc_align.forced_align(log_probs[:1], targets[:1])
    torch.ops.ctc_align.forced_align(log_probs[:, :2000], targets[:, :700])
done.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.parametrize("number", [1, 2])
def test_a_call_uses_as_many_threads_as_torch_says(fresh_python, number):
    """And starts no other ones, not for a moment."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc/self/task to count threads in")
    assert int(fresh_python(COUNT_THREADS.format(threads=number))) == number - 1


# It needs a process of its own: the second thread is made while its maker flushes, and then flushes for ever.
FLUSH = """
import itertools, torch, torch_ctc_align
from torch_ctc_align.config import _forced, config

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149, torch.float64: 2.0**-1074}
cases = []
for dtype, smallest in SMALLEST.items():
    for B, T, L, C in [(40, 600, 270, 20), (1, 6000, 2500, 40)]:
        log_probs = (torch.randint(-3, 1, (B, T, C), generator=generator).double() * smallest).to(dtype)
        cases.append((log_probs, torch.randint(1, C, (B, L), generator=generator)))

expected = [torch.ops.ctc_align.forced_align(*case) for case in cases]
assert all((paths >= 0).all() for paths, _ in expected)
flushes = torch.set_flush_denormal(True)
found = []
for cpu, threads in itertools.product(config().cpus, [1, 2]):
    torch.set_num_threads(threads)
    with _forced(cpu=cpu):
        found += [(cpu, threads, i, torch.ops.ctc_align.forced_align(*cases[i])) for i in range(len(cases))]
still_flushes = (torch.full((8,), 2.0**-149) + 0).count_nonzero() == 0
torch.set_flush_denormal(False)
print("flushes" if flushes and still_flushes else "cannot flush")
for cpu, threads, i, (paths, scores) in found:
    if not torch.equal(paths, expected[i][0]) or not torch.equal(scores, expected[i][1]):
        print("differs:", cpu, threads, cases[i][0].dtype, tuple(cases[i][0].shape))
"""


def test_flushing_subnormal_numbers_costs_no_bit(fresh_python):
    """torch.set_flush_denormal(True) does not reach into a call, whichever thread works, and stays set after it."""
    said = fresh_python(FLUSH).splitlines()
    if said[0] == "cannot flush" and not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush subnormal numbers")
    assert said == ["flushes"]
