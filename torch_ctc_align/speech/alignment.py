"""What an alignment of a recording with its text consists of: words, segments, tokens, and what does not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from torch_ctc_align.speech.models import AcousticModel

__all__ = ["Evidence", "Segment", "SpeechAlignment", "Stretch", "Token", "Word", "round_time"]

Status = Literal["spoken", "inferred", "unspoken"]


@dataclass(frozen=True)
class Token:
    """A label of the model and when it was spoken.

    Attributes:
        label: the model's name for it; ``"*"`` for a star.
        start, end: seconds from the beginning of the recording.
        score: mean natural-log probability over its frames (nats).
        word: index of its word in ``SpeechAlignment.words``; -1 for a separator between words.
    """

    label: str
    start: float
    end: float
    score: float
    word: int

    @property
    def confidence(self) -> float:
        """``exp(score)``, in [0, 1]."""
        return math.exp(self.score)


@dataclass(frozen=True)
class Word:
    """A word of the text and when it was spoken.

    Attributes:
        text: as the text has it, without the punctuation around it: ``alignment.text[begin:stop]``.
        begin, stop: its characters in ``SpeechAlignment.text``.
        segment: index of its segment.
        start, end: seconds from the beginning of the recording; None for an unspoken word.
        score: mean natural-log probability over the frames of its tokens (nats); None unless it is spoken.
        posterior: how sure the model is of the word's place, in [0, 1]: the mean posterior of its tokens over their
            frames (:func:`torch_ctc_align.span_posteriors`), compared with other places within 10 s; None unless it
            is spoken, or where it was not asked for.
        status: ``"spoken"``; ``"inferred"`` if it cannot be spelt with the model's labels, in part or at all, so its
            time is what the words around it leave; ``"unspoken"`` if it is not in the recording.
    """

    text: str
    begin: int
    stop: int
    segment: int
    start: float | None
    end: float | None
    score: float | None
    posterior: float | None
    status: Status

    @property
    def confidence(self) -> float | None:
        """``exp(score)``: the geometric mean of the probabilities of its frames, in [0, 1]; None unless spoken."""
        return None if self.score is None else math.exp(self.score)


@dataclass(frozen=True)
class Segment:
    """A line of the text (or a sentence: ``split``) and when it was spoken.

    Attributes:
        text: as the text has it, ``alignment.text[begin:stop]``.
        begin, stop: its characters in ``SpeechAlignment.text``.
        words: the indices of its words; never empty.
        start, end: seconds, from its first word to its last one; None for an unspoken segment.
        confidence: mean confidence of its spoken words, weighted by their duration; None if it has none.
        weakest: the smallest confidence of its spoken words; None if it has none.
        posterior: as ``confidence``, of the words' posteriors.
    """

    text: str
    begin: int
    stop: int
    words: range
    start: float | None
    end: float | None
    confidence: float | None
    weakest: float | None
    posterior: float | None


@dataclass(frozen=True)
class Stretch:
    """A part of the recording that the text does not explain, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Evidence:
    """What the aligner was given and found, frame by frame; formats that draw or save emissions need it.

    Attributes:
        log_probs: ``(T, C)`` floating point, natural-log probabilities.
        path: ``(T,)`` int64, the class of every frame: a label, the blank, C for a star label, ``GAP_STAR``.
        scores: ``(T,)`` log-probabilities of the path's entries.
        targets: ``(L,)`` int64, the labels that were aligned; C is a star label.
        tokens_per_word: labels of each word that is not unspoken, without separators.
        star_scores: ``(T,)``; None where there were no stars.
        wild_gaps: ``(L + 1,)`` bool; None where there were no stars.
        model: labels, blank, separator, hop, sample rate, frame offset.
        start: seconds from the beginning of the recording to that of frame 0, but for the frame offset; above 0
            where only a part of a recording was aligned.
    """

    log_probs: Tensor
    path: Tensor
    scores: Tensor
    targets: Tensor
    tokens_per_word: Sequence[int]
    star_scores: Tensor | None
    wild_gaps: Tensor | None
    model: AcousticModel
    start: float = 0.0


@dataclass(frozen=True)
class SpeechAlignment:
    """A recording and its text, aligned.

    Attributes:
        text: the whole text, as it was given.
        words: every word of the text, in order; the times of those that are in the recording never decrease.
        segments: every line of the text (or sentence: ``split``) that has words.
        tokens: the labels of the model that were spoken.
        unexplained: parts of the recording that the text does not explain, in order.
        seconds: the end of what was aligned, in seconds from the beginning of the recording: its duration, unless only
            a part of it was aligned.
        seconds_per_frame: duration of a frame of the model.
        score: natural-log probability of the path (nats).
        model: the model's name.
        language: the language that numbers were spelt out in, as the caller named it; None if it is not known.
        audio: the recording's file; None if samples were given.
        evidence: what the formats ``png`` and ``npz`` need; None for an alignment that was read from a file. It keeps
            the emissions of the whole recording, and the model. ``dataclasses.replace(alignment, evidence=None)`` is
            without, and can be pickled whatever the model is.
    """

    text: str
    words: Sequence[Word]
    segments: Sequence[Segment]
    tokens: Sequence[Token]
    unexplained: Sequence[Stretch]
    seconds: float
    seconds_per_frame: float
    score: float
    model: str
    language: str | None = None
    audio: Path | None = None
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def confidence(self) -> float | None:
        """Mean confidence of the spoken words; None if there are none."""
        return _mean([word.confidence for word in self.words if word.confidence is not None])

    @property
    def posterior(self) -> float | None:
        """Mean posterior of the spoken words; None if there are none, or where it was not asked for."""
        return _mean([word.posterior for word in self.words if word.posterior is not None])

    @property
    def unspoken(self) -> list[Segment]:
        """The segments that are not in the recording."""
        return [segment for segment in self.segments if segment.start is None]

    def save(self, path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Path:
        """Writes a file.

        Args:
            path: where to; the file appears whole or not at all.
            format: one of ``torch_ctc_align.speech.formats.FORMATS``. Default: the suffix of ``path`` tells.
            options: of the format; ``embed=False`` for ``html``, ``seconds=20`` for ``png``.

        Returns:
            The path.

        Raises:
            SpeechError: the format is not known, lacks a library, or needs what this alignment does not have.
            OSError: the file cannot be written.
        """
        from torch_ctc_align.speech.formats import save

        return save(self, Path(path), format, **options)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def round_time(seconds: float | None) -> Any:
    """To the millisecond, as it is written to files; None stays None.

    Times that end with half a millisecond are common (wav2vec 2.0 begins at 2.5 ms). They all go up, whatever the last
    bit of the number is: a word's end and the next one's start must not part.
    """
    return None if seconds is None else round(seconds + 1e-9, 3)
