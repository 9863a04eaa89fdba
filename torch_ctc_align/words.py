"""Groups the spans of target tokens into the words that they spell."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

__all__ = ["WordSpan", "merge_words"]


class _Span(Protocol):
    """What :func:`merge_words` reads of a span; :class:`~torch_ctc_align.TokenSpan` and torchaudio's have it."""

    @property
    def token(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class WordSpan:
    """A word and when it was spoken.

    Attributes:
        word: the word as the caller spelled it.
        start: seconds from the first frame to the beginning of the word's first token.
        end: seconds from the first frame to the end (exclusive) of its last token.
        score: mean natural-log probability over the frames of its tokens; blanks between them do not count.
    """

    word: str
    start: float
    end: float
    score: float

    @property
    def confidence(self) -> float:
        """``exp(score)``: the geometric mean of the frames' probabilities, in [0, 1]."""
        return math.exp(self.score)


def merge_words(
    spans: Iterable[_Span],
    words: Sequence[str],
    *,
    seconds_per_frame: float,
    separator: int | None = None,
    tokens_per_word: Sequence[int] | None = None,
) -> list[WordSpan]:
    r"""Merges the spans of a target's tokens into the spans of its words.

    Say with at least one of ``separator`` and ``tokens_per_word`` where a word ends. A character model writes
    ``the|cat`` and has a separator; so has a phoneme model with a word-boundary token. Without such a token, give
    the number of tokens of each word. Given both, the separators are left out and the counts must fit the rest.

    Args:
        spans: one span per target token, in target order, with ``token``, ``start`` and ``end`` (frames, end
            exclusive) and ``score`` (mean natural-log probability over the span), as ``merge_tokens`` returns them.
            For the tensors of ``token_spans``, see the example.
        words: the words, in the same order.
        seconds_per_frame: duration of one frame, in seconds.
        separator: the token between words. It belongs to no word; at the ends, or repeated, it is skipped.
        tokens_per_word: how many tokens spell each word, without separators; every count at least 1.

    Returns:
        One :class:`WordSpan` per word. A word's score is the mean over the frames of its tokens, each span
        weighted by its length.

    Raises:
        ValueError: neither ``separator`` nor ``tokens_per_word`` is given; the words, the counts and the spans do
            not agree in number; a count is below 1; a span is empty, as those of an infeasible target are; or
            ``seconds_per_frame`` is not positive and finite.

    Example::

        >>> spans = [TokenSpan(3, 10, 12, -0.5), TokenSpan(4, 15, 16, -2.0), TokenSpan(0, 17, 18, 0.0),
        ...          TokenSpan(5, 20, 25, -0.1)]
        >>> merge_words(spans, ["hi", "you"], separator=0, seconds_per_frame=0.02)
        [WordSpan(word='hi', start=0.2, end=0.32, score=-1.0), WordSpan(word='you', start=0.4, end=0.5, score=-0.1)]

    From tensors ``targets``, ``starts``, ``ends`` and ``scores`` of shape (L,)::

        spans = map(TokenSpan, targets.tolist(), starts.tolist(), ends.tolist(), scores.tolist())
    """
    if separator is None and tokens_per_word is None:
        raise ValueError("expected separator or tokens_per_word: nothing says where a word ends")
    if not 0 < seconds_per_frame < math.inf:
        raise ValueError(f"expected seconds_per_frame to be positive and finite, got {seconds_per_frame}")

    spans = list(spans)
    for position, span in enumerate(spans):
        if span.end <= span.start:
            raise ValueError(f"span {position} (token {span.token}) is empty: start {span.start}, end {span.end}")

    if tokens_per_word is None:
        groups = [
            list(group) for is_separator, group in groupby(spans, lambda s: s.token == separator) if not is_separator
        ]
    else:
        groups = list(_split([span for span in spans if span.token != separator], tokens_per_word))
    if len(groups) != len(words):
        raise ValueError(f"expected as many words as the spans spell: {len(groups)}, got {len(words)}")

    return [_merge(word, group, seconds_per_frame) for word, group in zip(words, groups, strict=True)]


def _split(spans: list[_Span], counts: Sequence[int]) -> Iterator[list[_Span]]:
    for position, count in enumerate(counts):
        if count < 1:
            raise ValueError(f"expected at least 1 token in every word, got {count} for word {position}")
    if sum(counts) != len(spans):
        raise ValueError(f"expected tokens_per_word to sum to the {len(spans)} spans of words, got {sum(counts)}")
    begin = 0
    for count in counts:
        yield spans[begin : begin + count]
        begin += count


def _merge(word: str, spans: list[_Span], seconds_per_frame: float) -> WordSpan:
    frames = sum(span.end - span.start for span in spans)
    total = math.fsum(span.score * (span.end - span.start) for span in spans)
    return WordSpan(word, spans[0].start * seconds_per_frame, spans[-1].end * seconds_per_frame, total / frames)
