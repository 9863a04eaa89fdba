"""Times small calls, where the code around the kernel takes most of the time. Prints a table in ten seconds.

    .venv/bin/python benchmarks/small_calls.py

One thread. Every row has a turn in every round. Ratios are taken round by round, and their medians over the rounds:
to torch.neg of three elements, the smallest operation of torch, and for merging also to merging by slices.
"""

import statistics
from itertools import pairwise

import torch
from cases import make_inputs
from machine import describe_source
from page import in_three_digits, table
from timing import seconds, take_turns

from torch_ctc_align import TokenSpan, forced_align, merge_tokens, min_frames, token_indices, token_spans

ROUNDS, SECONDS = 41, 0.005  # rounds, and a row's time in each
NEG, SLICES = "`torch.neg`, 3 elements", "merging by slices of tensors, T = 300, L = 40"


def merge_by_slices(path, scores, blank=0):
    """The usual way, also torchaudio's: the scores of every span are a slice of a tensor."""
    changes = (path[1:] != path[:-1]).nonzero().flatten() + 1
    borders = [0, *changes.tolist(), len(path)]
    tokens = path.tolist()
    return [
        TokenSpan(tokens[start], start, end, scores[start:end].mean().item())
        for start, end in pairwise(borders)
        if tokens[start] != blank
    ]


def rows():
    """The calls to time, by name."""
    operator = torch.ops.ctc_align.forced_align
    three = torch.zeros(3)
    log_probs, targets = make_inputs(1, 50, 10, 32)
    lengths, listed = (torch.tensor([50]), torch.tensor([10])), ([50], [10])
    long_log_probs, long_targets = make_inputs(1, 300, 40, 32)
    paths, scores = forced_align(long_log_probs, long_targets)
    path, path_scores = paths[0], scores[0]

    found, expected = merge_tokens(path, path_scores), merge_by_slices(path, path_scores)
    assert [(s.token, s.start, s.end) for s in found] == [(s.token, s.start, s.end) for s in expected]
    assert all(abs(a.score - b.score) < 1e-6 for a, b in zip(found, expected, strict=True))
    return {
        NEG: lambda: torch.neg(three),
        "operator, T = 50, L = 10, C = 32": lambda: operator(log_probs, targets),
        "the same, lengths as tensors": lambda: operator(log_probs, targets, *lengths),
        "function": lambda: forced_align(log_probs, targets),
        "the same, lengths as tensors ": lambda: forced_align(log_probs, targets, *lengths),
        "the same, lengths as lists": lambda: forced_align(log_probs, targets, *listed),
        "the same, lengths as tensors, `strict=False`": lambda: forced_align(
            log_probs, targets, *lengths, strict=False
        ),
        "function, T = 300, L = 40": lambda: forced_align(long_log_probs, long_targets),
        SLICES: lambda: merge_by_slices(path, path_scores),
        "`merge_tokens`, T = 300, L = 40": lambda: merge_tokens(path, path_scores),
        "`token_spans`, T = 300, L = 40": lambda: token_spans(paths, scores, long_targets),
        "`token_indices`, T = 300, L = 40": lambda: token_indices(paths, long_targets),
        "`min_frames`, L = 40": lambda: min_frames(long_targets),
    }


def main():
    torch.set_num_threads(1)
    functions = rows()
    calls = {}
    for name, function in functions.items():
        seconds(function, calls=20)  # warms up
        calls[name] = max(1, round(SECONDS / seconds(function, calls=20)))
    rounds = take_turns(functions, ROUNDS, calls=calls)

    def ratio(name, other):
        return statistics.median(times[name] / times[other] for times in rounds)

    lines = []
    for name in functions:
        low, middle, high = statistics.quantiles([1e6 * times[name] for times in rounds], n=4)
        by_slices = in_three_digits(1 / ratio(name, SLICES)) if "40" in name and name.startswith("`") else ""
        spread = f"{in_three_digits(low)} to {in_three_digits(high)}"
        lines.append([name.strip(), in_three_digits(middle), spread, in_three_digits(ratio(name, NEG)), by_slices])
    print(table(["call", "us", "quartiles", "by `torch.neg`", "times as fast as slices"], lines))
    print("\n" + describe_source(".venv/bin/python benchmarks/small_calls.py"))


if __name__ == "__main__":
    main()
