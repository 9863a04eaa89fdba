"""Words: the spans of target tokens grouped into words, and the borders between neighbouring words."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from torch_ctc_align._arguments import dtype_name
from torch_ctc_align._forced_align import GAP_STAR
from torch_ctc_align._torch_seam import name_for_export
from torch_ctc_align.errors import warn_once
from torch_ctc_align.spans import Blanks, TokenSpan, TokenSpans, borders_between, check_blanks, check_stars

__all__ = ["Pauses", "WordBorders", "WordSpan", "merge_words", "word_borders"]

LONGEST_FRAME = 1.0  # seconds; acoustic models have frames of 10 to 80 ms
ROUNDING = 1e-3  # nats: the logarithm of a probability of 1 may come out above 0 by rounding, but not by this much
NO_WORD = 2**62  # a frame after all others

Time = TypeVar("Time", float, Tensor)


class _Span(Protocol):
    """The attributes that :func:`merge_words` reads. :class:`~torch_ctc_align.TokenSpan` and torchaudio's have them."""

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
        start: seconds from the beginning of the recording to the beginning of the word.
        end: seconds from the beginning of the recording to the end of the word.
        score: mean natural-log probability over the frames of its tokens; blanks between them do not count.
    """

    word: str
    start: float
    end: float
    score: float

    @property
    def confidence(self) -> float:
        """``exp(score)``: the geometric mean of the probabilities of its frames, in [0, 1]."""
        return math.exp(self.score)


@dataclass(frozen=True)
class Pauses:
    """Borders between words that take the pause between them into account.

    A CTC model emits a token once it has heard enough of it, and blanks for the rest: words seem to begin late and to
    end early. So a short pause between two words is mostly their sound, and they share it: both meet at a border within
    it. A long pause is silence and stays one; the words extend into it a little. The silence before the first word and
    after the last one counts as long.

    The defaults come from a study (``docs/measurements/word_borders.md``): one model, English.

    Attributes:
        max_pause: seconds; a pause of at most this length is shared, a longer one stays. ``math.inf`` shares all.
        share: how much of a short pause belongs to the word before it, 0 to 1; the word after it gets the rest.
        lead_in: seconds that a word begins before its first token where a long pause precedes it.
        tail: seconds that a word ends after its last token where a long pause follows it. ``lead_in + tail`` is at
            most ``max_pause``, so that neighbours never overlap.

    Raises:
        ValueError: an attribute is out of its range.
    """

    max_pause: float = 0.25
    share: float = 0.5
    lead_in: float = 0.04
    tail: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"Pauses: share must be between 0 and 1, found {self.share}")
        if not (0 <= self.lead_in < math.inf and 0 <= self.tail < math.inf):
            raise ValueError(
                f"Pauses: lead_in and tail must be finite and at least 0, found {self.lead_in} and {self.tail}"
            )
        if not self.lead_in + self.tail <= self.max_pause:
            raise ValueError(
                f"Pauses: max_pause must be at least lead_in + tail = {self.lead_in + self.tail:g}, "
                f"or neighbouring words could overlap, found {self.max_pause}"
            )


DEFAULT_BORDERS = Pauses()


def merge_words(
    spans: Iterable[_Span] | TokenSpans | tuple[Tensor, Tensor, Tensor],
    words: Sequence[str],
    *,
    seconds_per_frame: float,
    separator: int | None = None,
    tokens_per_word: Sequence[int] | None = None,
    tokens: Tensor | Sequence[int] | None = None,
    borders: Blanks | Pauses = DEFAULT_BORDERS,
    frame_offset: float = 0.0,
    recording_end: float | None = None,
    stars: Iterable[_Span] | TokenSpans | tuple[()] | None = None,
) -> list[WordSpan]:
    r"""Merges the spans of a target's tokens into the spans of its words.

    At least one of ``separator`` and ``tokens_per_word`` must say where a word ends. A character model that writes
    ``the|cat`` has a separator, and so has a phoneme model with a word-boundary token. Without such a token, pass the
    number of tokens of each word. If both are given, separators are left out and the counts must fit the rest.

    :func:`word_borders` finds the same times for a batch, as tensors.

    Args:
        spans: one span per target token, in target order, with ``token``, ``start`` and ``end`` (frames, end
            exclusive) and ``score`` (mean natural-log probability over the span), as ``merge_tokens`` returns them.
            Or one item of :class:`TokenSpans`: tensors of shape ``(L,)``, whose padding is skipped.
        words: the words, in the same order.
        seconds_per_frame: duration of one frame, in seconds.
        separator: the token between words. It belongs to no word; at the ends, or repeated, it is skipped. Its
            frames are part of the pause between two words.
        tokens_per_word: how many tokens spell each word, without separators; every count at least 1.
        tokens: ``(L,)`` the target of the item; needed where ``spans`` are tensors, which hold no tokens, and there is
            a ``separator``.
        borders: which word gets the frames between two words. ``"split"``, ``"before"``, ``"after"`` and ``"drop"``
            mean the same as in :func:`token_durations`; with ``"drop"`` a word begins with its first token and ends
            with its last one. :class:`Pauses` tells short pauses from long ones. The frames before the first word and
            after the last one belong to no word, except for ``lead_in`` and ``tail`` of ``Pauses``. Default:
            ``Pauses()``.
        frame_offset: frame t covers the time from ``(t + frame_offset) * seconds_per_frame`` on, for one frame.
            Default: 0, where frame 0 begins with the recording. Pass -0.5 if frame t is centred on
            ``t * seconds_per_frame``, as in spectrograms that pad the recording by half a window on both sides
            (``center=True``).
        recording_end: seconds; words end there at the latest. They never begin before 0. Default: no limit.
        stars: where the path took the star of a gap, from :func:`merge_stars`; or one item of :func:`star_spans`:
            tensors of shape ``(L + 1,)``. Between two words the frames from the first star to the last one belong to
            neither. The blanks on both sides go to the word there; with ``Pauses`` they are a long pause, and lead-in
            and tail end at the star. A star within a word does not cut it. Default: no stars.

    Returns:
        One :class:`WordSpan` per word, in order; no word begins before the previous one ends. The score of a word is
        the mean over the frames of its tokens: each span is weighted by its length.

    Raises:
        ValueError: neither ``separator`` nor ``tokens_per_word`` is given; the numbers of words, counts and spans do
            not agree; a count is below 1; a span is empty, as for an infeasible target; ``tokens`` is missing or not
            needed; ``borders`` is not one of the above; ``stars`` are not those of one item; ``seconds_per_frame`` is
            not positive and finite, or ``frame_offset`` is not finite; a word begins after ``recording_end``.

    Warns:
        AlignmentWarning: a score is above 0, so it is not the logarithm of a probability; a frame is longer than a
            second. Each is shown once a process.

    Example::

        >>> spans = [TokenSpan(3, 10, 12, -0.5), TokenSpan(4, 15, 16, -2.0), TokenSpan(0, 17, 18, 0.0),
        ...          TokenSpan(5, 21, 25, -0.1)]
        >>> for word in merge_words(spans, ["hi", "you"], separator=0, seconds_per_frame=0.02):
        ...     print(f"{word.word} {word.start:.2f} {word.end:.2f} {word.score:.2f}")
        hi 0.16 0.37 -1.00
        you 0.37 0.65 -0.10
        >>> merge_words(spans, ["hi", "you"], separator=0, seconds_per_frame=0.02, borders="drop")
        [WordSpan(word='hi', start=0.2, end=0.32, score=-1.0), WordSpan(word='you', start=0.42, end=0.5, score=-0.1)]

    From tensors, for item b of a batch::

        >>> targets = torch.tensor([[3, 4, 0, 5, -1]])
        >>> spans = TokenSpans(torch.tensor([[10, 15, 17, 21, -1]]), torch.tensor([[12, 16, 18, 25, -1]]),
        ...                    torch.tensor([[-0.5, -2.0, 0.0, -0.125, 0.0]]))
        >>> row = TokenSpans(spans.starts[0], spans.ends[0], spans.scores[0])
        >>> merge_words(row, ["hi", "you"], tokens=targets[0], separator=0, seconds_per_frame=0.02, borders="drop")
        [WordSpan(word='hi', start=0.2, end=0.32, score=-1.0), WordSpan(word='you', start=0.42, end=0.5, score=-0.125)]
    """
    if separator is None and tokens_per_word is None:
        raise ValueError("merge_words: separator or tokens_per_word must be given, to say where a word ends")
    _check_times("merge_words", seconds_per_frame, borders, frame_offset)
    listed = _list_spans(spans, tokens, separator)
    for position, span in enumerate(listed):
        if span.end <= span.start:
            raise ValueError(
                f"merge_words: span {position} (token {span.token}) must not be empty, expected start < end, "
                f"found start {span.start}, end {span.end}"
            )
        if span.score > ROUNDING:
            warn_once(
                "merge_words: score",
                f"merge_words: scores must be log-probabilities, expected at most 0, found {span.score:g} for span "
                f"{position} (token {span.token}); merge_tokens(path, scores) gives them, with scores.exp() it does "
                "not, and confidences will be above 1. If this is meant (priors subtracted), turn "
                "AlignmentWarning off",
            )

    if tokens_per_word is None:
        groups = [
            list(group) for is_separator, group in groupby(listed, lambda s: s.token == separator) if not is_separator
        ]
    else:
        groups = list(_split([span for span in listed if span.token != separator], tokens_per_word))
    if len(groups) != len(words):
        raise ValueError(
            f"merge_words: words must match the spans in number, expected {len(groups)}, found {len(words)}"
        )

    if not groups:
        return []

    rule = _Rule(seconds_per_frame, borders, frame_offset)
    limit = math.inf if recording_end is None else float(recording_end)
    begin = rule.seconds(groups[-1][0].start)
    if not begin <= limit:
        raise ValueError(
            f"merge_words: recording_end must not lie before the last word, expected at least {begin:g} s, "
            f"found {recording_end}"
        )
    in_gaps = _StarsOfItem(stars)
    first, last = groups[0][0].start, groups[-1][-1].end
    star = in_gaps.between(0, first)
    starts, ends = [rule.begin_after_star(star[1], first, max) if star else rule.seconds(first) - rule.lead_in], []
    for before, after in pairwise(groups):
        left, right = before[-1].end, after[0].start
        star = in_gaps.between(left, right)
        if star is None:
            end, start = rule.meet(left, right, lambda condition, yes, no: yes if condition else no)
        else:
            end, start = rule.meet_star(left, *star, right, min, max)
        ends.append(end)
        starts.append(start)
    star = in_gaps.between(last, math.inf)
    ends.append(rule.stop_before_star(last, star[0], min) if star else rule.seconds(last) + rule.tail)
    return [
        WordSpan(word, min(max(start, 0.0), limit), min(max(end, 0.0), limit), _mean_score(group))
        for word, start, end, group in zip(words, starts, ends, groups, strict=True)
    ]


def _list_spans(
    spans: Iterable[_Span] | TokenSpans | tuple[Tensor, Tensor, Tensor],
    tokens: Tensor | Sequence[int] | None,
    separator: int | None,
) -> list[_Span]:
    """Returns the spans as objects; those of tensors without their padding."""
    if not (isinstance(spans, tuple) and len(spans) == 3 and all(isinstance(column, Tensor) for column in spans)):
        if tokens is not None:
            raise ValueError("merge_words: tokens must not be given where every span has its token, found both")
        listed = list(cast(Iterable[_Span], spans))
        if listed and not hasattr(listed[0], "score"):
            raise ValueError(
                "merge_words: spans[0] must have token, start, end and score, as TokenSpan has, "
                f"found {type(listed[0]).__name__}"
            )
        return listed

    starts, ends, scores = columns = cast(TokenSpans, spans)
    if starts.dim() != 1 or not starts.shape == ends.shape == scores.shape:
        raise ValueError(
            "merge_words: spans must be those of one item, TokenSpans(starts[b], ends[b], scores[b]) of shape (L,) "
            f"(word_borders takes a batch), found {', '.join(str(tuple(column.shape)) for column in columns)}"
        )
    if tokens is None:
        if separator is not None:
            raise ValueError(
                "merge_words: tokens must be given, the target of the item, to find the separator among the spans of "
                "TokenSpans, found None"
            )
        classes = [-1] * len(starts)
    else:
        classes = [int(token) for token in (tokens.tolist() if isinstance(tokens, Tensor) else tokens)]
    if len(classes) != len(starts):
        raise ValueError(
            f"merge_words: tokens must match the spans in number, expected {len(starts)} (padding included), "
            f"found {len(classes)}"
        )
    rows = list(zip(classes, starts.tolist(), ends.tolist(), scores.tolist(), strict=True))
    if any(start < 0 and score == -math.inf for _, start, _, score in rows):
        raise ValueError("merge_words: the spans are those of a marked item, expected an item with a path")
    return [TokenSpan(*row) for row in rows if row[1] >= 0]


class _StarsOfItem:
    """Where the gaps of an item hold stars."""

    def __init__(self, stars: Iterable[_Span] | TokenSpans | tuple[()] | None) -> None:
        spans = [(span.start, span.end) for span in _list_stars(stars)]
        self.starts, self.ends = [start for start, _ in sorted(spans)], [end for _, end in sorted(spans)]

    def between(self, left: float, right: float) -> tuple[int, int] | None:
        """Returns the first star frame and the frame after the last one, of the stars between two frames."""
        begin, end = bisect_left(self.starts, left), bisect_left(self.starts, right)
        return (self.starts[begin], self.ends[end - 1]) if begin < end else None


def _list_stars(stars: Any) -> Iterator[_Span]:
    if stars is None:
        return
    if isinstance(stars, tuple) and len(stars) == 3 and all(isinstance(column, Tensor) for column in stars):
        starts, ends, scores = stars
        if starts.dim() != 1 or not starts.shape == ends.shape == scores.shape:
            raise ValueError(
                "merge_words: stars must be those of one item, TokenSpans(starts[b], ends[b], scores[b]) of shape "
                f"(L + 1,), found {', '.join(str(tuple(column.shape)) for column in stars)}"
            )
        for start, end, score in zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True):
            if start >= 0:
                yield TokenSpan(GAP_STAR, start, end, score)
        return
    for position, span in enumerate(stars):
        if getattr(span, "token", None) != GAP_STAR or not span.start < span.end:
            raise ValueError(
                f"merge_words: stars[{position}] must be a span of merge_stars, with token {GAP_STAR} and "
                f"start < end, found {span}"
            )
        yield span


def _split(spans: list[_Span], counts: Sequence[int]) -> Iterator[list[_Span]]:
    for position, count in enumerate(counts):
        if count < 1:
            raise ValueError(
                f"merge_words: tokens_per_word[{position}] must be a number of tokens, expected at least 1, "
                f"found {count}"
            )
    if sum(counts) != len(spans):
        raise ValueError(
            f"merge_words: tokens_per_word must sum to the spans of words, expected {len(spans)}, found {sum(counts)}"
        )
    begin = 0
    for count in counts:
        yield spans[begin : begin + count]
        begin += count


def _mean_score(spans: list[_Span]) -> float:
    frames = sum(span.end - span.start for span in spans)
    return math.fsum(span.score * (span.end - span.start) for span in spans) / frames


class WordBorders(NamedTuple):
    """When each word of a batch was spoken.

    Attributes:
        starts (Tensor): ``(B, W)`` float64, seconds; -1 for words without tokens (padding) and for marked items.
        ends (Tensor): ``(B, W)`` float64, seconds; -1 for words without tokens and for marked items.
        scores (Tensor): ``(B, W)``, dtype of the scores of the spans; mean log-probability over the frames of the
            word's tokens (nats); 0 for words without tokens, -inf for marked items.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor


