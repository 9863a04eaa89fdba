"""Grouping token spans into words, for one item and for a batch: answers written by hand, and a slow twin."""

import inspect
import math
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_ctc_align import TokenSpans, token_durations
from torch_ctc_align.words import Pauses, WordSpan, merge_words, word_borders


class Span(NamedTuple):
    token: int
    start: int
    end: int
    score: float


# "hi|you" at 0.5 s a frame, '|' = 0. The scores are chosen to make the means exact in binary.
H, I, BAR, Y, O, U = (
    Span(1, 2, 3, -1.0),
    Span(2, 5, 8, -3.0),
    Span(0, 9, 10, -7.0),
    Span(3, 10, 12, -0.5),
    Span(4, 12, 13, 0.0),
    Span(5, 16, 17, -1.0),
)
HI_YOU = [WordSpan("hi", 1.0, 4.0, -2.5), WordSpan("you", 5.0, 8.5, -0.5)]


def merge(spans, words=("hi", "you"), seconds_per_frame=0.5, borders="drop", **grouping):
    """With tight borders unless a test is about others."""
    return merge_words(spans, words, seconds_per_frame=seconds_per_frame, borders=borders, **grouping)


def test_separator_ends_a_word():
    assert merge([H, I, BAR, Y, O, U], separator=0) == HI_YOU


def test_counts_end_a_word():
    assert merge([H, I, Y, O, U], tokens_per_word=[2, 3]) == HI_YOU


def test_counts_leave_the_separator_out():
    assert merge([H, I, BAR, Y, O, U], separator=0, tokens_per_word=[2, 3]) == HI_YOU


def test_separators_at_the_ends_and_repeated_are_skipped():
    assert merge([BAR, H, I, BAR, BAR, Y, O, U, BAR], separator=0) == HI_YOU


def test_score_is_the_mean_over_frames_not_over_tokens():
    (word,) = merge([H, I], ["hi"], tokens_per_word=[2])
    assert word.score == (1 * -1.0 + 3 * -3.0) / 4


def test_confidence_is_the_geometric_mean_probability():
    assert WordSpan("a", 0.0, 1.0, 0.0).confidence == 1.0
    assert WordSpan("a", 0.0, 1.0, -float("inf")).confidence == 0.0
    assert WordSpan("a", 0.0, 1.0, -0.6931471805599453).confidence == pytest.approx(0.5, abs=1e-15)


def test_spans_may_be_an_iterator():
    assert merge(iter([H, I, BAR, Y, O, U]), separator=0) == HI_YOU


def test_no_words_from_no_spans():
    assert merge([], [], separator=0) == []
    assert merge([], [], tokens_per_word=[]) == []
    assert merge([BAR], [], separator=0) == []


# Borders. "hi" lasts from 1.0 to 4.0 s and "you" from 5.0 to 8.5 s; between them are frames 8 and 9, one second.

SHORT = Pauses(max_pause=1.0, share=0.25, lead_in=0.25, tail=0.5)
LONG = Pauses(max_pause=0.75, share=0.25, lead_in=0.25, tail=0.5)


@pytest.mark.parametrize(
    "borders, times",
    [
        ("drop", [1.0, 4.0, 5.0, 8.5]),
        ("split", [1.0, 4.5, 4.5, 8.5]),
        ("before", [1.0, 5.0, 5.0, 8.5]),
        ("after", [1.0, 4.0, 4.0, 8.5]),
        (SHORT, [0.75, 4.25, 4.25, 9.0]),
        (LONG, [0.75, 4.5, 4.75, 9.0]),
        (Pauses(max_pause=math.inf, share=1, lead_in=0, tail=0), [1.0, 5.0, 5.0, 8.5]),
        (Pauses(max_pause=0, share=0.5, lead_in=0, tail=0), [1.0, 4.0, 5.0, 8.5]),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 0.5, -0.5])
def test_borders(borders, times, offset):
    """An offset of half a frame moves all of them by 0.25 s."""
    times = [time + 0.5 * offset for time in times]
    assert times_of(merge([H, I, BAR, Y, O, U], separator=0, borders=borders, frame_offset=offset)) == times
    assert batch_times([H, I, BAR, Y, O, U], [0, 0, -1, 1, 1, 1], 2, borders, frame_offset=offset) == times


