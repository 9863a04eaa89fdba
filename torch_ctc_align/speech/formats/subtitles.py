"""Subtitles: what is shown at once (a cue), and how SubRip, WebVTT and Advanced SubStation Alpha write it.

A segment that fits on a screen is a cue. One that does not is cut where reading suffers least: the cuts of the least
total cost, found over all ways to cut (dynamic programming, as TeX breaks a paragraph into lines).

SubRip and WebVTT are written here, in three lines each: pysubs2 would read backslashes and braces of the text as codes
of its own. It writes Advanced SubStation Alpha, with the styles that this has.
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch_ctc_align.speech.alignment import Segment, SpeechAlignment
from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["Cue", "Piece", "ass_text", "make_cues", "srt_text", "vtt_text"]

LINE = 42  # columns of a line of a cue; a cue has two at most
LONGEST = 7000  # milliseconds that a cue lasts
SHORTEST = 800  # ... if there is room
LONGEST_ASS = 36_000_000  # pysubs2 and old players know one digit of hours

# What a cut costs after a word that ends like this, in cues: to cut in mid-sentence is worse than one cue more.
SENTENCE, CLAUSE, NOWHERE = 0.0, 0.6, 1.5
ENDS = {**dict.fromkeys(".!?…。！？؟۔।॥።", SENTENCE), **dict.fromkeys(",;:–—-、，；：،؛", CLAUSE)}
MIXED = 1.25  # what it costs to show parts of two sentences at once
VOWELS = set("aeiouy")
CLOSING = "\"'”’»)]}）」』】》"


@dataclass(frozen=True)
class Piece:
    """A word as it is shown, with the punctuation around it.

    Attributes:
        text: no white space but single spaces.
        space: whether there is a space before it, if it is not the first of a line.
        start, end: whole milliseconds.
    """

    text: str
    space: bool
    start: int
    end: int


@dataclass(frozen=True)
class Cue:
    """What is shown at once.

    Attributes:
        lines: one or two, each of one word at least.
        start, end: whole milliseconds; ``end > start``, and the next cue does not start before ``end``.
    """

    lines: Sequence[Sequence[Piece]]
    start: int
    end: int


def make_cues(alignment: SpeechAlignment) -> list[Cue]:
    """The cues of all segments, in order. Words without times are not shown."""
    recording = round(alignment.seconds * 1000)
    groups: list[list[Piece]] = []
    for segment in alignment.segments:
        for group in cut(pieces_of(alignment, segment)):
            # Words that got no time and have no room are shown with those that begin there ...
            if groups and groups[-1][0].start == groups[-1][-1].end == group[0].start:
                groups[-1].extend([replace(group[0], space=True), *group[1:]])
            else:
                groups.append(group)
    if len(groups) > 1 and groups[-2][-1].end == groups[-1][0].start == groups[-1][-1].end >= recording:
        group = groups.pop()  # ... and, at the end of the recording, with those before them
        groups[-1].extend([replace(group[0], space=True), *group[1:]])
    cues = []
    for index, group in enumerate(groups):
        start, end = group[0].start, group[-1].end
        room = groups[index + 1][0].start if index + 1 < len(groups) else recording
        end = max(end, min(start + SHORTEST, room), start + 1)
        cues.append(Cue(break_lines(group), start, end))
    return cues


def pieces_of(alignment: SpeechAlignment, segment: Segment) -> list[Piece]:
    """The words of a segment that have times, as the text spells them."""
    pieces: list[Piece] = []
    words = [alignment.words[index] for index in segment.words]
    edges = [segment.begin]  # of the text that belongs to a word: edges[k] to edges[k + 1]
    for one, other in itertools.pairwise(words):
        edges.append(one.stop + divide(alignment.text[one.stop : other.begin]))
    edges.append(segment.stop)
    for word, begin, stop in zip(words, edges, edges[1:], strict=False):
        if word.start is not None and word.end is not None:
            text = alignment.text[begin:stop]
            space = begin > segment.begin and (text[:1].isspace() or alignment.text[begin - 1].isspace())
            shown = " ".join(text.split())
            pieces.append(Piece(shown, space, round(word.start * 1000), round(word.end * 1000)))
    return pieces


def divide(between: str) -> int:
    """Where what lies between two words goes over from the first to the second one: behind the last white space; if
    there is none, before the brackets and quotation marks that open.
    """
    stop = len(between)
    while stop > 0 and not between[stop - 1].isspace():
        stop -= 1
    if stop == 0:
        stop = len(between)
        while stop > 0 and unicodedata.category(between[stop - 1]) in ("Ps", "Pi"):
            stop -= 1
    return stop


def columns(text: str) -> int:
    """How wide a text is: wide characters count for two, marks that combine with others for none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def edges_of(pieces: Sequence[Piece]) -> list[int]:
    """Where each word ends if all are on one line, in columns; [0] is where the line begins."""
    edges = [0]
    for index, piece in enumerate(pieces):
        edges.append(edges[-1] + columns(piece.text) + (piece.space and index > 0))
    return edges


