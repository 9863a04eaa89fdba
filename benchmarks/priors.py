#!/usr/bin/env python3
"""Measures what label priors do to the borders of words, if they are subtracted in the alignment alone.

    .venv/bin/python benchmarks/priors.py [--out docs/measurements]

The recordings, the model, the reference and the two halves of word_borders.py. The priors come from the first half; the
page reports both. The parameters of Pauses are the default ones, and those that are best for the first half with these
priors. Writes priors.md, which holds nothing of the recordings; takes two minutes of one core.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import re
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import english
import torch
from machine import commit_and_date, output_of
from page import table
from processes import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import speech_data
from word_borders import CENTRED, choose, columns_of, in_ms, make_half, measure, name_of

from torch_ctc_align import Pauses, forced_align, label_priors, subtract_priors, token_spans
from torch_ctc_align.speech.models.english import load_english

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def listen(model, clips, reference):
    """(clip, labels of each word, log_probs, borders of pocketsphinx) of every clip that it can align."""
    heard = []
    for clip, theirs in speech_data.show_progress(list(zip(clips, reference, strict=True)), "listening"):
        if theirs is None:
            continue
        words = english.spell(clip.words, model)
        log_probs = english.read_and_listen(clip.path, model)
        heard.append((clip, words, log_probs, torch.tensor(theirs, dtype=torch.float64)))
    return heard


def align_all(heard, log_priors, scale, blank, boundary):
    """As in word_borders.py, with priors: rows for make_half, and the share of blanks on the paths."""
    aligned, blanks, frames = [], 0, 0
    for clip, words, log_probs, theirs in heard:
        targets = torch.tensor([english.join(words, boundary)])
        emissions = subtract_priors(log_probs, log_priors, scale).log_softmax(-1)
        paths, scores = forced_align(emissions[None], targets, None, None, blank, strict=False)
        if (paths < 0).any():
            continue  # the name of one letter, with more phonemes than the clip has frames
        blanks += int((paths == blank).sum())
        frames += paths.numel()
        counts = torch.tensor([len(word) for word in words])
        word_indices = torch.full_like(targets[0], -1)
        word_indices[targets[0] != boundary] = torch.arange(len(words)).repeat_interleave(counts)
        aligned.append((clip, token_spans(paths, scores, targets, blank), word_indices, theirs))
    return aligned, blanks / frames


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    arguments = parser.parse_args()

    prompts = speech_data.read_corpus(speech_data.fetch_prompts())
    parts = speech_data.split(prompts, fold=1, folds=2)
    model = load_english()
    tokens, blank = model.labels, model.blank
    heard = listen(model, prompts, speech_data.find_reference_borders(prompts))
    in_first = {id(clip) for clip in parts[0]}
    log_priors = label_priors(log_probs for clip, _, log_probs, _ in heard if id(clip) in in_first)
    rows, medians = [], []
    for scale in SCALES:
        aligned, blanks = align_all(heard, log_priors, scale, blank, model.separator)
        halves = [make_half(aligned, part) for part in parts]
        best = choose(halves[0], CENTRED)
        for borders, shown in ((Pauses(), "`Pauses()`"), ("drop", "`drop`"), (best, f"best: {name_of(best)}")):
            rows.append([f"{scale:g}", shown, *columns_of(halves, borders, CENTRED)])
        tight = measure(halves[1], "drop", CENTRED)
        medians.append(
            [f"{scale:g}", f"{100 * blanks:.1f} %", *(in_ms(errors.median().item(), "+") for errors in tight)]
        )

    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))[1]
    introduction = (
        f"{made['date']}, package at {made['commit']}, torch {version('torch')}, {processor}; "
        f"`python benchmarks/priors.py`. hama {version('hama')}, the model of the demo: {len(tokens)} classes. The "
        f"blank's prior is {float(log_priors[blank].exp()):.2f}. An error is a difference to pocketsphinx "
        f"{version('pocketsphinx')}, which is not the truth. Recordings and halves are those of "
        f"[word_borders.md](word_borders.md): {halves[0].clips} and {halves[1].clips} clips, {halves[0].words:,} and "
        f"{halves[1].words:,} words, starts and ends between two words; `frame_offset=-0.5`."
    )
    both = ["first half: mean error, ms", "within 50 ms", "second half: mean error, ms", "within 50 ms"]
    page = arguments.out / "priors.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        PAGE.format(
            introduction=textwrap.fill(introduction, 118, break_long_words=False, break_on_hyphens=False),
            errors=table(["scale", "borders", *both], rows),
            medians=table(["scale", "blanks on the paths", "starts", "ends"], medians),
        ),
        encoding="utf-8",
    )
    print(page.read_text(encoding="utf-8"))


PAGE = """# Label priors in the alignment alone

{introduction}

The priors are those of the first half: `label_priors`. The emissions are `subtract_priors(log_probs, log_priors,
scale).log_softmax(-1)`. `best` are the parameters of `Pauses` with the least mean error on the first half.

{errors}

Medians of the signed errors of `drop` on the second half; + means later than pocketsphinx:

{medians}
"""

if __name__ == "__main__":
    try:
        main()
    except speech_data.InputError as error:
        sys.exit(f"priors: {error}")
