#!/usr/bin/env python3
"""Measures stars, free ends and find_unspoken on real speech: which score a star needs, and what is found with it.

    .venv/bin/python benchmarks/stars.py [--out docs/measurements] [--model trained/train_ctc.pt]

Two models: the English model of torch_ctc_align.speech, which hears phonemes, and the character model that
examples/train_ctc.py leaves after its first phase, trained here if it is missing (ten minutes on one core).
Recordings: the prompts that the training examples learn from (examples/speech_data.py fetches them; the character model
is measured on those that it has not seen) and, for the phoneme model, the two clips in examples/data. What a star does
to a clip is compared with the alignment of its right transcript without stars. Writes stars.md, which holds nothing of
the recordings.

Needs examples/requirements.txt (make train-demo installs it), and apt-get to fetch the prompts the first time.
"""

import argparse
import contextlib
import functools
import random
import sys
import textwrap
import time
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from english import join, listen, spell
from machine import commit_and_date, processor_name
from page import table
from processes import ROOT
from torch import Tensor

sys.path.insert(0, str(ROOT / "examples"))
import speech_data
import train_ctc

from torch_ctc_align import find_unspoken, forced_align, min_frames, star_scores, token_spans, wild_gaps
from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.audio import read_samples
from torch_ctc_align.speech.models.english import load_english

FAR = 5  # frames, 100 ms
TEMPER = 0.35  # what the log-probabilities of the unsure model are multiplied by
FEWEST_WORDS = 8  # of a clip: two before four that are left out, and two after them
FREE_LENGTHS = (1, 10, 100, 500, 1500)  # frames of an intro
HOUR = 180_000  # frames
SENTENCE_WORDS = 4  # at least, in the recordings of many sentences


class Clip(NamedTuple):
    log_probs: Tensor  # (T, C)
    words: list[list[int]]  # the tokens of each
    backwards: Tensor  # emissions of the recording, played backwards
    noisy: dict[int, Tensor]  # emissions with noise, by decibels
    right: Tensor | None = None  # (W, 2) frames, where the right transcript puts the words without stars


class Model(NamedTuple):
    name: str
    blank: int
    separator: int
    clips: list[Clip]  # with FEWEST_WORDS words and more
    sentences: list[Clip]  # with SENTENCE_WORDS words and more
    about: str


def sure(log_probs: Tensor) -> Tensor:
    return log_probs


def unsure(log_probs: Tensor) -> Tensor:
    return (TEMPER * log_probs).log_softmax(-1)


# ------------------------------------------------------------------------------------------- models and recordings


def hear_phonemes(clips: list[speech_data.Clip], decibels: tuple[int, ...]) -> Model:
    model = load_english()

    def hear(clip: speech_data.Clip) -> Clip:
        words = spell(clip.words, model)
        samples = read_samples(clip.path, model.sample_rate)
        if len(words) < FEWEST_WORDS:
            return Clip(listen(samples, model), words, torch.empty(0), {})
        noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(0))
        power = samples.square().mean().sqrt().item()
        noisy = {db: listen(samples + power * 10 ** (-db / 20) * noise, model) for db in decibels}
        return Clip(listen(samples, model), words, listen(samples.flip(0), model), noisy)

    return make_model(
        "Phonemes",
        model.blank,
        model.separator,
        [hear(clip) for clip in speech_data.show_progress(clips, "listening")],
        f"hama {version('hama')}, the English model of `torch_ctc_align.speech`: {len(model.labels)} classes",
    )


def hear_characters(clips: list[speech_data.Clip], path: Path) -> Model:
    train, held_out = speech_data.split(clips, train_ctc.Settings.fold)
    with contextlib.redirect_stdout(sys.stderr):
        state = train_ctc.train(train, train_ctc.Settings(), path)
    model = train_ctc.load_model(state["before"], state["settings"])

    @torch.no_grad()
    def listen(features: Tensor) -> Tensor:
        return model(features[None], torch.tensor([len(features)]))[0]

    def hear(clip: speech_data.Clip) -> Clip:
        words = [[speech_data.ALPHABET.index(letter) for letter in word] for word in clip.words]
        backwards = speech_data.log_mel(speech_data.read_wav(clip.path).flip(0))
        return Clip(listen(clip.features), words, listen(backwards), {})

    minutes = sum(clip.seconds for clip in train) / 60
    return make_model(
        "Characters",
        speech_data.BLANK,
        speech_data.WORD_BREAK,
        [hear(clip) for clip in held_out],
        f"the model of examples/train_ctc.py after {state['settings']['ctc_epochs']} epochs of ctc_loss on "
        f"{minutes:.0f} minutes: {len(speech_data.ALPHABET)} classes",
    )


