"""Durations and words beside stars: answers written by hand, slow twins, and merge_words against word_borders."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from test_graphs import assert_compiled_once, compile_fully, cxx  # noqa: F401
from test_stars import random_speech
from test_words import LONG, SHORT, H, I, O, Span, U, Y, batch_of, random_item, times_of
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_ctc_align import (
    GAP_STAR,
    Pauses,
    TokenSpan,
    TokenSpans,
    forced_align,
    merge_stars,
    merge_tokens,
    merge_words,
    star_spans,
    token_durations,
    token_spans,
    wild_gaps,
    word_borders,
)

BLANKS = ["split", "before", "after", "drop"]
BORDERS = [*BLANKS, SHORT, LONG]


def star(start, end, score=-1.0):
    return Span(GAP_STAR, start, end, score)


def stars_of(gaps, labels):
    """TokenSpans (1, L + 1) from {gap: (start, end)}."""
    rows = [gaps.get(k, (-1, -1)) for k in range(labels + 1)]
    starts, ends = (torch.tensor([[row[i] for row in rows]]) for i in (0, 1))
    return TokenSpans(starts, ends, torch.where(starts >= 0, -1.0, 0.0))


# Durations


# Two tokens, [4, 5) and [10, 12), of 16 frames.
TWO = batch_of([[Span(1, 4, 5, 0.0), Span(2, 10, 12, 0.0)]])


@pytest.mark.parametrize(
    "gaps, durations",
    [
        ({}, {"split": [7, 9], "before": [10, 6], "after": [5, 11]}),
        # Blanks at frames 5 and 9, on both sides of the star: one for each token, whatever the mode.
        ({1: (6, 9)}, {"split": [6, 7], "before": [6, 7], "after": [6, 7]}),
        ({1: (5, 10)}, {"split": [5, 6], "before": [5, 6], "after": [5, 6]}),
        # Frame 0 lies before the first star and belongs to no token, and so does frame 15.
        ({0: (1, 3)}, {"split": [4, 9], "before": [7, 6], "after": [2, 11]}),
        ({2: (13, 15)}, {"split": [7, 6], "before": [10, 3], "after": [5, 8]}),
        ({0: (0, 4), 1: (7, 8), 2: (12, 16)}, {"split": [3, 4], "before": [3, 4], "after": [3, 4]}),
    ],
)
def test_durations_leave_the_star_out(gaps, durations):
    stars = stars_of(gaps, 2)
    for blanks in BLANKS:
        expected = durations.get(blanks, [1, 2])  # with "drop" the tokens alone
        assert token_durations(TWO, 16, blanks=blanks, stars=stars).tolist() == [expected]


@pytest.mark.parametrize("none", [None, (), stars_of({}, 2)], ids=["None", "empty", "no_star"])
@pytest.mark.parametrize("blanks", BLANKS)
def test_no_stars_change_nothing(none, blanks):
    assert torch.equal(token_durations(TWO, 16, blanks=blanks, stars=none), token_durations(TWO, 16, blanks=blanks))
    for borders in (blanks, SHORT, LONG):
        options = {"seconds_per_frame": 0.5, "borders": borders}
        found = word_borders(TWO, torch.tensor([[0, 1]]), 2, stars=none, **options)
        for x, y in zip(found, word_borders(TWO, torch.tensor([[0, 1]]), 2, **options), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("blanks", BLANKS[:3])
def test_durations_add_up_to_the_input_less_the_stars(random_case, generator, blanks):
    """Of random alignments, counted by a loop over frames; and of items that are marked or have no label."""
    *arguments, _ = random_speech(random_case, generator, items=60)
    arguments[2][::7] = (arguments[3][::7] - 1).clamp(min=0)  # too short
    paths, scores = forced_align(*arguments, star="all", strict=False)
    targets, input_lengths, target_lengths = arguments[1:]
    spans, stars = token_spans(paths, scores, targets), star_spans(paths, scores, targets)
    durations = token_durations(spans, input_lengths, blanks=blanks, stars=stars)
    marked = paths[:, 0] == -1
    assert 0 < marked.sum() < 30
    assert (durations[marked] == 0).all()
    for b in range(60):
        if marked[b]:
            continue
        T, L = int(input_lengths[b]), int(target_lengths[b])
        owner = [None] * T
        for k in range(L):
            owner[spans.starts[b, k] : spans.ends[b, k]] = [k] * int(spans.ends[b, k] - spans.starts[b, k])
        for k in range(L + 1):
            left = int(spans.ends[b, k - 1]) if k > 0 else 0
            right = int(spans.starts[b, k]) if k < L else T
            if stars.starts[b, k] >= 0:
                first, last = int(stars.starts[b, k]), int(stars.ends[b, k])
                assert left <= first < last <= right
                given = [k - 1] * (first - left), [k] * (right - last)
                owner[left:right] = given[0] + [None] * (last - first) + given[1]
            else:
                border = {"split": (left + right) // 2, "before": right, "after": left}[blanks]
                border = right if k == L else left if k == 0 else border
                owner[left:right] = [k - 1] * (border - left) + [k] * (right - border)
        owner = [None if k in (-1, L) else k for k in owner]
        assert durations[b, :L].tolist() == [owner.count(k) for k in range(L)]
        assert (durations[b, L:] == 0).all()
        if L > 0:
            first, last = stars.ends[b, 0].clamp(min=0), stars.starts[b, L] if stars.starts[b, L] >= 0 else T
            inner = (stars.ends - stars.starts)[b, 1:L].sum()
            assert durations[b].sum() == last - first - inner


# Words. "hi" lasts from 1.0 to 4.0 s and "you" from 5.0 to 8.5 s, frames of 0.5 s: frames 2 to 7, and 10 to 16.


def both_ways(spans, indices, counts, stars, gaps, borders, **options):
    """The times of merge_words and of word_borders, which must be equal."""
    names = [str(k) for k in range(len(counts))]
    options = {"seconds_per_frame": 0.5, "borders": borders} | options
    words = merge_words(spans, names, separator=0, tokens_per_word=counts, stars=stars, **options)
    row = stars_of(gaps, len(spans))
    again = merge_words(
        spans, names, separator=0, tokens_per_word=counts, stars=tuple(column[0] for column in row), **options
    )
    assert again == words
    starts, ends, _ = word_borders(batch_of([spans]), torch.tensor([indices]), len(counts), stars=row, **options)
    times = torch.stack([starts, ends], 2).flatten().tolist()
    assert times == pytest.approx(times_of(words), abs=1e-9)
    return times


@pytest.mark.parametrize(
    "borders, times",
    [
        ("drop", [1.0, 4.0, 5.0, 8.5]),
        ("split", [1.0, 4.0, 4.5, 8.5]),
        ("before", [1.0, 4.0, 4.5, 8.5]),
        ("after", [1.0, 4.0, 4.5, 8.5]),
        (SHORT, [0.75, 4.0, 4.75, 9.0]),  # a tail of 0.5 s would reach into the star, a lead-in of 0.25 s does not
        (LONG, [0.75, 4.0, 4.75, 9.0]),
    ],
)
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_a_star_parts_two_words(borders, times, offset):
    """The star is frame 8, right after "hi"; frame 9 is a blank."""
    times = [time + 0.5 * offset for time in times]
    spans = [H, I, Y, O, U]
    assert both_ways(spans, [0, 0, 1, 1, 1], [2, 3], [star(8, 9)], {2: (8, 9)}, borders, frame_offset=offset) == times


@pytest.mark.parametrize(
    "borders, times",
    [
        ("drop", [1.0, 1.5, 10.0, 10.5]),
        ("split", [1.0, 3.0, 7.0, 10.5]),
        ("before", [1.0, 3.0, 7.0, 10.5]),
        ("after", [1.0, 3.0, 7.0, 10.5]),
        (SHORT, [0.75, 2.0, 9.75, 11.0]),
        (Pauses(max_pause=99, share=0.5, lead_in=9, tail=2), [0.0, 3.0, 7.0, 12.5]),
    ],
)
def test_the_blanks_beside_a_star_are_a_long_pause(borders, times):
    """Stars from frame 6 to 13, with a separator among them, between the tokens at frames 2 and 20."""
    spans = [Span(1, 2, 3, 0.0), Span(0, 9, 10, 0.0), Span(2, 20, 21, 0.0)]
    stars = [star(6, 7), star(8, 9), star(12, 14)]
    assert both_ways(spans, [0, -1, 1], [1, 1], stars, {1: (6, 9), 2: (12, 14)}, borders) == times


@pytest.mark.parametrize(
    "borders, times",
    [
        ("drop", [2.0, 3.0]),
        ("split", [2.0, 3.0]),
        ("before", [2.0, 3.0]),
        ("after", [2.0, 3.0]),
        (Pauses(max_pause=2, lead_in=0.25, tail=0.75), [1.75, 3.75]),
        (Pauses(max_pause=2, lead_in=1, tail=1), [1.5, 4.0]),
        (Pauses(max_pause=9, lead_in=4, tail=4), [1.5, 4.0]),
    ],
)
def test_lead_in_and_tail_end_at_the_outer_stars(borders, times):
    """One word, frames 4 and 5. The stars before it end with frame 2, those after it begin with frame 8."""
    stars = [star(0, 1), star(2, 3), star(8, 30)]
    assert both_ways([Span(1, 4, 6, 0.0)], [0], [1], stars, {0: (0, 3), 1: (8, 30)}, borders) == times


@pytest.mark.parametrize("borders", BORDERS)
def test_a_star_within_a_word_does_not_cut_it(borders):
    spans = [H, I, Y, O, U]  # a star between h and i
    options = {"seconds_per_frame": 0.5, "borders": borders}
    plain = merge_words(spans, ["hi", "you"], tokens_per_word=[2, 3], **options)
    assert merge_words(spans, ["hi", "you"], tokens_per_word=[2, 3], stars=[star(3, 5)], **options) == plain
    assert both_ways(spans, [0, 0, 1, 1, 1], [2, 3], [star(3, 5)], {1: (3, 5)}, borders) == times_of(plain)


def test_words_beside_stars_stay_within_the_recording():
    spans, stars, gaps = [Span(1, 4, 6, 0.0)], [star(7, 9)], {1: (7, 9)}
    borders = Pauses(max_pause=9, lead_in=4, tail=4)
    assert both_ways(spans, [0], [1], stars, gaps, borders) == [0.0, 3.5]
    options = {"seconds_per_frame": 0.5, "borders": borders, "stars": stars}
    (word,) = merge_words(spans, ["a"], tokens_per_word=[1], recording_end=3.25, **options)
    assert (word.start, word.end) == (0.0, 3.25)


def item_with_stars(generator):
    """A random item with runs of stars in some gaps; the runs, and the first and last frame of each gap's."""
    spans, counts, indices, end = random_item(generator)
    draw = lambda low, high: int(torch.randint(low, high + 1, (1,), generator=generator))  # noqa: E731
    edges = [0, *itertools.chain(*((span.start, span.end) for span in spans)), end]
    runs, gaps = [], {}
    for k in range(len(spans) + 1):
        left, right = edges[2 * k], edges[2 * k + 1]
        frames = [t for t in range(left, right) if draw(0, 2) == 0] if draw(0, 1) else []
        if frames:
            gaps[k] = (frames[0], frames[-1] + 1)
        for t in frames:
            if runs and runs[-1][1] == t and t != left:
                runs[-1] = (runs[-1][0], t + 1)
            else:
                runs.append((t, t + 1))
    return (spans, counts, indices, end), [star(*run) for run in runs], gaps


