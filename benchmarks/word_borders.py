#!/usr/bin/env python3
"""Compares the borders of words with those of an independent aligner, for each choice of merge_words.

    .venv/bin/python benchmarks/word_borders.py [--out docs/measurements]

Aligns the prompts that the training examples learn from (examples/speech_data.py fetches them) with the English model
of torch_ctc_align.speech. Compares with pocketsphinx, another model, of phonemes, which other people trained on other
speech. The prompts are split in two halves by their text. The first half chooses the parameters of Pauses; the page
reports both halves, and the two clips of another speaker in examples/data. Writes word_borders.md, which holds nothing
of the recordings; takes two minutes on two cores.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import functools
import itertools
import math
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import english
import torch
from machine import commit_and_date, processor_name
from page import table
from processes import ROOT
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(ROOT / "examples"))
import speech_data

from torch_ctc_align import Pauses, TokenSpans, forced_align, token_spans, word_borders
from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.models.english import load_english

SECONDS_PER_FRAME = 0.02
CENTRED = -0.5  # frame t of the model is centred on sample 320 t
NEAR = 0.05  # seconds

# The values to try on the first half: all combinations in which neighbours cannot overlap.
GRID = {
    "max_pause": [0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, math.inf],
    "share": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    "lead_in": [0, 0.02, 0.04, 0.06, 0.08, 0.1],
    "tail": [0, 0.05, 0.1, 0.15, 0.2, 0.25],
}


class Half(NamedTuple):
    """Clips side by side, padded; ``reference`` is (B, W, 2), seconds, NaN after the last word of a clip."""

    spans: TokenSpans
    word_indices: Tensor
    reference: Tensor
    ends: Tensor  # (B,) seconds
    clips: int
    words: int


class Errors(NamedTuple):
    """Seconds, ours less theirs."""

    starts: Tensor
    ends: Tensor

    @property
    def mean(self) -> float:
        return torch.cat(self).abs().mean().item()

    @property
    def near(self) -> float:
        return (torch.cat(self).abs() <= NEAR + 1e-9).double().mean().item()


def align_all(clips, reference):
    """The clips that both can align, with token spans, the word of each token and the borders of pocketsphinx."""
    model = load_english()
    assert (model.seconds_per_frame, model.frame_offset) == (SECONDS_PER_FRAME, CENTRED)
    aligned = []
    for clip, theirs in speech_data.show_progress(list(zip(clips, reference, strict=True)), "aligning"):
        if theirs is None:
            continue
        spelled = english.spell(clip.words, model)
        log_probs = english.read_and_listen(clip.path, model)
        targets = torch.tensor([english.join(spelled, model.separator)])
        paths, scores = forced_align(log_probs[None], targets, None, None, model.blank, strict=False)
        if (paths < 0).any():
            continue  # the name of one letter, with more phonemes than the clip has frames
        spans = token_spans(paths, scores, targets, model.blank)
        words = torch.arange(len(spelled)).repeat_interleave(torch.tensor(list(map(len, spelled))))
        word_indices = torch.full_like(targets[0], -1)
        word_indices[targets[0] != model.separator] = words
        aligned.append((clip, spans, word_indices, torch.tensor(theirs, dtype=torch.float64)))
    return aligned


def make_half(aligned, clips) -> Half:
    chosen = [row for row in aligned if any(row[0] is clip for clip in clips)]
    pad = functools.partial(pad_sequence, batch_first=True)
    columns = zip(*(spans for _, spans, _, _ in chosen), strict=True)
    spans = TokenSpans(
        *(pad([t[0] for t in column], padding_value=v) for column, v in zip(columns, (-1, -1, 0), strict=True))
    )
    return Half(
        spans,
        pad([word_indices for _, _, word_indices, _ in chosen], padding_value=-1),
        pad([theirs for *_, theirs in chosen], padding_value=math.nan),
        torch.tensor([clip.seconds for clip, *_ in chosen], dtype=torch.float64),
        len(chosen),
        sum(len(theirs) for *_, theirs in chosen),
    )


def measure(half: Half, borders, offset: float, outer: bool = False) -> Errors:
    """Errors at the borders between two words; with ``outer``, also at the two ends of a clip."""
    found = word_borders(
        half.spans,
        half.word_indices,
        half.reference.shape[1],
        seconds_per_frame=SECONDS_PER_FRAME,
        borders=borders,
        frame_offset=offset,
        recording_ends=half.ends,
    )
    is_word = ~half.reference[:, :, 0].isnan()
    assert torch.equal(is_word, found.starts >= 0)
    follows, precedes = is_word.clone(), is_word.clone()
    if not outer:
        follows[:, 0] = False
        precedes[:, :-1] &= is_word[:, 1:]
        precedes[:, -1] = False
    return Errors((found.starts - half.reference[:, :, 0])[follows], (found.ends - half.reference[:, :, 1])[precedes])


def grid():
    for values in itertools.product(*GRID.values()):
        pauses = dict(zip(GRID, values, strict=True))
        if pauses["lead_in"] + pauses["tail"] <= pauses["max_pause"]:
            yield Pauses(**pauses)


def choose(half: Half, offset: float, outer: bool = False) -> Pauses:
    """The parameters with the least mean error."""
    return min(
        speech_data.show_progress(list(grid()), "choosing"),
        key=lambda pauses: measure(half, pauses, offset, outer).mean,
    )


def name_of(borders) -> str:
    if not isinstance(borders, Pauses):
        return f"`{borders}`"
    return f"up to {in_ms(borders.max_pause)} shared at {borders.share:g}, else {in_ms(borders.lead_in)} lead-in, " + (
        f"{in_ms(borders.tail)} tail"
    )


def in_ms(seconds: float, sign: str = "") -> str:
    return "any" if seconds == math.inf else f"{1000 * seconds:{sign}.0f} ms"


def columns_of(halves, borders, offset, outer=False):
    for half in halves:
        errors = measure(half, borders, offset, outer)
        yield from (f"{1000 * errors.mean:.1f}", f"{100 * errors.near:.1f} %")


def write_page(path: Path, halves, others: Half, chosen: dict[float, Pauses], with_ends: Pauses, left_out: str) -> None:
    first, second = halves
    offsets = {CENTRED: "-0.5", 0.0: "0"}
    best = chosen[CENTRED]
    settings = [
        (borders, offset)
        for offset in offsets
        for borders in dict.fromkeys(["drop", "split", "before", "after", best, chosen[0.0]])
    ]
    both = ["first half: mean error, ms", "within 50 ms", "second half: mean error, ms", "within 50 ms"]
    header = ["borders", "frame_offset"]

    def rows(parts, outer=False, settings=settings):
        return [
            [name_of(borders), offsets[offset], *columns_of(parts, borders, offset, outer)]
            for borders, offset in settings
        ]

    def medians(borders, offset):
        return [in_ms(errors.median().item(), "+") for errors in measure(second, borders, offset)]

    changed = []
    for name in GRID:
        for pauses in grid():
            value = getattr(pauses, name)
            if value != getattr(best, name) and all(getattr(pauses, o) == getattr(best, o) for o in GRID if o != name):
                shown = "math.inf" if value == math.inf else f"{value:g}"
                changed.append([f"`{name}={shown}`", *columns_of(halves, pauses, CENTRED)])
    counts = [2 * len(measure(half, "drop", 0.0).starts) for half in (*halves, others)]

    made = commit_and_date()
    paragraphs = [
        f"{made['date']}, package at {made['commit']}, torch {version('torch')}; `python benchmarks/word_borders.py`. "
        f"{processor_name()}. hama {version('hama')}, the English model of `torch_ctc_align.speech`: frames of 20 ms, "
        f"frame t centred on sample 320 t; pocketsphinx {version('pocketsphinx')} with its English model. An error is "
        "a difference to pocketsphinx, which is not the truth.",
        "Recordings: the prompts of the Asterisk telephone exchange (one speaker, English; "
        "[more](../../examples/README.md#what-they-learn-from)), in two halves by a checksum of the text: "
        f"{first.clips} clips with {first.words:,} words, {second.clips} clips with {second.words:,} words. {left_out}",
        "Starts and ends of words are compared one by one. The parameters of `Pauses` come from the first half alone: "
        f"of {len(list(grid())):,} combinations, the one with the least mean error at the starts and ends between two "
        "words, for each `frame_offset`. The default of `merge_words` and `word_borders` is the one for "
        "`frame_offset=-0.5`, which is the right offset for this model.",
    ]
    introduction = "\n\n".join(
        textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False) for text in paragraphs
    )
    path.write_text(
        f"""# Borders of words

