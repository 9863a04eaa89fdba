"""A picture of an alignment: waveform and words above, emissions and the path through them below."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align import GAP_STAR
from torch_ctc_align.speech.alignment import Evidence, SpeechAlignment, Word
from torch_ctc_align.speech.audio import read_samples
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["draw_picture"]

FORMATS = ("png", "svg", "pdf")
MAX_SECONDS = 60
MAX_INCHES = 60

INK, SHADE, LINE, SOUND, PATH = "#1f2933", "#dbe7f3", "#829ab1", "#52606d", "#d9480f"
SAND, BROWN, RED = "#fdf3dc", "#b7791f", "#9b2c2c"  # what is not in the text, and what is not in the recording
STYLE = {"font.size": 8.5, "axes.edgecolor": INK, "text.color": INK, "axes.labelcolor": INK, "hatch.linewidth": 0.5}

ROW = 0.165  # inches
LETTER = 0.024  # seconds that half a letter covers at 1.5 inches a second
LEGEND_ENTRIES = 6
LEGEND_LETTERS = 60


def draw_picture(alignment: SpeechAlignment, path: str | os.PathLike[str], *, seconds: float = 10.0) -> None:
    """Draws the first seconds of an alignment.

    Every class that the path visits has a row, then the star, the separator and the blank. Sound that the text lacks is
    hatched, words that cannot be spelt are in italics, and a dashed line stands where words were not spoken.

    Args:
        alignment: with its evidence, of a recording that is a file.
        path: where to; ``.svg`` and ``.pdf`` give these formats, all else is PNG.
        seconds: how much to draw, above 0 and at most 60.

    Raises:
        SpeechError: the alignment was read from a file, or made of samples; the recording is gone; ``seconds`` is out
            of range; or matplotlib is missing.
    """
    if not isinstance(seconds, Real) or not 0 < seconds <= MAX_SECONDS:
        raise SpeechError(f"a picture shows above 0 and at most {MAX_SECONDS} seconds, found {seconds!r}")
    if alignment.evidence is None:
        raise SpeechError(
            "a picture needs the model's emissions, and this alignment has none; draw it when you align, since a file "
            "does not keep them"
        )
    if alignment.audio is None:
        raise SpeechError(
            "a picture needs the recording, and this alignment was made of samples in memory; write them to a file and "
            "align that"
        )
    matplotlib = require("matplotlib", "drawing a picture")
    view = View(alignment, alignment.evidence, seconds)
    samples = read_samples(
        alignment.audio, view.evidence.model.sample_rate, offset=view.evidence.start, duration=view.end - view.start
    )

    style = STYLE | {"font.family": find_fonts(view.text())}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # What no font of this machine has is a box, and letters that should join stand apart.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from|Matplotlib currently does not support .* natively"
        )
        figure = require("matplotlib.figure", "drawing a picture").Figure(
            figsize=(min(max(1.5 * (view.end - view.start), 7), MAX_INCHES), 1.9 + ROW * len(view.classes)),
            layout="constrained",
        )
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, ROW * len(view.classes)])
        draw_waveform(top, samples, view)
        draw_words(top, bottom, samples, view)
        image = draw_emissions(bottom, view)
        figure.colorbar(image, cax=bottom.inset_axes((1.008, 0, 0.008, 1)), label="probability")
        draw_differences(figure, top, bottom, view)
        figure.align_ylabels()
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
        suffix = Path(path).suffix[1:].lower()
        figure.savefig(path, dpi=160, format=suffix if suffix in FORMATS else "png")


class View:
    """The part of an alignment that is drawn.

    Attributes:
        start, end: seconds of the recording.
        edges: ``(frames + 1,)`` seconds, where the frames begin and end.
        visited: the class of every frame; C for all stars.
        classes: the rows, from above: as the path visits them, then the ``last`` ones: star, separator and blank.
        probabilities: ``(frames, rows)``.
        words: those that begin in this part.
    """

    def __init__(self, alignment: SpeechAlignment, evidence: Evidence, seconds: float) -> None:
        model, per_frame = evidence.model, evidence.model.seconds_per_frame
        self.alignment, self.evidence = alignment, evidence
        frames = min(len(evidence.path), max(1, round(seconds / per_frame)))
        self.start = evidence.start
        self.end = self.start + frames * per_frame
        self.edges = self.start + (torch.arange(frames + 1, dtype=torch.float64) + model.frame_offset) * per_frame

        self.star = evidence.log_probs.shape[1]
        self.visited = [self.star if c == GAP_STAR else c for c in evidence.path[:frames].tolist()]
        starred = evidence.star_scores is not None or self.star in self.visited
        separator = [] if model.separator is None else [model.separator]
        self.last = [self.star] * starred + separator + [model.blank]
        self.classes = [c for c in dict.fromkeys(self.visited) if c not in self.last] + self.last
        self.probabilities = self._probabilities(frames)

        timed = [(word, word.start, word.end) for word in alignment.words]
        self.words = [
            (word, start, end) for word, start, end in timed
            if start is not None and end is not None and self.start <= start < self.end
        ]  # fmt: skip

    def _probabilities(self, frames: int) -> Tensor:
        """Returns the columns of the rows alone: a vocabulary may be large."""
        log_probs, scores = self.evidence.log_probs[:frames], self.evidence.star_scores
        columns = [
            log_probs[:, c] if c != self.star else
            scores[:frames] if scores is not None else torch.full((frames,), -torch.inf)
            for c in self.classes
        ]  # fmt: skip
        return torch.stack([column.detach().float().cpu() for column in columns], 1).exp()

    def name(self, label: int) -> str:
        """Returns what stands at the row of a class."""
        if label == self.star or label == self.evidence.model.blank:
            return "star" if label == self.star else "blank"
        text = self.evidence.model.labels[label]
        # A combining mark alone needs a letter to sit on; a space does not show.
        return "◌" + text if text and unicodedata.combining(text[0]) else "␣" if text.isspace() else order(text)

    def unspoken(self) -> Iterator[tuple[float, str]]:
        """Yields the words of the text that are not spoken in one piece, and the time of the word before them."""
        words = self.alignment.words
        place = next((word.start for word in words if word.start is not None), self.start)
        for (_, unspoken), group in groupby(words, key=lambda word: (word.segment, word.status == "unspoken")):
            run: list[Word] = list(group)
            if unspoken:
                yield place, " ".join(self.alignment.text[run[0].begin : run[-1].stop].split())
            else:
                place = run[-1].end if run[-1].end is not None else place

    def text(self) -> str:
        """Returns all characters that are drawn."""
        names = [self.name(c) for c in self.classes]
        return "".join([*names, *(word.text for word, _, _ in self.words), *(text for _, text in self.unspoken())])


def draw_waveform(axes: Any, samples: Tensor, view: View) -> None:
    """Draws the sound, with room for two lines of words above it."""
    times = view.start + torch.arange(len(samples), dtype=torch.float64) / view.evidence.model.sample_rate
    axes.plot(times.numpy(), samples.numpy(), color=SOUND, linewidth=0.35)
    peak = loudness(samples)
    axes.set_ylim(-peak, 1.7 * peak)
    axes.set_yticks([])
    axes.set_ylabel("waveform")


def loudness(samples: Tensor) -> float:
    """Returns the height of the waveform's picture."""
    return 1.1 * max(float(samples.abs().max()), 1e-3)


