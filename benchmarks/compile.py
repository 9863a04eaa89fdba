"""Times how much longer a call takes in a compiled graph than in eager mode. Prints a table; takes half a minute.

    .venv/bin/python benchmarks/compile.py

Every function has a turn in every round: CALLS calls on one thread. Differences are taken round by round. A row shows
medians over the rounds, and the quartiles of the difference.
"""

import statistics
import tempfile
import warnings

import torch
from cases import make_inputs
from machine import describe_source
from page import table
from timing import take_turns

import torch_ctc_align  # noqa: F401, it loads the operator

ROUNDS, CALLS = 41, 300
SIZES = [(1, 50, 10, 32), (1, 200, 40, 32), (4, 100, 20, 32)]  # B, T, L, C


def align(log_probs, targets, input_lengths, target_lengths):
    return torch.ops.ctc_align.forced_align(log_probs, targets, input_lengths, target_lengths)


def model(log_probs, *_):
    """The smallest possible model: one kernel."""
    return log_probs.neg()


def model_and_align(log_probs, *rest):
    log_probs = log_probs.neg()
    return log_probs, *align(log_probs, *rest)


def package_ahead_of_time(arguments):
    """The runner of an AOTInductor package of the operator alone, as C++ would call it."""

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return align(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(Module(), arguments)
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/align.pt2")
        runner = torch._inductor.aoti_load_package(package).loader
    return lambda *arguments: runner.run(list(arguments))


def measure(B, T, L, C):
    """Name of a function -> its microseconds a call, one number for each round."""
    arguments = *make_inputs(B, T, L, C), torch.full((B,), T), torch.full((B,), L)
    functions = {"align": align, "model": model, "model_and_align": model_and_align}
    torch.compiler.reset()
    for name, function in list(functions.items()):
        functions[f"compiled {name}"] = torch.compile(function, fullgraph=True)
    functions["ahead of time"] = package_ahead_of_time(arguments)
    calls = dict.fromkeys(functions, CALLS)
    with torch.no_grad():
        take_turns(functions, 1, *arguments, calls=calls)  # compiles and warms up
        rounds = take_turns(functions, ROUNDS, *arguments, calls=calls)
    return {name: [1e6 * times[name] for times in rounds] for name in functions}


def subtract(left, right):
    return [x - y for x, y in zip(left, right, strict=True)]


def rows_of(sizes):
    times = measure(*sizes)
    added = subtract(times["model_and_align"], times["model"])
    added_compiled = subtract(times["compiled model_and_align"], times["compiled model"])
    for what, eager, compiled in (
        ("aligning, in the graph of a model", added, added_compiled),
        ("aligning, a graph of its own", times["align"], times["compiled align"]),
        ("aligning, a package compiled ahead of time", times["align"], times["ahead of time"]),
        ("the model without aligning", times["model"], times["compiled model"]),
    ):
        more = subtract(compiled, eager)
        low, middle, high = statistics.quantiles(more, n=4)
        numbers = statistics.median(eager), statistics.median(compiled), middle
        yield *sizes, what, *(f"{x:.1f}" for x in numbers), f"{low:.1f} to {high:.1f}"


def main():
    warnings.simplefilter("ignore")  # torch.export warns of its own code
    torch.set_num_threads(1)
    header = ["B", "T", "L", "C", "what", "eager, us", "compiled, us", "more, us", "quartiles"]
    print(table(header, [row for sizes in SIZES for row in rows_of(sizes)]))
    print("\n" + describe_source(".venv/bin/python benchmarks/compile.py"))


if __name__ == "__main__":
    main()
