#!/usr/bin/env python3
"""Times the operator with stars beside the operator without. Prints a table in a minute; all but the largest: in ten s.

    .venv/bin/python benchmarks/star_times.py [--rounds 15]
    CTC_ALIGN_CPU=avx2 .venv/bin/python benchmarks/star_times.py

One thread. Every way has a turn in every round. Ratios are taken round by round, and their medians over the rounds.
"""

import argparse
import statistics

import torch
from cases import make_inputs
from machine import commit_and_date
from page import in_three_digits, table
from timing import seconds, take_turns

import torch_ctc_align

SIZES = [(1500, 200, 32), (1500, 200, 5000), (50_000, 25_000, 32)]  # T, L, C
SECONDS = 0.02  # a way's time in each round, or one call
SHARE = 0.2  # of the gaps, of the labels
WITHOUT = "without"


def ways(frames, labels, classes):
    """The calls to time, by name."""
    log_probs, targets = make_inputs(1, frames, labels, classes)
    generator = torch.Generator().manual_seed(0)
    stars = torch_ctc_align.star_scores(log_probs)
    every = torch.ones(1, labels + 1, dtype=torch.bool)
    some = torch.rand(1, labels + 1, generator=generator) < SHARE
    with_labels = targets.masked_fill(torch.rand(1, labels, generator=generator) < SHARE, classes)

    def call(targets, *stars):
        return lambda: torch.ops.ctc_align.forced_align(log_probs, targets, None, None, 0, *stars)

    return {
        WITHOUT: call(targets),
        "all gaps wild": call(targets, stars, every),
        f"{SHARE:.0%} of the gaps wild": call(targets, stars, some),
        f"{SHARE:.0%} of the labels stars": call(with_labels, stars),
        "`star_scores` alone": lambda: torch_ctc_align.star_scores(log_probs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = []
    for sizes in SIZES:
        functions = ways(*sizes)
        once = {name: min(seconds(function), seconds(function)) for name, function in functions.items()}
        calls = {name: max(1, round(SECONDS / time)) for name, time in once.items()}
        times = take_turns(functions, max(5, rounds // 3) if once[WITHOUT] > SECONDS else rounds, calls=calls)
        plain = statistics.median(turn[WITHOUT] for turn in times)
        ratios = [
            statistics.median(turn[name] / turn[WITHOUT] for turn in times) for name in functions if name != WITHOUT
        ]
        rows.append([*(f"{size:,}" for size in sizes), in_three_digits(1e3 * plain), *(f"{r:.2f}" for r in ratios)])
    said = commit_and_date()
    config = torch_ctc_align.config()
    print(f"{said['date']}, package at {said['commit']}, torch {torch.__version__}, {config.cpu}, one thread\n")
    print(table(["T", "L", "C", f"{WITHOUT}, ms", *(name for name in functions if name != WITHOUT)], rows))


if __name__ == "__main__":
    main()
