"""The command ``ctc-align``: its arguments, and what it prints. ``batch.py`` finds, names and skips."""

import argparse
import importlib
import os
import sys
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import torch_ctc_align
from torch_ctc_align.speech import batch
from torch_ctc_align.speech.alignment import SpeechAlignment
from torch_ctc_align.speech.batch import Failure, Item, Result, Work
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["LOW_CONFIDENCE", "main"]

LOW_CONFIDENCE = 0.3  # mean over words; a text that is what was said reaches about 0.9, a wrong one 0.01

DONE, USAGE, FAILED, INTERRUPTED = 0, 2, 3, 130  # what the command exits with

MANIFEST_SUFFIXES = (".jsonl", ".json", ".ndjson", ".manifest")
NAME_WIDTH = 48  # columns of a recording's name in the table of many; a longer one loses its beginning
SHOWN = 5  # of the files that have no partner
TERMINAL_WORDS = 200  # on a terminal a longer table is cut, to its first and last words
FIRST, LAST = 40, 10

DESCRIPTION = "Finds when each word of a text is said in a recording."

EXAMPLES = """\
examples:
  ctc-align talk.mp3 talk.txt                   writes talk.json and talk.srt beside the recording
  ctc-align talk.mp3                            the text is talk.txt or talk.lab beside it
  ctc-align talk.mp3 --text "Good evening."     the text is here
  ctc-align talk.mp4 talk.txt --format vtt,ass --out-dir subtitles
  ctc-align corpus/ --format textgrid           every recording of a folder that has a text
  ctc-align manifest.jsonl --out-dir aligned    lines of {"audio_filepath": "a.wav", "text": "what is said"}
  ctc-align rede.wav rede.txt --model some-user/wav2vec2-german --language de

exit status: 0 all is aligned, 2 nothing could be done, 3 some failed (listed in failures.jsonl), 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="ctc-align", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input",
        nargs="+",
        metavar="RECORDING [TEXT]",
        help="a recording and the file of its text (- reads standard input); or a folder of recordings and texts, "
        "name.wav with name.txt or name.lab; or a manifest of JSON lines; or several recordings, with their texts "
        "beside them",
    )
    parser.add_argument("--version", action="version", version=f"ctc-align {torch_ctc_align.__version__}")

    text = parser.add_argument_group("the text")
    text.add_argument("--text", metavar="WORDS", help="what is said, in place of a file")
    text.add_argument(
        "--language",
        metavar="TAG",
        help="its language, as en or eng; numbers are spelt in it (default: the model's)",
    )
    text.add_argument(
        "--split",
        choices=("lines", "sentences", "words"),
        default="lines",
        help="what a segment, and so a subtitle, is (default: %(default)s)",
    )
    text.add_argument(
        "--star",
        choices=("ends", "words", "none"),
        default="ends",
        help="where the recording may have more than the text: before and after it, also between any two words, "
        "or nowhere (default: %(default)s)",
    )
    text.add_argument(
        "--unspoken", action="store_true", help="find the segments of the text that are not in the recording"
    )

    output = parser.add_argument_group("what is written")
    output.add_argument(
        "--format",
        metavar="A,B,...",
        default="json,srt",
        help=f"formats, of {', '.join(known_formats())} (default: %(default)s)",
    )
    output.add_argument("--out-dir", type=Path, metavar="FOLDER", help="where to (default: beside each recording)")
    output.add_argument(
        "--force", action="store_true", help="align again what is finished, and overwrite files that others made"
    )
    output.add_argument("--quiet", action="store_true", help="print failures and warnings only")
    output.add_argument("--debug", action="store_true", help="show the traceback of each failure")

    model = parser.add_argument_group("the model (default: a small English one that comes with the package hama)")
    which = model.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME_OR_FOLDER", help="a CTC model that the package transformers can load")
    which.add_argument("--onnx", type=Path, metavar="FILE", help="a CTC model as an ONNX file, with its labels beside")
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    model.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the model's weights (default: as saved)",
    )
    model.add_argument(
        "--batch-size", type=positive, metavar="N", help="windows of a recording that the model gets at once"
    )
    return parser


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found {text!r}")
    return value


def known_formats() -> dict[str, str]:
    """Suffix of every format."""
    from torch_ctc_align.speech.formats import FORMATS

    return {name: format.suffix for name, format in FORMATS.items()}


def choose_formats(wanted: str) -> dict[str, str]:
    """Name and suffix of the formats in a list with commas; upper and lower case are one."""
    known = {name.lower(): (name, suffix) for name, suffix in known_formats().items()}
    names = [name.strip().lower().removeprefix(".") for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = ", ".join(map(repr, unknown)) or "none"
        raise SpeechError(f"--format must be some of {', '.join(known_formats())}, with commas between; found {found}")
    return dict(known[name] for name in names)


def load_aligner(arguments: argparse.Namespace) -> Any:
    """The aligner that the arguments ask for."""
    from torch_ctc_align.speech.aligner import Aligner

    device = arguments.device
    if arguments.onnx is not None:
        if device is None or device == "cpu":
            return Aligner.from_onnx(arguments.onnx)
        return Aligner.from_onnx(arguments.onnx, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    if arguments.model is not None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = arguments.dtype and getattr(torch, arguments.dtype)
        return Aligner.from_pretrained(arguments.model, device=device, dtype=dtype, language=arguments.language)
    return Aligner.english() if device is None else Aligner.english(device=device)


# What is to be done -----------------------------------------------------------------------------------------------


def find_work(arguments: argparse.Namespace) -> tuple[Work, bool]:
    """What the command line names, and whether that is one recording, named as such.

    Raises:
        SpeechError: it makes no sense.
    """
    inputs = [Path(name) for name in arguments.input]
    first, *rest = inputs
    out_dir = arguments.out_dir
    if "-" in arguments.input[:1]:
        raise SpeechError("the recording cannot be read from standard input; give a file (- stands for the text)")
    if first.is_dir() or (first.suffix.lower() in MANIFEST_SUFFIXES and first.is_file()):
        kind = "folder" if first.is_dir() else "manifest"
        if rest or arguments.text is not None:
            raise SpeechError(f"{first} is a {kind}, which brings its texts; give no other text or recording")
        if kind == "folder":
            work = batch.find_folder(first, out_dir)
            if not (work.items or work.without_text or work.failures):
                raise SpeechError(f"no recording in {first}: none of its files ends in .wav, .flac, .mp3, .m4a, ...")
            return work, False
        if (first.parent.resolve(), first.name) == ((out_dir or first.parent).resolve(), batch.FAILURES):
            raise SpeechError(f"{first} is where failures are listed; rename the manifest, or give --out-dir")
        work = batch.read_manifest(first, out_dir)
        if not (work.items or work.failures):
            raise SpeechError(f"{first} has no lines")
        return work, False

    if len(inputs) == 2 and (arguments.input[1] == "-" or not batch.is_audio(rest[0])):
        audio, text = inputs
        if batch.is_audio(text) or (batch.is_text(audio) and not batch.is_text(text)):
            refuse_swapped(audio, text)
        if arguments.text is not None:
            raise SpeechError(f"give the text once: as the file {text}, or with --text")
        return batch.take_recordings([audio], read_stdin() if str(text) == "-" else text, out_dir), True
    if len(inputs) == 2 and batch.is_text(first):
        refuse_swapped(*inputs)
    if "-" in arguments.input:
        raise SpeechError("- stands for the text of one recording; give that recording alone before it")
    strange = [path for path in inputs if len(inputs) > 1 and not batch.is_audio(path)]
    if strange:
        raise SpeechError(f"{strange[0]} is among {len(inputs)} files, but not a recording; give a recording and its "
                          "text, or recordings whose texts are beside them, or a folder")  # fmt: skip
    if arguments.text is not None and len(inputs) > 1:
        raise SpeechError("--text is the text of one recording; give one")
    if batch.is_text(first):
        raise SpeechError(f"{first} is a text; give the recording before it: ctc-align RECORDING {first}")
    return batch.take_recordings(inputs, arguments.text, out_dir), len(inputs) == 1


def refuse_swapped(audio: Path, text: Path) -> NoReturn:
    """The first of the two should be the recording."""
    raise SpeechError(f"the recording comes first, then the text: ctc-align {text} {audio}")


def read_stdin() -> str:
    """The text, UTF-8."""
    if sys.stdin.isatty():
        print("the text, then Ctrl-D:", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpeechError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises SpeechError for what can be refused before anything is read."""
    if arguments.dtype is not None and arguments.model is None:
        raise SpeechError("--dtype is for a model that --model names; the others are used as they are saved")
    if arguments.device is not None:
        try:
            device = torch.device(arguments.device)
        except RuntimeError:
            raise SpeechError(f"--device must be cpu, cuda or cuda:1, found {arguments.device!r}") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise SpeechError(f"--device {arguments.device}: torch sees {torch.cuda.device_count()} such devices; "
                              "leave the option out to use the CPU")  # fmt: skip


