"""A corpus with every kind of trouble, and a model that writes down what it hears, takes its time, or dies.

The model is that of ``harness/speech.py`` at 1,000 Hz, so that ten hours of sound are few samples.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness.speech import BLANK, LABELS, SEPARATOR, hear, say
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel

RATE, HOP = 1000, 20
TEN_HOURS = 10 * 3600


def sound(text):
    """(samples,) float32: the text as the model hears it."""
    return np.repeat(np.array(say(text), np.float32) / 100, HOP)


def heard(samples):
    """The text that is said in samples (N,)."""
    classes = torch.round(samples[: len(samples) // HOP * HOP : HOP] * 100).long().clamp(0, len(LABELS) - 1)
    collapsed = [int(label) for label in torch.unique_consecutive(classes) if label != BLANK]
    return "".join(LABELS[label] for label in collapsed).replace("|", " ")


@dataclass(frozen=True)
class Model:
    """Called without arguments it loads the model, as ``Align(model=...)`` wants it; it can be pickled.

    Attributes:
        log: a file that gets a line for each recording that is heard: the process, and what it hears.
        deadly: what kills the process that hears it.
        deaths: how often.
        takes: seconds for a recording.
        awaits: processes; a recording takes until so many have heard something, at most ten seconds.
    """

    log: str
    deadly: str | None = None
    deaths: int = 1
    takes: float = 0.0
    awaits: int = 0

    def __call__(self):
        return AcousticModel(self.run, labels=LABELS, blank=BLANK, hop=HOP, sample_rate=RATE, receptive_field=HOP,
                             separator=SEPARATOR, language="en", name="loud")  # fmt: skip

    def run(self, samples, lengths):
        for one, length in zip(samples, lengths.tolist(), strict=True):
            text = heard(one[:length])
            if not text:  # silence of ten hours
                continue
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {text}\n")
            time.sleep(self.takes)
            patience = time.monotonic() + 10
            while len(self.processes) < self.awaits and time.monotonic() < patience:
                time.sleep(0.05)
            if text == self.deadly and self.texts.count(text) <= self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        return hear(samples, lengths, HOP)

    @property
    def texts(self):
        """What was heard so far, in this order, by whichever process."""
        path = Path(self.log)
        return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def processes(self):
        """Those that have heard something."""
        return {line.partition(" ")[0] for line in Path(self.log).read_text().splitlines()}


def broken():
    raise SpeechError("there are no weights")


def write_flac_of_ten_hours(soundfile, path, text):
    """Silence, with a text at its end."""
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        minute, spoken = np.zeros(60 * RATE, np.float32), sound(text)
        for _ in range(600):
            file.write(minute)
        file.write(spoken)


def text_of(number):
    """Texts of different lengths, no two alike."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["take", letters[number % 26] * (1 + number % 3), letters[number // 26], "more of it"[: number % 11]]
    return " ".join(words).strip()


def write_corpus(folder, soundfile, count=12, *, trouble=False):
    """Writes recordings and manifest.jsonl; returns ids and, of each, the status that is to come.

    With trouble, items that cannot be aligned stand between the others, and first of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(count):
        name = f"good {k:02}.wav"
        soundfile.write(folder / name, sound(text_of(k)), RATE, subtype="FLOAT")
        rows.append(({"id": f"good-{k:02}", "audio_filepath": name, "text": text_of(k)}, "ok"))
    if trouble:
        rows = write_trouble(folder, soundfile) + rows
        rows = rows[::2] + rows[1::2]  # good and bad ones among each other
    lines = [json.dumps(row) for row, _ in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return {row["id"]: status for row, status in rows}


def write_trouble(folder, soundfile):
    """Rows of things that happen, each with its status."""
    (folder / "empty.wav").touch()
    (folder / "broken.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt nothing that a reader knows")
    (folder / "folder.wav").mkdir(exist_ok=True)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "short.wav", sound("a"), RATE, subtype="FLOAT")
    write_flac_of_ten_hours(soundfile, folder / "ten hours.flac", "good night")
    trouble = [
        ("vanished", "nowhere.wav", "it is gone", "unreadable"),
        ("empty", "empty.wav", "nothing in it", "unreadable"),
        ("broken", "broken.wav", "no sound", "unreadable"),
        ("folder", "folder.wav", "no file", "unreadable"),
        ("silent", "silent.wav", "not a word", "unreadable"),
        ("ten-hours", "ten hours.flac", "good night", "ok"),
        ("wordless", "short.wav", "...", "no_text"),
        ("too-long", "short.wav", "far more than can be said in so short a time", "too_long_text"),
    ]
    return [({"id": id, "audio_filepath": name, "text": text}, status) for id, name, text, status in trouble]