def draw_words(top: Any, bottom: Any, samples: Tensor, view: View) -> None:
    """Draws the words over the waveform, in two lines where one is too narrow."""
    peak = loudness(samples)
    free_from = [view.start, view.start]  # each line has room from there on
    for word, start, end in view.words:
        top.axvspan(start, end, color=SHADE, linewidth=0)
        for axes in (top, bottom):
            for border in (start, end):
                axes.axvline(border, color=LINE, linewidth=0.5)
        middle, half = (start + end) / 2, LETTER * (letters(word.text) + 1)
        line = 0 if free_from[0] <= middle - half or free_from[0] <= free_from[1] else 1
        free_from[line] = middle + half
        style = "italic" if word.status == "inferred" else "normal"
        top.text(middle, (1.1 + 0.28 * line) * peak, order(word.text), ha="center", va="bottom", clip_on=True,
                 style=style, parse_math=False)  # fmt: skip


def draw_emissions(axes: Any, view: View) -> Any:
    """Draws the probabilities, and the path: a dot in every frame, and a line through the labels of each word.

    A line through every frame would go back to the blank after almost every label, and hide the picture.
    """
    rows = len(view.classes)
    image = axes.imshow(
        view.probabilities.T.numpy(), aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1,
        extent=(float(view.edges[0]), float(view.edges[-1]), rows - 0.5, -0.5),
    )  # fmt: skip
    middles = (view.edges[:-1] + view.edges[1:]) / 2
    row_of = {c: row for row, c in enumerate(view.classes)}
    path = torch.tensor([row_of[c] for c in view.visited])
    axes.plot(middles.numpy(), path.numpy(), ".", color=PATH, markersize=2.4, markeredgewidth=0)
    for _, start, end in view.words:
        inside = (middles > start) & (middles < end) & (path < rows - len(view.last))
        axes.plot(middles[inside].numpy(), path[inside].numpy(), color=PATH, linewidth=0.7, alpha=0.8)
    axes.set_yticks(range(rows), [view.name(c) for c in view.classes])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(view.start, view.end)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("class")
    return image


