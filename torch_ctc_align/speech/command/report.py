"""What the command ``ctc-align`` prints: tables, remarks, bars."""

import importlib
import os
import re
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from torch_ctc_align.speech.alignment import SpeechAlignment
from torch_ctc_align.speech.command.batch import Result, explain
from torch_ctc_align.speech.command.inputs import Failure, Item, Work
from torch_ctc_align.speech.command.ledger import write_failures

__all__ = ["DONE", "FAILED", "INTERRUPTED", "LOW_CONFIDENCE", "USAGE", "Progress", "Report", "warn"]

DONE, USAGE, FAILED, INTERRUPTED = 0, 2, 3, 130  # what the command exits with

LOW_CONFIDENCE = 0.3  # mean over words; a text that is what was said reaches about 0.9, a wrong one 0.01

NAME_WIDTH = 48  # columns of a recording's name in the table of many; a longer one loses its beginning
TITLE_WIDTH = 30  # of it in the title of a bar
BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
SHOWN = 5  # of many names in a line
MOST_WARNINGS = 20  # of lines about what cannot be tried, before the work begins
TERMINAL_WORDS = 200  # on a terminal a longer table is cut, to its first and last words
FIRST, LAST = 40, 10


class Printer:
    """Writes to standard output; nothing if it is told to be quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, line: str = "") -> None:
        if not self.quiet:
            write(line, sys.stdout)


def warn(line: str) -> None:
    """One line on standard error."""
    write(f"ctc-align: {line}", sys.stderr)


def blame(name: str, reason: str) -> None:
    """Says why something failed; the reason may begin with its name."""
    printed = name.encode("utf-8", "backslashreplace").decode()  # as the readers of recordings have it
    warn(reason if reason.startswith((f"{printed} ", f"{printed}: ")) else f"{name}: {reason}")


def visible(text: str) -> str:
    """Control characters as Python spells them: the name of a file may have any, and a terminal obeys them."""
    return re.sub("[\0-\x1f\x7f-\x9f]", lambda match: ascii(match[0])[1:-1], text)


def write(line: str, stream: TextIO) -> None:
    """Writes a line. A reader that ends, ``head`` for example, does not end the work."""
    try:
        print(visible(line), file=stream, flush=True)
    except BrokenPipeError:
        # What is still to come goes nowhere, and the interpreter can flush the stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def pad(text: str, columns: int) -> str:
    """Fills up with spaces."""
    return text + " " * (columns - width(text))


def number(value: float | None, columns: int, digits: int = 2) -> str:
    """A number, or a hyphen."""
    return f"{'-':>{columns}}" if value is None else f"{value:{columns}.{digits}f}"


def word_table(alignment: SpeechAlignment) -> Iterator[str]:
    """A line for every word."""
    columns = max(map(width, ["word", *(word.text for word in alignment.words)]))
    yield f"{pad('word', columns)}  {'start':>8}  {'end':>8}  confidence"
    for word in alignment.words:
        last = number(word.confidence, 10) if word.status == "spoken" else f"{word.status:>10}"
        yield f"{pad(word.text, columns)}  {number(word.start, 8)}  {number(word.end, 8)}  {last}"


def differences(alignment: SpeechAlignment) -> Iterator[str]:
    """What the recording has and the text has not, and the reverse."""
    yield "in the recording, not in the text:" + ("" if alignment.unexplained else " nothing")
    for stretch in alignment.unexplained:
        yield f"  {stretch.start:.2f} to {stretch.end:.2f} s ({stretch.end - stretch.start:.2f} s)"
    yield "in the text, not in the recording:" + ("" if alignment.unspoken else " nothing")
    for segment in alignment.unspoken:
        yield f"  {' '.join(segment.text.split())}"


def describe(alignment: SpeechAlignment) -> str:
    """What is remarkable, for a row of the table of many."""
    statuses = Counter(word.status for word in alignment.words)
    remarks = []
    if alignment.confidence is not None and alignment.confidence < LOW_CONFIDENCE:
        remarks.append("is this the text?")
    remarks += [f"{statuses[status]} {status}" for status in ("unspoken", "inferred") if statuses[status]]
    unexplained = sum(stretch.end - stretch.start for stretch in alignment.unexplained)
    if unexplained:
        remarks.append(f"{unexplained:.1f} s not in the text")
    return ", ".join(remarks)


def print_one(result: Result, printer: Printer, with_differences: bool) -> None:
    """The table of one recording, what it and the text do not share, and which files were written."""
    alignment = result.alignment
    assert alignment is not None
    printer.say(f"{result.item.name}: {alignment.seconds:.2f} s, {count(len(alignment.words), 'word')}")
    printer.say()
    lines = list(word_table(alignment))
    if sys.stdout.isatty() and len(lines) > TERMINAL_WORDS:
        left_out = len(lines) - FIRST - LAST
        lines[FIRST:-LAST] = [f"... {left_out} more; for all of them: ctc-align ... | less"]
    for line in lines:
        printer.say(line)
    if with_differences:
        printer.say()
        for line in differences(alignment):
            printer.say(line)
    if alignment.confidence is not None:
        printer.say()
        printer.say(f"mean confidence {alignment.confidence:.2f}")
    printer.say("wrote " + ", ".join(map(str, result.files)))


def count(number: int, what: str) -> str:
    """``1 word``, ``2 words``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


