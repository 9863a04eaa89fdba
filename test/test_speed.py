"""Costs that a change could bring back unnoticed, as ratios of one run.

Rounds of what is compared alternate, so that a busy moment meets all of it; the fastest round of each says what it
costs. One thread: waking another takes longer than any of this.
"""

import itertools
import time

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import TokenSpan, merge_tokens

operator = torch.ops.ctc_align.forced_align
pytestmark = pytest.mark.alone


def costs(functions, rounds, calls):
    """Seconds of a call, for each of the functions."""
    fastest = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            fastest[name] = min(fastest[name], (time.perf_counter() - begin) / calls)
    print({name: f"{1e6 * seconds:.2f} us" for name, seconds in fastest.items()})
    return fastest


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.mark.parametrize("lengths", ["tensors", "none"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "marked"])
def test_the_function_costs_hardly_more_than_the_operator(random_case, lengths, strict):
    """At most a torch.neg of three elements, the smallest call that torch has. (It costs less: it takes a shortcut.)"""
    arguments = random_case(1, 50, 10, 32)
    if lengths == "tensors":
        arguments = *arguments, torch.tensor([50]), torch.tensor([10])
    three = torch.ones(3)
    cost = costs(
        {
            "neg": lambda: torch.neg(three),
            "operator": lambda: operator(*arguments),
            "function": lambda: torch_ctc_align.forced_align(*arguments, strict=strict),
        },
        rounds=200,
        calls=20,
    )
    assert cost["function"] - cost["operator"] <= cost["neg"]


def slice_tokens(tokens, scores, blank=0):
    """The same spans in the straightforward way, a few operations on tensors for each of them."""
    outside = tokens.new_full((1,), -1)
    borders = torch.diff(tokens, prepend=outside, append=outside).nonzero()[:, 0].tolist()
    spans = []
    for start, end in itertools.pairwise(borders):
        token = tokens[start].item()
        if token != blank:
            spans.append(TokenSpan(token, start, end, scores[start:end].mean().item()))
    return spans


@pytest.mark.parametrize("items", [1, 16])
def test_merge_tokens_is_four_times_faster_than_slicing_tensors(random_case, items):
    """For 300 frames and 40 labels, an item or a batch; it is some eight times faster."""
    paths, scores = operator(*random_case(items, 300, 40, 32))
    merged = [merge_tokens(*item) for item in zip(paths, scores, strict=True)]
    sliced = [slice_tokens(*item) for item in zip(paths, scores, strict=True)]
    assert [len(spans) for spans in merged] == [40] * items
    for ours, theirs in zip(itertools.chain(*merged), itertools.chain(*sliced), strict=True):
        assert (ours.token, ours.start, ours.end) == (theirs.token, theirs.start, theirs.end)
    cost = costs(
        {
            "merged": lambda: [merge_tokens(*item) for item in zip(paths, scores, strict=True)],
            "sliced": lambda: [slice_tokens(*item) for item in zip(paths, scores, strict=True)],
        },
        rounds=20,
        calls=max(1, 16 // items),
    )
    assert cost["sliced"] >= 4 * cost["merged"]