def make_model(name: str, blank: int, separator: int, clips: list[Clip], about: str) -> Model:
    known = []
    mistakes = tokens = 0
    for clip in clips:
        if not fits(clip.log_probs, clip.words, separator):
            continue  # more phonemes than frames
        heard = clip.log_probs.argmax(-1).unique_consecutive().tolist()
        spelled = join(clip.words, separator)
        known.append(clip._replace(right=word_spans(align(clip.log_probs, spelled, blank), clip.words)))
        mistakes += train_ctc.edit_distance([c for c in heard if c != blank], spelled)
        tokens += len(spelled)
    about += f"; {100 * mistakes / tokens:.1f} % of what it hears in all clips is wrong (greedy, tokens)"
    sentences = [clip for clip in known if len(clip.words) >= SENTENCE_WORDS]
    long = [clip for clip in sentences if len(clip.words) >= FEWEST_WORDS]
    return Model(name, blank, separator, long, sentences, about)


def flatten(lists: Iterable[list]) -> list:
    return list(chain.from_iterable(lists))


def fits(log_probs: Tensor, words: list[list[int]], separator: int) -> bool:
    return len(log_probs) >= int(min_frames(torch.tensor([join(words, separator)])))


# ------------------------------------------------------------------------------------------------------- stars


def without_blank(log_probs: Tensor, blank: int) -> Tensor:
    return torch.cat([log_probs[:, :blank], log_probs[:, blank + 1 :]], 1)


def constant(score: float):
    return lambda log_probs, blank: torch.full((len(log_probs),), score)


def best(penalty: float):
    return lambda log_probs, blank: star_scores(log_probs[None], penalty)[0]


RULES = {
    "no star": None,
    "constant 0": constant(0.0),
    "constant -1": constant(-1.0),
    "constant -5": constant(-5.0),
    "best non-blank": lambda log_probs, blank: without_blank(log_probs, blank).amax(-1),
    "best - 0.25": best(0.25),
    "best - 0.5": best(0.5),
    "best - 1": best(1.0),
    "best - 2": best(2.0),
    "log-sum": lambda log_probs, blank: without_blank(log_probs, blank).logsumexp(-1),
    "log-mean": lambda log_probs, blank: without_blank(log_probs, blank).exp().mean(-1).log(),
}


def align(log_probs: Tensor, targets: list[int], blank: int, rule=None, wild: Tensor | None = None) -> Tensor:
    """First frame and end of every target token, (L, 2)."""
    labels = torch.tensor([targets])
    stars = {} if rule is None else {"star_scores": rule(log_probs, blank)[None], "wild_gaps": wild}
    paths, scores = forced_align(log_probs[None], labels, blank=blank, **stars)
    starts, ends, _ = token_spans(paths, scores, labels, blank)
    return torch.stack([starts[0], ends[0]], 1)


def word_spans(tokens: Tensor, words: list[list[int]]) -> Tensor:
    """(W, 2) from the spans of tokens with a separator between words."""
    last = torch.tensor([len(word) for word in words]).cumsum(0) + torch.arange(len(words)) - 1
    first = torch.cat([torch.zeros(1, dtype=torch.int64), last[:-1] + 2])
    return torch.stack([tokens[first, 0], tokens[last, 1]], 1)


def around(targets: list[int], separator: int, place: int | None = None) -> Tensor:
    """(1, L + 1) bool: the gaps on both sides of the separator at a place, or between all words and at both ends."""
    if place is None:
        return wild_gaps(torch.tensor([targets]), where="words", separator=separator)
    wild = torch.zeros(1, len(targets) + 1, dtype=torch.bool)
    wild[:, place : place + 2] = True
    return wild


class Case(NamedTuple):
    """A clip with a transcript to align, and where its words should be found."""

    log_probs: Tensor
    targets: list[int]
    words: list[list[int]]
    right: Tensor  # (W, 2)
    wild: Tensor


def right_text(model: Model, clip: Clip, number: int, rule, log_probs: Tensor) -> Case:
    targets = join(clip.words, model.separator)
    return Case(log_probs, targets, clip.words, clip.right, around(targets, model.separator))