# Printing ---------------------------------------------------------------------------------------------------------


class Printer:
    """Writes to standard output. A reader that ends, ``head`` for example, does not end the work."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, line: str = "") -> None:
        if self.quiet:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:
            self.quiet = True
            # The interpreter flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(line: str) -> None:
    """One line on standard error."""
    print(f"ctc-align: {line}", file=sys.stderr, flush=True)


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


def print_one(result: Result, printer: Printer, star: str, unspoken: bool) -> None:
    """The table of one recording, and where it was written."""
    alignment = result.alignment
    assert alignment is not None
    printer.say(f"{result.item.name}: {alignment.seconds:.2f} s, {count(len(alignment.words), 'word')}\n")
    lines = list(word_table(alignment))
    if sys.stdout.isatty() and len(lines) > TERMINAL_WORDS:
        left_out = len(lines) - FIRST - LAST
        lines[FIRST:-LAST] = [f"... {left_out} more; for all of them: ctc-align ... | less"]
    for line in lines:
        printer.say(line)
    if star != "none" or unspoken:
        printer.say()
        for line in differences(alignment):
            printer.say(line)
    if alignment.confidence is not None:
        printer.say(f"\nmean confidence {alignment.confidence:.2f}")
    printer.say("wrote " + ", ".join(map(str, result.files)))


def count(number: int, what: str) -> str:
    """``1 word``, ``2 words``."""
    return f"{number} {what}" + ("" if number == 1 else "s")


class Progress:
    """Bars of tqdm on standard error, where somebody watches and tqdm is there."""

    def __init__(self, names: bool, quiet: bool) -> None:
        self.names, self.bar, self.now = names, None, ""  # type: tuple[bool, Any, str]
        self.tqdm: Any = None
        if sys.stderr.isatty() and not quiet:
            try:
                self.tqdm = importlib.import_module("tqdm").tqdm
            except ImportError:
                return

    @property
    def function(self) -> Callable[[Item, str, int, int], None] | None:
        return None if self.tqdm is None else self.show

    def show(self, item: Item, what: str, done: int, total: int) -> None:
        title = f"{item.name}: {what}" if self.names else what
        if self.bar is None or self.now != title:
            self.clear()
            self.bar, self.now = self.tqdm(total=total, desc=title, leave=False, unit="", dynamic_ncols=True), title
        self.bar.update(done - self.bar.n)

    def clear(self) -> None:
        """Removes the bar, so that a line can be printed."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


