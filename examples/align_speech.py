#!/usr/bin/env python3
"""Aligns a recording with its transcript, word by word, through torch.ops.ctc_align.forced_align.

    python examples/align_speech.py recording.wav --text "what was said in it"

prints a table of words with start, end (seconds) and confidence. It writes the same as JSON, and a picture of the
emissions with the path through them. Without arguments it aligns the clip in examples/data. The package hama brings
the acoustic model and the text-to-phoneme model: English, 16 kHz, one frame every 20 ms.

With --star the recording and the text may differ: the program also says which sound is not in the text, and which
sentences of the text are not in the recording. Words that it cannot pronounce get the sound that is left for them.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NoReturn

import torch
from speech_data import DRAWING_STYLE, InputError, show_progress

import torch_ctc_align
from torch_ctc_align import GAP_STAR, TokenSpan, WordSpan, find_unspoken, merge_words

try:
    import hama
    import numpy as np
    import soundfile
    import soxr
except ImportError as error:
    sys.exit(f"align_speech: {error}; run: pip install -r {Path(__file__).with_name('requirements.txt')}")

DEFAULT_AUDIO = Path(__file__).with_name("data") / "sense_and_sensibility_01_austen_64kb-0870.wav"

SAMPLE_RATE = 16_000  # Hz
HOP = 320  # samples a frame
SECONDS_PER_FRAME = HOP / SAMPLE_RATE
FRAME_OFFSET = -0.5  # frame t is centred on sample HOP * t, so it begins half a frame earlier

# The model reads the first 30 s (1500 frames) and ignores the rest, so longer recordings go through it in pieces of
# that length. It also scales its input by statistics of the whole piece, so pieces are as long as possible, and
# neighbours overlap so that no frame near a cut is used.
PIECE_FRAMES = 1500
OVERLAP_FRAMES = 200

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
LEGEND_ENTRIES = 6

# Sound that the text does not explain. A word of two phonemes that is left out shows for 0.1 s; where nothing is left
# out, a star takes a frame or two, if any.
LEAST_UNEXPLAINED = 0.1  # seconds; less is not reported
PAUSE = 0.5  # seconds; a longer silence ends what is reported as one piece

# What a path must gain without a sentence, where anything may be said between two words.
LEAST_GAIN = 10.0  # nats

LOW_CONFIDENCE = 0.3  # mean over words; a matching transcript reaches about 0.9, a wrong one 0.01


@dataclass
class Transcript:
    """The text as the aligner needs it: words, and the target that their phonemes form.

    ``inferred`` says of each word whether it could not be pronounced; then its only token is a star.
    """

    words: list[str]
    targets: list[int]
    tokens_per_word: list[int]
    inferred: list[bool]

    def take(self, words: Sequence[int], boundary: int) -> "Transcript":
        """Returns the transcript of some of the words."""
        spelled: list[list[int]] = []
        rest = iter(self.targets)
        for count in self.tokens_per_word:
            spelled.append([])
            while count:  # boundaries within a word are not counted
                spelled[-1].append(next(rest))
                count -= spelled[-1][-1] != boundary
            next(rest, None)  # the boundary after the word
        targets: list[int] = []
        for k in words:
            targets += ([boundary] if targets else []) + spelled[k]
        columns = self.words, self.tokens_per_word, self.inferred
        taken, counts, inferred = ([column[k] for k in words] for column in columns)
        return Transcript(taken, targets, counts, inferred)


@dataclass
class Unspoken:
    """A sentence that is not in the recording, after so many words that are."""

    sentence: str
    words: list[str]
    after: int


@dataclass
class Alignment:
    """The transcript's place in the recording; ``paths`` holds the class of every frame, (T,).

    With stars: ``inferred`` are the words that could not be pronounced, ``star_inputs`` the operator's star scores and
    wild gaps, ``unexplained`` the sound that the text lacks, in frames.
    """

    words: list[WordSpan]
    inferred: list[bool]
    paths: torch.Tensor
    score: float
    star_inputs: list[torch.Tensor]
    unexplained: list[TokenSpan]
    unspoken: list[Unspoken] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, WordSpan | None, str]]:
        """Yields every word of the text: as written, its span, and whether it is spoken, inferred or unspoken."""
        missing = {sentence.after: [] for sentence in self.unspoken}
        for sentence in self.unspoken:
            missing[sentence.after] += [(word, None, "unspoken") for word in sentence.words]
        for place, (word, inferred) in enumerate(zip(self.words, self.inferred, strict=True)):
            yield from missing.get(place, [])
            yield word.word, word, "inferred" if inferred else "spoken"
        yield from missing.get(len(self.words), [])


def read_audio(path: Path) -> np.ndarray:
    """Reads a sound file as 16 kHz mono, (N,) float32 in [-1, 1]; reports conversions on stderr."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels = file.samplerate, file.channels
            blocks = [block.mean(axis=1) for block in file.blocks(60 * rate, dtype="float32", always_2d=True)]
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"cannot read {path} as audio (WAV, FLAC, OGG or MP3): {error}") from None
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    if channels > 1:
        print(f"{path.name}: mixing {channels} channels down to one", file=sys.stderr)
    if rate != SAMPLE_RATE:
        print(f"{path.name}: resampling {rate} Hz to {SAMPLE_RATE} Hz", file=sys.stderr)
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if len(samples) < 2 * HOP:
        raise InputError(f"{path} is too short: {len(samples) / SAMPLE_RATE:.3f} s")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds samples that are not finite")
    return np.clip(samples, -1, 1)


