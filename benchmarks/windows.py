#!/usr/bin/env python3
"""Measures the seams of run_windows on real speech: what frames, best classes and words owe to the context.

    .venv/bin/python benchmarks/windows.py [--out docs/measurements] [--minutes 4]

A recording is made of prompts that the training examples learn from (examples/speech_data.py fetches them) and the two
clips in examples/data, end to end. The English model of torch_ctc_align.speech hears it in windows of several
lengths and contexts; what it gives is compared with windows whose context is as long as the model allows. Writes
windows.md, which holds nothing of the recording; takes four minutes of one core.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import math
import re
import sys
import textwrap
import time
import zlib
from importlib.metadata import version
from itertools import chain, pairwise, repeat
from pathlib import Path

import english
import torch
from cpu import forget_peak_memory, memory_bytes
from machine import commit_and_date, output_of
from page import table
from processes import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import speech_data

from torch_ctc_align import forced_align, merge_tokens, merge_words, plan_windows, run_windows
from torch_ctc_align.speech.models.english import HOP, SAMPLE_RATE, load_english

SECONDS_PER_FRAME = HOP / SAMPLE_RATE

LONGEST = (30, 14)  # seconds of a window and of its context: two seconds in the middle are kept
OTHERS = [(30, 13.5), (30, 4), (30, 2), (30, 1), (30, 0.5), (10, 4), (10, 2), (10, 1), (10, 0.5)]
CUT = [(30, 0), (10, 0)]  # without context, so that frames right beside a cut are kept
NEAR = [0, 0.1, 0.2, 0.5, 1, 2, 5]  # seconds from a cut
MEMORY = [(5, 1), (30, 1), (5, 4)]  # minutes, batch_size
PAGE = "# Windows on real speech\n\n{}\n\n{}\n\n## At a cut\n\n{}\n\n{}\n\n## Memory\n\n{}\n\n{}\n"
MEANING = """Compared with a context of 14 s. "windows": their number: how many times a sample is heard. "log p": \
|difference| of log-probabilities over all frames and classes. "mass moved": half the sum over the classes of \
|difference| of probabilities, mean over frames. "borders": starts and ends of words, by `forced_align` and \
`merge_words(borders="drop")`; they move by whole frames. The context of the first row is as good as that of what it \
is compared with: so much comes from where windows begin, with a model that hears all of its window."""
SEAM = """The same for windows without context, by the distance of a frame from the nearest cut."""
STREAM = """A stream of blocks of ten seconds, windows of 30 s with 2 s of context, a float32 result. "beyond it": \
resident memory at its highest, less that before the call and the result."""


def sizes_of(seconds, context):
    return {"window_frames": round(seconds / SECONDS_PER_FRAME), "context_frames": round(context / SECONDS_PER_FRAME)}


def make_recording(minutes):
    """Samples (N,) and words: clips of both speakers, in an order that depends on their text."""
    clips = speech_data.read_corpus(speech_data.fetch_prompts())
    clips.sort(key=lambda clip: zlib.crc32(" ".join(clip.words).encode()))
    chosen = speech_data.read_corpus(speech_data.CLIPS)
    for clip in clips:
        if len(clip.words) > 1 and sum(other.seconds for other in chosen) < 60 * minutes:
            chosen.append(clip)
    chosen.sort(key=lambda clip: zlib.crc32(clip.path.name.encode()))
    samples = torch.cat([speech_data.read_wav(clip.path) for clip in chosen])
    return samples, [word for clip in chosen for word in clip.words]


def find_borders(log_probs, words, model):
    """Start and end of every word in frames, (W, 2); a word is given by its labels."""
    targets = torch.tensor([english.join(words, model.separator)])
    paths, scores = forced_align(log_probs[None], targets, blank=model.blank)
    tokens = merge_tokens(paths[0], scores[0], model.blank)
    how = {"separator": model.separator, "tokens_per_word": list(map(len, words)), "borders": "drop"}
    words = merge_words(tokens, [""] * len(words), seconds_per_frame=SECONDS_PER_FRAME, **how)
    return torch.tensor([[word.start, word.end] for word in words]).div(SECONDS_PER_FRAME).round()


def compare(log_probs, borders, longest, longest_borders):
    far, moved = (log_probs - longest).abs(), (borders - longest_borders).abs()
    mass, changed = differences(log_probs, longest)
    shares = f"{far.max():.1f}", f"{far.mean():.3f}", f"{mass.mean():.4f}", f"{100 * changed.mean():.2f} %"
    return *shares, int((moved > 0).sum()), int((moved > 1).sum()), f"{moved.max():.0f}"


def differences(log_probs, longest):
    """Of every frame: the probability that moves to other classes, and whether the best class changes."""
    mass = (log_probs.exp() - longest.exp()).abs().sum(-1) / 2
    return mass.double(), (log_probs.argmax(-1) != longest.argmax(-1)).double()


def compare_near_cuts(log_probs, longest, plan):
    cuts = torch.tensor([window.begin for window in plan[1:]])
    frames = torch.arange(len(log_probs))[:, None]
    seconds = torch.where(frames >= cuts, frames - cuts, cuts - 1 - frames).amin(1) * SECONDS_PER_FRAME
    for low, high in pairwise([*NEAR, math.inf]):
        near = (seconds >= low - 1e-9) & (seconds < high - 1e-9)
        mass, changed = (values[near].mean() for values in differences(log_probs, longest))
        yield (
            f"{low:g} s and more" if high == math.inf else f"{low:g} to {high:g} s",
            int(near.sum()),
            f"{mass:.4f}",
            f"{100 * changed:.2f} %",
        )


def measure_memory(run, samples, minutes, batch_size):
    total = minutes * 60 * SAMPLE_RATE
    options = {"hop": HOP, "batch_size": batch_size, **sizes_of(30, 2)}
    run_windows(run, samples[: 120 * SAMPLE_RATE], **options)  # the model's own memory, once
    blocks = chain.from_iterable(repeat(samples.split(10 * SAMPLE_RATE)))
    before, began = forget_peak_memory(), time.process_time()
    log_probs = run_windows(run, blocks, num_samples=total, **options)
    extra = memory_bytes("VmHWM") - before - log_probs.nbytes
    seconds = time.process_time() - began
    return minutes, batch_size, f"{log_probs.nbytes / 1e6:.1f}", f"{extra / 1e6:.1f}", f"{seconds:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=4, help="of the recording (default: %(default)s)")
    arguments = parser.parse_args()

    model = load_english()
    names, run = model.labels, model.run
    samples, words = make_recording(arguments.minutes)
    spelled = english.spell(words, model)
    rows, near, longest = [], [], ()
    for seconds, context in speech_data.show_progress([LONGEST, *OTHERS, *CUT], "listening"):
        log_probs = run_windows(run, samples, hop=HOP, **sizes_of(seconds, context))
        found = log_probs, find_borders(log_probs, spelled, model)
        longest = longest or found
        plan = plan_windows(len(samples), hop=HOP, **sizes_of(seconds, context))
        heard = sum(window.stop - window.start for window in plan) / len(samples)
        rows.append([f"{seconds} s", f"{context:g} s", f"{len(plan)}: {heard:.2f}", *compare(*found, *longest)])
        if context == 0:
            near += [[f"{seconds} s", *row] for row in compare_near_cuts(log_probs, longest[0], plan)]
    memory = [measure_memory(run, samples, *sizes) for sizes in MEMORY]

    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))[1]
    introduction = (
        f"{made['date']}, package at {made['commit']}, torch {version('torch')}, {processor}; "
        f"`python benchmarks/windows.py`. hama {version('hama')}, the model of the demo: {len(names)} classes, a frame "
        f"every 20 ms. {len(samples) / SAMPLE_RATE / 60:.1f} minutes of speech: {len(log_probs):,} frames, "
        f"{len(words):,} words with {2 * len(words):,} starts and ends."
    )
    header = ["window", "context", "windows", "log p: most", "mean", "mass moved", "best class changes"]
    header += ["borders moved", "by more than a frame", "most, frames"]
    beside = ["window", "from a cut", "frames", "mass moved", "best class changes"]
    columns = ["minutes", "batch_size", "result, MB", "beyond it, MB", "processor time"]
    texts = [textwrap.fill(text, 118) for text in (f"{introduction} {MEANING}", SEAM, STREAM)]
    tables = table(header, rows[1:]), table(beside, near), table(columns, memory)
    page = arguments.out / "windows.md"
    page.write_text(PAGE.format(*chain.from_iterable(zip(texts, tables, strict=True))), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except speech_data.InputError as error:
        sys.exit(f"windows: {error}")
