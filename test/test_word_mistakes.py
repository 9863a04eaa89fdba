"""Grouping token spans into words: errors and warnings."""

import math
import warnings

import pytest
import torch
from test_words import BAR, ROW, TARGET, H, I, Span, batch_of, merge

from torch_ctc_align import AlignmentWarning, TokenSpan, TokenSpans
from torch_ctc_align.words import Pauses, WordSpan, merge_words, word_borders

pytestmark = pytest.mark.usefixtures("shown_afresh")

MARKED = TokenSpans(torch.full((2,), -1), torch.full((2,), -1), torch.full((2,), -math.inf))


@pytest.mark.parametrize(
    "spans, kwargs, message",
    [
        ([H], {}, "separator or tokens_per_word must be given, to say where a word ends"),
        ([H, I], {"separator": 0}, "words must match the spans in number, expected 1, found 2"),
        (
            [H, BAR, I],
            {"tokens_per_word": [1, 1]},
            "tokens_per_word must sum to the spans of words, expected 3, found 2",
        ),
        (
            [H, I],
            {"tokens_per_word": [1, 0]},
            "tokens_per_word[1] must be a number of tokens, expected at least 1, found 0",
        ),
        ([H, I], {"tokens_per_word": [2]}, "words must match the spans in number, expected 1, found 2"),
        (
            [H, Span(2, -1, -1, 0.0)],
            {"separator": 0},
            "span 1 (token 2) must not be empty, expected start < end, found start -1, end -1",
        ),
        (
            [(1, 2, 3), (2, 5, 8)],
            {"separator": 0},
            "spans[0] must have token, start, end and score, as TokenSpan has, found tuple",
        ),
        (
            ROW,
            {"separator": 0},
            "tokens must be given, the target of the item, to find the separator among the spans of TokenSpans, "
            "found None",
        ),
        (
            ROW,
            {"separator": 0, "tokens": TARGET[:3]},
            "tokens must match the spans in number, expected 8 (padding included), found 3",
        ),
        (
            [H, I],
            {"separator": 0, "tokens": TARGET},
            "tokens must not be given where every span has its token, found both",
        ),
        (
            TokenSpans(*(column[None] for column in ROW)),
            {"separator": 0, "tokens": TARGET},
            "spans must be those of one item, TokenSpans(starts[b], ends[b], scores[b]) of shape (L,) (word_borders "
            "takes a batch), found (1, 8), (1, 8), (1, 8)",
        ),
        (MARKED, {"tokens_per_word": [1, 1]}, "the spans are those of a marked item, expected an item with a path"),
        (
            [H, I],
            {"separator": 0, "borders": "tight"},
            "borders must be one of split, before, after, drop, Pauses(...), found 'tight'",
        ),
        (
            [H, I],
            {"separator": 0, "borders": None},
            "borders must be one of split, before, after, drop, Pauses(...), found None",
        ),
        ([H, I], {"separator": 0, "frame_offset": math.nan}, "frame_offset must be finite, found nan"),
        (
            [H, I],
            {"tokens_per_word": [1, 1], "recording_end": 2.0},
            "recording_end must not lie before the last word, expected at least 2.5 s, found 2.0",
        ),
    ],
)
def test_errors_name_what_was_expected_and_found(spans, kwargs, message):
    with pytest.raises(ValueError) as error:
        merge(spans, **kwargs)
    assert str(error.value) == f"merge_words: {message}"


