"""Ctrl-C during a long call. Each test has a process of its own, because signals concern a whole process."""

import pytest

# Ten hours of silence and a second thread that presses Ctrl-C. The call would go on for a minute at least, so whoever
# gets the exception got it from within. One value for all emissions: they take no memory.
START = """
import os, signal, threading, torch, torch_ctc_align

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a job in the background inherits is to ignore it

def make_case(T, L):
    return torch.zeros(1).expand(1, T, 8), torch.arange(L)[None] % 7 + 1

def press_after(seconds, number=signal.SIGINT):
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()

def check_that_all_is_well():
    assert (torch_ctc_align.forced_align(*make_case(40, 10))[0] >= 0).all()

torch.set_num_threads({threads})
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_function_raises_keyboard_interrupt(fresh_python, threads):
    code = """
press_after(1)
try:
    torch_ctc_align.forced_align(*make_case(2_000_000, 800_000))
except KeyboardInterrupt:
    print("interrupted")
check_that_all_is_well()
"""
    assert fresh_python(START.format(threads=threads) + code) == "interrupted\n"


def test_the_operator_names_it_as_the_cause(fresh_python):
    code = """
press_after(1)
try:
    torch.ops.ctc_align.forced_align(*make_case(2_000_000, 800_000))
except RuntimeError as error:
    print(error, repr(error.__cause__))
check_that_all_is_well()
"""
    assert fresh_python(START.format(threads=1) + code) == "forced_align: interrupted KeyboardInterrupt()\n"


def test_sums_over_all_paths_raise_keyboard_interrupt(fresh_python):
    code = """
for operator in (torch_ctc_align.class_posteriors, torch.ops.ctc_align.class_posteriors):
    press_after(1)
    try:
        operator(*make_case(2_000_000, 100_000))
    except BaseException as error:
        print(repr(error), repr(error.__cause__))
check_that_all_is_well()
"""
    expected = "KeyboardInterrupt() None\nRuntimeError('class_posteriors: interrupted') KeyboardInterrupt()\n"
    assert fresh_python(START.format(threads=1) + code) == expected


def test_a_handler_that_takes_a_note_does_not_end_the_call(fresh_python):
    """It runs while the call goes on; the call is long enough for that (half a second) on any machine."""
    code = """
notes = []
signal.signal(signal.SIGUSR1, lambda *_: notes.append(1))
press_after(0.1, signal.SIGUSR1)
paths, _ = torch_ctc_align.forced_align(*make_case(300_000, 120_000))
print(len(notes), bool((paths >= 0).all()))
"""
    assert fresh_python(START.format(threads=1) + code) == "1 True\n"
