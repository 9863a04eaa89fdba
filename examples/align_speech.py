#!/usr/bin/env python3
"""Aligns a recording with its transcript, word by word, through torch.ops.ctc_align.forced_align.

    python examples/align_speech.py recording.wav --text "what was said in it"

prints a table of words with start, end (seconds) and confidence. It writes the same as JSON, and a picture of the
emissions with the path through them. Without arguments it aligns the clip in examples/data. The package hama brings
the acoustic model and the text-to-phoneme model: English, 16 kHz, one frame every 20 ms.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from speech_data import DRAWING_STYLE, InputError, show_progress

import torch_ctc_align
from torch_ctc_align import WordSpan, merge_words

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

LOW_CONFIDENCE = 0.3  # mean over words; a matching transcript reaches about 0.9, a wrong one 0.01


@dataclass
class Transcript:
    """The text as the aligner needs it: words, and the target that their phonemes form."""

    words: list[str]
    targets: list[int]
    tokens_per_word: list[int]


@dataclass
class Alignment:
    """The transcript's place in the recording; ``paths`` holds the class of every frame, (T,)."""

    words: list[WordSpan]
    paths: torch.Tensor
    score: float


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


def pronounce(text: str, tokens: Sequence[str]) -> Transcript:
    """Turns text into the phoneme classes that the acoustic model should hear.

    ``<wb>`` stands between words, as in the model's output, and not at the ends. A word with a hyphen is pronounced as
    two words and counts as one.

    Args:
        text: English; numbers and abbreviations written out.
        tokens: name of every class of the acoustic model.
    """
    words = split_words(text)
    if not words:
        raise InputError("the text has no words")

    def spell(word: str) -> list[str]:
        letters = unicodedata.normalize("NFKD", word.lower())
        return re.split("-+", "".join(letter for letter in letters if not unicodedata.combining(letter)))

    # The text-to-phoneme model guesses at anything: digits come out as Chinese.
    strange = [word for word in words if not re.fullmatch(r"[a-z']+", "".join(spell(word)))]
    if strange:
        raise InputError(
            f"cannot pronounce {', '.join(map(repr, strange[:5]))}: write it in English letters, as spoken"
        )
    too_long = [word for word in words if len(word) > 60]
    if too_long:
        raise InputError(f"a word of {len(too_long[0])} letters is too long to pronounce: {too_long[0][:20]!r}...")

    phonemizer = hama.G2PModel(max_output_len=128)
    spelled = [spell(word) for word in words]
    parts = sorted({part for word in spelled for part in word})
    class_of = {token: index for index, token in enumerate(tokens)}
    phonemes = {
        # For a few words the model separates phonemes by spaces. The acoustic model has neither of these two.
        part: [class_of[a.phoneme] for a in phonemizer.predict(part).alignments if a.phoneme not in (" ", "<unk>")]
        for part in show_progress(parts, "pronouncing")
    }
    silent = [part for part in parts if not phonemes[part]]
    if silent:
        raise InputError(f"cannot pronounce {silent[0]!r}")

    boundary = class_of["<wb>"]
    targets: list[int] = []
    for part in (part for word in spelled for part in word):
        targets += ([boundary] if targets else []) + phonemes[part]
    return Transcript(words, targets, [sum(len(phonemes[part]) for part in word) for word in spelled])


def align(log_probs: torch.Tensor, transcript: Transcript, blank: int, boundary: int, seconds: float) -> Alignment:
    """Finds the words of the transcript in the (T, C) emissions of a recording; ``seconds`` is its length."""
    targets = torch.tensor(transcript.targets)
    paths, scores = torch.ops.ctc_align.forced_align(log_probs[None], targets[None], None, None, blank)
    paths, scores = paths[0], scores[0]
    if (paths == -1).any():  # the operator marks a target that has no path
        raise InputError(
            f"the text is too long for the audio: {len(targets)} phonemes and word boundaries in {len(paths)} frames "
            f"({len(paths) * SECONDS_PER_FRAME:.2f} s)"
        )
    words = merge_words(
        torch_ctc_align.merge_tokens(paths, scores, blank),
        transcript.words,
        seconds_per_frame=SECONDS_PER_FRAME,
        separator=boundary,
        tokens_per_word=transcript.tokens_per_word,
        frame_offset=FRAME_OFFSET,
        recording_end=seconds,
    )
    return Alignment(words, paths, scores.double().sum().item())


def print_table(words: Sequence[WordSpan]) -> None:
    width = max(len(word.word) for word in words)
    print(f"{'word':{width}}  {'start':>8}  {'end':>8}  confidence")
    for word in words:
        print(f"{word.word:{width}}  {word.start:8.2f}  {word.end:8.2f}  {word.confidence:10.2f}")