def width(pieces: Sequence[Piece], edges: Sequence[int], first: int, stop: int) -> int:
    """Columns of the line that has the words [first, stop)."""
    return edges[stop] - edges[first] - (pieces[first].space and first > 0)


def join(pieces: Sequence[Piece]) -> str:
    """A line."""
    return "".join((" " if piece.space and index else "") + piece.text for index, piece in enumerate(pieces))


def cost_after(piece: Piece) -> float:
    """What it costs to cut behind a word."""
    text = piece.text.rstrip(CLOSING)
    word = text[:-1]
    if text.endswith(".") and word.isascii() and word.isalpha() and (len(word) == 1 or not VOWELS & set(word.lower())):
        return NOWHERE  # "Mr.", "Dr.", "J."
    return ENDS.get(text[-1:], NOWHERE)


def cut(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Cuts the words of a segment into cues, at the least cost."""
    count, edges = len(pieces), edges_of(pieces)
    costs = [SENTENCE, *map(cost_after, pieces)]  # costs[k]: of a cut before word k
    best = [0.0] + [float("inf")] * count  # best[k]: the least cost of the first k words
    begin = [0] * (count + 1)  # begin[k]: the first word of the cue that ends before word k
    for first in range(count):
        inside = False  # whether a sentence ends inside the cue
        lower = first  # the first word of the second line, if the first line takes as many words as it can
        for stop in range(first + 1, count + 1):
            duration = pieces[stop - 1].end - pieces[first].start
            if width(pieces, edges, first, stop) <= LINE:
                lower = stop
            fits = lower > first and (lower == stop or width(pieces, edges, lower, stop) <= LINE)
            if stop > first + 1 and not (fits and duration <= LONGEST):
                break
            cost = best[first] + cost_of_cue(width(pieces, edges, first, stop), duration)
            if inside and max(costs[first], costs[stop]) > SENTENCE:
                cost += MIXED
            if stop < count:
                cost += costs[stop] - min(pieces[stop].start - pieces[stop - 1].end, 1000) / 1000
            inside |= costs[stop] == SENTENCE
            if cost < best[stop]:
                best[stop], begin[stop] = cost, first
    groups: list[list[Piece]] = []
    stop = count
    while stop:
        groups.append(list(pieces[begin[stop] : stop]))
        stop = begin[stop]
    return groups[::-1]


def cost_of_cue(used: int, duration: int) -> float:
    """2 for an empty cue, 1 for a full one; squared, so that cues of about the same size are preferred."""
    full = min(1.0, max(used / (2 * LINE), duration / LONGEST))
    return 1 + (1 - full) ** 2


def break_lines(group: Sequence[Piece]) -> list[list[Piece]]:
    """One line if it is short enough, else two: of those that fit, the ones that are most alike in width, where a
    break behind a sentence makes up for a difference of half a line.
    """
    edges = edges_of(group)
    if edges[-1] <= LINE or len(group) == 1:
        return [list(group)]

    def badness(at: int) -> float:
        upper, lower = width(group, edges, 0, at), width(group, edges, at, len(group))
        excess = max(0, upper - LINE) + max(0, lower - LINE)
        return 1000 * excess + abs(upper - lower) + LINE / 2 / NOWHERE * cost_after(group[at - 1])

    at = min(range(1, len(group)), key=badness)
    return [list(group[:at]), list(group[at:])]


# ---------------------------------------------------------------------------------------------------------- formats


def clock(milliseconds: int, mark: str) -> str:
    """``"00:00:01.040"``; hours have as many digits as they need."""
    second, milliseconds = divmod(milliseconds, 1000)
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}{mark}{milliseconds:03d}"


def guard(text: str) -> str:
    r"""Keeps players from reading codes of ASS, such as ``\N`` and ``{\an8}``, in any format, as FFmpeg does. None
    of the formats can escape a backslash. A word joiner (U+2060), which nobody sees, is put behind it.
    """
    return re.sub(r"\\|{(?=\\)", "\\g<0>\u2060", text)


def srt_text(alignment: SpeechAlignment) -> str:
    """SubRip. It has tags and no way to escape them: a word joiner (U+2060) behind its first character breaks a tag."""
    blocks = []
    for number, cue in enumerate(make_cues(alignment), 1):
        text = re.sub(r"<(?=\S)", "<\u2060", guard("\n".join(join(line) for line in cue.lines)))
        blocks.append(f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def vtt_text(alignment: SpeechAlignment, words: bool = False) -> str:
    """WebVTT; with ``words``, the time of each word is in its cue, for pages that style what has been said."""

    def escape(text: str) -> str:
        return guard(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    blocks = ["WEBVTT\n"]
    for cue in make_cues(alignment):
        lines, stamp = [], cue.start
        for line in cue.lines:
            text = ""
            for index, piece in enumerate(line):
                text += " " if piece.space and index else ""
                if words and stamp < piece.start < cue.end:  # they must increase, and lie within the cue
                    stamp = piece.start
                    text += f"<{clock(stamp, '.')}>"
                text += escape(piece.text)
            lines.append(text)
        text = "\n".join(lines)
        blocks.append(f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def ass_text(alignment: SpeechAlignment, words: bool = True) -> str:
    """Advanced SubStation Alpha; with ``words``, each word lights up when it is spoken (karaoke)."""
    pysubs2 = require("pysubs2", "the format ass")
    cues = make_cues(alignment)
    if cues and cues[-1].end >= LONGEST_ASS:
        raise SpeechError(
            f"the format ass has times below 10 hours, found a word at {clock(cues[-1].end, '.')}; take srt or vtt"
        )
    file = pysubs2.SSAFile()
    file.styles["Default"].secondarycolor = pysubs2.Color(150, 150, 150)  # of what has not been said yet
    for cue in cues:
        start, end = centiseconds(cue.start), centiseconds(cue.end)
        text = karaoke(cue) if words else r"\N".join(escape_ass(join(line)) for line in cue.lines)
        file.events.append(pysubs2.SSAEvent(start=10 * start, end=10 * end, text=text))
    return str(file.to_string("ass", header_notice="Script generated by torch_ctc_align"))


def karaoke(cue: Cue) -> str:
    r"""A cue's words, each after ``{\k<centiseconds>}``; pauses are words without letters. The centiseconds add up to
    the duration of the cue, since each is a difference of rounded times.
    """
    text, now = "", centiseconds(cue.start)
    for number, line in enumerate(cue.lines):
        text += r"\N" if number else ""
        for index, piece in enumerate(line):
            text += " " if piece.space and index else ""
            start, end = centiseconds(piece.start), centiseconds(piece.end)
            if start > now:
                text += rf"{{\k{start - now}}}"
            text += rf"{{\k{end - start}}}{escape_ass(piece.text)}"
            now = end
    rest = centiseconds(cue.end) - now
    return text + (rf"{{\k{rest}}}" if rest else "")


def centiseconds(milliseconds: int) -> int:
    """Rounded; halves up, as pysubs2 does."""
    return (milliseconds + 5) // 10


def escape_ass(text: str) -> str:
    """Braces get a backslash."""
    return guard(text).replace("{", r"\{").replace("}", r"\}")
