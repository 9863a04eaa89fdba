"""Times the sum over all paths beside torch's ctc_loss, and compares their precision. Prints two tables.

    .venv/bin/python benchmarks/posteriors.py          # utterances, against ctc_loss: half a minute
    .venv/bin/python benchmarks/posteriors.py --long   # recordings, ours alone, each in a process of its own

Every function has a turn in every round, on one thread. A row shows medians, and the quartiles of the ratio.
"""

import argparse
import statistics
import subprocess
import sys

import torch
from cases import make_inputs
from machine import describe_source
from page import table
from timing import take_turns

from torch_ctc_align import class_posteriors, config, posteriors
from torch_ctc_align.config import _forced

ROUNDS = 15
SIZES = [(32, 500, 60, 32), (1, 1500, 200, 32), (8, 500, 60, 5000)]  # B, T, L, C
LONG_SIZES = [(20_000, 5_000, 32), (50_000, 25_000, 32), (178_572, 40_931, 191)]  # T, L, C


def ctc_log_likelihoods(log_probs, targets):
    (B, T, _), L = log_probs.shape, targets.shape[1]
    lengths = torch.full((B,), T), torch.full((B,), L)
    return -torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, *lengths, reduction="none")


def log_likelihoods(log_probs, targets):
    return class_posteriors(log_probs, targets)[1]


def gradient_of(function, log_probs, targets):
    leaf = log_probs.detach().requires_grad_()
    function(leaf, targets).sum().backward()
    return leaf.grad


def rows_of(cpu, sizes):
    arguments = make_inputs(*sizes)
    functions = {
        "ctc_loss": lambda: gradient_of(ctc_log_likelihoods, *arguments),
        "ours": lambda: gradient_of(log_likelihoods, *arguments),
        "posteriors": lambda: posteriors(*arguments),
    }
    with _forced(cpu=cpu):
        take_turns(functions, 1)  # warms up
        rounds = take_turns(functions, ROUNDS)
    medians_ms = [1e3 * statistics.median(times[name] for times in rounds) for name in functions]
    low, middle, high = statistics.quantiles([times["ctc_loss"] / times["ours"] for times in rounds], n=4)
    return *sizes, cpu, *(f"{ms:.2f}" for ms in medians_ms), f"{middle:.1f}", f"{low:.1f} to {high:.1f}"


def precision_of(sizes):
    log_probs, targets = make_inputs(*sizes)
    exact = ctc_log_likelihoods(log_probs.double(), targets)
    exact_gradient = gradient_of(log_likelihoods, log_probs.double(), targets)
    softmax = log_probs.double().exp()
    rows = [*sizes, f"{exact.mean():.0f}"]
    for function in (ctc_log_likelihoods, log_likelihoods):
        rows.append(f"{(function(log_probs, targets).double() - exact).abs().max():.1e}")
        gradient = gradient_of(function, log_probs, targets).double()
        if function is ctc_log_likelihoods:
            gradient = gradient + softmax  # ctc_loss differentiates before log_softmax: that subtracts them
        rows.append(f"{(gradient - exact_gradient).abs().max():.1e}")
    return rows


MEASURE_LONG = """
import time, torch, torch_ctc_align
def status(name):
    return 1024 * int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1])
T, L, C = {sizes}
torch.set_num_threads(1)
torch.manual_seed(0)
log_probs = torch.empty(1, T, C)
for part in log_probs.split(10_000, 1):
    part.copy_(torch.randn(part.shape).log_softmax(-1))
targets = torch.randint(1, C, (1, L))
torch.ops.ctc_align.class_posteriors(log_probs[:, :100], targets[:, :10])
open("/proc/self/clear_refs", "w").write("5")
before, start = status("VmRSS:"), time.perf_counter()
table, total = torch.ops.ctc_align.class_posteriors(log_probs, targets)
seconds = time.perf_counter() - start
print(seconds, (status("VmHWM:") - before) / 1e6 - table.numel() * 4 / 1e6, float(total))
"""


def long_row(sizes):
    command = [sys.executable, "-c", MEASURE_LONG.format(sizes=sizes)]
    seconds, megabytes, total = map(float, subprocess.check_output(command, text=True).split())
    return *sizes, f"{seconds:.2f}", f"{megabytes:.0f}", f"{total:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="recordings instead of utterances")
    if parser.parse_args().long:
        header = ["T", "L", "C", "class_posteriors, s", "extra MB", "log-likelihood, nats"]
        print(table(header, [long_row(sizes) for sizes in LONG_SIZES]))
    else:
        torch.set_num_threads(1)
        header = ["B", "T", "L", "C", "cpu", "ctc_loss forward + backward, ms"]
        header += ["class_posteriors forward + backward, ms", "posteriors, ms", "ctc_loss / ours", "quartiles"]
        cpus = config().cpus
        print(table(header, [rows_of(cpu, sizes) for sizes in SIZES for cpu in cpus]))
        header = ["B", "T", "L", "C", "mean log-likelihood, nats", "ctc_loss off by", "its gradient by", "ours off by"]
        print("\n" + table([*header, "its gradient by"], [precision_of(sizes) for sizes in SIZES]))
    print("\n" + describe_source(".venv/bin/python benchmarks/posteriors.py"))


if __name__ == "__main__":
    main()