def times_of(words):
    return [time for word in words for time in (word.start, word.end)]


def batch_times(spans, indices, words, borders, **options):
    starts, ends, _ = word_borders(
        batch_of([spans]), torch.tensor([indices]), words, seconds_per_frame=0.5, borders=borders, **options
    )
    return torch.stack([starts, ends], 2).flatten().tolist()


def batch_of(items):
    """TokenSpans of lists of spans, padded."""
    labels = max(map(len, items))
    rows = [[(s.start, s.end, s.score) for s in item] + [(-1, -1, 0.0)] * (labels - len(item)) for item in items]
    starts, ends, scores = (torch.tensor([[span[i] for span in row] for row in rows]) for i in range(3))
    return TokenSpans(starts, ends, scores)


def test_the_default_is_that_of_the_study():
    """docs/measurements/word_borders.md chose it."""
    assert Pauses() == Pauses(max_pause=0.25, share=0.5, lead_in=0.04, tail=0.15)
    for function in (merge_words, word_borders):
        assert inspect.signature(function).parameters["borders"].default == Pauses()


def test_default_borders():
    """A pause of 0.2 s is shared, one of 0.3 s stays."""
    spans = [Span(1, 10, 15, 0.0), Span(2, 25, 30, 0.0), Span(3, 45, 50, 0.0)]
    words = merge_words(spans, "abc", seconds_per_frame=0.02, tokens_per_word=[1, 1, 1])
    # a 0.2-0.3, b 0.5-0.6, c 0.9-1.0: both pauses are 0.2 and 0.3 s
    assert times_of(words) == pytest.approx([0.16, 0.4, 0.4, 0.75, 0.86, 1.15], abs=1e-12)


@pytest.mark.parametrize("borders", ["split", "before", "after", "drop", SHORT, LONG])
def test_words_that_touch_meet_where_they_touch(borders):
    words = merge([Span(1, 2, 4, 0.0), Span(2, 4, 5, 0.0)], tokens_per_word=[1, 1], borders=borders)
    assert words[0].end == words[1].start == 2.0


def test_split_rounds_down_to_a_frame():
    """As token_durations does."""
    words = merge([Span(1, 0, 1, 0.0), Span(2, 4, 5, 0.0)], tokens_per_word=[1, 1], borders="split")
    assert words[0].end == words[1].start == 0.5 * 2


def test_a_pause_of_max_pause_is_shared():
    """35 * 0.02 is a little more than 0.7 in binary."""
    spans = [Span(1, 0, 5, 0.0), Span(2, 40, 45, 0.0)]
    words = merge(spans, seconds_per_frame=0.02, tokens_per_word=[1, 1], borders=Pauses(max_pause=0.7))
    assert words[0].end == words[1].start


def test_one_word_has_a_lead_in_and_a_tail():
    (word,) = merge([H, I], ["hi"], tokens_per_word=[2], borders=LONG)
    assert times_of([word]) == [0.75, 4.5]


def test_words_stay_within_the_recording():
    spans = [Span(1, 0, 3, 0.0)]
    assert times_of(merge(spans, ["a"], tokens_per_word=[1], borders=LONG)) == [0.0, 2.0]
    assert times_of(merge(spans, ["a"], tokens_per_word=[1], borders=LONG, recording_end=1.75)) == [0.0, 1.75]
    assert times_of(merge(spans, ["a"], tokens_per_word=[1], frame_offset=-0.5)) == [0.0, 1.25]
    for limits in (1.75, torch.tensor(1.75), torch.tensor([1.75]), torch.tensor([1.75]).double()):
        assert batch_times(spans, [0], 1, LONG, recording_ends=limits) == [0.0, 1.75]