def draw_differences(figure: Any, top: Any, bottom: Any, view: View) -> None:
    """Marks what is not in the text, and where words were not spoken. A legend says so below the picture."""
    entries: dict[str, Any] = {}
    for stretch in view.alignment.unexplained:
        start, end = max(stretch.start, view.start), min(stretch.end, view.end)
        if start < end:
            bottom.axvspan(start, end, color=BROWN, alpha=0.13, linewidth=0)
            entries["in the recording, not in the text"] = top.axvspan(
                start, end, facecolor=SAND, edgecolor=BROWN, hatch="////", linewidth=0, zorder=0.5
            )
    if any(word.status == "inferred" for word, _, _ in view.words):
        (nothing,) = top.plot([], [], linestyle="none")
        entries["in italics: cannot be spelt, and its time is what the words around it leave"] = nothing
    left_out = 0
    ends_here = view.end >= view.alignment.seconds - view.alignment.seconds_per_frame
    for place, text in view.unspoken():
        if not view.start <= place < view.end and not (ends_here and place >= view.end):
            continue
        for axes in (top, bottom):
            mark = axes.axvline(min(place, view.end), color=RED, linewidth=1.2, linestyle=(0, (3, 2)))
        shown = text if len(text) <= LEGEND_LETTERS else f"{text[: LEGEND_LETTERS - 3].rstrip()}..."
        if len(entries) < LEGEND_ENTRIES:
            entries[f"in the text, not in the recording: {order(shown)}"] = mark
        else:
            left_out += 1
    names = list(entries)
    if left_out:
        names[-1] += f" (and {left_out} more)"
    if names:
        legend = figure.legend(entries.values(), names, loc="outside lower left", frameon=False, borderaxespad=0.2)
        for label in legend.get_texts():
            label.set_parse_math(False)


def letters(text: str) -> float:
    """Returns the width of a text in letters: Chinese characters are as wide as two, marks have none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def order(text: str) -> str:
    """Returns text in the order in which it is drawn, from left to right.

    Matplotlib before 3.11 draws characters as they come; what is written from right to left would stand reversed.
    """
    direction = next((d for d in map(unicodedata.bidirectional, text) if d in ("L", "R", "AL")), "L")
    version = require("matplotlib", "drawing a picture").__version_info__
    if direction == "L" or (version.major, version.minor) >= (3, 11):
        return text
    clusters: list[str] = []
    for c in text:
        if clusters and unicodedata.combining(c):
            clusters[-1] += c  # a mark stays behind its letter
        else:
            clusters.append(c)
    return "".join(reversed(clusters))


def find_fonts(text: str) -> Sequence[str]:
    """Returns matplotlib's own font, and what other fonts of this machine the characters need."""
    manager = require("matplotlib.font_manager", "drawing a picture")
    families = ["DejaVu Sans"]
    needed = {ord(c) for c in text} - manager.get_font(manager.findfont("DejaVu Sans")).get_charmap().keys()
    for entry in sorted(manager.fontManager.ttflist, key=lambda entry: (entry.style, entry.weight != 400)):
        if not needed:
            break
        try:
            covered = needed & manager.get_font(entry.fname).get_charmap().keys()
        except (OSError, RuntimeError):  # a font that has been removed, or that FreeType refuses
            continue
        if covered and not entry.name.startswith(("Last Resort", "LastResort", "Adobe Blank")):
            families.append(entry.name)
            needed -= covered
    return list(dict.fromkeys(families))
