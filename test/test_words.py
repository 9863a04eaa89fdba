"""Grouping token spans into words: answers written by hand."""

from typing import NamedTuple

import pytest

from torch_ctc_align.words import WordSpan, merge_words


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


def merge(spans, words=("hi", "you"), seconds_per_frame=0.5, **grouping):
    return merge_words(spans, words, seconds_per_frame=seconds_per_frame, **grouping)


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


@pytest.mark.parametrize(
    "spans, kwargs, message",
    [
        ([H], {}, "expected separator or tokens_per_word: nothing says where a word ends"),
        ([H, I], {"separator": 0}, "expected as many words as the spans spell: 1, got 2"),
        ([H, BAR, I], {"tokens_per_word": [1, 1]}, "expected tokens_per_word to sum to the 3 spans of words, got 2"),
        ([H, I], {"tokens_per_word": [1, 0]}, "expected at least 1 token in every word, got 0 for word 1"),
        ([H, I], {"tokens_per_word": [2]}, "expected as many words as the spans spell: 1, got 2"),
        ([H, Span(2, -1, -1, 0.0)], {"separator": 0}, "span 1 (token 2) is empty: start -1, end -1"),
    ],
)
def test_errors_name_what_was_expected_and_found(spans, kwargs, message):
    with pytest.raises(ValueError) as error:
        merge(spans, **kwargs)
    assert str(error.value) == message


@pytest.mark.parametrize("seconds", [0.0, -0.02, float("inf"), float("nan")])
def test_frames_have_a_duration(seconds):
    with pytest.raises(ValueError) as error:
        merge([H, I], ["hi"], separator=0, seconds_per_frame=seconds)
    assert str(error.value) == f"expected seconds_per_frame to be positive and finite, got {seconds}"
