"""The speech that the training examples learn from: recordings, transcripts, features, batches.

A *corpus* is a folder of clips: `name.wav` (16 kHz, 16 bit, mono) beside `name.txt` (what is said in it). fetch_prompts
makes one from two Debian packages: the prompts of a telephone exchange, one speaker, some 20 minutes. This module needs
only torch; fetching also needs apt-get and the package G722.
"""

import argparse
import gzip
import hashlib
import io
import math
import os
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import wave
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

SAMPLE_RATE = 16_000  # Hz
HOP = 160  # samples from one column of the spectrogram to the next
WINDOW = 400  # samples
FFT = 512
MELS = 64
FEATURES = 3 * MELS  # three columns a frame
SECONDS_PER_FRAME = 2 * HOP / SAMPLE_RATE

ALPHABET = "-|'abcdefghijklmnopqrstuvwxyz"  # class 0 is the blank, "|" stands between words
BLANK = 0
WORD_BREAK = ALPHABET.index("|")

CLIPS = Path(__file__).with_name("data")  # two sentences of a LibriVox reader
CACHE = Path(__file__).with_name(".cache")

# "asterisk core sounds", recorded by Allison Smith: CC-BY-SA-3.0. The prompts, and a list of their texts.
PACKAGES = {
    "asterisk-core-sounds-en-g722=1.6.1-1": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    "asterisk-core-sounds-en=1.6.1-1": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
}

MAX_SECONDS = 20  # longer clips are left out, since a batch has to hold two of them

INK = "#1f2933"
DRAWING_STYLE = {"font.size": 8.5, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK}

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class InputError(Exception):
    """A mistake that the user can correct, described in one line."""


# Fetching -----------------------------------------------------------------------------------------------------------


def fetch_prompts(cache: Path = CACHE) -> Path:
    """Returns the folder of prompts; fetches and decodes them the first time. The folder is made under another name and
    then renamed, so a folder that exists is complete."""
    folder = cache / "prompts"
    if folder.is_dir():
        return folder
    try:
        from G722 import G722
    except ImportError:
        raise InputError(f"{missing_package('G722')}, or give --data DIR, a folder of .wav and .txt files") from None
    cache.mkdir(parents=True, exist_ok=True)
    sounds, texts = (read_deb(fetch_package(name, sha256, cache)) for name, sha256 in PACKAGES.items())
    (listing,) = (data for name, data in texts.items() if name.endswith("core-sounds-en.txt.gz"))
    transcripts = dict(re.findall(r"^([^;:\s]+): *(.*)$", gzip.decompress(listing).decode(), re.MULTILINE))

    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "prompts"
        made.mkdir()
        for path, data in show_progress(list(sounds.items()), "decoding"):
            name = re.sub(r".*/en_US_f_Allison/|\.g722$", "", path)
            if path.endswith(".g722") and name in transcripts:
                file = made / name.replace("/", "_")
                write_wav(file.with_name(file.name + ".wav"), G722(SAMPLE_RATE, 64_000).decode(data))
                file.with_name(file.name + ".txt").write_text(transcripts[name] + "\n")
        made.rename(folder)
    return folder


def fetch_package(name: str, sha256: str, cache: Path) -> bytes:
    """A Debian package from the cache, or else from apt-get, which needs no root for this."""
    kept = cache / f"{name.partition('=')[0]}.deb"
    if not kept.is_file():
        print(f"fetching {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            try:
                done = subprocess.run(["apt-get", "download", name], cwd=scratch, capture_output=True, text=True)
            except FileNotFoundError:
                raise InputError(
                    f"there is no apt-get here to fetch {name} with; put the package into {kept}, "
                    "or give --data DIR, a folder of .wav and .txt files"
                ) from None
            found = list(Path(scratch).glob("*.deb"))
            if done.returncode != 0 or not found:
                errors = re.findall(r"^E: (.*)", done.stderr, re.MULTILINE)
                raise InputError(
                    f"apt-get download {name} failed ({errors[-1] if errors else 'no file came'}); "
                    "if this machine has a network, apt-get update may help"
                )
            found[0].rename(kept)
    data = kept.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{kept} is not the package {name} (wrong SHA-256); delete it and run this again")
    return data


def read_deb(package: bytes) -> dict[str, bytes]:
    """The files in a Debian package, an ar archive with a member data.tar.*."""
    position = len(b"!<arch>\n")
    while position < len(package):
        header = package[position : position + 60]
        size = int(header[48:58])
        position += 60
        if header.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[position : position + size])) as tar:
                return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        position += size + size % 2
    raise InputError("a Debian package without files")


def write_wav(path: Path, samples: bytes) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples)


def missing_package(name: str) -> str:
    return f"the package {name} is missing; run: pip install -r {Path(__file__).with_name('requirements.txt')}"


# Reading ------------------------------------------------------------------------------------------------------------