def test_every_item_has_its_end():
    spans = batch_of([[Span(1, 0, 3, 0.0)], [Span(1, 0, 3, 0.0)]])
    index = torch.zeros(2, 1, dtype=torch.int64)
    options = {"seconds_per_frame": 0.5, "borders": LONG, "recording_ends": torch.tensor([1.75, 9.0])}
    assert word_borders(spans, index, 1, **options).ends.tolist() == [[1.75], [2.0]]


def test_split_words_are_sums_of_durations():
    """This holds where there is no silence outside of words and no separator."""
    spans = [Span(1, 0, 3, 0.0), Span(2, 4, 5, 0.0), Span(3, 9, 12, 0.0)]
    for blanks in ("split", "before", "after"):
        durations = token_durations(batch_of([spans]), 12, blanks=blanks)[0]
        words = merge(spans, ["ab", "c"], 1.0, tokens_per_word=[2, 1], borders=blanks)
        assert [word.end - word.start for word in words] == [durations[:2].sum(), durations[2]]


# The batch


def random_item(generator, frames=90):
    """Spans of words of 1 to 4 tokens, some with separators between them; the words' token counts; indices."""
    draw = lambda low, high: int(torch.randint(low, high + 1, (1,), generator=generator))  # noqa: E731
    spans, counts, indices, t = [], [], [], draw(0, 4)
    for word in range(draw(0, 6)):
        if word > 0 and draw(0, 2):
            spans.append(Span(0, t, t + 1, 0.0))
            indices.append(-1)
            t += 1 + draw(0, 9)
        counts.append(draw(1, 4))
        for _ in range(counts[-1]):
            length = draw(1, 3)
            score = -draw(0, 40) / 8
            spans.append(Span(draw(1, 9), t, t + length, score))
            indices.append(word)
            t += length + (0 if draw(0, 1) else draw(0, 15))
    return spans, counts, indices, t + draw(0, 5)


