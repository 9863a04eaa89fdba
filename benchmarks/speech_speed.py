#!/usr/bin/env python3
"""Measures where the time of an hour of speech goes, and the memory of an hour and of ten hours.

    .venv/bin/python benchmarks/speech_speed.py [--out docs/measurements] [--hours 10]

The recordings are the prompts and clips of examples/speech_data.py, one after another in a shuffled order, and again
and again in others, written as a WAV file; a line of the text is a clip. An hour is aligned with the English model. For
ten hours a stand-in with as many classes and frames takes its place, which returns the same random numbers for every
window: memory does not depend on them. Each is a process of its own. Writes speech_speed.md; takes five minutes on two
idle cores.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import textwrap
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import commit_and_date, configuration, output_of
from page import table
from processes import ROOT, add_child_option, run_as_child, run_child

sys.path.insert(0, str(ROOT / "examples"))
import speech_data

from torch_ctc_align import speech
from torch_ctc_align.speech import AcousticModel, Aligner

LIMIT_S = 3600  # of a process
MB = 1e6


class Recording(NamedTuple):
    path: Path
    text: str


def write_recording(folder: Path, hours: float) -> Recording:
    clips = speech_data.read_corpus(speech_data.fetch_prompts()) + speech_data.read_corpus(speech_data.CLIPS)
    chosen, lines, seconds = random.Random(0), [], 0.0
    path = folder / f"{hours:g}_hours.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, speech_data.SAMPLE_RATE, 0, "NONE", ""))
        while True:
            for clip in chosen.sample(clips, len(clips)):
                if seconds + clip.seconds > 3600 * hours:
                    return Recording(path, "\n".join(lines))
                with wave.open(str(clip.path)) as file:
                    out.writeframes(file.readframes(file.getnframes()))
                lines.append(" ".join(clip.words))
                seconds += clip.seconds


# ------------------------------------------------------------------------------------------------ the clock


class Clock:
    """Wall and processor seconds (of all threads) spent in parts of a program, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def add(self, name: str, wall: float, processor: float) -> None:
        spent = self.spent.setdefault(name, [0.0, 0.0])
        spent[0] += wall
        spent[1] += processor

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.add(name, time.perf_counter() - began[0], time.process_time() - began[1])

        return timed

    def around_items(self, name: str, function: Callable[..., Iterable]) -> Callable[..., Iterator]:
        def timed(*arguments: Any, **options: Any) -> Iterator:
            items = iter(function(*arguments, **options))
            step = self.around(name, lambda: next(items, None))
            while (item := step()) is not None:
                yield item

        return timed


READING, MODEL, SPELLING = "reading the file", "acoustic model", "text to phonemes, a model"
PATH, POSTERIORS, OURS = "`forced_align`", "`span_posteriors`", "everything else: our Python"


def time_parts(aligner: Aligner, clock: Clock) -> None:
    """Puts the clock around what is not the Python of the speech layer."""
    module = speech.stages
    model = aligner.model
    model.run = clock.around(MODEL, model.run)
    model.spell = clock.around(SPELLING, model.spell)
    speech.path.forced_align = clock.around(PATH, speech.path.forced_align)
    speech.path.span_posteriors = clock.around(POSTERIORS, speech.path.span_posteriors)
    open_audio = module.open_audio

    def open_timed(*arguments: Any, **options: Any) -> Any:
        recording = open_audio(*arguments, **options)
        recording.blocks = clock.around_items(READING, recording.blocks)
        return recording

    module.open_audio = clock.around(READING, open_timed)


# --------------------------------------------------------------------------------------------- measurements


def memory_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)[1])


def measure(path: str, text_path: str, stand_in: bool) -> dict:
    """Aligns a recording; returns seconds of its parts and bytes. It runs in a process of its own."""
    aligner = Aligner.english()
    if stand_in:
        put_stand_in(aligner.model)
    text = Path(text_path).read_text(encoding="utf-8")
    clip = speech_data.CLIPS / "sense_and_sensibility_01_austen_64kb-0870.wav"
    aligner(clip, clip.with_suffix(".txt").read_text(encoding="utf-8"))  # warms up
    clock = Clock()
    time_parts(aligner, clock)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmHWM")
    alignment = clock.around("all", aligner)(path, text)
    peak, after = memory_bytes("VmHWM"), memory_bytes("VmRSS")
    emissions = alignment.evidence.log_probs.nbytes
    return {
        "spent": clock.spent,
        "frames": len(alignment.evidence.log_probs),
        "labels": len(alignment.evidence.targets),
        "words": len(alignment.words),
        "emissions_MB": emissions / MB,
        "peak_MB": (peak - before - emissions) / MB,
        "left_MB": (after - before - emissions) / MB,
    }


