"""The stages between a recording with its text and their alignment: spell, open, listen, choose words, find, describe.

``Aligner`` takes one item through them. ``corpus.Align`` takes many, opens them while a model listens to others, and
finds the paths of many in one call.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align.spans import TokenSpan, merge_tokens
from torch_ctc_align.speech.alignment import Evidence, Segment, SpeechAlignment, Status, Stretch, Token, Word
from torch_ctc_align.speech.audio import Audio, Source, gather, open_audio
from torch_ctc_align.speech.errors import SpeechError, blame
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.path import (
    BestPath,
    Star,
    ask_path,
    check_length,
    check_path,
    find_all,
    find_owners,
    find_spoken,
    find_unexplained,
)
from torch_ctc_align.speech.text import Split, Transcript, read_transcript
from torch_ctc_align.speech.text.spelling import Spelling
from torch_ctc_align.stars import star_scores
from torch_ctc_align.windows import run_windows
from torch_ctc_align.words import merge_words

__all__ = [
    "Item",
    "Options",
    "Placed",
    "choose_words",
    "describe",
    "find_paths",
    "listen",
    "open_item",
    "place_words",
    "read_ahead",
    "score_of",
    "seconds_of",
    "spell",
]

SILENCE = 1e-4  # a recording whose loudest sample is below this, -80 dB, holds no speech

# Posteriors compare the place of a word with others at most so far away. The sums of a recording of up to 30 s are
# exact; those of an hour would take longer than the model.
POSTERIOR_CORE, POSTERIOR_CONTEXT = 30.0, 10.0  # seconds


@dataclass(frozen=True)
class Options:
    """What a caller asks for; ``Aligner.__call__`` has what each means."""

    star: Star | None = "ends"
    unspoken: bool = False
    split: Split = "lines"
    language: str | None = None

    def __post_init__(self) -> None:
        if self.star not in (None, "ends", "words"):
            raise SpeechError(f"star must be one of ends, words, None, found {self.star!r}")


@dataclass
class Item:
    """A recording and its text, on their way. Each stage fills in what follows from it.

    Attributes:
        name: for messages.
        transcript: the text, spelt.
        recording: opened.
        samples: ``(N,)`` its sound, where it was read ahead.
        log_probs: ``(T, C)`` the emissions.
        stars: ``(T,)`` the star scores.
        kept: the words that are in the recording.
        found: their path.
    """

    name: str
    transcript: Transcript
    recording: Audio
    samples: Tensor | None = None
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0, 0), repr=False)
    stars: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    kept: Sequence[int] = ()
    found: BestPath | None = field(default=None, repr=False)

    @property
    def notes(self) -> list[str]:
        """What the reader of the result should know. Those about every sample come with :func:`listen`."""
        return [*self.recording.notes, *self.transcript.notes]


def spell(text: str, model: AcousticModel, options: Options, spelling: Spelling | None = None) -> Transcript:
    """Finds the words of a text and their labels. ``spelling``: see :func:`read_transcript`."""
    with blame("no_text"):
        return read_transcript(text, model, split=options.split, language=options.language, spelling=spelling)


def open_item(
    audio: Source, transcript: Transcript, model: AcousticModel, offset: float = 0.0, duration: float | None = None
) -> Item:
    """Opens a recording, and refuses one that is too short for its text: before an hour of it is heard."""
    with blame("unreadable"):
        recording = open_audio(audio, model.sample_rate, offset=offset, duration=duration)
        name = recording.path.name if recording.path else "the recording"
        frames = _count_frames(recording, model, name)
    with blame("too_long_text"):
        check_length(transcript, model, frames, name)
    return Item(name, transcript, recording)


def read_ahead(item: Item) -> None:
    """Reads the sound now, so that the model need not wait for it."""
    with blame("unreadable"):
        item.samples = gather(item.recording)


def _count_frames(recording: Audio, model: AcousticModel, name: str) -> int:
    shortest = max(model.receptive_field, model.hop)
    if recording.num_samples < shortest:
        raise SpeechError(
            f"{name} is too short: {recording.seconds:.3f} s, and a frame of the model takes "
            f"{shortest / model.sample_rate:.3f} s"
        )
    return (recording.num_samples - model.receptive_field) // model.hop + 1


def listen(
    item: Item,
    model: AcousticModel,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Finds the emissions of a recording, ``batch_size`` windows at once."""
    recording, name = item.recording, item.name
    window, context = _window_sizes(model, recording.num_samples)
    sound = _blocks(item) if item.samples is None else item.samples
    log_probs = run_windows(
        model.run,
        sound,
        num_samples=recording.num_samples,
        hop=model.hop,
        receptive_field=model.receptive_field,
        window_frames=window,
        context_frames=context,
        batch_size=batch_size,
        dtype=dtype,
        progress=None if progress is None else lambda done, total: progress("listening", done, total),
    )
    if item.samples is None:
        for _ in sound:  # what is noted of the sound comes after the last block, where windows stop reading
            pass
    if recording.peak < SILENCE:
        with blame("unreadable"):
            raise SpeechError(f"{name} is silent: no sample is above {SILENCE:g} of full scale; check the recording")
    if log_probs.shape[1] < len(model.labels):
        raise SpeechError(
            f"{model.name} has {len(model.labels)} labels and returns {log_probs.shape[1]} classes; give one label "
            "for each class"
        )
    bad = log_probs[:, model.blank].isnan().nonzero()
    if len(bad):
        raise SpeechError(
            f"the model's log-probabilities are NaN at frame {int(bad[0])} of {name}; use a wider dtype, as "
            "float32, or check the model"
        )
    item.log_probs = log_probs
    item.stars = star_scores(log_probs[None])[0]
    item.samples = None