name_for_export(WordBorders, "torch_ctc_align.WordBorders")


def word_borders(
    spans: TokenSpans,
    word_indices: Tensor,
    num_words: int,
    *,
    seconds_per_frame: float,
    borders: Blanks | Pauses = DEFAULT_BORDERS,
    frame_offset: float = 0.0,
    recording_ends: Tensor | float | None = None,
    stars: TokenSpans | tuple[()] | None = None,
) -> WordBorders:
    """Finds start, end and mean score of every word of a batch: :func:`merge_words` without leaving the device.

    There is no loop over tokens, and nothing waits for the device: the function compiles into one graph with the code
    around it. Times are float64, and equal to those of :func:`merge_words`.

    Args:
        spans (TokenSpans): from :func:`token_spans`; ``(B, L)`` each.
        word_indices (Tensor): ``(B, L)`` int32 or int64, the index of the word of every target token, counted from 0 in
            each item and never decreasing from one token to the next; -1 for separators. Tokens with an index outside
            of 0 to ``num_words - 1`` are left out, and padding may hold anything.
        num_words (int): W, the largest number of words of an item. An item of fewer words is padded. A word without
            tokens in the middle of an item is skipped: its neighbours become neighbours of each other.
        seconds_per_frame (float): duration of one frame, in seconds.
        borders (str or Pauses): which word gets the frames between two words, as in :func:`merge_words`. Default:
            ``Pauses()``.
        frame_offset (float): frame t covers the time from ``(t + frame_offset) * seconds_per_frame`` on. Default: 0;
            -0.5 if frame t is centred on ``t * seconds_per_frame``.
        recording_ends (Tensor or float, optional): ``(B,)`` floating point, or one number, seconds; words neither begin
            nor end after it. The values are not checked. Default: no limit.
        stars (TokenSpans, optional): from :func:`star_spans`; ``(B, L + 1)`` each. What :func:`merge_words` says of
            them holds here. Default: no stars.

    Returns:
        WordBorders: starts, ends and scores, ``(B, W)`` each. Scores are differentiable with respect to those of
        ``spans``.

    Raises:
        ValueError: a tensor does not have the shape or dtype above; ``num_words`` is negative; ``borders`` is not one
            of those of :func:`merge_words`; ``seconds_per_frame`` is not positive and finite, or ``frame_offset`` is
            not finite.

    Warns:
        AlignmentWarning: a frame is longer than a second. Shown once, and not in a compiled graph.

    Example::

        >>> spans = TokenSpans(torch.tensor([[10, 15, 17, 21, -1]]), torch.tensor([[12, 16, 18, 25, -1]]),
        ...                    torch.tensor([[-0.5, -2.0, 0.0, -0.125, 0.0]]))
        >>> word_indices = torch.tensor([[0, 0, -1, 1, -1]])  # two tokens, a separator, a token, padding
        >>> starts, ends, scores = word_borders(spans, word_indices, 2, seconds_per_frame=0.02)
        >>> starts, ends
        (tensor([[0.1600, 0.3700]], dtype=torch.float64), tensor([[0.3700, 0.6500]], dtype=torch.float64))
        >>> scores
        tensor([[-1.0000, -0.1250]])
    """
    _check_times("word_borders", seconds_per_frame, borders, frame_offset)
    starts, ends, scores = spans
    if starts.dim() != 2 or not starts.shape == ends.shape == scores.shape == word_indices.shape:
        found = ", ".join(str(tuple(tensor.shape)) for tensor in (*spans, word_indices))
        raise ValueError(
            f"word_borders: spans and word_indices must have the same shape (B, L), found starts, ends, scores and "
            f"word_indices of {found}"
        )
    if word_indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"word_borders: word_indices must be int32 or int64, found {dtype_name(word_indices)}")
    if num_words < 0:
        raise ValueError(f"word_borders: num_words must be at least 0, found {num_words}")
    batch = starts.shape[0]
    limits = recording_ends
    if isinstance(limits, Tensor) and limits.dim() != 0:
        if limits.shape != (batch,):
            raise ValueError(
                f"word_borders: recording_ends must be a number or have shape (B,) = ({batch},) as in spans, "
                f"found {tuple(limits.shape)}"
            )
        limits = limits[:, None]

    # Separators, padding and marked items go into one more column.
    in_word = (starts >= 0) & (word_indices >= 0) & (word_indices < num_words)
    word = torch.where(in_word, word_indices, num_words).long()
    empty = torch.full((batch, num_words + 1), -1, dtype=torch.int64, device=starts.device)
    first = empty.scatter_reduce(1, word, starts.long(), "amin", include_self=False)[:, :num_words]
    last = empty.scatter_reduce(1, word, ends.long(), "amax", include_self=False)[:, :num_words]
    # A sum over a long word would lose digits in a half type.
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    lengths = torch.where(in_word, ends - starts, 0).to(wide.dtype)
    weighted = torch.where(in_word, wide, 0) * lengths
    zeros = wide.new_zeros((batch, num_words + 1))
    frames = zeros.scatter_add(1, word, lengths)[:, :num_words]
    means = zeros.scatter_add(1, word, weighted)[:, :num_words] / frames.clamp(min=1)
    marked = ((starts < 0) & (scores == -torch.inf)).any(1, keepdim=True)
    means = torch.where(marked, -torch.inf, means).to(scores.dtype)

    # The neighbours of a word are the nearest words with tokens on both sides.
    spoken = first >= 0
    pad = torch.nn.functional.pad
    earlier = torch.where(spoken, last, -1).cummax(1).values
    later = torch.where(spoken, first, NO_WORD).flip(1).cummin(1).values.flip(1)
    previous = pad(earlier, (1, 0), value=-1)[:, :-1]
    following = pad(later, (0, 1), value=NO_WORD)[:, 1:]

    rule = _Rule(seconds_per_frame, borders, frame_offset)
    _, begins = rule.meet(previous.double(), first.double(), torch.where)
    begins = torch.where(previous >= 0, begins, rule.seconds(first.double()) - rule.lead_in)
    stops, _ = rule.meet(last.double(), following.double(), torch.where)
    stops = torch.where(following < NO_WORD, stops, rule.seconds(last.double()) + rule.tail)

    if stars:
        # The nearest stars: of the gap before a word's first token or an earlier one, after its last token or later.
        check_stars("word_borders", stars, starts)
        token = torch.arange(starts.shape[1], device=starts.device).expand(starts.shape)
        first_token = empty.scatter_reduce(1, word, token, "amin", include_self=False)[:, :num_words]
        last_token = empty.scatter_reduce(1, word, token, "amax", include_self=False)[:, :num_words]
        before = stars[1].cummax(1).values.gather(1, first_token.clamp(min=0))
        after = torch.where(stars[0] >= 0, stars[0], NO_WORD).flip(1).cummin(1).values.flip(1)
        after = after.gather(1, last_token + 1)
        left, right, star = last.double(), first.double(), (after.double(), before.double())
        stop, begin = rule.meet_star(left, *star, right, torch.minimum, torch.maximum)
        outer_stop = rule.stop_before_star(left, star[0], torch.minimum)
        outer_begin = rule.begin_after_star(star[1], right, torch.maximum)
        begins = torch.where(before > previous, torch.where(previous >= 0, begin, outer_begin), begins)
        stops = torch.where(after < following, torch.where(following < NO_WORD, stop, outer_stop), stops)

    def clip(times: Tensor) -> Tensor:
        times = times.clamp(min=0)
        if isinstance(limits, Tensor):
            times = torch.minimum(times, limits.to(times))
        elif limits is not None:
            times = times.clamp(max=limits)
        return torch.where(spoken, times, -1)

    return WordBorders(clip(begins), clip(stops), means)


