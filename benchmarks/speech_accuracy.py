#!/usr/bin/env python3
"""Compares the words of a recording with those of an independent aligner: ours, and those of two other aligners.

    make test-clients                                                   # sets .clients up
    .venv/bin/python benchmarks/speech_accuracy.py [--clients .clients] [--out docs/measurements]

The English model of torch_ctc_align.speech hears 100 prompts of a telephone exchange and two clips of another
speaker once. On these emissions four aligners find the words: ours with its default borders, ours with tight ones,
ctc-forced-aligner and whisperX (speech_peers.py runs these two, in the environment of make test-clients). Each is
compared with pocketsphinx, another model, of phonemes, which other people trained on other speech. The prompts come
from the half that did not choose the parameters of Pauses (word_borders.py has the other one). Writes
speech_accuracy.md, which holds nothing of the recordings; takes a minute.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from english import join, read_and_listen, spell
from machine import commit_and_date, configuration, output_of
from page import table
from processes import ROOT
from speech_peers import ROUNDS, SAMPLE_RATE
from torch import Tensor

sys.path.insert(0, str(ROOT / "examples"))
import speech_data

from torch_ctc_align import Pauses, forced_align, merge_tokens, merge_words, min_frames
from torch_ctc_align.speech import AcousticModel, SpeechError
from torch_ctc_align.speech.models.english import load_english

PROMPTS = 100
SEED = 0
NEAR = (0.02, 0.05, 0.1)  # seconds

# What word_borders.py chooses on the first half of the prompts if the ends of clips count as well.
CHOSEN_WITH_ENDS = Pauses(max_pause=0.3, share=0.5, lead_in=0.08, tail=0.2)

Times = Sequence[Sequence[float]]  # start and end of every word, seconds


class Clip(NamedTuple):
    log_probs: Tensor  # (T, C)
    words: list[list[int]]  # the tokens of each
    reference: Times
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


class Aligner(NamedTuple):
    """What an aligner found in all clips; None where it refused one."""

    borders: list[Times | None]
    seconds: list[float | None]

    def take(self, places: Sequence[int]) -> list[Times | None]:
        return [self.borders[place] for place in places]


def hear(clips: list[speech_data.Clip], model: AcousticModel) -> list[Clip]:
    """The clips that pocketsphinx can align and that have enough frames for their phonemes."""
    heard = []
    reference = speech_data.find_reference_borders(clips)
    for clip, theirs in speech_data.show_progress(list(zip(clips, reference, strict=True)), "listening"):
        if theirs is None:
            continue
        words = spell(clip.words, model)
        log_probs = read_and_listen(clip.path, model)
        # One frame more: the first star of ctc-forced-aligner takes one.
        if int(min_frames(torch.tensor([join(words, model.separator)]))) < len(log_probs):
            heard.append(Clip(log_probs, words, theirs, round(clip.seconds * SAMPLE_RATE)))
    return heard


# ------------------------------------------------------------------------------------------------------- aligners


def align(clip: Clip, model: AcousticModel, borders) -> Times:
    targets = torch.tensor([join(clip.words, model.separator)])
    paths, scores = forced_align(clip.log_probs[None], targets, blank=model.blank)
    words = merge_words(
        merge_tokens(paths[0], scores[0], model.blank),
        [""] * len(clip.words),
        seconds_per_frame=model.seconds_per_frame,
        separator=model.separator,
        borders=borders,
        frame_offset=model.frame_offset,
        recording_end=clip.seconds,
    )
    return [(word.start, word.end) for word in words]


def align_ours(clips: list[Clip], model: AcousticModel, borders) -> Aligner:
    found, seconds = [], []
    for clip in clips:
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            words = align(clip, model, borders)
            times.append(time.perf_counter() - began)
        found.append(words)
        seconds.append(statistics.median(times))
    return Aligner(found, seconds)


def align_theirs(
    clips: list[Clip], model: AcousticModel, environment: Path
) -> tuple[dict[str, Aligner], dict[str, str]]:
    """The aligners of speech_peers.py by name, and their versions; none where the environment is missing."""
    python = environment.absolute() / "bin" / "python"
    if not python.is_file():
        print(
            f"{environment} is missing, so no other aligner is measured; make test-clients sets it up", file=sys.stderr
        )
        return {}, {}
    libraries = os.pathsep.join(
        filter(None, [str(environment.absolute() / "stubs"), os.environ.get("LD_LIBRARY_PATH")])
    )
    with tempfile.TemporaryDirectory() as scratch:
        emissions, results = Path(scratch, "emissions.pt"), Path(scratch, "results.json")
        torch.save(
            {
                "labels": len(model.labels),
                "blank": model.blank,
                "separator": model.separator,
                "clips": [
                    {"log_probs": clip.log_probs, "words": clip.words, "samples": clip.samples} for clip in clips
                ],
            },
            emissions,
        )
        script = Path(__file__).with_name("speech_peers.py")
        subprocess.run(
            [python, "-W", "ignore", script, emissions, results],
            check=True,
            env=os.environ | {"LD_LIBRARY_PATH": libraries},
        )
        found = json.loads(results.read_text(encoding="utf-8"))
    return {name: Aligner(**columns) for name, columns in found["aligners"].items()}, found["versions"]


def half_a_frame_earlier(aligner: Aligner, clips: list[Clip], model: AcousticModel) -> Aligner:
    """What the aligner would say if it knew where the frames of the model lie."""

    def move(clip: Clip, words: Times | None) -> Times | None:
        moved = model.frame_offset * model.seconds_per_frame
        return words and [[min(max(t + moved, 0.0), clip.seconds) for t in word] for word in words]

    return Aligner(list(map(move, clips, aligner.borders)), aligner.seconds)


# ------------------------------------------------------------------------------------------------------- errors


class Errors(NamedTuple):
    """Seconds, later than pocketsphinx: +."""

    starts: Tensor
    ends: Tensor

    def columns(self) -> list[float]:
        """The more the worse: mean errors in ms, shares of borders that are not near (%), the worst one in ms."""
        both = torch.cat(self).abs()
        means = [1000 * part.abs().mean().item() for part in (*self, both)]
        # A millisecond's fraction forgives the rounding of times.
        far = [100 * (both > near + 1e-6).double().mean().item() for near in NEAR]
        return [*means, *far, 1000 * both.max().item()]


HEADER = [
    "aligner",
    *(f"{which}: mean error, ms" for which in ("starts", "ends", "both")),
    *(f"within {1000 * near:.0f} ms" for near in NEAR),
    "worst, ms",
]


BETWEEN, ENDS, ALL = "between two words", "at the ends of a clip", "between two words and at the ends of a clip"


def measure(clips: list[Clip], found: list[Times | None], where: str) -> Errors:
    """Errors of the starts and ends that ``where`` names."""
    first, rest = {BETWEEN: (False, True), ENDS: (True, False), ALL: (True, True)}[where]
    starts, ends = [], []
    for clip, words in zip(clips, found, strict=True):
        if words is None:
            continue
        errors = torch.tensor(words, dtype=torch.float64) - torch.tensor(clip.reference, dtype=torch.float64)
        starts.append(errors[0 if first else 1 : None if rest else 1, 0])
        ends.append(errors[0 if rest else -1 : None if first else -1, 1])
    return Errors(torch.cat(starts), torch.cat(ends))


def show(columns: list[float]) -> list[str]:
    *means, worst = columns
    return [f"{mean:.1f}" for mean in means[:3]] + [f"{100 - far:.1f} %" for far in means[3:]] + [f"{worst:.0f}"]


# --------------------------------------------------------------------------------------------------------- page

OURS, WITH_ENDS, TIGHT = "ours", "ours, chosen with the ends", 'ours, `borders="drop"`'

POLICIES = """\
- **ours**: `merge_words` with `Pauses()`. Words share a pause of up to 0.25 s half and half; at a longer one, and at
  the ends of the clip, a word begins 0.04 s before its first token and ends 0.15 s after its last one. The separator is
  part of the pause. Frame t begins half a frame before t times 20 ms (`frame_offset=-0.5`), where this model has it.