def _blocks(item: Item) -> Iterator[Tensor]:
    with blame("unreadable"):
        yield from item.recording.blocks()


def choose_words(item: Item, model: AcousticModel, options: Options) -> None:
    """Leaves out the segments that are not in the recording, if that was asked for."""
    transcript = item.transcript
    spoken = [True] * len(transcript.segments)
    if options.unspoken:
        with blame("unspoken"):
            spoken = find_spoken(item.log_probs, transcript, model, item.stars, item.name)
    item.kept = [word for word in range(len(transcript.words)) if spoken[transcript.words[word].segment]]
    item.found = ask_path(item.log_probs, transcript, item.kept, model, item.stars, options.star)


def find_paths(items: Sequence[Item], model: AcousticModel) -> None:
    """Finds the paths of items, together. That of an item does not depend on the others."""
    find_all([item.found for item in items if item.found is not None], model.blank)


@dataclass(frozen=True)
class Placed:
    """The words of an item in their places.

    Attributes:
        words: every word of the text.
        spans: frames of each label.
        owners: the word of each label; -1 for separators.
        pieces: frames that the text does not explain.
    """

    words: list[Word]
    spans: list[TokenSpan]
    owners: list[int]
    pieces: list[TokenSpan]


def seconds_of(item: Item, model: AcousticModel, frame: float) -> float:
    """The time of a frame, from the beginning of the recording."""
    time = (frame + model.frame_offset) * model.seconds_per_frame
    return item.recording.offset + min(max(time, 0.0), item.recording.seconds)


def place_words(item: Item, model: AcousticModel, borders: Any, posteriors: bool = False) -> Placed:
    """Turns the path of an item into words with times.

    Args:
        item: all stages up to :func:`find_paths` are behind it.
        model: the model.
        borders: which word gets the frames between two words; see :func:`merge_words`.
        posteriors: whether words get a posterior.
    """
    found, transcript, kept, recording = item.found, item.transcript, item.kept, item.recording
    assert found is not None
    check_path(found, item.name)
    limit = recording.seconds
    pieces = find_unexplained(found, model)
    spans = merge_tokens(found.path, found.scores, model.blank)
    merged = merge_words(
        spans,
        [transcript.words[k].text for k in kept],
        seconds_per_frame=model.seconds_per_frame,
        separator=model.separator,
        tokens_per_word=found.tokens_per_word,
        borders=borders,
        frame_offset=model.frame_offset,
        stars=pieces,
    )
    # Not recording_end=limit: the last frame may begin where the recording ends, and by rounding after it.
    times = {
        k: (recording.offset + min(span.start, limit), recording.offset + min(span.end, limit))
        for k, span in zip(kept, merged, strict=True)
    }
    owners = find_owners(found, kept, model.separator)
    values = None
    if posteriors:
        core, context = (round(time / model.seconds_per_frame) for time in (POSTERIOR_CORE, POSTERIOR_CONTEXT))
        values = found.posteriors(spans, model.blank, max(core, 1), context)
    spoken_words = dict(zip(kept, merged, strict=True))
    of_words = _mean_posteriors(spans, owners, values)
    words = []
    for k, word in enumerate(transcript.words):
        span = spoken_words.get(k)
        status: Status = "unspoken" if span is None else "inferred" if word.inferred else "spoken"
        sure = status == "spoken"
        start, end = times.get(k, (None, None))
        words.append(
            Word(
                word.text,
                word.begin,
                word.stop,
                word.segment,
                start,
                end,
                span.score if span is not None and sure else None,
                of_words.get(k) if sure else None,
                status,
            )
        )
    return Placed(words, spans, owners, pieces)


