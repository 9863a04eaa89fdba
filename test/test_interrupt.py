"""Ctrl-C during a long call. Each test has a process of its own, because signals concern a whole process.

The promise is a second from the signal to the exception; a busy machine gets three.
"""

import pytest

pytestmark = pytest.mark.alone

# Ten hours of silence and a second thread that presses Ctrl-C. The call would go on for a minute at least, so the
# exception comes from within it. One value for all emissions: they take no memory.
START = """
import os, signal, sys, threading, time, torch, torch_ctc_align

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored

def make_case(T, L):
    return torch.zeros(1).expand(1, T, 8), torch.arange(L)[None] % 7 + 1

pressed = []

def press(number):
    pressed.append(time.monotonic())
    os.kill(os.getpid(), number)

def press_after(seconds, number=signal.SIGINT):
    threading.Timer(seconds, press, (number,)).start()

def what_ends(call):
    try:
        call()
    except BaseException as error:
        late = time.monotonic() - pressed[-1]
        assert late < 3, f"{late:.1f} s after the signal"
        return repr(error)

def check_that_all_is_well():
    assert (torch_ctc_align.forced_align(*make_case(40, 10))[0] >= 0).all()

torch.set_num_threads(THREADS)
"""


def start(threads):
    return START.replace("THREADS", str(threads))


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
    assert fresh_python(start(threads) + code) == "interrupted\n"


def test_so_does_the_operator(fresh_python):
    """Its autograd kernel restores the exception, whichever error torch makes of the CPU kernel's."""
    code = """
press_after(1)
print(what_ends(lambda: torch.ops.ctc_align.forced_align(*make_case(2_000_000, 800_000))))
check_that_all_is_well()
"""
    assert fresh_python(start(1) + code) == "KeyboardInterrupt()\n"


def test_the_operator_in_inference_mode_says_so(fresh_python):
    """There no autograd kernel is run, and torch makes a RuntimeError of it; up to torch 2.14 with its cause."""
    code = """
press_after(1)
with torch.inference_mode():
    print(what_ends(lambda: torch.ops.ctc_align.forced_align(*make_case(2_000_000, 800_000))))
press_after(1)
with torch.inference_mode():
    print(what_ends(lambda: torch_ctc_align.forced_align(*make_case(2_000_000, 800_000))))
check_that_all_is_well()
"""
    expected = "RuntimeError('forced_align: interrupted')\nKeyboardInterrupt()\n"
    assert fresh_python(start(1) + code) == expected


@pytest.mark.parametrize("lengths", [[10_000_000, 10_000_000], [10_000_000, 1_000]], ids=["both", "one"])
def test_the_items_of_other_threads_end_too(fresh_python, lengths):
    """Two items, a thread each: 10 s of work and more. Which thread gets which item is left to chance."""
    code = f"""
log_probs, targets = make_case(10_000_000, 1_000)
for _ in range(3):
    press_after(1)
    print(what_ends(lambda: torch_ctc_align.forced_align(
        log_probs.expand(2, -1, -1), targets.expand(2, -1), {lengths}, strict=False)))
"""
    assert fresh_python(start(2) + code, CTC_ALIGN_CPU="portable") == "KeyboardInterrupt()\n" * 3


@pytest.mark.parametrize("one_is_quick", [False, True])
def test_the_sums_of_other_threads_end_too(fresh_python, one_is_quick):
    """The thread that calls takes the item of most labels and frames; of a band of two states it is soon done."""
    code = f"""
log_probs, targets = make_case(600_000, 79_999)
lengths = ([80_000, 600_000], [79_999, 2_000]) if {one_is_quick} else ([600_000] * 2, [2_000] * 2)
press_after(2)
print(what_ends(lambda: torch_ctc_align.class_posteriors(log_probs.expand(2, -1, -1), targets.expand(2, -1), *lengths)))
"""
    assert fresh_python(start(2) + code, CTC_ALIGN_CPU="portable") == "KeyboardInterrupt()\n"


def test_what_another_handler_raises_comes_out_as_it_is(fresh_python):
    """SystemExit ends a process that `except Exception` would keep alive; a time-out is caught by its own name."""
    code = """
class Timeout(Exception):
    pass

def give_up(*_):
    raise Timeout("enough")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
signal.signal(signal.SIGALRM, give_up)
for number in (signal.SIGTERM, signal.SIGALRM):
    press_after(1, number)
    print(what_ends(lambda: torch_ctc_align.forced_align(*make_case(2_000_000, 800_000))))
check_that_all_is_well()
"""
    assert fresh_python(start(1) + code) == "SystemExit(3)\nTimeout('enough')\n"


def test_a_process_forked_from_a_thread_hears_it(fresh_python):
    """The thread that forks is the main thread of the child, though it was not before."""
    code = """
def work():
    check_that_all_is_well()
    child = os.fork()
    if child == 0:
        press_after(1)
        print(what_ends(lambda: torch_ctc_align.forced_align(*make_case(2_000_000, 800_000))), flush=True)
        os._exit(0)
    os.waitpid(child, 0)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    assert fresh_python(start(1) + code) == "KeyboardInterrupt()\n"


def test_sums_over_all_paths_raise_keyboard_interrupt(fresh_python):
    code = """
for operator in (torch_ctc_align.class_posteriors, torch.ops.ctc_align.class_posteriors):
    press_after(1)
    print(what_ends(lambda: operator(*make_case(2_000_000, 100_000))))
check_that_all_is_well()
"""
    assert fresh_python(start(1) + code) == "KeyboardInterrupt()\n" * 2


def test_a_backward_pass_raises_keyboard_interrupt(fresh_python):
    """By its operator, which torch's autograd engine calls; of a gradient that is the same everywhere."""
    code = """
log_probs, targets = make_case(2_000_000, 100_000)
gradient = torch.ones(1).expand(1, 2_000_000, 100_001)
press_after(1)
print(what_ends(lambda: torch.ops.ctc_align.posteriors_backward(gradient, log_probs, targets)))
check_that_all_is_well()
"""
    assert fresh_python(start(1) + code) == "KeyboardInterrupt()\n"


def test_a_handler_that_does_not_raise_does_not_end_the_call(fresh_python):
    """It runs while the call goes on; the call is long enough for that (half a second) on any machine."""
    code = """
notes = []
signal.signal(signal.SIGUSR1, lambda *_: notes.append(1))
press_after(0.1, signal.SIGUSR1)
paths, _ = torch_ctc_align.forced_align(*make_case(300_000, 120_000))
print(len(notes), bool((paths >= 0).all()))
"""
    assert fresh_python(start(1) + code) == "1 True\n"