def write_json(path: Path, audio: Path, samples: np.ndarray, alignment: Alignment) -> None:
    result = {
        "audio": audio.name,
        "seconds": len(samples) / SAMPLE_RATE,
        "seconds_per_frame": SECONDS_PER_FRAME,
        "score": round(alignment.score, 4),
        "words": [
            {
                "word": word.word,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in alignment.words
        ],
    }
    path.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def save_emissions(path: Path, log_probs: torch.Tensor, transcript: Transcript, blank: int, boundary: int) -> None:
    """Saves the aligner's inputs, so that the alignment can be repeated without the models."""
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
    """Draws the first ``seconds``: waveform and words above, emissions and the path through them below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frames = min(len(log_probs), max(1, round(seconds / SECONDS_PER_FRAME)))
    seconds = frames * SECONDS_PER_FRAME
    samples = samples[: frames * HOP]
    words = [word for word in alignment.words if word.start < seconds]
    shade, accent = "#dbe7f3", "#d9480f"

    # Rows: the phonemes of the path in the order in which they come, then the word boundary, then the blank.
    visited = alignment.paths[:frames].tolist()
    classes = [c for c in dict.fromkeys(visited) if c not in (blank, boundary)] + [boundary, blank]
    height = 0.165 * len(classes)

    plt.rcParams.update(DRAWING_STYLE)
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
    for word in words:
        top.axvspan(word.start, word.end, color=shade, linewidth=0)
        for axes in (top, bottom):
            for border in (word.start, word.end):
                axes.axvline(border, color="#829ab1", linewidth=0.5)
        middle, half = (word.start + word.end) / 2, 0.024 * (len(word.word) + 1)  # about half the width of the text
        line = 0 if free_from[0] <= middle - half or free_from[0] <= free_from[1] else 1
        free_from[line] = middle + half
        top.text(middle, (1.1 + 0.28 * line) * peak, word.word, ha="center", va="bottom", clip_on=True)

    frame_starts = (np.arange(frames + 1) + FRAME_OFFSET) * SECONDS_PER_FRAME
    image = bottom.imshow(
        log_probs[:frames, classes].exp().T.numpy(),
        aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1,
        extent=(frame_starts[0], frame_starts[-1], len(classes) - 0.5, -0.5),
    )  # fmt: skip
    # The path: a dot in the middle of every frame, and a line through the phonemes of each word. (A line through every
    # frame would go back to the blank after almost every phoneme, and hide the picture.)
    middles = frame_starts[:-1] + SECONDS_PER_FRAME / 2
    rows = np.array([classes.index(c) for c in visited])
    bottom.plot(middles, rows, ".", color=accent, markersize=2.4, markeredgewidth=0)
    for word in words:
        inside = (middles > word.start) & (middles < word.end) & (rows < len(classes) - 2)
        bottom.plot(middles[inside], rows[inside], color=accent, linewidth=0.7, alpha=0.8)
    # A lone combining mark needs a letter to sit on.
    names = ["blank" if c == blank else "◌" * bool(unicodedata.combining(tokens[c][0])) + tokens[c] for c in classes]
    bottom.set_yticks(range(len(classes)), names)
    bottom.tick_params(axis="y", length=0)
    bottom.set_xlim(0, seconds)
    bottom.set_xlabel("time (s)")
    bottom.set_ylabel("class")
    figure.colorbar(image, cax=bottom.inset_axes((1.008, 0, 0.008, 1)), label="probability")
    figure.align_ylabels()
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)


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
    transcript = pronounce(text, tokens)
    log_probs = compute_log_probs(model, samples)
    alignment = align(log_probs, transcript, blank, boundary, len(samples) / SAMPLE_RATE)

    json_path = arguments.json or arguments.out_dir / f"{arguments.audio.stem}.json"
    picture_path = arguments.picture or arguments.out_dir / f"{arguments.audio.stem}.png"
    written = [json_path]
    for path in filter(None, (json_path, picture_path, arguments.save_emissions)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(json_path, arguments.audio, samples, alignment)
    if arguments.save_emissions:
        save_emissions(arguments.save_emissions, log_probs, transcript, blank, boundary)
        written.append(arguments.save_emissions)
    if not arguments.no_picture:
        draw_picture(picture_path, samples, log_probs, tokens, blank, boundary, alignment, arguments.picture_seconds)
        written.append(picture_path)

    print(
        f"{arguments.audio.name}: {len(samples) / SAMPLE_RATE:.2f} s, {len(transcript.words)} words, "
        f"{len(transcript.targets)} tokens in {len(log_probs)} frames, log-probability {alignment.score:.2f}\n"
    )
    print_table(alignment.words)
    print("\nwrote " + ", ".join(map(str, written)))
    mean = sum(word.confidence for word in alignment.words) / len(alignment.words)
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