@dataclass
class Clip:
    """A recording and its words; ``features`` is (T, FEATURES)."""

    path: Path
    words: list[str]
    features: Tensor
    seconds: float

    @property
    def targets(self) -> Tensor:
        return torch.tensor([ALPHABET.index(letter) for letter in "|".join(self.words)])


def read_words(text: str) -> list[str]:
    """The words as they are spoken, in letters a-z and '; no words if the text does not show that.

    >>> read_words("Press 3, or hang-up."), read_words("PBX"), read_words("dial 8500"), read_words("[a beep]")
    (['press', 'three', 'or', 'hang', 'up'], [], [], [])
    """
    text = re.sub(r"\[.*?\]", " ", text)  # a remark: "dash [-]"
    if re.search(r"[A-Z]{3}|[^-A-Za-z0-9' .,;:!?\"]|\d[.\d]", text.strip()):
        return []  # abbreviations, signs, larger numbers: not spoken as they are written
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text.lower())
    return [word.strip("'") for word in re.findall(r"[a-z']+", text) if word.strip("'")]


def read_wav(path: Path) -> Tensor:
    """(N,) float32 in [-1, 1)."""
    try:
        with wave.open(str(path)) as file:
            if file.getparams()[:3] != (1, 2, SAMPLE_RATE):
                raise wave.Error(f"expected 16 kHz, 16 bit, mono, found {file.getparams()}")
            samples = bytearray(file.readframes(file.getnframes()))
    except (wave.Error, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}; if it is in {CACHE}, delete that and run this again") from None
    return torch.frombuffer(samples, dtype=torch.int16).float() / 2**15


