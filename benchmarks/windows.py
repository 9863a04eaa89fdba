#!/usr/bin/env python3
"""Measures the seams of run_windows on real speech: what frames, best classes and words owe to the context.

    .venv/bin/python benchmarks/windows.py [--out docs/measurements] [--minutes 6]

A recording is made of the prompts that the training examples learn from (examples/speech_data.py fetches them) and the
two clips in examples/data, end to end. The acoustic model of examples/align_speech.py hears it in windows of several
lengths and contexts. What it gives is compared with windows whose context is as long as the model allows. Writes
windows.md, which holds nothing of the recording; takes three minutes on two cores.

Needs examples/requirements.txt (make demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import re
import sys
import textwrap
import time
import zlib
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path

import torch
from cpu import forget_peak_memory, memory_bytes
from machine import commit_and_date, output_of
from page import table
from processes import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import align_speech
import speech_data
from align_speech import HOP, SAMPLE_RATE, SECONDS_PER_FRAME, hama

from torch_ctc_align import forced_align, merge_tokens, merge_words, plan_windows, run_windows

LONGEST = (30, 14.5)  # seconds of a window, of its context: a second in the middle is kept
OTHERS = [(30, 14), (30, 4), (30, 2), (30, 1), (30, 0.5), (30, 0), (10, 4), (10, 2), (10, 1), (10, 0.5)]
HOURS = 1


def frames_of(seconds):
    return round(seconds / SECONDS_PER_FRAME)


def make_recording(minutes):
    """Samples (N,) and words: clips in an order that depends on their text, so that voices and topics change."""
    clips = speech_data.read_corpus(speech_data.fetch_prompts()) + speech_data.read_corpus(speech_data.CLIPS)
    clips.sort(key=lambda clip: (clip.path.parent != speech_data.CLIPS, zlib.crc32(" ".join(clip.words).encode())))
    chosen, seconds = [], 0.0
    for clip in clips:
        if seconds < 60 * minutes and len(clip.words) > 1:
            chosen.append(clip)
            seconds += clip.seconds
    chosen.sort(key=lambda clip: zlib.crc32(clip.path.name.encode()))
    words = [word for clip in chosen for word in clip.words]
    return torch.cat([speech_data.read_wav(clip.path) for clip in chosen]), words


def make_run(model):
    def run(samples, lengths):
        inputs = {"waveform": samples.numpy(), "waveform_lengths": lengths.numpy()}
        return tuple(map(torch.from_numpy, model.session.run(["log_probs", "out_lengths"], inputs)))

    return run


def listen(run, samples, seconds, context, **options):
    began = time.perf_counter()
    log_probs = run_windows(
        run, samples, hop=HOP, window_frames=frames_of(seconds), context_frames=frames_of(context), **options
    )
    return log_probs, time.perf_counter() - began


def find_borders(log_probs, transcript, blank, boundary):
    """Start and end of every word in frames, (W, 2)."""
    paths, scores = forced_align(log_probs[None], torch.tensor([transcript.targets]), blank=blank)
    words = merge_words(
        merge_tokens(paths[0], scores[0], blank),
        transcript.words,
        separator=boundary,
        tokens_per_word=transcript.tokens_per_word,
        borders="drop",
        seconds_per_frame=SECONDS_PER_FRAME,
    )
    return torch.tensor([[word.start, word.end] for word in words]).div(SECONDS_PER_FRAME).round()


def compare(log_probs, borders, longest, longest_borders):
    """What differs: log-probabilities, probabilities, best classes, starts and ends of words."""
    far = (log_probs - longest).abs()
    likely = (log_probs.exp() - longest.exp()).abs()
    changed = (log_probs.argmax(-1) != longest.argmax(-1)).double().mean().item()
    moved = (borders - longest_borders).abs().flatten()
    return [
        f"{far.max():.2f}",
        f"{far.mean():.3f}",
        f"{likely.max():.3f}",
        f"{likely.sum(-1).mean() / 2:.5f}",
        f"{100 * changed:.2f} %",
        int((moved > 0).sum()),
        int((moved > 1).sum()),
        f"{moved.max():.0f}",
    ]


def measure_memory(run, samples, batch_size):
    """A stream of blocks of ten seconds, an hour long: seconds, and resident MB at most beyond the result."""
    total = int(HOURS * 3600 * SAMPLE_RATE)
    blocks = chain.from_iterable(repeat(samples.split(10 * SAMPLE_RATE)))
    listen(run, samples[: 60 * SAMPLE_RATE], 30, 2, batch_size=batch_size)  # the model's own memory, once
    before = forget_peak_memory()
    log_probs, seconds = listen(run, blocks, 30, 2, num_samples=total, batch_size=batch_size)
    extra = memory_bytes("VmHWM") - before - log_probs.nbytes
    return batch_size, f"{seconds:.0f} s", f"{log_probs.nbytes / 1e6:.0f} MB", f"{extra / 1e6:.0f} MB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="of the recording (default: %(default)s)")
    arguments = parser.parse_args()

    model = hama.ASRModel()
    tokens, blank, run = model.decoder_tokens, model.blank_id, make_run(model)
    boundary = tokens.index("<wb>")
    samples, words = make_recording(arguments.minutes)
    transcript = align_speech.pronounce(" ".join(words), tokens)
    longest, _ = listen(run, samples, *LONGEST)
    longest_borders = find_borders(longest, transcript, blank, boundary)
    rows = []
    for seconds, context in speech_data.show_progress(OTHERS, "listening"):
        log_probs, took = listen(run, samples, seconds, context)
        plan = plan_windows(len(samples), hop=HOP, window_frames=frames_of(seconds), context_frames=frames_of(context))
        found = compare(log_probs, find_borders(log_probs, transcript, blank, boundary), longest, longest_borders)
        rows.append([f"{seconds} s", f"{context:g} s", len(plan), *found, f"{took:.1f} s"])
    memory = [measure_memory(run, samples, batch_size) for batch_size in (1, 4)]

    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))[1]
    introduction = (
        f"{made['date']}, package at {made['commit']}, torch {version('torch')}, {processor}; "
        f"`python benchmarks/windows.py`. hama {version('hama')}, the model of the demo: {len(tokens)} classes, a "
        f"frame every 20 ms. {len(samples) / SAMPLE_RATE / 60:.1f} minutes of speech: {len(longest):,} frames, "
        f"{len(words):,} words with {2 * len(words):,} starts and ends."
    )
    header = ["window", "context", "windows", "log p: max", "mean", "p: max", "mass moved, mean", "best class changes",
              "borders moved", "by more than a frame", "most, frames", "time"]  # fmt: skip
    page = arguments.out / "windows.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.format(introduction=textwrap.fill(introduction, 118), seams=table(header, rows),
                                memory=table(["batch_size", "time", "result", "beyond it"], memory)))  # fmt: skip
    print(page.read_text())


PAGE = """# Windows

{introduction}

{seams}

{memory}
"""

if __name__ == "__main__":
    try:
        main()
    except speech_data.InputError as error:
        sys.exit(f"windows: {error}")