# Doing it ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments. Default: those of the process.

    Returns:
        What the process should exit with: 0 all is aligned, 2 the command line is wrong or nothing could be done,
        3 some recordings failed, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = build_parser().parse_intermixed_args(argv)
    except SystemExit as end:  # argparse has said what is wrong, or the help
        return end.code if isinstance(end.code, int) else USAGE
    try:
        return run(arguments)
    except (SpeechError, OSError) as error:
        if arguments.debug:
            traceback.print_exc()
        warn(str(error))
        return USAGE
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    """Does what the arguments ask for, and returns the exit status."""
    check_arguments(arguments)
    formats = choose_formats(arguments.format)
    work, single = find_work(arguments)
    if arguments.out_dir is not None:
        batch.refuse_folder(arguments.out_dir)
    batch.refuse_clashes(work, list(formats.values()))
    printer = Printer(arguments.quiet)
    progress = Progress(names=not single, quiet=arguments.quiet)
    call = {
        "star": None if arguments.star == "none" else arguments.star,
        "unspoken": arguments.unspoken,
        "split": arguments.split,
        "language": arguments.language,
    }
    options = call | {
        "model": arguments.model or (arguments.onnx and arguments.onnx.name) or "english",
        "dtype": arguments.dtype,
    }
    report_partners(work)
    results = batch.align_all(
        work.items,
        lambda: load_aligner(arguments),
        formats,
        options,
        call=call,
        force=arguments.force,
        resume=not single,
        progress=progress.function,
    )
    return print_results(results, work, single, arguments, printer, progress)


