"""Formats that are tables of times: TSV, CTM, Audacity's labels, and TextGrid."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Token, Word
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["Level", "Row", "rows", "to_audacity", "to_ctm", "to_tsv", "write_textgrid"]

Level = Literal["words", "segments", "tokens"]


class Row(NamedTuple):
    """What has times, in whole milliseconds."""

    start: int
    end: int
    text: str
    confidence: float | None
    status: str


def rows(alignment: SpeechAlignment, level: Level) -> list[Row]:
    """The words, segments or tokens that have times. White space in a text is one space."""
    items: Sequence[Word | Segment | Token]
    if level == "words":
        items = alignment.words
    elif level == "segments":
        items = alignment.segments
    elif level == "tokens":
        items = alignment.tokens
    else:
        raise SpeechError(f"level must be words, segments or tokens, found {level!r}")
    found = []
    for item in items:
        if item.start is not None and item.end is not None:
            text = clean(item.label if isinstance(item, Token) else item.text)
            status = item.status if isinstance(item, Word) else "spoken"
            if isinstance(item, Segment) and item.confidence is None:
                status = "inferred"
            found.append(Row(round(item.start * 1000), round(item.end * 1000), text, item.confidence, status))
    return found


def clean(text: str) -> str:
    """On one line, without tabs; what UTF-8 cannot write, from the name of a file for example, is a question mark."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def seconds(milliseconds: int) -> str:
    """``"1.040"`` of 1040; integers, so that no rounding shows."""
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def to_tsv(alignment: SpeechAlignment, level: Level = "words") -> str:
    """Columns start, end, text, confidence, status."""
    table = io.StringIO()
    writer = csv.writer(table, "excel-tab", lineterminator="\n")
    writer.writerow(["start", "end", "text", "confidence", "status"])
    for row in rows(alignment, level):
        confidence = "" if row.confidence is None else f"{row.confidence:.4f}"
        writer.writerow([seconds(row.start), seconds(row.end), row.text, confidence, row.status])
    return table.getvalue()


def to_audacity(alignment: SpeechAlignment, level: Level = "words") -> str:
    """A label track."""
    return "".join(f"{seconds(row.start)}\t{seconds(row.end)}\t{row.text}\n" for row in rows(alignment, level))


def to_ctm(alignment: SpeechAlignment, level: Level = "words") -> str:
    """NIST's time-marked conversation: recording, channel, start, duration, word and, of what is spoken, confidence."""

    def field(text: str) -> str:
        return "<space>".join(text.split(" ")) or "<empty>"

    name = field(clean(alignment.audio.stem) if alignment.audio else "recording")
    name = "_" + name[1:] if name.startswith(";") else name  # ;; begins a comment
    lines = []
    for row in rows(alignment, level):
        confidence = "" if row.confidence is None else f" {row.confidence:.4f}"
        lines.append(f"{name} 1 {seconds(row.start)} {seconds(row.end - row.start)} {field(row.text)}{confidence}\n")
    return "".join(lines)


def write_textgrid(alignment: SpeechAlignment, path: Path) -> None:
    """Tiers words, segments and tokens."""
    praatio = require("praatio.textgrid", "the format textgrid")
    levels: tuple[Level, ...] = ("words", "segments", "tokens")
    tiers = {level: rows(alignment, level) for level in levels}
    end = max([1, round(alignment.seconds * 1000), *(tier[-1].end for tier in tiers.values() if tier)])
    grid = praatio.Textgrid(0, end / 1000)
    for level, tier in tiers.items():
        entries = [(start / 1000, stop / 1000, label) for start, stop, label in lasting(tier, end)]
        grid.addTier(praatio.IntervalTier(level, entries, 0, end / 1000))
    grid.save(os.fspath(path), format="long_textgrid", includeBlankSpaces=True)


def lasting(tier: Sequence[Row], end: int) -> list[tuple[int, int, str]]:
    """Intervals that all last some time, as a TextGrid's must.

    The text of a word that lasts none is joined to the interval that ends or begins there; if there is none, it gets
    a millisecond of the gap that it is in.
    """
    intervals: list[tuple[int, int, str]] = []
    waiting: list[str] = []  # texts of words at the moment `at`, for the interval that begins there
    at = 0

    def settle(limit: int) -> None:
        """Places what waits in the gap between the last interval and `limit`."""
        if waiting:
            start = at if at < limit else at - 1
            intervals.append((start, start + 1, " ".join(waiting)))
            waiting.clear()

    for row in tier:
        if row.start > at:
            settle(row.start)
        if row.start == row.end and intervals and intervals[-1][1] == row.start:
            intervals[-1] = (*intervals[-1][:2], f"{intervals[-1][2]} {row.text}")
        elif row.start == row.end:
            waiting.append(row.text)
            at = row.start
        else:
            intervals.append((row.start, row.end, " ".join([*waiting, row.text])))
            waiting.clear()
    settle(end)
    return intervals