@pytest.mark.parametrize("seconds", [0.0, -0.02, float("inf"), float("nan")])
def test_frames_have_a_duration(seconds):
    message = f"seconds_per_frame must be positive and finite, found {seconds}"
    with pytest.raises(ValueError) as error:
        merge([H, I], ["hi"], separator=0, seconds_per_frame=seconds)
    assert str(error.value) == f"merge_words: {message}"
    with pytest.raises(ValueError) as error:
        word_borders(batch_of([[H, I]]), torch.zeros(1, 2, dtype=torch.int64), 1, seconds_per_frame=seconds)
    assert str(error.value) == f"word_borders: {message}"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"word_indices": torch.zeros(2, dtype=torch.int64)},
            "spans and word_indices must have the same shape (B, L), found starts, ends, scores and word_indices of "
            "(1, 2), (1, 2), (1, 2), (2,)",
        ),
        ({"word_indices": torch.zeros(1, 2)}, "word_indices must be int32 or int64, found float32"),
        ({"num_words": -1}, "num_words must be at least 0, found -1"),
        (
            {"recording_ends": torch.zeros(3)},
            "recording_ends must be a number or have shape (B,) = (1,) as in spans, found (3,)",
        ),
        ({"borders": "tight"}, "borders must be one of split, before, after, drop, Pauses(...), found 'tight'"),
        ({"frame_offset": math.inf}, "frame_offset must be finite, found inf"),
    ],
)
def test_errors_of_word_borders(change, message):
    arguments = {
        "spans": batch_of([[H, I]]),
        "word_indices": torch.zeros(1, 2, dtype=torch.int64),
        "num_words": 1,
        "seconds_per_frame": 0.5,
    }
    with pytest.raises(ValueError) as error:
        word_borders(**(arguments | change))
    assert str(error.value) == f"word_borders: {message}"


@pytest.mark.parametrize(
    "pauses, message",
    [
        ({"share": 1.5}, "share must be between 0 and 1, found 1.5"),
        ({"share": math.nan}, "share must be between 0 and 1, found nan"),
        ({"lead_in": -0.1}, "lead_in and tail must be finite and at least 0, found -0.1 and 0.15"),
        ({"tail": math.inf}, "lead_in and tail must be finite and at least 0, found 0.04 and inf"),
        (
            {"max_pause": 0.1},
            "max_pause must be at least lead_in + tail = 0.19, or neighbouring words could overlap, found 0.1",
        ),
        (
            {"max_pause": math.nan},
            "max_pause must be at least lead_in + tail = 0.19, or neighbouring words could overlap, found nan",
        ),
    ],
)
def test_errors_of_pauses(pauses, message):
    with pytest.raises(ValueError) as error:
        Pauses(**pauses)
    assert str(error.value) == f"Pauses: {message}"


LOUD = [H, TokenSpan(2, 5, 8, 0.5)]
SCORE_WARNING = (
    "merge_words: scores must be log-probabilities, expected at most 0, found 0.5 for span 1 (token 2); "
    "merge_tokens(path, scores) gives them, with scores.exp() it does not, and confidences will be above 1. If this "
    "is meant (priors subtracted), turn AlignmentWarning off"
)
SECONDS_WARNING = (
    "seconds_per_frame must be in seconds, expected at most 1, found 20: milliseconds, or the samples of a hop? If "
    "this is meant, turn AlignmentWarning off"
)


def merge_loud():
    return merge_words(LOUD, ["hi"], separator=0, seconds_per_frame=0.5, borders="drop")


def merge_in_milliseconds():
    return merge_words([H, I], ["hi"], separator=0, seconds_per_frame=20)


def borders_in_milliseconds():
    return word_borders(batch_of([[H, I]]), torch.zeros(1, 2, dtype=torch.int64), 1, seconds_per_frame=20)


WARNINGS = pytest.mark.parametrize(
    "call, message",
    [
        (merge_loud, SCORE_WARNING),
        (merge_in_milliseconds, f"merge_words: {SECONDS_WARNING}"),
        (borders_in_milliseconds, f"word_borders: {SECONDS_WARNING}"),
    ],
)


@WARNINGS
def test_a_likely_mistake_is_warned_of_once(call, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        call()
    assert [(str(warning.message), warning.category) for warning in caught] == [(message, AlignmentWarning)]
    assert caught[0].filename == __file__


@WARNINGS
def test_warnings_can_be_turned_off_and_made_errors(call, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AlignmentWarning):
            call()
        warnings.filterwarnings("ignore", category=AlignmentWarning)
        call()


def test_the_result_does_not_depend_on_a_warning():
    with pytest.warns(AlignmentWarning):
        (word,) = merge_loud()
    assert word == WordSpan("hi", 1.0, 4.0, (-1.0 + 3 * 0.5) / 4)


@pytest.mark.filterwarnings("error")
def test_no_warning_without_a_mistake():
    """Not for the last digits of a logarithm, nor for a probability of 1, nor for slow models."""
    merge([TokenSpan(1, 0, 1, 1e-6), TokenSpan(2, 1, 2, 0.0)], ["hi"], separator=0, seconds_per_frame=1.0)