- **ours, chosen with the ends**: `Pauses(max_pause=0.3, lead_in=0.08, tail=0.2)`, the best parameters on the other half
  of the prompts if the ends of clips count as well ([word_borders.md](word_borders.md)). Not the default: these prompts
  are cut closer to their speech than recordings are.
- **ours, `borders="drop"`**: from the first token of a word to its last one.
- **ctc-forced-aligner**: as its program does, a star with log-probability 0 before every word, in place of separators.
  A word has half of the blanks between it and its neighbour; the neighbour is the star, which takes all frames that are
  not surely a token, so words come out tight. The end is the beginning of the last frame. Frame t begins at t times 20
  ms: it rounds the duration over the number of frames up to whole milliseconds.
- **ctc-forced-aligner, separators**: the same code on exactly the targets of ours; the separator is a neighbour like
  any other.
- **whisperX**: its `align`, whole. A token lasts until the next one begins, so a word ends where the separator begins,
  and the last one where the path is most probable. Frame t begins at t times the duration over the number of frames,
  which makes frames a little shorter than 20 ms. It rounds to milliseconds."""


REASONS = """\
Where ours is not better, we found two reasons. *The worst border*: the model emits a vowel once, near its beginning,
so a vowel drawn out to more than 0.25 s looks like a pause. Ours takes the two words for separate there, and each
gets its tail or lead-in alone, where pocketsphinx lets them touch, or nearly. Half of every pause, as
ctc-forced-aligner with separators and `borders="split"` have it, is nearer there, and farther on the whole
([word_borders.md](word_borders.md)). One such border of the 56 in the LibriVox clips is also what keeps ours from
being within 100 ms everywhere. *The ends of a clip*: {near} of {all} first words begin within 30 ms of the beginning
of their clip, says pocketsphinx, and {near_end} last words end as near to its end. ctc-forced-aligner puts the first
start and the last end at the very ends of a clip, whatever the model hears (with stars, the last end alone), which is
right for prompts that are cut like this."""


def counts_of(clips: list[Clip]) -> str:
    words = sum(len(clip.words) for clip in clips)
    return f"{len(clips)} clips, {words} words, {sum(clip.seconds for clip in clips):.0f} s"


def judge(rows: dict[str, list[float]]) -> str:
    """A sentence on the columns in which ours is not better than all others."""
    worse = [
        f"{column} ({name})"
        for name, columns in rows.items()
        if name not in (OURS, WITH_ENDS)
        for column, theirs, ours in zip(HEADER[1:], columns, rows[OURS], strict=True)
        if theirs <= ours
    ]
    return "Ours is better in every column." if not worse else f"Ours is not better in: {'; '.join(worse)}."


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def write_page(path: Path, sets, aligners: dict[str, Aligner], versions: dict[str, str], model: AcousticModel) -> None:
    clips = list(chain.from_iterable(sets.values()))
    places, first = {}, 0
    for name, part in sets.items():
        places[name] = range(first, first + len(part))
        first += len(part)
    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))
    config = configuration()
    names = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "torch")
    parts = [
        "# Accuracy of words",
        paragraph(
            f"{made['date']}, package at {made['commit']}, torch {version('torch')}; "
            f"`python benchmarks/speech_accuracy.py`. {processor[1] if processor else os.uname().machine}, "
            f"{config['cpu_in_use']}; {len(os.sched_getaffinity(0))} cores. "
            f"Acoustic model: hama {version('hama')}, the English one of `torch_ctc_align.speech`, "
            f"{len(model.labels)} classes: phonemes, and `<wb>` between words. "
            f"Reference: pocketsphinx {version('pocketsphinx')} with its English model; an error is a difference to "
            f"it, and it is not the truth. Other aligners: {names or 'none was there'}."
        ),
        paragraph(
            f"The prompts are those of the Asterisk telephone exchange (one speaker, English; "
            f"[more](../../examples/README.md#what-they-learn-from)). {PROMPTS} are drawn (seed {SEED}) from the half "
            "that did not choose the parameters of `Pauses` ([word_borders.md](word_borders.md)) and that pocketsphinx "
            "can align: nothing here was chosen on what it is measured on. The clips of LibriVox are the two in "
            "[examples/data](../../examples/data/README.md), of another speaker. Every aligner gets the same emissions "
            "and the same phonemes."
        ),
        POLICIES,
    ]
    everything = {key: measure(clips, found.borders, ALL).columns()[2] for key, found in aligners.items()}
    near = sum(clip.reference[0][0] < 0.03 for clip in clips)
    near_end = sum(clip.seconds - clip.reference[-1][1] < 0.03 for clip in clips)
    parts += [
        paragraph(
            f"All {len(clips)} clips, ends included: the mean error of ours is {everything[OURS]:.1f} ms, with tight "
            f"borders it is {everything[TIGHT]:.1f} ms, with the parameters that are chosen with the ends "
            f"{everything[WITH_ENDS]:.1f} ms."
        ),
        paragraph(REASONS.format(near=near, all=len(clips), near_end=near_end)),
    ]
    for where in (BETWEEN, ALL, ENDS):
        for name, part in sets.items():
            if where == ENDS and len(part) < PROMPTS:
                continue  # four numbers
            errors = {key: measure(part, found.take(places[name]), where) for key, found in aligners.items()}
            columns = {key: error.columns() for key, error in errors.items()}
            count = len(torch.cat(errors[OURS]))
            parts += [
                f"## {name}, {where}",
                paragraph(f"{counts_of(part)}; {count:,} starts and ends. {judge(columns)}"),
                table(HEADER, [[key, *show(row)] for key, row in columns.items()]),
            ]
    others = [key for key in aligners if key not in (OURS, WITH_ENDS, TIGHT)]
    if others:
        moved = {OURS: aligners[OURS]} | {key: half_a_frame_earlier(aligners[key], clips, model) for key in others}
        columns = {key: measure(clips, found.borders, ALL).columns() for key, found in moved.items()}
        parts += [
            "## Half a frame earlier",
            paragraph(
                "The other aligners cannot know where the frames of this model lie. With half a frame taken off all of "
                f"their times, on all clips, ends included: {judge(columns)}"
            ),
            table(HEADER, [[key, *show(row)] for key, row in columns.items()]),
        ]
        refused = {key: sum(words is None for words in aligners[key].borders) for key in others}
        if any(refused.values()):
            parts.append(paragraph(f"Clips that an aligner refused, which its rows leave out: {refused}."))
    medians = {key: [s for s in found.seconds if s is not None] for key, found in aligners.items()}
    parts += [
        "## Time",
        paragraph(
            f"From emissions to the times of words, for a clip: the median of {ROUNDS} runs for each, one thread, on a "
            "machine that was not idle. For information; whisperX spends most of it around its trellis."
        ),
        table(
            ["aligner", "median, ms", "all clips, s"],
            [[key, f"{1000 * statistics.median(s):.2f}", f"{math.fsum(s):.2f}"] for key, s in medians.items()],
        ),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument(
        "--clients",
        type=Path,
        default=ROOT / ".clients",
        help="environment of make test-clients (default: %(default)s)",
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    model = load_english()
    _, second = speech_data.split(speech_data.read_corpus(speech_data.fetch_prompts()), fold=1, folds=2)
    prompts = hear(second, model)
    sets = {
        f"{PROMPTS} prompts": random.Random(SEED).sample(prompts, PROMPTS),
        "LibriVox": hear(speech_data.read_corpus(speech_data.CLIPS), model),
    }
    clips = list(chain.from_iterable(sets.values()))
    theirs, versions = align_theirs(clips, model, arguments.clients)
    ours = {OURS: Pauses(), WITH_ENDS: CHOSEN_WITH_ENDS, TIGHT: "drop"}
    aligners = {name: align_ours(clips, model, borders) for name, borders in ours.items()} | theirs
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "speech_accuracy.md"
    write_page(page, sets, aligners, versions, model)
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (speech_data.InputError, SpeechError) as error:
        sys.exit(f"speech_accuracy: {error}")