def describe(item: Item, placed: Placed, model: AcousticModel, language: str | None) -> SpeechAlignment:
    """All that is known of an item."""
    found, transcript, recording = item.found, item.transcript, item.recording
    assert found is not None
    classes = len(found.log_probs[0])
    labels = [*model.labels, *[""] * (classes - len(model.labels)), "*"]
    seconds = functools.partial(seconds_of, item, model)
    tokens = [
        Token(labels[span.token], seconds(span.start), seconds(span.end), span.score, owner)
        for span, owner in zip(placed.spans, placed.owners, strict=True)
    ]
    return SpeechAlignment(
        text=transcript.text,
        words=placed.words,
        segments=[_segment(segment, placed.words) for segment in transcript.segments],
        tokens=tokens,
        unexplained=[Stretch(seconds(piece.start), seconds(piece.end)) for piece in placed.pieces],
        seconds=recording.offset + recording.seconds,
        seconds_per_frame=model.seconds_per_frame,
        score=score_of(item),
        model=model.name,
        language=language or model.language,
        audio=None if recording.path is None else Path(recording.path),
        evidence=Evidence(
            log_probs=found.log_probs,
            path=found.path,
            scores=found.scores,
            targets=found.targets,
            tokens_per_word=found.tokens_per_word,
            star_scores=item.stars if found.wild is not None else None,
            wild_gaps=found.wild,
            model=model,
            start=recording.offset,
        ),
    )


def score_of(item: Item) -> float:
    """Natural-log probability of the path, nats."""
    assert item.found is not None
    return float(item.found.scores.double().sum())


def _window_sizes(model: AcousticModel, num_samples: int) -> tuple[int, int]:
    """Returns the frames of a window and its context. A window is longer than its frames need by as much as the
    recording is, and still not longer than the model takes.
    """
    rest = (num_samples - model.receptive_field) % model.hop
    longest = min(model.window * model.sample_rate, 2.0**62)  # math.inf is for one pass
    frames = int(longest - max(model.receptive_field + rest, model.hop)) // model.hop + 1
    context = round(model.context * model.sample_rate / model.hop)
    if frames <= 2 * context:
        raise SpeechError(
            f"a window of {model.name} must be longer than a frame and its context of {model.context:g} s on both "
            f"sides, found {model.window:g} s; change window or context of the model"
        )
    return frames, context


def _mean_posteriors(
    spans: Sequence[TokenSpan], owners: Sequence[int], posteriors: Sequence[float] | None
) -> dict[int, float]:
    """Returns the mean posterior of every word over the frames of its labels."""
    if posteriors is None:
        return {}
    sums: dict[int, float] = {}
    frames: dict[int, int] = {}
    for span, owner, posterior in zip(spans, owners, posteriors, strict=True):
        sums[owner] = sums.get(owner, 0.0) + len(span) * posterior
        frames[owner] = frames.get(owner, 0) + len(span)
    return {owner: sums[owner] / frames[owner] for owner in sums}


def _segment(segment: Any, words: Sequence[Word]) -> Segment:
    timed = [words[k] for k in segment.words if words[k].start is not None]
    spoken = [word for word in timed if word.status == "spoken"]

    def mean(values: Iterator[float | None]) -> float | None:
        """Weighted by duration."""
        pairs = [(_duration(word), value) for word, value in zip(spoken, values, strict=True) if value is not None]
        total = math.fsum(weight for weight, _ in pairs)
        if not pairs:
            return None
        if total == 0:
            return math.fsum(value for _, value in pairs) / len(pairs)
        return math.fsum(weight * value for weight, value in pairs) / total

    confidences = [word.confidence for word in spoken if word.confidence is not None]
    return Segment(
        segment.text,
        segment.begin,
        segment.stop,
        segment.words,
        timed[0].start if timed else None,
        timed[-1].end if timed else None,
        mean(word.confidence for word in spoken),
        min(confidences, default=None),
        mean(word.posterior for word in spoken),
    )


def _duration(word: Word) -> float:
    return (word.end or 0.0) - (word.start or 0.0)