def _check_times(name: str, seconds_per_frame: float, borders: Blanks | Pauses, frame_offset: float) -> None:
    if not 0 < seconds_per_frame < math.inf:
        raise ValueError(f"{name}: seconds_per_frame must be positive and finite, found {seconds_per_frame}")
    if not -math.inf < frame_offset < math.inf:
        raise ValueError(f"{name}: frame_offset must be finite, found {frame_offset}")
    if not isinstance(borders, Pauses):
        check_blanks(name, "borders", borders, "Pauses(...)")
    if seconds_per_frame > LONGEST_FRAME and not torch.compiler.is_compiling():
        warn_once(
            "seconds_per_frame",
            f"{name}: seconds_per_frame must be in seconds, expected at most {LONGEST_FRAME:g}, found "
            f"{seconds_per_frame:g}: milliseconds, or the samples of a hop? If this is meant, turn "
            "AlignmentWarning off",
        )


class _Rule:
    """The arithmetic of word borders, for one border (floats) or a batch of them (float64 tensors)."""

    def __init__(self, seconds_per_frame: float, borders: Blanks | Pauses, frame_offset: float) -> None:
        self.seconds_per_frame = seconds_per_frame
        self.borders = borders
        self.frame_offset = frame_offset
        self.lead_in, self.tail = (borders.lead_in, borders.tail) if isinstance(borders, Pauses) else (0.0, 0.0)

    def seconds(self, frames: Time) -> Time:
        return (frames + self.frame_offset) * self.seconds_per_frame

    def meet(self, left: Time, right: Time, where: Callable[[Any, Time, Time], Time]) -> tuple[Time, Time]:
        """Returns the end of a word and the start of the next one, in seconds.

        Args:
            left: the frame after the last token of the word.
            right: the first frame of the next word.
            where: as torch.where.
        """
        if isinstance(self.borders, Pauses):
            pause = (right - left) * self.seconds_per_frame
            short = pause <= self.borders.max_pause + 1e-9  # the product is rounded
            border = self.seconds(left) + self.borders.share * pause
            return (
                where(short, border, self.seconds(left) + self.tail),
                where(short, border, self.seconds(right) - self.lead_in),
            )
        if self.borders == "drop":
            return self.seconds(left), self.seconds(right)
        border = self.seconds(borders_between(left, right, self.borders))
        return border, border

    def meet_star(
        self,
        left: Time,
        star_start: Time,
        star_end: Time,
        right: Time,
        smaller: Callable[[Time, Time], Time],
        larger: Callable[[Time, Time], Time],
    ) -> tuple[Time, Time]:
        """As :meth:`meet`, where the frames from ``star_start`` to ``star_end`` are the star's."""
        if isinstance(self.borders, Pauses) or self.borders == "drop":
            return self.stop_before_star(left, star_start, smaller), self.begin_after_star(star_end, right, larger)
        return self.seconds(star_start), self.seconds(star_end)

    def stop_before_star(self, left: Time, star_start: Time, smaller: Callable[[Time, Time], Time]) -> Time:
        """Returns the end of a word whose pause ends with a star: it counts as long."""
        return smaller(self.seconds(left) + self.tail, self.seconds(star_start))

    def begin_after_star(self, star_end: Time, right: Time, larger: Callable[[Time, Time], Time]) -> Time:
        """Returns the start of a word whose pause begins with a star: it counts as long."""
        return larger(self.seconds(right) - self.lead_in, self.seconds(star_end))
