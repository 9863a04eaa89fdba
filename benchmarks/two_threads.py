"""Times one long item on one thread and on two, and beside it what the machine gives to two processes. Prints a table.

    .venv/bin/python benchmarks/two_threads.py [T,L,C]

In every round each has a turn: a call on one thread; a call on two threads; and two calls at once, each on one thread
of a process of its own, whose time for each call is what two threads would need if they never waited.
"""

import multiprocessing
import statistics
import sys

import torch
from cases import make_inputs
from machine import describe_source
from page import table
from timing import seconds

from torch_ctc_align import config
from torch_ctc_align.config import _forced

ROUNDS = 25
SIZES = (50_000, 25_000, 32)  # T, L, C


def align(arguments, threads):
    torch.set_num_threads(threads)
    torch.ops.ctc_align.forced_align(*arguments)


def serve(connection, sizes):
    """Another process: aligns whenever it is told an instruction set."""
    arguments = make_inputs(1, *sizes)
    while (cpu := connection.recv()) is not None:
        with _forced(cpu=cpu):
            align(arguments, 1)
        connection.send("done")


def align_twice(arguments, other, cpu):
    other.send(cpu)
    align(arguments, 1)
    other.recv()


def row_of(cpu, arguments, other):
    turns = {
        "one": lambda: align(arguments, 1),
        "two": lambda: align(arguments, 2),
        "both": lambda: align_twice(arguments, other, cpu),
    }
    with _forced(cpu=cpu):
        for turn in turns.values():
            turn()  # warms up
        rounds = [{name: 1e3 * seconds(turn) for name, turn in turns.items()} for _ in range(ROUNDS)]
    one, two, both = ([times[name] for times in rounds] for name in turns)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(one, two, strict=True)], n=4)
    limit = statistics.median(2 * a / b for a, b in zip(one, both, strict=True))
    return [
        cpu,
        *(f"{of(times):.1f}" for times in (one, two) for of in (statistics.median, min)),
        f"{min(one) / min(two):.2f}",
        *(f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{limit:.2f}"),
    ]


def main():
    sizes = tuple(int(word) for word in sys.argv[1].split(",")) if sys.argv[1:] else SIZES
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, sizes), daemon=True)
    process.start()
    arguments = make_inputs(1, *sizes)
    header = ["cpu", "one thread, ms", "smallest", "two threads, ms", "smallest"]
    header += ["smallest: one / two", "one / two", "quartiles", "two processes"]
    print(table(header, [row_of(cpu, arguments, here) for cpu in config().cpus]))
    here.send(None)
    process.join()
    torch.set_num_threads(2)
    print("\n" + describe_source(".venv/bin/python benchmarks/two_threads.py"))


if __name__ == "__main__":
    main()