def mel_filters() -> Tensor:
    """(FFT // 2 + 1, MELS): triangles, evenly spaced in mel = 2595 log10(1 + hertz / 700)."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)  # Hz
    hertz = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    return torch.minimum((hertz - left) / (middle - left), (right - hertz) / (right - middle)).clamp(min=0)


def log_mel(samples: Tensor) -> Tensor:
    """(N,) samples -> (N // HOP // 2 + 1, FEATURES), each with mean 0 and variance 1 over the clip.

    A frame is three columns of the log-mel spectrogram side by side; frame t is centred on t * SECONDS_PER_FRAME.
    """
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(samples, FFT, HOP, WINDOW, window, pad_mode="constant", return_complex=True).abs().square()
    columns = (spectrum.T @ mel_filters() + 1e-8).log()
    columns = (columns - columns.mean(0)) / (columns.std(0) + 1e-3)
    columns = torch.nn.functional.pad(columns, (0, 0, 1, 1))
    return columns.unfold(0, 3, 2).transpose(1, 2).flatten(1).contiguous()


def read_corpus(folder: Path) -> list[Clip]:
    """The clips of a folder whose text can be read as it is spoken."""
    paths = sorted(path for path in folder.glob("*.wav") if path.with_suffix(".txt").is_file())
    if not paths:
        raise InputError(f"{folder} has no .wav file with a .txt file beside it")
    clips = []
    for path in show_progress(paths, "listening"):
        words = read_words(path.with_suffix(".txt").read_text(encoding="utf-8"))
        samples = read_wav(path)
        if words and WINDOW <= len(samples) <= MAX_SECONDS * SAMPLE_RATE:
            clips.append(Clip(path, words, log_mel(samples), len(samples) / SAMPLE_RATE))
    if not clips:
        raise InputError(f"{folder} has no clip up to {MAX_SECONDS} s with a text that can be read as it is spoken")
    return clips


def split(clips: Sequence[Clip], fold: int, folds: int = 6) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on, and held-out clips: those whose text falls into the fold. Equal texts stay together."""
    held_out = [zlib.crc32(" ".join(clip.words).encode()) % folds == fold for clip in clips]
    return (
        [clip for clip, held in zip(clips, held_out, strict=True) if not held],
        [clip for clip, held in zip(clips, held_out, strict=True) if held],
    )


# A second opinion ---------------------------------------------------------------------------------------------------


def find_reference_borders(clips: Sequence[Clip]) -> list[list[tuple[float, float]] | None]:
    """Start and end of every word (s) by pocketsphinx: another model, of phonemes, with HMMs, which other people
    trained on other speech. None for a clip with a word that it cannot pronounce."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise InputError(f"{missing_package('pocketsphinx')}, or give --no-reference") from None
    decoder = Decoder(samprate=SAMPLE_RATE, bestpath=False, loglevel="FATAL")
    frame = 1 / decoder.config["frate"]
    # Its frame i is the window that starts at i / frate. Our times are middles of frames; borders lie half-way between.
    offset = decoder.config["wlen"] / 2 - frame / 2

    def align(clip: Clip) -> list[tuple[float, float]] | None:
        if any(decoder.lookup_word(word) is None for word in clip.words):
            return None
        with wave.open(str(clip.path)) as file:
            samples = file.readframes(file.getnframes())
        decoder.set_align_text(" ".join(clip.words))
        for prepare in (lambda: None, decoder.set_alignment):  # the second pass aligns phones: finer times
            prepare()
            decoder.start_utt()
            decoder.process_raw(samples, full_utt=True)
            decoder.end_utt()
        words = [word for word in decoder.get_alignment() or [] if word.name[0] != "<"]  # "<sil>" is silence
        if len(words) != len(clip.words):
            return None
        return [(w.start * frame + offset, (w.start + w.duration) * frame + offset) for w in words]

    return [align(clip) for clip in show_progress(clips, "asking pocketsphinx")]


# Batches ------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Clips side by side. After its end a clip has zeros as features and -1 as targets."""

    features: Tensor  # (B, T, FEATURES)
    frames: Tensor  # (B,)
    targets: Tensor  # (B, L)
    target_lengths: Tensor  # (B,)
    clips: Tensor  # (B,) their numbers in the data set


class SpeechDataset(Dataset):
    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.clips[index].features, self.clips[index].targets


def collate(items: list[tuple[int, Tensor, Tensor]]) -> Batch:
    indices, features, targets = zip(*items, strict=True)
    return Batch(
        pad_sequence(features, batch_first=True),
        torch.tensor([len(feature) for feature in features]),
        pad_sequence(targets, batch_first=True, padding_value=-1),
        torch.tensor([len(target) for target in targets]),
        torch.tensor(indices),
    )


class BucketSampler(Sampler[list[int]]):
    """Batches of items of similar length, at most ``size`` with padding; every epoch has other batches.

    The seed and the epoch alone decide them, so an interrupted run continues with the same batches. No item is alone in
    its batch (if two of the longest fit into one), since torch.compile makes another graph for a batch of 1.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int):
        self.lengths, self.size, self.seed = torch.tensor(lengths), size, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        # Noise on the lengths gives an item other neighbours in every epoch.
        noise = 1 + 0.2 * torch.rand(len(self.lengths), generator=generator)
        batches: list[list[int]] = []
        room = 0
        for index in (self.lengths * noise).argsort(descending=True).tolist():
            if room <= 0:
                batches.append([])
                room = self.size // int(1.2 * self.lengths[index])  # later items are not longer
            batches[-1].append(index)
            room -= 1
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2] += batches.pop()
        order = torch.randperm(len(batches), generator=generator)
        return iter([batches[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(list(iter(self)))


def make_loader(dataset: Dataset, collate_fn: Callable, lengths: Sequence[int], size: int, seed: int) -> DataLoader:
    """Batches made by a worker process. Set ``loader.batch_sampler.epoch`` before every epoch."""
    return DataLoader(
        dataset,
        batch_sampler=BucketSampler(lengths, size, seed),
        collate_fn=collate_fn,
        num_workers=1,
        persistent_workers=True,
        generator=torch.Generator(),  # otherwise the loader draws from dropout's generator
    )


# Running ------------------------------------------------------------------------------------------------------------


def make_parser(description: str, quick: str) -> argparse.ArgumentParser:
    """The options of both training examples."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder of .wav and .txt files (default: prompts that it fetches)")
    parser.add_argument(
        "--out", type=Path, default=Path("trained"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick} on the two clips in examples/data")
    parser.add_argument("--restart", action="store_true", help="train anew, whatever has been trained before")
    parser.add_argument("--no-picture", action="store_true", help="draw nothing")
    return parser


def load_pyplot():
    """matplotlib, set up to draw into files."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"{missing_package('matplotlib')}, or give --no-picture") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(DRAWING_STYLE)
    return plt


def show_progress(items: Collection, what: str) -> Iterator:
    """Yields the items, with a progress bar if stderr is a terminal."""
    visible = sys.stderr.isatty() and len(items) > 1
    for done, item in enumerate(items):
        if visible:
            print(f"\r{what} [{'#' * (30 * done // len(items)):30}] {done}/{len(items)}", end="", file=sys.stderr)
        yield item
    if visible:
        print("\r\x1b[K", end="", file=sys.stderr)


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes under another name and then renames, so a file that exists is complete, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, scratch)
    scratch.replace(path)


def load_checkpoint(path: Path, settings: dict) -> dict | None:
    """The state from save_checkpoint, if there is one; its settings must be those of this run."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu")
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read {path} ({reason}); give --restart to train anew") from None
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise InputError(
                f"{path} was made with {name} = {state['settings'].get(name)}, this run has {value}: "
                "give --restart to train anew, or another --out"
            )
    return state


def learning_rate(peak: float, progress: float, warm_up: float = 0.15) -> float:
    """Rises to the peak, then falls to 0 along a cosine; ``progress`` goes from 0 to 1."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of a label and one entry for each column."""
    width = max(len(row[0]) for row in rows)
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *(row[1:] for row in rows), strict=True)]
    for label, *cells in [["", *columns], *rows]:
        print(f"{label:{width}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))


def run(name: str, command: Callable[[], None]) -> None:
    """Calls the command; reports a mistake that the user can correct in one line."""
    try:
        command()
    except (InputError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
