"""From a recording and its text to words with times: the whole way, for one recording at a time."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align.spans import TokenSpan, merge_tokens
from torch_ctc_align.speech.alignment import Evidence, Segment, SpeechAlignment, Status, Stretch, Token, Word
from torch_ctc_align.speech.audio import Audio, open_audio
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.path import (
    BestPath,
    Star,
    check_length,
    find_owners,
    find_path,
    find_spoken,
    find_unexplained,
)
from torch_ctc_align.speech.text import Split, Transcript, read_transcript
from torch_ctc_align.stars import star_scores
from torch_ctc_align.windows import run_windows
from torch_ctc_align.words import Pauses, merge_words

__all__ = ["Aligner"]

Source = str | os.PathLike[str] | tuple[Any, int]

SILENCE = 1e-4  # a recording whose loudest sample is below this, -80 dB, holds no speech

# Posteriors compare the place of a word with others at most so far away. The sums of a recording of up to 30 s are
# exact; those of an hour would take longer than the model.
POSTERIOR_CORE, POSTERIOR_CONTEXT = 30.0, 10.0  # seconds


class Aligner:
    """Aligns recordings with their texts.

    ``Aligner.english()`` has a small model of English that needs no download; ``Aligner.from_pretrained`` takes CTC
    models of transformers, ``Aligner.from_onnx`` those of ONNX. Any other CTC model is a callable and some facts about
    it, the arguments of ``Aligner`` itself (``docs/models.md`` has NeMo, torchaudio and ESPnet).

    Args:
        run (callable): ``run(samples, lengths) -> (log_probs, frames)``: samples ``(B, N)`` float32 in [-1, 1] with
            their lengths ``(B,)`` int64; natural-log probabilities ``(B, T, C)`` and the frames of each item ``(B,)``.
        labels (sequence of str, or dict): the names of the classes.
        blank (int or str): the class that spells nothing, or its name.
        hop (int): samples a frame.
        sample_rate (int): Hz.
        facts: further facts of :class:`AcousticModel`: ``separator``, ``receptive_field``, ``frame_offset``, ``spell``,
            ``window``, ``context``, ``language``, ``name``, ``licence``; and ``logits=True`` for a model that returns
            logits. What is left out is found out, with a few calls of ``run``.

    Attributes:
        model (AcousticModel): the model and its facts.
        borders (Pauses or str): which word gets the frames between two words; see :func:`merge_words`.
        posteriors (bool): whether words get a ``posterior``. Default: True.
        batch_size (int): windows of a recording that the model gets at once. Default: 1.
        dtype (torch.dtype): of the emissions of a whole recording; ``torch.float16`` takes half the memory. Default:
            ``torch.float32``.
        notes (list of str): what the last call has to say: a resampled recording, words that cannot be spelt. Threads
            may share an aligner if the model's ``run`` and ``spell`` allow for it; only these notes are then those of
            any of them. ``Aligner.from_model(aligner.model)`` has notes of its own.

    Example::

        aligner = Aligner.english()
        alignment = aligner("talk.mp3", "What is said in it ...")
        alignment.save("talk.srt")
        alignment.words[3]  # Word(text='said', ..., start=0.61, end=0.84, ...)
    """

    def __init__(
        self,
        run: Callable[..., Any],
        *,
        labels: Sequence[str] | dict[str, int],
        blank: int | str,
        hop: int,
        sample_rate: int,
        **facts: Any,
    ) -> None:
        from torch_ctc_align.speech.models.callable import from_callable

        self._set_model(from_callable(run, labels=labels, blank=blank, hop=hop, sample_rate=sample_rate, **facts))

    def _set_model(self, model: AcousticModel) -> None:
        self.model = model
        self.borders: Any = Pauses()
        self.posteriors = True
        self.batch_size = 1
        self.dtype = torch.float32
        self.notes: list[str] = []

    @classmethod
    def from_model(cls, model: AcousticModel) -> "Aligner":
        """Returns an aligner with a model whose facts are known."""
        aligner = cls.__new__(cls)
        aligner._set_model(model)
        return aligner

    @classmethod
    def english(cls, device: str | torch.device = "cpu") -> "Aligner":
        """Returns an aligner with the model that the extra ``speech`` brings: English, phonemes, 9 MB, Apache-2.0."""
        from torch_ctc_align.speech.models.english import load_english

        return cls.from_model(load_english(device))

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        language: str | None = None,
    ) -> "Aligner":
        """Returns an aligner with a CTC model of transformers: wav2vec 2.0, HuBERT, WavLM, MMS and others.

        Args:
            name_or_dir: name on the hub, or a directory.
            device: where the model runs.
            dtype: of the model's weights. Default: as they are saved.
            language: for a model with an adapter for each language (MMS), the language, as ``"deu"``.

        Raises:
            SpeechError: the model cannot be loaded, or is not a CTC model.
        """
        from torch_ctc_align.speech.models.huggingface import load_pretrained

        return cls.from_model(load_pretrained(name_or_dir, device=device, dtype=dtype, language=language))

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str], **facts: Any) -> "Aligner":
        """Returns an aligner with an ONNX model from samples to log-probabilities or logits.

        Args:
            path: the file. What ``facts`` leave open comes from its metadata and from the files beside it.
            facts: ``labels``, ``blank``, ``hop``, ``sample_rate``, ``separator``, ``receptive_field``,
                ``frame_offset``, ``providers``.

        Raises:
            SpeechError: the file cannot be loaded, or a fact is missing.
        """
        from torch_ctc_align.speech.models.onnx import load_onnx

        return cls.from_model(load_onnx(path, **facts))

    def __call__(
        self,
        audio: Source,
        text: str,
        *,
        star: Star | None = "ends",
        unspoken: bool = False,
        split: Split = "lines",
        language: str | None = None,
        offset: float = 0.0,
        duration: float | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> SpeechAlignment:
        """Aligns a recording with its text.

        Args:
            audio: a file, of any length; or samples and their rate in Hz, ``(samples, 16_000)``.
            text: what is said in it. Its lines are the segments.
            star: where the recording may hold more than the text: at both ``"ends"``, or between any two ``"words"``
                as well. None: nowhere; all of the recording is the text's. Default: ``"ends"``.
            unspoken: whether segments may be missing in the recording. Those are found and left out. Default: False.
            split: what a segment is: one of the ``"lines"``, ``"sentences"`` or ``"words"`` of the text.
            language: in which numbers are spelt out, as ``"en"`` or ``"eng"``. Default: that of the model.
            offset: seconds at the beginning of the recording that are left out.
            duration: seconds that are read from there on. Default: to the end.
            progress: called as ``progress(what, done, total)``.

        Returns:
            SpeechAlignment: words, segments, tokens and what does not fit. Times count from the beginning of the
            recording.

        Raises:
            SpeechError: the recording cannot be read, is silent or too short; the text has no words, cannot be spelt,
                or is too long for the recording; no segment of it is in the recording.
        """
        if star not in (None, "ends", "words"):
            raise SpeechError(f"star must be one of ends, words, None, found {star!r}")
        model = self.model
        transcript = read_transcript(text, model, split=split, language=language)
        recording = open_audio(audio, model.sample_rate, offset=offset, duration=duration)
        self.notes = [*recording.notes, *transcript.notes]
        name = recording.path.name if recording.path else "the recording"
        check_length(transcript, model, self._count_frames(recording, name), name)  # before an hour is heard
        log_probs = self._listen(recording, name, progress)
        self.notes = [*recording.notes, *transcript.notes]  # now with those about every sample
        scores = star_scores(log_probs[None])[0]
        spoken = [True] * len(transcript.segments)
        if unspoken:
            spoken = find_spoken(log_probs, transcript, model, scores, name)
        kept = [word for word in range(len(transcript.words)) if spoken[transcript.words[word].segment]]
        found = find_path(log_probs, transcript, kept, model, scores, star, name)
        return self._describe(found, transcript, kept, recording, scores, language or model.language)

    def _count_frames(self, recording: Audio, name: str) -> int:
        model = self.model
        shortest = max(model.receptive_field, model.hop)
        if recording.num_samples < shortest:
            raise SpeechError(
                f"{name} is too short: {recording.seconds:.3f} s, and a frame of the model takes "
                f"{shortest / model.sample_rate:.3f} s"
            )
        return (recording.num_samples - model.receptive_field) // model.hop + 1

    def _listen(self, recording: Audio, name: str, progress: Callable[[str, int, int], None] | None) -> Tensor:
        """Returns the (T, C) emissions of a recording."""
        model = self.model
        window, context = _window_sizes(model, recording.num_samples)
        blocks = recording.blocks()
        log_probs = run_windows(
            model.run,
            blocks,
            num_samples=recording.num_samples,
            hop=model.hop,
            receptive_field=model.receptive_field,
            window_frames=window,
            context_frames=context,
            batch_size=self.batch_size,
            dtype=self.dtype,
            progress=None if progress is None else lambda done, total: progress("listening", done, total),
        )
        for _ in blocks:  # what is noted of the sound comes after the last block, where windows stop reading
            pass
        if recording.peak < SILENCE:
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
        return log_probs

    def _describe(
        self,
        found: BestPath,
        transcript: Transcript,
        kept: Sequence[int],
        recording: Audio,
        scores: Tensor,
        language: str | None,
    ) -> SpeechAlignment:
        """Turns a path into words, segments and tokens with times."""
        model = self.model
        limit = recording.seconds

        def seconds(frame: float) -> float:
            return recording.offset + min(max((frame + model.frame_offset) * model.seconds_per_frame, 0.0), limit)

        pieces = find_unexplained(found, model)
        spans = merge_tokens(found.path, found.scores, model.blank)
        merged = merge_words(
            spans,
            [transcript.words[k].text for k in kept],
            seconds_per_frame=model.seconds_per_frame,
            separator=model.separator,
            tokens_per_word=found.tokens_per_word,
            borders=self.borders,
            frame_offset=model.frame_offset,
            stars=pieces,
        )
        # Not recording_end=limit: the last frame may begin where the recording ends, and by rounding after it.
        times = {
            k: (recording.offset + min(span.start, limit), recording.offset + min(span.end, limit))
            for k, span in zip(kept, merged, strict=True)
        }
        owners = find_owners(found, kept, model.separator)
        posteriors = None
        if self.posteriors:
            core, context = (round(time / model.seconds_per_frame) for time in (POSTERIOR_CORE, POSTERIOR_CONTEXT))
            posteriors = found.posteriors(spans, model.blank, max(core, 1), context)
        spoken_words = dict(zip(kept, merged, strict=True))
        of_words = _mean_posteriors(spans, owners, posteriors)
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
        classes = len(found.log_probs[0])
        labels = [*model.labels, *[""] * (classes - len(model.labels)), "*"]
        tokens = [
            Token(labels[span.token], seconds(span.start), seconds(span.end), span.score, owner)
            for span, owner in zip(spans, owners, strict=True)
        ]
        return SpeechAlignment(
            text=transcript.text,
            words=words,
            segments=[_segment(segment, words) for segment in transcript.segments],
            tokens=tokens,
            unexplained=[Stretch(seconds(piece.start), seconds(piece.end)) for piece in pieces],
            seconds=recording.offset + limit,
            seconds_per_frame=model.seconds_per_frame,
            score=float(found.scores.double().sum()),
            model=model.name,
            language=language,
            audio=None if recording.path is None else Path(recording.path),
            evidence=Evidence(
                log_probs=found.log_probs,
                path=found.path,
                scores=found.scores,
                targets=found.targets,
                tokens_per_word=found.tokens_per_word,
                star_scores=scores if found.wild is not None else None,
                wild_gaps=found.wild,
                model=model,
                start=recording.offset,
            ),
        )


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