def intro(model: Model, clip: Clip, number: int, rule, log_probs: Tensor) -> Case:
    before = model.clips[number - 1].backwards
    targets = join(clip.words, model.separator)
    return Case(
        torch.cat([before, log_probs]),
        targets,
        clip.words,
        clip.right + len(before),
        wild_gaps(torch.tensor([targets])),
    )


def omitted(how_many: int, where: str, model: Model, clip: Clip, number: int, rule, log_probs: Tensor) -> Case:
    first = random.Random(number).randint(2, len(clip.words) - how_many - 2)
    words = clip.words[:first] + clip.words[first + how_many :]
    right = torch.cat([clip.right[:first], clip.right[first + how_many :]])
    targets = join(words, model.separator)
    place = sum(map(len, words[:first])) + first - 1  # the separator before the omitted words
    if where == "label" and rule is not None:
        star = [model.separator, log_probs.shape[1]]
        targets = targets[:place] + star + targets[place:]
        return Case(log_probs, targets, words, right, torch.zeros(1, len(targets) + 1, dtype=torch.bool))
    wild = around(targets, model.separator, place if where == "gap" else None)
    return Case(log_probs, targets, words, right, wild)


def unknown_token(model: Model, clip: Clip, number: int, rule, log_probs: Tensor) -> Case:
    """The middle token of every third word is not known: a star label, or, without stars, left out."""
    star = [] if rule is None else [log_probs.shape[1]]
    words = [
        [*word[: len(word) // 2], *star, *word[len(word) // 2 + 1 :]] if k % 3 == 1 and len(word) > 1 else word
        for k, word in enumerate(clip.words)
    ]
    targets = join(words, model.separator)
    return Case(log_probs, targets, words, clip.right, torch.zeros(1, len(targets) + 1, dtype=torch.bool))


def move(model: Model, make, rule, change=lambda clip: clip.log_probs) -> Tensor:
    """By how many frames the starts and ends of words move, in all clips."""
    moved = []
    for number, clip in enumerate(model.clips):
        case = make(model, clip, number, rule, change(clip))
        if len(case.log_probs) < int(min_frames(torch.tensor([case.targets]))):
            continue
        tokens = align(case.log_probs, case.targets, model.blank, rule, case.wild if rule else None)
        if len(tokens) > len(join(case.words, model.separator)):  # the star label belongs to no word
            label = case.targets.index(case.log_probs.shape[1])
            tokens = torch.cat([tokens[: label - 1], tokens[label + 1 :]])
        spans = word_spans(tokens, case.words)
        moved.append((spans - case.right).abs().flatten())
    return torch.cat(moved)


def show(moved: Tensor) -> str:
    far, count = 100 * (moved > FAR).double().mean().item(), int(moved.count_nonzero())
    return f"{count:,}: {moved.double().mean():.3f}" + (f", {far:.2f} %" if far else "") if count else "0"


def star_rows(model: Model) -> list[list[str]]:
    four = functools.partial(omitted, 4)
    rows = [
        ("right text, gaps between all words", right_text, sure),
        ("the same, unsure model", right_text, unsure),
        ("speech played backwards in front, free ends", intro, sure),
        ("4 words omitted, a gap in their place", functools.partial(four, "gap"), sure),
        ("the same, unsure model", functools.partial(four, "gap"), unsure),
        ("4 words omitted, gaps between all words", functools.partial(four, "all"), sure),
        ("4 words omitted, a star label in their place", functools.partial(four, "label"), sure),
        ("a token of every third word unknown, star labels", unknown_token, sure),
    ]
    return [
        [
            name,
            *(
                show(move(model, make, rule, lambda clip, change=change: change(clip.log_probs)))
                for rule in RULES.values()
            ),
        ]
        for name, make, change in speech_data.show_progress(rows, model.name)
    ]


def noise_rows(model: Model, decibels: tuple[int, ...]) -> list[list[str]]:
    rules = {name: rule for name, rule in RULES.items() if rule is None or name.startswith("best -")}
    cases = {
        "right text, gaps between all words": right_text,
        "1 word omitted, gaps between all words": functools.partial(omitted, 1, "all"),
        "4 words omitted, a gap in their place": functools.partial(omitted, 4, "gap"),
    }
    return [
        [
            name,
            f"{db} dB",
            *(show(move(model, case, rule, lambda clip, db=db: clip.noisy[db])) for rule in rules.values()),
        ]
        for name, case in cases.items()
        for db in decibels
    ]


def count_exact_shifts(model: Model) -> list[list[str]]:
    """In how many clips an intro moves all token spans by exactly its length, for each length."""
    rows = []
    for name, rule in (("best - 0.5", best(0.5)), ("constant 0", constant(0.0)), ("no star", None)):
        row = []
        for length in FREE_LENGTHS:
            exact = 0
            for number, clip in enumerate(model.clips):
                source = model.clips[number - 1].backwards
                before = source.repeat(length // len(source) + 1, 1)[:length]
                targets = join(clip.words, model.separator)
                alone = align(clip.log_probs, targets, model.blank)
                both, free = torch.cat([before, clip.log_probs]), wild_gaps(torch.tensor([targets]))
                exact += torch.equal(align(both, targets, model.blank, rule, free), alone + length)
            row.append(f"{exact} of {len(model.clips)}")
        rows.append([name, *row])
    return rows


# ---------------------------------------------------------------------------------------------- what nobody says


class Tally:
    """What a method found and lost, and where it put the words that it kept."""

    def __init__(self):
        self.absent = self.found = self.spoken = self.lost = self.worst = 0

    def add(self, dropped: set[int], absent: set[int], count: int) -> None:
        self.absent += len(absent)
        self.found += len(dropped & absent)
        self.spoken += count - len(absent)
        self.lost += len(dropped - absent)

    def columns(self) -> list[str]:
        return [f"{self.found} of {self.absent}", f"{self.lost} of {self.spoken}"]


def find(log_probs: Tensor, blocks: list[list[list[int]]], model: Model, threshold: float, penalty=None) -> set[int]:
    stars = None if penalty is None else star_scores(log_probs[None], penalty)
    found = find_unspoken(
        log_probs,
        torch.tensor(join(flatten(blocks), model.separator)),
        [sum(map(len, block)) for block in blocks],
        blank=model.blank,
        separator=model.separator,
        threshold=threshold,
        star_scores=stars,
    )
    return set(found.unspoken.nonzero()[:, 0].tolist())


def drop_poor(log_probs: Tensor, blocks: list[list[list[int]]], model: Model, least: float) -> set[int]:
    """The usual rule: a block is dropped if its mean log-probability, over the frames of its tokens, is low."""
    labels = torch.tensor([join(flatten(blocks), model.separator)])
    paths, scores = forced_align(log_probs[None], labels, blank=model.blank)
    starts, ends, means = (column[0].double() for column in token_spans(paths, scores, labels, model.blank))
    is_token = labels[0] != model.separator
    block = torch.arange(len(blocks)).repeat_interleave(torch.tensor([sum(map(len, words)) for words in blocks]))
    zeros = torch.zeros(len(blocks), dtype=torch.float64)
    frames = zeros.scatter_add(0, block, (ends - starts)[is_token])
    scores = zeros.scatter_add(0, block, ((ends - starts) * means)[is_token]) / frames
    return set((scores < least).nonzero()[:, 0].tolist())


METHODS = {
    "mean score below -3": functools.partial(drop_poor, least=-3.0),
    "mean score below -5": functools.partial(drop_poor, least=-5.0),
    **{
        f"`find_unspoken`, threshold {threshold}": functools.partial(find, threshold=float(threshold))
        for threshold in (5, 20, 50)
    },
}


def foreign_rows(model: Model, size: int) -> list[list[str]]:
    """One block of some words of another clip in a transcript, at every place where a block may be."""
    tallies = {name: Tally() for name in ("plain alignment", *METHODS)}
    for number, clip in enumerate(model.clips):
        other = model.clips[number - 1].words
        own = [clip.words[k : k + size] for k in range(0, len(clip.words), size)]
        numbers_of = [list(range(k, min(k + size, len(clip.words)))) for k in range(0, len(clip.words), size)]
        for place in sorted({0, len(own), *random.Random(number).sample(range(len(own) + 1), 2)}):
            blocks = [*own[:place], other[2 : 2 + size], *own[place:]]
            if not fits(clip.log_probs, flatten(blocks), model.separator):
                continue
            word_numbers = [*numbers_of[:place], [-1] * size, *numbers_of[place:]]
            for name, tally in tallies.items():
                dropped = METHODS[name](clip.log_probs, blocks, model) if name in METHODS else set()
                tally.add(dropped, {place}, len(blocks))
                kept = [k for k in range(len(blocks)) if k not in dropped]
                numbers = flatten(word_numbers[k] for k in kept)
                if any(number >= 0 for number in numbers):
                    words = flatten(blocks[k] for k in kept)
                    spans = word_spans(align(clip.log_probs, join(words, model.separator), model.blank), words)
                    known = torch.tensor(numbers) >= 0
                    moved = (spans - clip.right[numbers])[known].abs()
                    tally.worst = max(tally.worst, int(moved.max()))
    return [[name, *tally.columns(), str(tally.worst)] for name, tally in tallies.items()]


def make_recording(model: Model, seed: int, replaced: bool):
    """40 sentences, of which up to 20 are in the transcript alone, or said in other words; also several in a row."""
    chosen = random.Random(seed)
    shuffled = chosen.sample(model.sentences, len(model.sentences))
    sentences, others = shuffled[:40], shuffled[40:]
    count = chosen.choice([0, 1, 3, 10, 20])
    absent = set(chosen.sample(range(len(sentences)), count))
    if seed % 5 == 0 and count:
        first = chosen.randrange(len(sentences) - 10)
        absent = set(range(first, first + chosen.randint(2, 10)))
    spoken = [chosen.choice(others) if k in absent else clip for k, clip in enumerate(sentences)]
    parts = [clip.log_probs for k, clip in enumerate(spoken) if replaced or k not in absent]
    return torch.cat(parts), [clip.words for clip in sentences], absent


def sentence_rows(model: Model) -> list[list[str]]:
    rows = []
    for what, replaced, change in (
        ("not said", False, sure),
        ("not said, unsure model", False, unsure),
        ("other sentences said in their place", True, sure),
    ):
        methods = dict(METHODS)
        if replaced:
            for penalty in (0.5, 1.0, 2.0, 3.0):
                methods[f"threshold 20, `star_scores(log_probs, {penalty:g})`"] = functools.partial(
                    find, threshold=20.0, penalty=penalty
                )
        tallies = {name: Tally() for name in methods}
        for seed in range(40):
            log_probs, blocks, absent = make_recording(model, seed, replaced)
            if fits(log_probs, flatten(blocks), model.separator):
                for name, tally in tallies.items():
                    dropped = methods[name](change(log_probs), blocks, model)
                    same = keep(blocks, dropped) == keep(blocks, absent)  # of two equal sentences, either may be absent
                    tally.add(absent if same else dropped, absent, len(blocks))
        rows += [[what, name, *tally.columns()] for name, tally in tallies.items()]
    return rows


def keep(blocks: list, dropped: set[int]) -> list:
    return [block for k, block in enumerate(blocks) if k not in dropped]


def hour_rows(model: Model) -> list[list[str]]:
    """An hour: the sentences again and again, each time in another order, and all of it in the transcript."""
    chosen, rows = random.Random(0), []
    sentences: list[Clip] = []
    while (frames := sum(len(clip.log_probs) for clip in sentences)) < HOUR:
        sentences += chosen.sample(model.sentences, len(model.sentences))
    while frames > HOUR:
        frames -= len(sentences.pop().log_probs)
    blocks = [clip.words for clip in sentences]
    torch.set_num_threads(1)
    for count in (0, 10, 60, 200):
        absent = set(chosen.sample(range(len(sentences)), count))
        log_probs = torch.cat([clip.log_probs for k, clip in enumerate(sentences) if k not in absent])
        began = time.process_time()
        align(log_probs, join(flatten(blocks), model.separator), model.blank)
        aligned = time.process_time()
        tally = Tally()
        tally.add(find(log_probs, blocks, model, 20.0), absent, len(blocks))
        times = [f"{aligned - began:.1f} s", f"{time.process_time() - aligned:.1f} s"]
        rows.append([f"{len(log_probs):,}", f"{len(blocks):,}", *tally.columns(), *times])
    return rows


# -------------------------------------------------------------------------------------------------------- the page


def describe(model: Model) -> str:
    words = sum(len(clip.words) for clip in model.clips)
    minutes = sum(len(clip.log_probs) for clip in model.clips) * 0.02 / 60
    return (
        f"**{model.name}**: {model.about}. {len(model.clips)} clips of {FEWEST_WORDS} words and more, {words:,} words "
        f"with {2 * words:,} starts and ends, {minutes:.1f} minutes; {len(model.sentences)} clips of {SENTENCE_WORDS} "
        "words and more."
    )


INTRODUCTION = """\
A cell says how many of the starts and ends of words move, against the right transcript without stars, by how many
frames of 20 ms the mean of all does, and which share moves by more than 100 ms, if any does. The unsure model is the
same one, with its log-probabilities times 0.35."""

RULES_TEXT = """\
`constant 0` is the star of torchaudio, MMS, ctc-forced-aligner and easyaligner, `constant -1` that of
ctc-forced-aligner-wgpu, `best non-blank` that of whisperX for a character it does not know. Log-sum (STC) and log-mean
(OTC) are over all classes but the blank. `best` is over all classes: `star_scores(log_probs, penalty)`. Words omitted
are omitted from the transcript; the recording has them."""

NOISE_TEXT = """\
White noise is added to the recordings, and the words are compared with those of the clean recording. So the column
without stars is what the noise alone does where the transcript is right."""

FREE_TEXT = """\
Frames of another clip, played backwards, stand in front. In how many clips all tokens move by exactly that number of
frames (`torch.equal`), against the clip alone without stars:"""

FOREIGN_TEXT = """\
One word of another clip, or four, stand in the transcript, at up to four places of every clip. The blocks are of as
many words. Found: foreign blocks that were dropped; lost: spoken ones that were; worst: by how many frames a start or
end of a spoken word that is kept moves at most."""

SENTENCES_TEXT = """\
40 recordings of 40 clips. Up to 20 of these are in the transcript and not in the recording, in some recordings up to
ten in a row; or another clip is said in their place, which is not in the transcript. The blocks are the clips. Where
a sentence stands in the transcript twice and is said once, either may be dropped, if that leaves the same text."""


HOUR_TEXT = """\
`find_unspoken`, threshold 20, on an hour of emissions of the phoneme model: clips again and again, in other orders.
Processor time, one thread."""


def write_page(path: Path, models: list[Model], decibels: tuple[int, ...]) -> None:
    made = commit_and_date()
    command = f"{made['date']}, package at {made['commit']}, torch {version('torch')}; `python benchmarks/stars.py`. "
    command += f"{processor_name()}."
    parts = ["# Stars on real speech", command]
    parts += [textwrap.fill(describe(model), 118, break_long_words=False, break_on_hyphens=False) for model in models]
    parts += [INTRODUCTION, "## Which score a star needs", RULES_TEXT]
    for model in models:
        parts += [f"### {model.name}", table(["", *RULES], star_rows(model))]
    names = [name for name, rule in RULES.items() if rule is None or name.startswith("best -")]
    parts += ["## In noise", NOISE_TEXT, table(["", "noise", *names], noise_rows(models[0], decibels))]
    parts += ["## Free ends", FREE_TEXT]
    for model in models:
        parts += [f"### {model.name}, free ends", table(["frames in front", *FREE_LENGTHS], count_exact_shifts(model))]
    parts += ["## A foreign block in the transcript", FOREIGN_TEXT]
    for model in models:
        rows = [[str(size), *row] for size in (1, 4) for row in foreign_rows(model, size)]
        parts += [f"### {model.name}, a foreign block", table(["words", "dropped", "found", "lost", "worst"], rows)]
    parts += ["## Sentences that nobody says", SENTENCES_TEXT]
    for model in models:
        rows = sentence_rows(model)
        parts += [f"### {model.name}, sentences", table(["sentences", "dropped", "found", "lost"], rows)]
    columns = ["frames", "sentences", "found", "lost", "one alignment", "find_unspoken"]
    parts += ["## An hour", HOUR_TEXT, table(columns, hour_rows(models[0]))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "trained" / "train_ctc.pt", help="of train_ctc.py (default: %(default)s)"
    )
    arguments = parser.parse_args()

    decibels = (10, 5, 0)
    prompts = speech_data.read_corpus(speech_data.fetch_prompts())
    phonemes = hear_phonemes(prompts + speech_data.read_corpus(speech_data.CLIPS), decibels)
    models = [phonemes, hear_characters(prompts, arguments.model)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "stars.md"
    write_page(page, models, decibels)
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (speech_data.InputError, SpeechError) as error:
        sys.exit(f"stars: {error}")
