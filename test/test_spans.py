"""Spans of tokens: of one path (merge_tokens) and of a batch (token_spans)."""

import itertools
import math

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import TokenSpan, merge_tokens, token_spans

INF = math.inf


def test_merge_tokens():
    tokens = torch.tensor([0, 1, 1, 0, 1, 2, 2, 2, 0])
    scores = torch.tensor([9.0, -1.0, -2.0, 9.0, -4.0, -1.0, -2.0, -6.0, 9.0])
    assert merge_tokens(tokens, scores) == [
        TokenSpan(token=1, start=1, end=3, score=-1.5),
        TokenSpan(token=1, start=4, end=5, score=-4.0),
        TokenSpan(token=2, start=5, end=8, score=-3.0),
    ]


def test_merge_tokens_with_another_blank():
    tokens, scores = torch.tensor([0, 0, 2, 2, 1, 0]), torch.tensor([-1.0, -3.0, 9.0, 9.0, -5.0, -7.0])
    assert merge_tokens(tokens, scores, blank=2) == [
        TokenSpan(0, 0, 2, -2.0),
        TokenSpan(1, 4, 5, -5.0),
        TokenSpan(0, 5, 6, -7.0),
    ]


def test_merge_tokens_of_nothing():
    assert merge_tokens(torch.zeros(0, dtype=torch.int64), torch.zeros(0)) == []
    assert merge_tokens(torch.zeros(3, dtype=torch.int64), torch.zeros(3)) == []


def test_merge_tokens_of_one_frame():
    assert merge_tokens(torch.tensor([4]), torch.tensor([-2.5])) == [TokenSpan(4, 0, 1, -2.5)]
    assert merge_tokens(torch.tensor([4]), torch.tensor([-2.5]), blank=4) == []


def test_merge_tokens_without_any_blank():
    tokens, scores = torch.tensor([3, 3, 1, 2]), torch.tensor([-1.0, -2.0, -4.0, -8.0])
    assert merge_tokens(tokens, scores) == [
        TokenSpan(3, 0, 2, -1.5),
        TokenSpan(1, 2, 3, -4.0),
        TokenSpan(2, 3, 4, -8.0),
    ]


def test_merge_tokens_of_a_marked_item():
    """It spells nothing."""
    assert merge_tokens(torch.full((5,), -1), torch.full((5,), -INF)) == []


def test_merge_tokens_keeps_what_is_not_finite_to_its_span():
    scores = torch.tensor([-1.0, -INF, -3.0, -4.0])
    assert [span.score for span in merge_tokens(torch.tensor([1, 1, 2, 2]), scores)] == [-INF, -3.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("blank", [0, 3])
def test_merge_tokens_are_those_of_a_walk(generator, dtype, integer, blank):
    """Frame by frame, with means taken in float64: their difference to any order of at most 200 terms below 10 is
    below 200 * 200 * 10 * 2^-53 = 5e-11."""
    for frames in range(200):
        classes = torch.randint(0, 5, (frames,), generator=generator)
        tokens = classes.repeat_interleave(torch.randint(1, 4, (frames,), generator=generator))[:frames].to(integer)
        scores = (-10 * torch.rand(frames, generator=generator)).to(dtype)
        expected, start = [], 0
        for t in range(1, frames + 1):
            if t == frames or tokens[t] != tokens[start]:
                if tokens[start] != blank:
                    expected.append((int(tokens[start]), start, t, float(scores[start:t].double().mean())))
                start = t
        found = merge_tokens(tokens, scores, blank)
        assert [(span.token, span.start, span.end) for span in found] == [x[:3] for x in expected]
        assert all(abs(span.score - x[3]) < 5e-11 for span, x in zip(found, expected, strict=True))


def test_merge_tokens_of_scores_that_require_a_gradient_and_of_views():
    tokens, scores = torch.tensor([[1, 9], [1, 9], [0, 9]])[:, 0], torch.tensor([-1.0, 9, -3, 9, -5, 9])[::2]
    assert merge_tokens(tokens, scores.requires_grad_()) == [TokenSpan(1, 0, 2, -2.0)]


def test_the_length_of_a_span_is_its_frames():
    assert len(TokenSpan(token=5, start=3, end=10, score=-1.0)) == 7


def test_a_span_is_plain_python():
    span = merge_tokens(torch.tensor([3, 3], dtype=torch.int32), torch.tensor([0.5, 0.25]))[0]
    assert [type(x) for x in (span.token, span.start, span.end, span.score)] == [int, int, int, float]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
def test_token_spans(dtype, integer):
    """A repeat, a label without a blank before it, padding frames, padding tokens, and an item of silence."""
    paths = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [3, 3, 3, 0, 0, 0, 0, 0], [0] * 8], dtype=integer)
    scores = torch.tensor([[9, -1, -2, 9, -4, -1, -2, 9], [-1, -2, -6, 9, 9, 0, 0, 0], [9] * 8], dtype=dtype)
    targets = torch.tensor([[1, 1, 2, -1], [3, 0, 77, 3], [1, 2, 3, 4]], dtype=integer)
    starts, ends, means = token_spans(paths, scores, targets)
    assert starts.tolist() == [[1, 4, 5, -1], [0, -1, -1, -1], [-1] * 4]
    assert ends.tolist() == [[3, 5, 7, -1], [3, -1, -1, -1], [-1] * 4]
    assert means.tolist() == [[-1.5, -4, -1.5, 0], [-3, 0, 0, 0], [0] * 4]
    assert means.dtype == dtype