def report_partners(work: Work) -> None:
    """Names the files of a folder that have no partner."""
    for paths, kind, rest in (
        (work.without_text, "recording", "without text"),
        (work.without_recording, "text", "without recording"),
    ):
        if paths:
            shown = ", ".join(map(str, paths[:SHOWN]))
            more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
            warn(f"{count(len(paths), kind)} {rest}: {shown}{more}")


def print_results(
    results: Iterator[Result],
    work: Work,
    single: bool,
    arguments: argparse.Namespace,
    printer: Printer,
    progress: Progress,
) -> int:
    """Prints what comes, while it comes, and the summary; returns the exit status."""
    failures = list(work.failures)
    for failure in failures:
        warn(f"{failure.path}: {failure.reason}")
    notes: dict[str, list[str]] = {}
    aligned = skipped = 0
    seconds = 0.0
    began = time.monotonic()
    columns = min(max(map(width, ["recording", *(item.name for item in work.items)])), NAME_WIDTH)
    try:
        for result in results:
            progress.clear()
            name = result.item.name
            if result.skipped:
                skipped += 1
            elif result.reason is not None:
                failures.append(Failure(result.item.source, result.reason))
                warn(f"{result.item.source}: {result.reason}")
                if arguments.debug and result.error is not None:
                    traceback.print_exception(result.error)
            elif result.alignment is not None:
                for note in result.notes:
                    notes.setdefault(note, []).append(name)
                aligned += 1
                seconds += result.alignment.seconds
                if single:
                    print_one(result, printer, arguments.star, arguments.unspoken)
                else:
                    if aligned == 1:
                        printer.say(f"{pad('recording', columns)}  {'seconds':>8}  {'words':>6}  confidence")
                    printer.say(row(name, result.alignment, columns))
                warn_of_confidence(result)
                result.alignment = None
    except KeyboardInterrupt:
        progress.clear()
        if not single:
            batch.write_failures(work, failures)
        rest = "" if single else f" after {aligned + skipped} of {len(work.items)}; the same command goes on from here"
        warn(f"interrupted{rest}")
        return INTERRUPTED
    report_notes(notes)
    if single:
        return USAGE if not work.items else FAILED if failures else DONE
    took = time.monotonic() - began
    listed = batch.write_failures(work, failures)
    summary = f"{aligned} aligned, {skipped} finished before, {len(failures)} failed"
    if aligned:
        speed = seconds / max(took, 1e-3)
        summary += f"; {seconds:.0f} s of audio in {took:.1f} s, {speed:.0f} times as fast as it is said"
    printer.say(("\n" if aligned else "") + summary)
    if listed is not None:
        warn(f"{count(len(failures), 'failure')}, listed in {listed}")
        return FAILED
    return DONE if work.items else USAGE


def row(name: str, alignment: SpeechAlignment, columns: int) -> str:
    """One recording in the table of many."""
    while width(name) > columns:
        name = "…" + name[2:]
    numbers = f"{alignment.seconds:8.1f}  {len(alignment.words):6d}  {number(alignment.confidence, 10)}"
    return f"{pad(name, columns)}  {numbers}  {describe(alignment)}".rstrip()


def warn_of_confidence(result: Result) -> None:
    """Doubts that the text is what was said."""
    assert result.alignment is not None
    mean = result.alignment.confidence
    if mean is not None and mean < LOW_CONFIDENCE:
        warn(f"{result.item.name}: mean confidence is only {mean:.2f}: is this what is said in the recording?")


def report_notes(notes: dict[str, list[str]]) -> None:
    """Each note once, with the recording or their number."""
    for note, names in notes.items():
        warn(f"{names[0] if len(names) == 1 else count(len(names), 'recording')}: {note}")