class Progress:
    """Bars of tqdm on standard error, where somebody watches and tqdm is there.

    Args:
        items: what is aligned. The title of a bar has the number of its item, if there are several.
        quiet: show nothing.
    """

    def __init__(self, items: Sequence[Item], quiet: bool) -> None:
        self.places = {item.output: place for place, item in enumerate(items, 1)}
        self.title = ""
        self.bar: Any = None
        self.tqdm: Any = None
        if sys.stderr.isatty() and not quiet:
            try:
                self.tqdm = importlib.import_module("tqdm").tqdm
            except ImportError:
                return

    @property
    def function(self) -> Callable[[Item, str, int, int], None] | None:
        """For ``align_all``; None where nobody watches."""
        return None if self.tqdm is None else self.show

    def show(self, item: Item, what: str, done: int, total: int) -> None:
        """Moves the bar."""
        title = what
        if len(self.places) > 1:
            title = f"{self.places[item.output]}/{len(self.places)} {shorten(visible(item.name), TITLE_WIDTH)}: {what}"
        if self.bar is None or self.title != title:
            self.clear()
            self.bar = self.tqdm(total=total, desc=title, leave=False, dynamic_ncols=True, bar_format=BAR)
            self.title = title
        self.bar.update(done - self.bar.n)

    def clear(self) -> None:
        """Removes the bar, so that a line can be printed."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def header(columns: int) -> str:
    """The first line of the table of many."""
    return f"{pad('recording', columns)}  {'seconds':>8}  {'words':>6}  confidence"


def row(item: Item, alignment: SpeechAlignment, columns: int) -> str:
    """One recording in the table of many."""
    numbers = f"{seconds_of(item, alignment):8.1f}  {len(alignment.words):6d}  {number(alignment.confidence, 10)}"
    return f"{pad(shorten(visible(item.name), columns), columns)}  {numbers}  {describe(alignment)}".rstrip()


def seconds_of(item: Item, alignment: SpeechAlignment) -> float:
    """How much of the recording was read."""
    return alignment.seconds - item.offset


def shorten(name: str, columns: int) -> str:
    """A long name loses its beginning."""
    while width(name) > columns:
        name = "…" + name[2:]
    return name


def report_partners(work: Work) -> None:
    """Names the files of a folder that have no partner."""
    if work.without_text:
        warn(f"{count(len(work.without_text), 'recording')} without text: {some(work.without_text)}")
    if work.without_recording:
        warn(f"{count(len(work.without_recording), 'text')} without recording: {some(work.without_recording)}")


def report_notes(notes: dict[str, list[str]]) -> None:
    """Each note once, with the recording or their number."""
    for note, names in notes.items():
        warn(f"{names[0] if len(names) == 1 else count(len(names), 'recording')}: {note}")


def report_doubts(doubts: Sequence[tuple[str, float]]) -> None:
    """Names the recordings whose text is probably another one, with their mean confidences."""
    if len(doubts) == 1:
        name, mean = doubts[0]
        warn(f"{name}: mean confidence is only {mean:.2f}: is this what is said in the recording?")
    elif doubts:
        warn(
            f"{len(doubts)} recordings have a mean confidence below {LOW_CONFIDENCE}: are their texts what is said in "
            f"them? {some([name for name, _ in doubts])}"
        )


def some(names: Sequence[object]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


class Report:
    """Prints results while they come, and counts them.

    Args:
        work: what there is to do.
        single: it is one recording, which gets a table of its words.
        quiet: print warnings and failures alone.
        with_tracebacks: print that of each failure.
        with_differences: say of one recording what it and its text do not share.
    """

    def __init__(self, work: Work, *, single: bool, quiet: bool, with_tracebacks: bool, with_differences: bool) -> None:
        self.work, self.single = work, single
        self.with_tracebacks, self.with_differences = with_tracebacks, with_differences
        self.printer = Printer(quiet)
        self.failures = list(work.failures)
        self.notes: dict[str, list[str]] = {}
        self.doubts: list[tuple[str, float]] = []
        self.aligned = self.skipped = 0
        self.seconds = self.took = 0.0
        self.columns = min(max(map(width, ["recording", *(visible(item.name) for item in work.items)])), NAME_WIDTH)
        report_partners(work)
        for failure in self.failures[:MOST_WARNINGS]:
            blame(failure.path, failure.reason)
        if len(self.failures) > MOST_WARNINGS:
            warn(f"and {len(self.failures) - MOST_WARNINGS} more such failures")

    def add(self, result: Result) -> None:
        """Prints a result."""
        item, alignment = result.item, result.alignment
        if result.skipped:
            self.skipped += 1
        elif alignment is None:
            self.failures.append(Failure(item.source, result.reason or "failed"))
            blame(item.source, result.reason or "failed")
            if self.with_tracebacks and result.error is not None:
                traceback.print_exception(result.error)
        else:
            self.aligned += 1
            self.seconds += seconds_of(item, alignment)
            self.took += result.took
            for note in result.notes:
                self.notes.setdefault(note, []).append(item.name)
            if alignment.confidence is not None and alignment.confidence < LOW_CONFIDENCE:
                self.doubts.append((item.name, alignment.confidence))
            if self.single:
                print_one(result, self.printer, self.with_differences)
            else:
                if self.aligned == 1:
                    self.printer.say(header(self.columns))
                self.printer.say(row(item, alignment, self.columns))
        result.alignment = None  # its evidence is large

    def interrupt(self, forced: bool) -> int:
        """Says how to go on, and returns the exit status. ``forced``: what was finished is not skipped."""
        if self.single:
            warn("interrupted")
            return INTERRUPTED
        self.list_failures()
        done = self.aligned + self.skipped
        how = "without --force the same command" if forced else "the same command"
        warn(f"interrupted after {done} of {len(self.work.items)}; {how} goes on from here")
        return INTERRUPTED

    def end(self) -> int:
        """Prints the summary, and returns the exit status."""
        report_notes(self.notes)
        report_doubts(self.doubts)
        if self.single:
            return USAGE if not self.work.items else FAILED if self.failures else DONE
        summary = f"{self.aligned} aligned, {self.skipped} finished before, {len(self.failures)} failed"
        if self.aligned:
            speed = self.seconds / max(self.took, 1e-3)
            self.printer.say()
            summary = f"{summary}; {self.seconds:.0f} s of audio in {self.took:.1f} s, {speed:.3g} times real time"
        self.printer.say(summary)
        self.list_failures()
        if self.failures:
            return FAILED
        if not self.work.items:
            warn("nothing to align: no recording has a text")
            return USAGE
        return DONE

    def list_failures(self) -> None:
        """Writes failures.jsonl, or removes the one of an earlier run."""
        try:
            listed = write_failures(self.work.root, self.failures)
        except OSError as error:
            warn(f"the list of failures cannot be written: {explain(error)}")
            return
        if listed is not None:
            warn(f"{count(len(self.failures), 'failure')}, listed in {listed}")