def borders_by_hand(spans, indices, words, seconds_per_frame, borders, offset, end):
    """In exact fractions, word by word."""
    second = Fraction(seconds_per_frame)

    def at(frame):
        return (frame + Fraction(offset)) * second

    tokens = [[s for s, i in zip(spans, indices, strict=True) if i == word] for word in range(words)]
    first, last = [own[0].start for own in tokens], [own[-1].end for own in tokens]
    times = [[at(start), at(stop)] for start, stop in zip(first, last, strict=True)]
    for k in range(words - 1):
        gap = first[k + 1] - last[k]
        if isinstance(borders, Pauses):
            if gap * second <= borders.max_pause:
                times[k][1] = times[k + 1][0] = at(last[k] + Fraction(borders.share) * gap)
            else:
                times[k][1] += Fraction(borders.tail)
                times[k + 1][0] -= Fraction(borders.lead_in)
        elif borders != "drop":
            meet = {"split": last[k] + gap // 2, "before": first[k + 1], "after": last[k]}[borders]
            times[k][1] = times[k + 1][0] = at(meet)
    if words and isinstance(borders, Pauses):
        times[0][0] -= Fraction(borders.lead_in)
        times[-1][1] += Fraction(borders.tail)
    return [float(min(max(time, 0), Fraction(end))) for pair in times for time in pair]


@pytest.mark.parametrize("borders", ["split", "before", "after", "drop", Pauses(), Pauses(0.11, 0.3, 0.05, 0.06)])
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_both_forms_agree_and_are_right(generator, borders, offset):
    """Pauses of 0.25 and 0.11 s are 12.5 and 5.5 frames: no rounding decides."""
    items = [random_item(generator) for _ in range(40)]
    spans = batch_of([item[0] for item in items])
    labels, words = spans.starts.shape[1], max(len(counts) for _, counts, *_ in items)
    indices = torch.tensor([index + [-1] * (labels - len(index)) for _, _, index, _ in items])
    ends = torch.tensor([0.02 * end for *_, end in items], dtype=torch.float64)
    options = {"seconds_per_frame": 0.02, "borders": borders, "frame_offset": offset}
    found = word_borders(spans, indices, words, **options, recording_ends=ends)
    assert found.starts.dtype == found.ends.dtype == torch.float64
    for b, (item, counts, index, end) in enumerate(items):
        names = [str(k) for k in range(len(counts))]
        merged = merge_words(item, names, separator=0, tokens_per_word=counts, recording_end=0.02 * end, **options)
        expected = borders_by_hand(item, index, len(counts), 0.02, borders, offset, 0.02 * end)
        assert times_of(merged) == pytest.approx(expected, abs=1e-9)
        pairs = torch.stack([found.starts[b], found.ends[b]], 1)
        assert pairs[: len(counts)].flatten().tolist() == pytest.approx(times_of(merged), abs=1e-9)
        assert (pairs[len(counts) :] == -1).all()
        # Scores are eighths and spans short: float32 holds their sums, and a quotient is rounded once.
        assert found.scores[b].tolist() == pytest.approx(
            [word.score for word in merged] + [0.0] * (words - len(counts)), rel=1e-6
        )
        flat = times_of(merged)
        assert flat == sorted(flat), "borders never cross"


def test_a_marked_item_and_padding():
    spans = TokenSpans(
        torch.tensor([[2, 4], [-1, -1], [3, -1]]),
        torch.tensor([[3, 5], [-1, -1], [5, -1]]),
        torch.tensor([[-1.0, -2.0], [-math.inf, -math.inf], [-4.0, 0.0]]),
    )
    index = torch.tensor([[0, 1], [0, 1], [0, -1]])
    starts, ends, scores = word_borders(spans, index, 2, seconds_per_frame=0.5, borders="drop")
    assert starts.tolist() == [[1.0, 2.0], [-1.0, -1.0], [1.5, -1.0]]
    assert ends.tolist() == [[1.5, 2.5], [-1.0, -1.0], [2.5, -1.0]]
    assert scores.tolist() == [[-1.0, -2.0], [-math.inf, -math.inf], [-4.0, 0.0]]


def test_neighbours_of_a_word_without_tokens_are_each_others():
    spans = [Span(1, 2, 4, 0.0), Span(2, 6, 7, 0.0)]
    assert batch_times(spans, [0, 3], 5, "split") == [1.0, 2.5, -1, -1, -1, -1, 2.5, 3.5, -1, -1]
    assert batch_times(spans, [1, 2], 3, SHORT) == [-1, -1, 0.75, 2.25, 2.25, 4.0]


def test_indices_out_of_range_are_left_out():
    spans = [Span(1, 2, 4, 0.0), Span(2, 6, 7, 0.0), Span(3, 8, 9, 0.0), Span(4, 9, 10, 0.0)]
    assert batch_times(spans, [-7, 0, 1, 9], 1, "split") == [3.0, 3.5]


def test_indices_of_padding_may_hold_anything():
    spans = [Span(1, 2, 4, 0.0), Span(2, 6, 7, 0.0), Span(0, -1, -1, 0.0), Span(0, -1, -1, 0.0)]
    assert batch_times(spans, [0, 1, 0, 1], 2, "drop") == [1.0, 2.0, 3.0, 3.5]


@pytest.mark.parametrize("B, L, W", [(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0)])
def test_word_borders_of_nothing(B, L, W):
    spans = TokenSpans(*(torch.zeros(B, L, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float32)))
    found = word_borders(spans, torch.full((B, L), -1), W, seconds_per_frame=0.5)
    assert [tuple(tensor.shape) for tensor in found] == [(B, W)] * 3
    assert (found.starts == -1).all()
    assert (found.scores == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_keep_their_dtype(dtype):
    """20,000 frames of -5 sum up to more than float16 can hold."""
    spans = TokenSpans(torch.tensor([[0]]), torch.tensor([[20_000]]), torch.full((1, 1), -5.0, dtype=dtype))
    scores = word_borders(spans, torch.zeros(1, 1, dtype=torch.int32), 1, seconds_per_frame=0.02).scores
    assert scores.dtype == dtype
    assert scores.item() == -5.0


def test_gradient_of_scores():
    scores = torch.tensor([[-1.0, -3.0, -7.0, -0.5]], dtype=torch.float64, requires_grad=True)
    spans = TokenSpans(torch.tensor([[2, 5, 9, 10]]), torch.tensor([[3, 8, 10, 12]]), scores)
    word_borders(spans, torch.tensor([[0, 0, -1, 1]]), 2, seconds_per_frame=0.5).scores.sum().backward()
    assert scores.grad.tolist() == [[0.25, 0.75, 0.0, 1.0]]


def test_compiles_into_one_graph_of_any_size(generator, compile_fully):  # noqa: F811
    def borders_of(starts, ends, scores, index, limits):
        options = {"seconds_per_frame": 0.02, "frame_offset": -0.5, "recording_ends": limits}
        tight = word_borders(TokenSpans(starts, ends, scores), index, 7, borders="drop", **options)
        shared = Pauses(max_pause=0.3, share=0.5, lead_in=0.05, tail=0.1)
        return tight, word_borders(TokenSpans(starts, ends, scores), index, 7, borders=shared, **options)

    compiled = compile_fully(borders_of)
    for i, size in enumerate((3, 5, 8)):
        items = [random_item(generator) for _ in range(size)] + [([H, I, BAR, Y, O, U], [2, 3], [0, 0, -1, 1, 1, 1], 9)]
        spans = batch_of([item[0] for item in items])
        labels = spans.starts.shape[1]
        index = torch.tensor([index + [-1] * (labels - len(index)) for _, _, index, _ in items])
        limits = torch.tensor([0.02 * end for *_, end in items])
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(*spans, index, limits)
        for ours, eager in zip(found, borders_of(*spans, index, limits), strict=True):
            torch.testing.assert_close(tuple(ours), tuple(eager), rtol=0, atol=1e-6)
    assert_compiled_once()


def test_no_value_is_looked_at():
    """A fake tensor has none, and raises for .item() and its like."""
    with FakeTensorMode():
        spans = TokenSpans(
            torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
        )
        index = torch.zeros(2, 5, dtype=torch.int64)
        for borders in ("drop", "split", Pauses()):
            found = word_borders(
                spans, index, 3, seconds_per_frame=0.02, borders=borders, recording_ends=torch.zeros(2)
            )
            assert [tuple(tensor.shape) for tensor in found] == [(2, 3)] * 3


def test_exports():
    class Words(torch.nn.Module):
        def forward(self, starts, ends, scores, index):
            return word_borders(TokenSpans(starts, ends, scores), index, 2, seconds_per_frame=0.5, borders=SHORT)

    arguments = (*batch_of([[H, I, BAR, Y, O, U]]), torch.tensor([[0, 0, -1, 1, 1, 1]]))
    found = torch.export.export(Words(), arguments).module()(*arguments)
    assert found.starts.tolist() == [[0.75, 4.25]]
    assert found.ends.tolist() == [[4.25, 9.0]]


# Rows of tensors


ROW = batch_of([[H, I, BAR, Y, O, U]])
ROW = TokenSpans(*(torch.nn.functional.pad(t[0], (0, 2), value=v) for t, v in zip(ROW, (-1, -1, 0), strict=True)))
TARGET = torch.tensor([1, 2, 0, 3, 4, 5, -1, -1])


@pytest.mark.parametrize("tokens", [TARGET, TARGET.int(), TARGET.tolist()], ids=["int64", "int32", "list"])
def test_a_row_of_token_spans(tokens):
    assert merge(ROW, separator=0, tokens=tokens) == HI_YOU
    assert merge(ROW, separator=0, tokens=tokens, tokens_per_word=[2, 3]) == HI_YOU


def test_a_row_may_be_a_plain_tuple():
    """zip(*spans) gives plain tuples."""
    batch = TokenSpans(*(column[None] for column in ROW))
    (row,) = zip(*batch, strict=True)
    assert merge(row, separator=0, tokens=TARGET) == HI_YOU


def test_padding_may_be_the_separator():
    assert merge(ROW, separator=0, tokens=[1, 2, 0, 3, 4, 5, 0, 0]) == HI_YOU


def test_a_row_without_separators_needs_no_tokens():
    row = TokenSpans(*(torch.cat([column[:2], column[3:]]) for column in ROW))
    assert merge(row, tokens_per_word=[2, 3]) == HI_YOU
