"""The best path of a text through the emissions of a recording: stars, segments that are not spoken, posteriors."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from torch_ctc_align.functional import forced_align, min_frames, span_posteriors
from torch_ctc_align.spans import TokenSpan
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.text import Transcript
from torch_ctc_align.stars import GAP_STAR, merge_stars, wild_gaps
from torch_ctc_align.unspoken import find_unspoken

__all__ = [
    "BestPath",
    "Star",
    "ask_path",
    "check_length",
    "check_path",
    "find_all",
    "find_owners",
    "find_spoken",
    "find_unexplained",
]

Star = Literal["ends", "words"]

# Sound that the text does not explain. A word of two labels that is left out shows for 0.1 s; where nothing is left
# out, a star takes a frame or two, if any.
LEAST_UNEXPLAINED = 0.1  # seconds; less is not reported
ROUNDING = 1e-9  # seconds; of a number of frames times their duration
PAUSE = 0.5  # seconds; a longer silence ends what is reported as one stretch

# What a path must gain without a segment, where anything may be said between two words.
LEAST_GAIN = 10.0  # nats
NEARBY = 20.0  # seconds; words that are farther from the place of the segment stay where they are

MOST_PADDED = 2  # times the frames that are there; recordings of other lengths go into another call


class BestPath:
    """The best path of some words through the emissions, and what was asked. :func:`find_all` finds it."""

    path: Tensor
    scores: Tensor

    def __init__(
        self, log_probs: Tensor, targets: Tensor, tokens_per_word: list[int], stars: Tensor | None, wild: Tensor | None
    ) -> None:
        self.log_probs, self.targets, self.tokens_per_word = log_probs, targets, tokens_per_word
        self.stars, self.wild = stars, wild

    def posteriors(self, spans: Sequence[TokenSpan], blank: int, core: int, context: int) -> list[float]:
        """Returns the mean posterior of every label over its frames, compared with other places nearby.

        The sums over all paths of an hour would take as long as the model. So they are those of pieces: the labels that
        begin within ``core`` frames, with those of ``context`` frames on both sides, between the labels beside them,
        which stay where they are.
        """
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        frames = len(self.path)
        found: list[float] = []
        while len(found) < len(spans):
            first = len(found)
            begin = starts[first] if first else 0
            last = bisect_left(starts, begin + core, first + 1)
            left = bisect_left(starts, begin - context, 0, first)
            right = bisect_left(starts, (starts[last] if last < len(spans) else frames) + context, last)
            part = slice(ends[left - 1] if left else 0, starts[right] if right < len(spans) else frames)
            options: dict[str, Any] = {}
            if self.stars is not None and self.wild is not None:
                options = {"star_scores": self.stars[None, part], "wild_gaps": self.wild[None, left : right + 1]}
            begins, stops = torch.tensor([starts[left:right], ends[left:right]])[:, None] - part.start
            here, _ = span_posteriors(
                self.log_probs[None, part], self.targets[None, left:right], begins, stops, blank=blank, **options
            )
            found += here[0, first - left : last - left].tolist()
        return found


def check_length(transcript: Transcript, model: AcousticModel, frames: int, name: str) -> None:
    """Raises SpeechError if a recording of so many frames is too short for a text."""
    labels, _ = transcript.targets(star=len(model.labels), separator=model.separator)
    needed = int(min_frames(torch.tensor([labels])))
    if needed > frames:
        raise SpeechError(
            f"the text is too long for {name}: its {len(transcript.words)} words are {len(labels)} labels, which take "
            f"{needed} frames of the model or more, and the recording has {frames} "
            f"({frames * model.seconds_per_frame:.2f} s); pass the text of this recording alone"
        )


def ask_path(
    log_probs: Tensor,
    transcript: Transcript,
    kept: Sequence[int],
    model: AcousticModel,
    stars: Tensor,
    star: Star | None,
) -> BestPath:
    """Says what path some words of the transcript ask for. They have to fit: see :func:`check_length`."""
    classes = log_probs.shape[1]
    labels, counts = transcript.targets(star=classes, separator=model.separator, words=kept)
    targets = torch.tensor(labels)
    has_star_labels = classes in labels
    wild = None
    if star is not None:
        how: dict[str, Any] = {}
        if star == "words":
            how = {"separator": model.separator, "tokens_per_word": [counts]}
        wild = wild_gaps(targets[None], where=star, **how)[0]
    elif has_star_labels:
        wild = torch.zeros(len(labels) + 1, dtype=torch.bool)
    if wild is not None and has_star_labels:
        # What lies beside a star label is that label's, up to the words around it.
        for place in (targets == classes).nonzero().flatten().tolist():
            separated_before, separated_after = (
                0 <= beside < len(labels) and labels[beside] == model.separator for beside in (place - 1, place + 1)
            )
            wild[place - separated_before : place + 2 + separated_after] = False
    return BestPath(log_probs, targets, counts, stars if wild is not None else None, wild)


def find_all(asked: Sequence[BestPath], blank: int) -> None:
    """Finds paths, those through recordings of similar lengths in one call of the operator.

    A path does not depend on the others, so neither does it on how they are grouped. A recording without a path is
    marked: :func:`check_path`.
    """
    for group in _group(asked):
        frames, labels = (torch.tensor([len(tensor) for tensor in column]) for column in (
            [path.log_probs for path in group], [path.targets for path in group]))  # fmt: skip
        stars = wild = None
        if group[0].stars is not None:
            stars = _stack([path.stars for path in group])
            wild = _stack([path.wild for path in group])
        paths, scores = forced_align(
            _stack([path.log_probs for path in group]),
            _stack([path.targets for path in group]),
            frames,
            labels,
            blank=blank,
            strict=False,
            star_scores=stars,
            wild_gaps=wild,
        )
        for path, row, values, length in zip(group, paths, scores, frames.tolist(), strict=True):
            path.path, path.scores = row[:length], values[:length]


def _group(asked: Sequence[BestPath]) -> Iterator[list[BestPath]]:
    """Puts paths together that go into one tensor, such that at most half of it is padding."""
    group: list[BestPath] = []
    cells = 0
    for path in sorted(asked, key=lambda path: (path.stars is None, path.log_probs.shape[1], -len(path.log_probs))):
        if group:
            first = group[0]
            alike = first.log_probs.shape[1] == path.log_probs.shape[1] and (first.stars is None) == (
                path.stars is None
            )
            padded = (len(group) + 1) * len(first.log_probs)
            if not alike or padded > MOST_PADDED * (cells + len(path.log_probs)):
                yield group
                group, cells = [], 0
        group.append(path)
        cells += len(path.log_probs)
    if group:
        yield group


def _stack(tensors: Sequence[Any]) -> Tensor:
    """(n, ...) tensors of one kind, as one; shorter ones get zeros at the end."""
    if len(tensors) == 1:
        only: Tensor = tensors[0][None]
        return only
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def check_path(found: BestPath, name: str) -> None:
    """Raises SpeechError if a recording has no path."""
    if len(found.path) and int(found.path[0]) == -1:
        raise SpeechError(
            f"the model's log-probabilities for {name} leave no path through the text: some are NaN or -inf; use a "
            "wider dtype, float32 for example, or check the model"
        )


def find_spoken(
    log_probs: Tensor, transcript: Transcript, model: AcousticModel, stars: Tensor, name: str
) -> list[bool]:
    """Finds which segments are in the recording."""
    everything = range(len(transcript.words))
    labels, counts = transcript.targets(star=log_probs.shape[1], separator=model.separator, words=everything)
    targets = torch.tensor(labels)
    blocks = [sum(counts[k] for k in segment.words) for segment in transcript.segments]
    found = find_unspoken(
        log_probs, targets, blocks, blank=model.blank, separator=model.separator, star_scores=stars
    ).unspoken.tolist()

    # find_unspoken allows for other words between two segments alone. A segment of which only some words are missing in
    # the text comes back where other words may stand anywhere.
    if any(found):
        kept = [k for k in everything if not found[transcript.words[k].segment]]
        nearby = _Nearby(log_probs, transcript, kept, model, stars, name)
        found = [
            missing and not nearby.restore(segment.words)
            for missing, segment in zip(found, transcript.segments, strict=True)
        ]
    if all(found):
        raise SpeechError(f"no segment of the text is in {name}; is it the text of another recording?")
    return [not missing for missing in found]


class _Nearby:
    """Words that are kept, and where the best path has them; more come in where the path loses little by it.

    Two paths through all of an hour for each of a hundred segments would take minutes. So they go through a part of the
    recording: the words some seconds around the place may move, those beyond stay where they are.
    """

    def __init__(
        self,
        log_probs: Tensor,
        transcript: Transcript,
        kept: Sequence[int],
        model: AcousticModel,
        stars: Tensor,
        name: str,
    ) -> None:
        self.log_probs, self.transcript, self.model, self.stars, self.name = log_probs, transcript, model, stars, name
        self.frames = round(NEARBY / model.seconds_per_frame)
        self.kept: list[int] = []
        self.begins: list[int] = []  # the first frame of every word
        self.ends: list[int] = []
        everywhere = slice(0, len(log_probs))
        if kept:
            self.put(slice(0, 0), kept, everywhere, self.find(kept, everywhere))

    def restore(self, segment: range) -> bool:
        """Puts the words of a segment among the others, unless the path gains ``LEAST_GAIN`` without them."""
        place = bisect_left(self.kept, segment.start)
        count, frames = len(self.kept), len(self.log_probs)
        before = self.ends[place - 1] if place else 0
        after = self.begins[place] if place < count else frames
        left = bisect_left(self.begins, before - self.frames, 0, place)
        right = bisect_left(self.begins, after + self.frames, place)
        part = slice(self.ends[left - 1] if left else 0, self.begins[right] if right < count else frames)
        words = [*self.kept[left:place], *segment, *self.kept[place:right]]
        labels, _ = self.transcript.targets(star=self.log_probs.shape[1], separator=self.model.separator, words=words)
        if int(min_frames(torch.tensor([labels]))) > part.stop - part.start:
            return False
        if left < right:
            without = self.find(self.kept[left:right], part).scores
        else:
            without = torch.maximum(self.log_probs[part, self.model.blank], self.stars[part])
        found = self.find(words, part)
        if float(without.double().sum() - found.scores.double().sum()) >= LEAST_GAIN:
            return False
        self.put(slice(left, right), words, part, found)
        return True

    def find(self, words: Sequence[int], part: slice) -> BestPath:
        found = ask_path(self.log_probs[part], self.transcript, words, self.model, self.stars[part], "words")
        find_all([found], self.model.blank)
        check_path(found, self.name)
        return found

    def put(self, place: slice, words: Sequence[int], part: slice, found: BestPath) -> None:
        """Replaces some of the words by others, which a path through a part of the recording has."""
        classes, frames = torch.unique_consecutive(found.path, return_counts=True)
        stops = part.start + frames.cumsum(0)
        spoken = (classes != self.model.blank) & (classes >= 0)
        begins: dict[int, int] = {}
        ends: dict[int, int] = {}
        owners = find_owners(found, words, self.model.separator)
        for owner, begin, end in zip(owners, (stops - frames)[spoken].tolist(), stops[spoken].tolist(), strict=True):
            begins.setdefault(owner, begin)
            ends[owner] = end
        self.kept[place] = words
        self.begins[place], self.ends[place] = [begins[k] for k in words], [ends[k] for k in words]


def find_unexplained(found: BestPath, model: AcousticModel) -> list[TokenSpan]:
    """Finds the sound that the path leaves to the stars of gaps.

    Pieces with a short silence between them are one. Separators that the model hears are not sound.
    """
    if found.wild is None or not bool(found.wild.any()):
        return []
    spf = model.seconds_per_frame
    pieces: list[TokenSpan] = []
    for star in merge_stars(found.path, found.scores):
        if model.separator is not None:
            heard = found.log_probs[star.start : star.end].argmax(-1)
            if bool((heard == model.separator).all()):
                continue
        if pieces:
            last = pieces[-1]
            between = found.path[last.end : star.start]
            silent = (between == model.blank) | (between == GAP_STAR)
            if model.separator is not None:
                silent |= between == model.separator
            if bool(silent.all()) and len(between) * spf <= PAUSE:
                score = float(found.scores[last.start : star.end].mean())
                pieces[-1] = TokenSpan(GAP_STAR, last.start, star.end, score)
                continue
        pieces.append(star)
    return [piece for piece in pieces if len(piece) * spf > LEAST_UNEXPLAINED - ROUNDING]


def find_owners(found: BestPath, kept: Sequence[int], separator: int | None) -> list[int]:
    """Returns the word of every label; -1 for separators."""
    ends = list(accumulate(found.tokens_per_word))
    owners, place, seen = [], 0, 0
    for label in found.targets.tolist():
        if label == separator:
            owners.append(-1)
            continue
        while seen >= ends[place]:
            place += 1
        owners.append(kept[place])
        seen += 1
    return owners