def compute_log_probs(model: hama.ASRModel, samples: np.ndarray) -> torch.Tensor:
    """Runs the acoustic model over a recording of any length.

    Args:
        samples: (N,) float32, 16 kHz.

    Returns:
        (T, C) float32 natural-log probabilities, T = N // 320 + 1. Frame t is centred on sample 320 t.
    """

    def run(piece: np.ndarray) -> np.ndarray:
        inputs = {"waveform": piece[None], "waveform_lengths": np.array([len(piece)])}
        return model.session.run(["log_probs"], inputs)[0][0]

    frames = len(samples) // HOP + 1
    if frames <= PIECE_FRAMES:
        return torch.from_numpy(run(samples))

    # The last piece ends with the recording and is as long as the others. A seam lies in the middle of the overlap of
    # two pieces.
    last = frames - PIECE_FRAMES
    starts = [*range(0, last, PIECE_FRAMES - OVERLAP_FRAMES), last]
    seams = [0, *((left + PIECE_FRAMES + right) // 2 for left, right in pairwise(starts)), frames]
    log_probs = np.empty((frames, len(model.decoder_tokens)), np.float32)
    for start, (begin, end) in show_progress(list(zip(starts, pairwise(seams), strict=True)), "listening"):
        stop = len(samples) if start == last else (start + PIECE_FRAMES - 1) * HOP
        log_probs[begin:end] = run(samples[start * HOP : stop])[begin - start : end - start]
    return torch.from_numpy(log_probs)


def split_words(text: str) -> list[str]:
    """Splits at white space and dashes, and removes the punctuation around each word."""
    words = re.split(r"\s+|--+|[–—]", text.replace("’", "'"))
    return [word for word in (re.sub(r"^\W+|\W+$", "", word) for word in words) if word]


def split_sentences(text: str) -> list[str]:
    """Cuts after . ! ? and at the end of a line."""
    sentences = re.split(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))\s+|\n""", text)
    return [" ".join(sentence.split()) for sentence in sentences if split_words(sentence)]


def pronounce(text: str, tokens: Sequence[str], star: int | None = None) -> Transcript:
    """Turns text into the phoneme classes that the acoustic model should hear.

    ``<wb>`` stands between words, as in the model's output, and not at the ends. A word with a hyphen is pronounced as
    two words and counts as one.

    Args:
        text: English; numbers and abbreviations written out.
        tokens: name of every class of the acoustic model.
        star: label of a word that cannot be pronounced. Default: such a word is an error.
    """
    words = split_words(text)
    if not words:
        raise InputError("the text has no words")

    def spell(word: str) -> list[str]:
        letters = unicodedata.normalize("NFKD", word.lower())
        return re.split("-+", "".join(letter for letter in letters if not unicodedata.combining(letter)))

    # The text-to-phoneme model guesses at anything: digits come out as Chinese.
    strange = [word for word in words if not re.fullmatch(r"[a-z']+", "".join(spell(word)))]
    too_long = [word for word in words if len(word) > 60]
    if strange and star is None:
        raise InputError(
            f"cannot pronounce {', '.join(map(repr, strange[:5]))}: write it in English letters, as spoken"
        )
    if too_long and star is None:
        raise InputError(f"a word of {len(too_long[0])} letters is too long to pronounce: {too_long[0][:20]!r}...")
    unknown = {*strange, *too_long}

    phonemizer = hama.G2PModel(max_output_len=128)
    spelled = [[] if word in unknown else spell(word) for word in words]
    parts = sorted({part for word in spelled for part in word})
    class_of = {token: index for index, token in enumerate(tokens)}
    phonemes = {
        # For a few words the model separates phonemes by spaces. The acoustic model has neither of these two.
        part: [class_of[a.phoneme] for a in phonemizer.predict(part).alignments if a.phoneme not in (" ", "<unk>")]
        for part in show_progress(parts, "pronouncing")
    }
    silent = [part for part in parts if not phonemes[part]]
    if silent and star is None:
        raise InputError(f"cannot pronounce {silent[0]!r}")
    inferred = [not word or any(part in silent for part in word) for word in spelled]
    if all(inferred):
        raise InputError(f"cannot pronounce any word of the text: {', '.join(map(repr, words[:5]))}")

    boundary = class_of["<wb>"]
    units = [
        [[star]] if unknown_word else [phonemes[part] for part in word]
        for word, unknown_word in zip(spelled, inferred, strict=True)
    ]
    targets: list[int] = []
    for unit in (unit for word in units for unit in word):
        targets += ([boundary] if targets else []) + unit
    return Transcript(words, targets, [sum(map(len, word)) for word in units], inferred)


def raise_for_long_text(labels: int, frames: int) -> NoReturn:
    raise InputError(
        f"the text is too long for the audio: {labels} phonemes and word boundaries in {frames} frames "
        f"({frames * SECONDS_PER_FRAME:.2f} s)"
    )


def leave_out_unspoken(
    log_probs: torch.Tensor, text: str, transcript: Transcript, blank: int, boundary: int
) -> tuple[Transcript, list[Unspoken]]:
    """Finds the sentences that are not in the (T, C) emissions, and returns the transcript without them."""
    targets = torch.tensor(transcript.targets)
    if int(torch_ctc_align.min_frames(targets[None])) > len(log_probs):
        raise_for_long_text(len(targets), len(log_probs))
    sentences = split_sentences(text)
    ends = [0, *accumulate(len(split_words(sentence)) for sentence in sentences)]
    places = [range(*pair) for pair in pairwise(ends)]
    found = find_unspoken(
        log_probs,
        targets,
        [sum(transcript.tokens_per_word[place.start : place.stop]) for place in places],
        blank=blank,
        separator=boundary,
        star_scores=torch_ctc_align.star_scores(log_probs[None])[0],
    )

    def keep(unspoken: Sequence[bool]) -> Transcript:
        return transcript.take(
            [k for place, no in zip(places, unspoken, strict=True) if not no for k in place], boundary
        )

    def total(unspoken: Sequence[bool]) -> float:
        kept = keep(unspoken)
        if not kept.words:
            return float(torch.maximum(log_probs[:, blank], torch_ctc_align.star_scores(log_probs[None])[0]).sum())
        stars = make_stars(log_probs, kept, "words", boundary)
        labels = torch.tensor([kept.targets])
        return float(
            torch.ops.ctc_align.forced_align(log_probs[None], labels, None, None, blank, *stars)[1].double().sum()
        )

    # find_unspoken allows for other words between two sentences alone. A sentence of which only some words are missing
    # in the text comes back where other words may stand anywhere.
    unspoken = found.unspoken.tolist()
    for number in found.unspoken.nonzero().flatten().tolist():
        restored = [no and k != number for k, no in enumerate(unspoken)]
        if total(unspoken) - total(restored) < LEAST_GAIN:
            unspoken = restored
    if all(unspoken):
        raise InputError("no sentence of the text is in the recording")
    left_out = []
    words_before = 0
    for sentence, place, no in zip(sentences, places, unspoken, strict=True):
        if no:
            left_out.append(Unspoken(sentence, [transcript.words[k] for k in place], words_before))
        else:
            words_before += len(place)
    return keep(unspoken), left_out


def make_stars(log_probs: torch.Tensor, transcript: Transcript, where: str, boundary: int) -> list[torch.Tensor]:
    """Returns star scores (1, T) and wild gaps (1, L + 1) for the operator."""
    targets = torch.tensor([transcript.targets])
    how = {"separator": boundary, "tokens_per_word": [transcript.tokens_per_word]} if where == "words" else {}
    wild = torch_ctc_align.wild_gaps(targets, where=where, **how)
    # What lies beside a star label is that label's, up to the words around it.
    for place in (targets[0] == log_probs.shape[1]).nonzero().flatten().tolist():
        wild[0, max(place - 1, 0) : place + 3] = False
    return [torch_ctc_align.star_scores(log_probs[None]), wild]


def find_unexplained(
    paths: torch.Tensor, scores: torch.Tensor, heard: torch.Tensor, blank: int, boundary: int
) -> list[TokenSpan]:
    """Finds the sound that the path leaves to the stars of gaps.

    Pieces with a short silence between them are one. Word boundaries that the model hears are not sound.

    Args:
        paths, scores: (T,) from the operator.
        heard: (T,) the best class of every frame.
    """
    pieces: list[TokenSpan] = []
    for star in torch_ctc_align.merge_stars(paths, scores):
        if bool((heard[star.start : star.end] == boundary).all()):
            continue
        if pieces:
            last = pieces[-1]
            between = paths[last.end : star.start]
            silent = (between == blank) | (between == boundary) | (between == GAP_STAR)
            if bool(silent.all()) and len(between) * SECONDS_PER_FRAME <= PAUSE:
                pieces[-1] = TokenSpan(GAP_STAR, last.start, star.end, float(scores[last.start : star.end].mean()))
                continue
        pieces.append(star)
    return [piece for piece in pieces if len(piece) * SECONDS_PER_FRAME > LEAST_UNEXPLAINED - SECONDS_PER_FRAME / 2]


def align(
    log_probs: torch.Tensor,
    transcript: Transcript,
    blank: int,
    boundary: int,
    seconds: float,
    star: str | None = None,
) -> Alignment:
    """Finds the words of the transcript in the (T, C) emissions of a recording; ``seconds`` is its length.

    ``star`` says where the recording may hold more than the transcript: at its "ends", or also between "words".
    """
    targets = torch.tensor(transcript.targets)
    stars = make_stars(log_probs, transcript, star, boundary) if star else []
    paths, scores = torch.ops.ctc_align.forced_align(log_probs[None], targets[None], None, None, blank, *stars)
    paths, scores = paths[0], scores[0]
    if (paths == -1).any():  # the operator marks a target that has no path
        raise_for_long_text(len(targets), len(paths))
    unexplained = find_unexplained(paths, scores, log_probs.argmax(-1), blank, boundary) if star else []
    words = merge_words(
        torch_ctc_align.merge_tokens(paths, scores, blank),
        transcript.words,
        seconds_per_frame=SECONDS_PER_FRAME,
        separator=boundary,
        tokens_per_word=transcript.tokens_per_word,
        frame_offset=FRAME_OFFSET,
        recording_end=seconds,
        stars=unexplained,
    )
    return Alignment(words, transcript.inferred, paths, scores.double().sum().item(), stars, unexplained)


def seconds_of(piece: TokenSpan, recording: float) -> tuple[float, float]:
    """Start and end of a run of frames, within the recording."""
    start, end = ((frame + FRAME_OFFSET) * SECONDS_PER_FRAME for frame in (piece.start, piece.end))
    return max(start, 0.0), min(end, recording)


def print_table(alignment: Alignment) -> None:
    rows = list(alignment.rows())
    width = max(len(text) for text, _, _ in rows)
    print(f"{'word':{width}}  {'start':>8}  {'end':>8}  confidence")
    for text, word, status in rows:
        if word is None:
            print(f"{text:{width}}  {'-':>8}  {'-':>8}  {status:>10}")
            continue
        confidence = f"{word.confidence:10.2f}" if status == "spoken" else f"{status:>10}"
        print(f"{text:{width}}  {word.start:8.2f}  {word.end:8.2f}  {confidence}")


def print_differences(alignment: Alignment, seconds: float) -> None:
    """Prints what the recording has and the text has not, and the reverse."""
    print("\nin the recording, not in the text:" + ("" if alignment.unexplained else " nothing"))
    for piece in alignment.unexplained:
        start, end = seconds_of(piece, seconds)
        print(f"  {start:.2f} to {end:.2f} s ({end - start:.2f} s)")
    print("in the text, not in the recording:" + ("" if alignment.unspoken else " nothing"))
    for unspoken in alignment.unspoken:
        print(f"  {unspoken.sentence}")


def write_json(path: Path, audio: Path, samples: np.ndarray, alignment: Alignment) -> None:
    seconds = len(samples) / SAMPLE_RATE
    words = []
    for text, word, status in alignment.rows():
        entry = {
            "word": text,
            "start": word and round(word.start, 3),
            "end": word and round(word.end, 3),
            "confidence": round(word.confidence, 4) if word and status == "spoken" else None,
        }
        words.append(entry | ({"status": status} if alignment.star_inputs else {}))
    result = {
        "audio": audio.name,
        "seconds": seconds,
        "seconds_per_frame": SECONDS_PER_FRAME,
        "score": round(alignment.score, 4),
        "words": words,
    }
    if alignment.star_inputs:
        pieces = [seconds_of(piece, seconds) for piece in alignment.unexplained]
        result["unexplained"] = [{"start": round(start, 3), "end": round(end, 3)} for start, end in pieces]
        result["unspoken"] = [unspoken.sentence for unspoken in alignment.unspoken]
    path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def save_emissions(
    path: Path,
    log_probs: torch.Tensor,
    transcript: Transcript,
    blank: int,
    boundary: int,
    star_inputs: Sequence[torch.Tensor],
) -> None:
    """Saves the aligner's inputs, so that the alignment can be repeated without the models."""
    stars = {name: tensor[0].numpy() for name, tensor in zip(("star_scores", "wild_gaps"), star_inputs, strict=False)}
    with path.open("wb") as file:  # given a name, savez would append .npz
        np.savez_compressed(
            file,
            log_probs=log_probs.numpy(),
            targets=np.array(transcript.targets),
            words=np.array(transcript.words),
            tokens_per_word=np.array(transcript.tokens_per_word),
            blank=blank,
            separator=boundary,
            seconds_per_frame=SECONDS_PER_FRAME,
            **stars,
        )


def draw_picture(
    path: Path,
    samples: np.ndarray,
    log_probs: torch.Tensor,
    tokens: Sequence[str],
    blank: int,
    boundary: int,
    alignment: Alignment,
    seconds: float,
) -> None:
    """Draws the first ``seconds``: waveform and words above, emissions and the path through them below.

    Sound that the text lacks is hatched, words that could not be pronounced are in italics, and a dashed line stands
    where a sentence of the text was not spoken.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frames = min(len(log_probs), max(1, round(seconds / SECONDS_PER_FRAME)))
    seconds = frames * SECONDS_PER_FRAME
    samples = samples[: frames * HOP]
    words = [(word, inferred) for word, inferred in zip(alignment.words, alignment.inferred, strict=True)
             if word.start < seconds]  # fmt: skip
    shade, accent = "#dbe7f3", "#d9480f"

    # Rows: the phonemes of the path in the order in which they come, then the word boundary, then the blank. With
    # stars, a row for them in front of these two.
    star = log_probs.shape[1]
    visited = [star if c == GAP_STAR else c for c in alignment.paths[:frames].tolist()]
    ends = [star] * bool(alignment.star_inputs) + [boundary, blank]
    classes = [c for c in dict.fromkeys(visited) if c not in ends] + ends
    height = 0.165 * len(classes)
    emissions = torch.cat([log_probs, *(scores.T for scores in alignment.star_inputs[:1])], 1)

    plt.rcParams.update(DRAWING_STYLE | {"hatch.linewidth": 0.5})
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(min(max(1.5 * seconds, 7), 60), 1.9 + height),
        height_ratios=[1.5, height], layout="constrained",
    )  # fmt: skip

    times = np.arange(len(samples)) / SAMPLE_RATE
    top.plot(times, samples, color="#52606d", linewidth=0.35)
    peak = 1.1 * max(float(np.abs(samples).max()), 1e-3)
    top.set_ylim(-peak, 1.7 * peak)
    top.set_yticks([])
    top.set_ylabel("waveform")
    free_from = [0.0, 0.0]  # seconds; each of the two lines of words has room from there on
    for word, inferred in words:
        top.axvspan(word.start, word.end, color=shade, linewidth=0)
        for axes in (top, bottom):
            for border in (word.start, word.end):
                axes.axvline(border, color="#829ab1", linewidth=0.5)
        middle, half = (word.start + word.end) / 2, 0.024 * (len(word.word) + 1)  # about half the width of the text
        line = 0 if free_from[0] <= middle - half or free_from[0] <= free_from[1] else 1
        free_from[line] = middle + half
        top.text(middle, (1.1 + 0.28 * line) * peak, word.word, ha="center", va="bottom", clip_on=True,
                 style="italic" if inferred else "normal")  # fmt: skip

    frame_starts = (np.arange(frames + 1) + FRAME_OFFSET) * SECONDS_PER_FRAME
    image = bottom.imshow(
        emissions[:frames, classes].exp().T.numpy(),
        aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1,
        extent=(frame_starts[0], frame_starts[-1], len(classes) - 0.5, -0.5),
    )  # fmt: skip
    # The path: a dot in the middle of every frame, and a line through the phonemes of each word. (A line through every
    # frame would go back to the blank after almost every phoneme, and hide the picture.)
    middles = frame_starts[:-1] + SECONDS_PER_FRAME / 2
    rows = np.array([classes.index(c) for c in visited])
    bottom.plot(middles, rows, ".", color=accent, markersize=2.4, markeredgewidth=0)
    for word, _ in words:
        inside = (middles > word.start) & (middles < word.end) & (rows < len(classes) - len(ends))
        bottom.plot(middles[inside], rows[inside], color=accent, linewidth=0.7, alpha=0.8)
    # A lone combining mark needs a letter to sit on.
    names = [
        {blank: "blank", star: "star"}.get(c) or "◌" * bool(unicodedata.combining(tokens[c][0])) + tokens[c]
        for c in classes
    ]
    bottom.set_yticks(range(len(classes)), names)
    bottom.tick_params(axis="y", length=0)
    bottom.set_xlim(0, seconds)
    bottom.set_xlabel("time (s)")
    bottom.set_ylabel("class")
    figure.colorbar(image, cax=bottom.inset_axes((1.008, 0, 0.008, 1)), label="probability")
    figure.align_ylabels()
    if alignment.star_inputs:
        draw_differences(figure, top, bottom, alignment, seconds)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_differences(figure, top, bottom, alignment: Alignment, seconds: float) -> None:
    """Marks what is not in the text, and where a sentence was not spoken. A legend says so below the picture."""
    brown, red = "#b7791f", "#9b2c2c"
    entries: dict[str, object] = {}
    for piece in alignment.unexplained:
        start, end = seconds_of(piece, seconds)
        if start < seconds:
            bottom.axvspan(start, end, color=brown, alpha=0.13, linewidth=0)
            entries["in the recording, not in the text"] = top.axvspan(
                start, end, facecolor="#fdf3dc", edgecolor=brown, hatch="////", linewidth=0, zorder=0.5
            )
    words = alignment.words
    left_out = 0
    for unspoken in alignment.unspoken:
        place = words[unspoken.after - 1].end if unspoken.after else words[0].start
        if place >= seconds and unspoken.after < len(words):
            continue  # after what is drawn
        for axes in (top, bottom):
            mark = axes.axvline(min(place, seconds), color=red, linewidth=1.2, linestyle=(0, (3, 2)))
        sentence = unspoken.sentence
        shown = sentence if len(sentence) <= 60 else f"{sentence[:57].rstrip()}..."
        name = f"in the text, not in the recording: {shown}"
        if len(entries) < LEGEND_ENTRIES:
            entries[name] = mark
        else:
            left_out += 1
    names = list(entries)
    if left_out:
        names[-1] += f" (and {left_out} more)"
    if names:
        figure.legend(entries.values(), names, loc="outside lower left", frameon=False, borderaxespad=0.2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Aligns a recording of English speech with its transcript, word by word."
    )
    parser.add_argument(
        "audio",
        nargs="?",
        type=Path,
        default=DEFAULT_AUDIO,
        help="WAV, FLAC, OGG or MP3; any length (default: a clip that comes with the example)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="what is said (default: the .txt file beside the audio)")
    text.add_argument("--text-file", type=Path, help="UTF-8 file of what is said")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("aligned"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file for the words as JSON (default: OUT_DIR/AUDIO.json)")
    parser.add_argument(
        "--picture", type=Path, help="file for the picture, PNG, SVG or PDF (default: OUT_DIR/AUDIO.png)"
    )
    parser.add_argument(
        "--picture-seconds", type=float, default=10, help="how much of the recording to draw (default: %(default)s)"
    )
    parser.add_argument("--no-picture", action="store_true", help="draw nothing")
    parser.add_argument(
        "--star",
        choices=("ends", "words"),
        help="allow for differences: sound that is not in the text at both ends, or also between any two words; "
        "sentences that are not spoken; words that cannot be pronounced",
    )
    parser.add_argument("--save-emissions", type=Path, metavar="FILE", help="save the emissions and the target as .npz")
    return parser.parse_args()


def read_text(arguments: argparse.Namespace) -> str:
    if arguments.text is not None:
        return arguments.text
    path = arguments.text_file or arguments.audio.with_suffix(".txt")
    if not path.is_file():
        raise InputError(f"no such file: {path}" + ("" if arguments.text_file else "; give --text or --text-file"))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None


def run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.picture_seconds <= 60:
        raise InputError(f"--picture-seconds must be above 0 and at most 60, got {arguments.picture_seconds:g}")
    if arguments.picture and arguments.picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"--picture must end in one of {', '.join(PICTURE_SUFFIXES)}: {arguments.picture}")
    samples = read_audio(arguments.audio)
    text = read_text(arguments)

    model = hama.ASRModel()
    tokens, blank = model.decoder_tokens, model.blank_id
    boundary = tokens.index("<wb>")
    seconds = len(samples) / SAMPLE_RATE
    transcript = pronounce(text, tokens, star=len(tokens) if arguments.star else None)
    log_probs = compute_log_probs(model, samples)
    unspoken: list[Unspoken] = []
    if arguments.star:
        transcript, unspoken = leave_out_unspoken(log_probs, text, transcript, blank, boundary)
    alignment = align(log_probs, transcript, blank, boundary, seconds, arguments.star)
    alignment.unspoken = unspoken

    json_path = arguments.json or arguments.out_dir / f"{arguments.audio.stem}.json"
    picture_path = arguments.picture or arguments.out_dir / f"{arguments.audio.stem}.png"
    written = [json_path]
    for path in filter(None, (json_path, picture_path, arguments.save_emissions)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(json_path, arguments.audio, samples, alignment)
    if arguments.save_emissions:
        save_emissions(arguments.save_emissions, log_probs, transcript, blank, boundary, alignment.star_inputs)
        written.append(arguments.save_emissions)
    if not arguments.no_picture:
        draw_picture(picture_path, samples, log_probs, tokens, blank, boundary, alignment, arguments.picture_seconds)
        written.append(picture_path)

    print(
        f"{arguments.audio.name}: {seconds:.2f} s, {len(transcript.words)} words, "
        f"{len(transcript.targets)} tokens in {len(log_probs)} frames, log-probability {alignment.score:.2f}\n"
    )
    print_table(alignment)
    if arguments.star:
        print_differences(alignment, seconds)
    print("\nwrote " + ", ".join(map(str, written)))
    confidences = [word.confidence for _, word, status in alignment.rows() if status == "spoken"]
    mean = sum(confidences) / len(confidences)
    if mean < LOW_CONFIDENCE:
        print(f"mean confidence is only {mean:.2f}: is this what is said in the recording?", file=sys.stderr)


def main() -> None:
    try:
        run(parse_arguments())
    except BrokenPipeError:  # the table's reader, head for example, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        sys.exit(f"align_speech: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