def put_stand_in(model: AcousticModel) -> None:
    """A model of the same shape that costs nothing."""
    frames = int(model.window * model.sample_rate) // model.hop + 1
    made = torch.randn(1, frames, len(model.labels), generator=torch.Generator().manual_seed(0)).log_softmax(-1)

    def run(samples: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = lengths // model.hop + 1
        return made[:, : int(counts.max())], counts

    model.run = run


# ---------------------------------------------------------------------------------------------------- page


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def time_rows(row: dict) -> list[list[str]]:
    spent = dict(row["spent"])
    all_of_it = spent.pop("all")
    rest = list(all_of_it)
    for part in spent.values():
        rest = [left - taken for left, taken in zip(rest, part, strict=True)]

    def line(name: str, part: list[float]) -> list[str]:
        shares = [f"{100 * taken / whole:.2f} %" for taken, whole in zip(part, all_of_it, strict=True)]
        return [name, f"{part[0]:.2f}", shares[0], f"{part[1]:.2f}", shares[1]]

    names = (MODEL, SPELLING, READING, PATH, POSTERIORS)
    return [*(line(name, spent[name]) for name in names), line(OURS, rest), line("all", all_of_it)]


def describe(row: dict) -> str:
    return f"{row['frames']:,} frames, {row['words']:,} words, {row['labels']:,} labels"


def write_page(path: Path, hour: dict, memory: list[tuple[str, dict]], command: str) -> None:
    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))
    rows = [
        [name, describe(row), *(f"{row[key]:,.0f}" for key in ("emissions_MB", "peak_MB", "left_MB"))]
        if "error" not in row
        else [name, row["error"], "", "", ""]
        for name, row in memory
    ]
    parts = [
        "# Speed and memory of the speech layer",
        paragraph(
            f"{made['date']}, package at {made['commit']}, torch {version('torch')}, hama {version('hama')}; "
            f"`{command}`. {processor[1] if processor else os.uname().machine}, {configuration()['cpu_in_use']}; "
            f"{len(os.sched_getaffinity(0))} cores, torch on "
            f"{torch.get_num_threads()}; load {os.getloadavg()[1]:.1f} (5 minutes)."
        ),
        "## The time of an hour",
        paragraph(
            f'`Aligner.english()` on a WAV file of an hour with its text: {describe(hour)}; `star="ends"`. Seconds on '
            "the clock, and seconds of the processors, which other work on the machine disturbs less. The phonemes "
            "are found once for every distinct word, so their time does not grow with the recording for ever."
        ),
        table(["part", "s", "share", "processor s", "share"], time_rows(hour)),
        paragraph(
            "The time of `forced_align` grows with the square of the recording where the text grows with it; all the "
            "rest grows with the recording."
        ),
        "## Memory",
        paragraph(
            "Peak of the resident memory in the call, less what was resident before it (the libraries, the model, a "
            "warm-up on a clip), less the emissions; and what is left of it when the alignment has come back. The "
            "stand-in for the model returns the same random numbers for every window."
        ),
        table(["recording", "", "emissions, MB", "peak beside them, MB", "left, MB"], rows),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument("--hours", type=float, default=10, help="of the recording for memory (default: %(default)s)")
    add_child_option(parser)
    arguments = parser.parse_args()
    if arguments.child:
        run_as_child([measure], *arguments.child)
        return

    with tempfile.TemporaryDirectory() as scratch:

        def align(hours: float, stand_in: bool) -> dict:
            recording = write_recording(Path(scratch), hours)
            text = recording.path.with_suffix(".txt")
            text.write_text(recording.text, encoding="utf-8")
            given = {"path": str(recording.path), "text_path": str(text), "stand_in": stand_in}
            row = run_child("measure", given, LIMIT_S)
            recording.path.unlink()
            print(row, file=sys.stderr)
            return row

        hour = align(1, stand_in=False)
        if "error" in hour:
            sys.exit(f"speech_speed: {hour['error']}")
        memory = [
            ("an hour, English model", hour),
            ("an hour, stand-in", align(1, stand_in=True)),
            (f"{arguments.hours:g} hours, stand-in", align(arguments.hours, stand_in=True)),
        ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "speech_speed.md"
    write_page(page, hour, memory, "python benchmarks/speech_speed.py")
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (speech_data.InputError, speech.SpeechError) as error:
        sys.exit(f"speech_speed: {error}")