def times_by_hand(item, gaps, borders, offset):
    """In exact fractions, word by word."""
    spans, counts, indices, end = item
    second = Fraction(0.02)
    at = lambda frame: (frame + Fraction(offset)) * second  # noqa: E731
    positions = [[k for k, i in enumerate(indices) if i == word] for word in range(len(counts))]
    lead_in, tail = (Fraction(borders.lead_in), Fraction(borders.tail)) if isinstance(borders, Pauses) else (0, 0)
    times = [[at(spans[own[0]].start) - lead_in, at(spans[own[-1]].end) + tail] for own in positions]
    for word in range(-1, len(counts)):
        low = positions[word][-1] + 1 if word >= 0 else 0
        high = positions[word + 1][0] if word + 1 < len(counts) else len(spans)
        inside = [gaps[k] for k in range(low, high + 1) if k in gaps]
        if inside:
            first, last = at(inside[0][0]), at(inside[-1][1])
            inner = 0 <= word < len(counts) - 1
            whole = inner and not isinstance(borders, Pauses) and borders != "drop"
            if word >= 0:
                times[word][1] = first if whole else min(times[word][1], first)
            if word + 1 < len(counts):
                times[word + 1][0] = last if whole else max(times[word + 1][0], last)
        elif 0 <= word < len(counts) - 1:
            left, right = spans[positions[word][-1]].end, spans[positions[word + 1][0]].start
            pause = right - left
            if isinstance(borders, Pauses):
                if pause * second <= borders.max_pause:
                    times[word][1] = times[word + 1][0] = at(left + Fraction(borders.share) * pause)
            elif borders != "drop":
                meet = {"split": left + pause // 2, "before": right, "after": left}[borders]
                times[word][1] = times[word + 1][0] = at(meet)
    return [float(min(max(time, 0), Fraction(0.02 * end))) for pair in times for time in pair]


@pytest.mark.parametrize("borders", [*BLANKS, Pauses(), Pauses(0.11, 0.3, 0.05, 0.06)])
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_both_forms_agree_and_are_right(generator, borders, offset):
    """Pauses of 0.25 and 0.11 s are 12.5 and 5.5 frames: no rounding decides. Scores do not know of stars."""
    cases = [item_with_stars(generator) for _ in range(60)]
    spans = batch_of([item[0] for item, _, _ in cases])
    labels, words = spans.starts.shape[1], max(len(counts) for (_, counts, *_), *_ in cases)
    indices = torch.tensor([index + [-1] * (labels - len(index)) for (_, _, index, _), *_ in cases])
    ends = torch.tensor([0.02 * end for (*_, end), *_ in cases], dtype=torch.float64)
    stars = TokenSpans(*map(torch.cat, zip(*(stars_of(gaps, labels) for *_, gaps in cases), strict=True)))
    options = {"seconds_per_frame": 0.02, "borders": borders, "frame_offset": offset}
    found = word_borders(spans, indices, words, stars=stars, recording_ends=ends, **options)
    assert torch.equal(found.scores, word_borders(spans, indices, words, **options).scores)
    assert not torch.equal(
        found.starts, word_borders(spans, indices, words, recording_ends=ends, **options).starts
    ) or (borders == "drop")
    for b, (item, runs, gaps) in enumerate(cases):
        tokens, counts, _, end = item
        names = [str(k) for k in range(len(counts))]
        merged = merge_words(
            tokens, names, separator=0, tokens_per_word=counts, stars=runs, recording_end=0.02 * end, **options
        )
        assert times_of(merged) == pytest.approx(times_by_hand(item, gaps, borders, offset), abs=1e-9)
        pairs = torch.stack([found.starts[b], found.ends[b]], 1)[: len(counts)]
        assert pairs.flatten().tolist() == pytest.approx(times_of(merged), abs=1e-9)
        assert times_of(merged) == sorted(times_of(merged)), "borders never cross"


@pytest.mark.parametrize("borders", BORDERS)
def test_both_forms_agree_on_alignments(random_case, generator, borders):
    """From paths: merge_tokens and merge_stars on one side, token_spans and star_spans on the other."""
    *arguments, counts = random_speech(random_case, generator)
    paths, scores = forced_align(*arguments, star="words", separator=1)
    targets, input_lengths, target_lengths = arguments[1:]
    spans, stars = token_spans(paths, scores, targets), star_spans(paths, scores, targets)
    between = wild_gaps(targets, target_lengths, "words", 1, counts)
    own = targets != 1
    index = torch.where(own, (own & between[:, :-1]).cumsum(1) - 1, -1)  # a word begins after a wild gap
    found = word_borders(spans, index, counts.shape[1], seconds_per_frame=0.02, borders=borders, stars=stars)
    for b, T in enumerate(input_lengths.tolist()):
        own_counts = [count for count in counts[b].tolist() if count]
        words = merge_words(
            merge_tokens(paths[b, :T], scores[b, :T]),
            [str(k) for k in range(len(own_counts))],
            separator=1,
            tokens_per_word=own_counts,
            stars=merge_stars(paths[b, :T], scores[b, :T]),
            seconds_per_frame=0.02,
            borders=borders,
        )
        pairs = torch.stack([found.starts[b], found.ends[b]], 1)[: len(words)]
        assert pairs.flatten().tolist() == pytest.approx(times_of(words), abs=1e-9)


def test_a_marked_item_beside_stars():
    spans = TokenSpans(
        torch.tensor([[-1, -1], [2, 9]]),
        torch.tensor([[-1, -1], [3, 10]]),
        torch.tensor([[-math.inf] * 2, [-1.0, -2.0]]),
    )
    stars = TokenSpans(
        torch.tensor([[-1] * 3, [-1, 5, -1]]),
        torch.tensor([[-1] * 3, [-1, 7, -1]]),
        torch.tensor([[-math.inf] * 3, [0.0, -1.0, 0.0]]),
    )
    starts, ends, scores = word_borders(
        spans, torch.tensor([[0, 1], [0, 1]]), 2, seconds_per_frame=1.0, borders="split", stars=stars
    )
    assert starts.tolist() == [[-1, -1], [2, 7]]
    assert ends.tolist() == [[-1, -1], [5, 10]]
    assert scores.tolist() == [[-math.inf] * 2, [-1, -2]]


def test_stars_that_do_not_fit_are_refused():
    index = torch.tensor([[0, 1]])
    for stars, message in [
        (TWO, "stars must have shape (B, L + 1) = (1, 3), found (1, 2), (1, 2), (1, 2)"),
        ([star(5, 6)], "stars must be TokenSpans from star_spans, found [Span(token=-2, start=5, end=6, score=-1.0)]"),
    ]:
        with pytest.raises(ValueError) as error:
            token_durations(TWO, 16, stars=stars)
        assert str(error.value) == f"token_durations: {message}"
        with pytest.raises(ValueError) as error:
            word_borders(TWO, index, 2, seconds_per_frame=0.5, stars=stars)
        assert str(error.value) == f"word_borders: {message}"
    for stars, message in [
        (
            stars_of({}, 2),
            "stars must be those of one item, TokenSpans(starts[b], ends[b], scores[b]) of shape (L + 1,)",
        ),
        (
            [TokenSpan(3, 5, 6, -1.0)],
            "stars[0] must be a span of merge_stars, with token -2 and start < end, found Token",
        ),
        (
            [star(5, 6), star(7, 7)],
            "stars[1] must be a span of merge_stars, with token -2 and start < end, found Span(",
        ),
        ([5], "stars[0] must be a span of merge_stars, with token -2 and start < end, found 5"),
    ]:
        with pytest.raises(ValueError) as error:
            merge_words([H, I], ["hi"], tokens_per_word=[2], seconds_per_frame=0.5, stars=stars)
        assert str(error.value).startswith(f"merge_words: {message}")


def test_nothing_beside_no_stars():
    for B, L, W in [(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0)]:
        spans = TokenSpans(*(torch.full((B, L), -1), torch.full((B, L), -1), torch.zeros(B, L)))
        stars = TokenSpans(*(torch.full((B, L + 1), -1), torch.full((B, L + 1), -1), torch.zeros(B, L + 1)))
        for borders in BORDERS:
            found = word_borders(spans, torch.full((B, L), -1), W, seconds_per_frame=0.5, borders=borders, stars=stars)
            assert [tuple(tensor.shape) for tensor in found] == [(B, W)] * 3
            assert (found.starts == -1).all()
        for blanks in BLANKS:
            assert token_durations(spans, 7, blanks=blanks, stars=stars).shape == (B, L)
    assert merge_words([], [], tokens_per_word=[], seconds_per_frame=0.5, stars=[star(0, 9)]) == []


def test_one_graph_of_any_size(generator, compile_fully):  # noqa: F811
    def times_of_all(starts, ends, scores, first, last, means, index, lengths):
        spans, stars = TokenSpans(starts, ends, scores), TokenSpans(first, last, means)
        options = {"seconds_per_frame": 0.02, "stars": stars}
        durations = [token_durations(spans, lengths, blanks=blanks, stars=stars) for blanks in BLANKS]
        return [*durations, *(word_borders(spans, index, 6, borders=b, **options) for b in ("drop", "split", Pauses()))]

    def make(size):
        cases = [item_with_stars(generator) for _ in range(size)]
        spans = batch_of([item[0] for item, *_ in cases])
        labels = spans.starts.shape[1]
        stars = map(torch.cat, zip(*(stars_of(gaps, labels) for *_, gaps in cases), strict=True))
        index = torch.tensor([index + [-1] * (labels - len(index)) for (_, _, index, _), *_ in cases])
        return *spans, *stars, index, torch.tensor([end for (*_, end), *_ in cases])

    compiled = compile_fully(times_of_all)
    for i, size in enumerate((7, 9, 12)):
        arguments = make(size)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = compiled(*arguments)
        for x, y in zip(found, times_of_all(*arguments), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    assert_compiled_once()


def test_no_value_is_looked_at():
    with FakeTensorMode() as mode:
        spans = TokenSpans(*(mode.from_tensor(column) for column in TWO))
        stars = TokenSpans(*(mode.from_tensor(column) for column in stars_of({1: (5, 6)}, 2)))
        index = mode.from_tensor(torch.tensor([[0, 1]]))
        for borders in BORDERS:
            found = word_borders(spans, index, 2, seconds_per_frame=0.02, borders=borders, stars=stars)
            assert [tuple(tensor.shape) for tensor in found] == [(1, 2)] * 3
        for blanks in BLANKS:
            assert token_durations(spans, 16, blanks=blanks, stars=stars).shape == (1, 2)