{introduction}

## Between two words

{counts[0]:,} and {counts[1]:,} starts and ends. `drop` is the tight choice, from the first token to the last one.

{table([*header, *both], rows(halves))}

Medians of the signed errors on the second half; + means later than pocketsphinx:

{table([*header, "starts", "ends"], [[name_of(b), offsets[o], *medians(b, o)] for b, o in settings])}

## At the two ends of a clip as well

In two clips of three, pocketsphinx hears no silence before the first word and puts its start near 0, which makes these
rows worse for every choice. No parameter depends on them. `split`, `before` and `after` do not use the frames outside
of all words.

{table([*header, *both], rows(halves, outer=True))}

If these ends counted as well in the choice, the parameters would be others, for recordings that are cut as close to
their speech as these prompts are:

{table([*header, *both], rows(halves, outer=True, settings=[(with_ends, CENTRED)]))}

## Another speaker

The two LibriVox clips in [examples/data](../../examples/data/README.md), {others.words} words, {counts[2]} starts and
ends between two words.

{table([*header, "mean error, ms", "within 50 ms"], rows([others]))}

## The effect of each parameter

The chosen parameters with one of them changed; `frame_offset=-0.5`, between two words. Differences of some tenths of a
millisecond mean nothing.

{table(["changed", *both], [["none", *columns_of(halves, best, CENTRED)], *changed])}
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    arguments = parser.parse_args()

    prompts = speech_data.read_corpus(speech_data.fetch_prompts())
    others = speech_data.read_corpus(speech_data.CLIPS)
    clips = prompts + others
    reference = speech_data.find_reference_borders(clips)
    aligned = align_all(clips, reference)
    unknown = sum(theirs is None for theirs in reference)
    left_out = (
        f"Of {len(prompts)} prompts {unknown} were left out because pocketsphinx cannot pronounce or align them, "
        f"and {len(clips) - unknown - len(aligned)} because they have fewer frames than phonemes."
    )
    halves = [make_half(aligned, part) for part in speech_data.split(prompts, fold=1, folds=2)]
    chosen = {offset: choose(halves[0], offset) for offset in (CENTRED, 0.0)}
    with_ends = choose(halves[0], CENTRED, outer=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "word_borders.md"
    write_page(page, halves, make_half(aligned, others), chosen, with_ends, left_out)
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}", file=sys.stderr)
    if chosen[CENTRED] != Pauses():
        print(f"chosen: {chosen[CENTRED]}; the default is {Pauses()}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (speech_data.InputError, SpeechError) as error:
        sys.exit(f"word_borders: {error}")