def test_token_spans_has_names():
    spans = token_spans(torch.tensor([[1, 0]]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[1]]))
    assert (spans.starts.tolist(), spans.ends.tolist(), spans.scores.tolist()) == ([[0]], [[1]], [[-1]])
    assert isinstance(spans, torch_ctc_align.TokenSpans)


def test_token_spans_of_a_marked_item():
    paths = torch.tensor([[-1, -1, -1], [0, 1, 0]])
    scores = torch.tensor([[-INF] * 3, [-1.0, -2.0, -3.0]])
    starts, ends, means = token_spans(paths, scores, torch.tensor([[1, 1], [1, 1]]))
    assert starts.tolist() == [[-1, -1], [1, -1]]
    assert ends.tolist() == [[-1, -1], [2, -1]]
    assert means.tolist() == [[-INF, -INF], [-2, 0]]


def test_token_spans_of_a_marked_item_that_is_alone():
    starts, ends, means = token_spans(torch.tensor([[-1]]), torch.tensor([[-INF]]), torch.tensor([[1, 2, 3]]))
    assert starts.tolist() == ends.tolist() == [[-1] * 3]
    assert means.tolist() == [[-INF] * 3]


@pytest.mark.parametrize("B, T, L", [(0, 5, 3), (2, 0, 0), (2, 5, 0), (0, 0, 0)])
def test_token_spans_of_nothing(B, T, L):
    spans = token_spans(torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T), torch.ones(B, L, dtype=torch.int64))
    assert [x.shape for x in spans] == [(B, L)] * 3


@pytest.mark.parametrize("blank", [0, 2, 5])
def test_token_spans_are_those_of_merge_tokens(random_case, generator, blank):
    """For every item of a random batch: the same starts and ends, the mean of the same frames, the target's tokens."""
    B, T, L, C = 40, 60, 15, 6
    log_probs, targets = random_case(B, T, L, C, blank=blank, dtype=torch.float64)
    target_lengths = torch.randint(0, L + 1, (B,), generator=generator)
    input_lengths = torch.randint(2 * L, T + 1, (B,), generator=generator)
    paths, scores = torch_ctc_align.forced_align(log_probs, targets, input_lengths, target_lengths, blank)
    starts, ends, means = token_spans(paths, scores, targets, blank)
    for b in range(B):
        n = int(target_lengths[b])
        merged = merge_tokens(paths[b], scores[b], blank)
        assert [span.token for span in merged] == targets[b, :n].tolist()
        assert [span.start for span in merged] == starts[b, :n].tolist()
        assert [span.end for span in merged] == ends[b, :n].tolist()
        # Two orders of summation of at most 60 terms below 20: 60 * 60 * 20 * 2^-53 = 8e-12.
        merged_means = torch.tensor([span.score for span in merged], dtype=torch.float64)
        torch.testing.assert_close(merged_means, means[b, :n], atol=1e-11, rtol=0)
        assert (starts[b, n:] == -1).all()
        assert (ends[b, n:] == -1).all()
        assert (means[b, n:] == 0).all()


def test_spans_cover_exactly_the_frames_of_labels(random_case):
    log_probs, targets = random_case(5, 80, 20, 9)
    paths, scores = torch_ctc_align.forced_align(log_probs, targets)
    starts, ends, _ = token_spans(paths, scores, targets)
    for b in range(5):
        frames = set(itertools.chain.from_iterable(map(range, starts[b].tolist(), ends[b].tolist())))
        assert frames == set((paths[b] != 0).nonzero()[:, 0].tolist())
        assert (starts[b, 1:] >= ends[b, :-1]).all()


def test_a_long_span_of_a_half_type_keeps_its_mean():
    """4000 entries of -20 sum to -80000, beyond the largest float16."""
    paths, scores = torch.ones(1, 4000, dtype=torch.int64), torch.full((1, 4000), -20.0, dtype=torch.float16)
    assert token_spans(paths, scores, torch.tensor([[1]])).scores.tolist() == [[-20]]


def test_spans_are_differentiable(random_case):
    """The mean of a span gives 1/n to each of its n frames, and nothing to any other entry."""
    log_probs, targets = random_case(1, 20, 4, 5, dtype=torch.float64)
    log_probs.requires_grad_()
    paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets)
    spans = token_spans(paths, scores, targets)
    spans.scores[0, 2].backward()
    start, end = int(spans.starts[0, 2]), int(spans.ends[0, 2])
    expected = torch.zeros(1, 20, 5, dtype=torch.float64)
    expected[0, start:end, targets[0, 2]] = 1 / (end - start)
    torch.testing.assert_close(log_probs.grad, expected)


def test_no_graph_break_and_no_recompilation(random_case):
    compiled = torch.compile(token_spans, backend="aot_eager", fullgraph=True, dynamic=True)
    for B, T, L in [(3, 30, 9), (2, 41, 7), (5, 50, 12)]:
        log_probs, targets = random_case(B, T, L, 6)
        log_probs[0, 3] = -INF  # a marked item
        paths, scores = torch.ops.ctc_align.forced_align(log_probs, targets)
        for found, expected in zip(compiled(paths, scores, targets), token_spans(paths, scores, targets), strict=True):
            assert torch.equal(found, expected)
