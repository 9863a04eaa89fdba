"""The command ``ctc-align``: its arguments, and what it prints. ``batch.py`` finds, names and skips."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import torch_ctc_align
from torch_ctc_align.speech.command import batch, inputs
from torch_ctc_align.speech.command.inputs import Work
from torch_ctc_align.speech.command.ledger import FAILURES
from torch_ctc_align.speech.command.report import INTERRUPTED, USAGE, Progress, Report, warn
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["main"]

MANIFEST_SUFFIXES = (".jsonl", ".json", ".ndjson", ".manifest")
DESCRIPTION = "Finds when each word of a text is said in a recording."

USAGE_LINES = """\
%(prog)s [options] RECORDING [TEXT]
       %(prog)s [options] FOLDER
       %(prog)s [options] MANIFEST.jsonl
       %(prog)s [options] RECORDING RECORDING ...
       %(prog)s corpus [options] MANIFEST OUT"""

EXAMPLES = """\
examples:
  ctc-align talk.mp3 talk.txt                 writes talk.json and talk.srt
  ctc-align talk.mp3                          the text is talk.txt or talk.lab
  ctc-align talk.mp3 --text "Good evening."   the text is here
  ctc-align talk.mp4 talk.txt --format vtt,ass --out-dir subtitles
  ctc-align corpus/ --format textgrid         every recording that has a text
  ctc-align manifest.jsonl --out-dir aligned  lines as NeMo has them:
                      {"audio_filepath": "a.wav", "text": "what is said"}
  ctc-align rede.wav --model some-user/wav2vec2-german --language de
  ctc-align corpus manifest.jsonl aligned     many processes, one file for each
                      thousand lines; corpus --help has more (a folder of
                      that name is ./corpus)

exit status: 0 all is aligned, 2 nothing could be done, 3 some failed (of many
they are listed in failures.jsonl), 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="ctc-align",
        usage=USAGE_LINES,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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

    text = add_text_arguments(parser)
    text.add_argument("--text", metavar="WORDS", help="what is said, in place of a file")

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

    model = add_model_arguments(parser)
    model.add_argument(
        "--batch-size", type=positive, metavar="N", help="windows of a recording that the model gets at once"
    )
    return parser


def add_text_arguments(parser: argparse.ArgumentParser) -> Any:
    """What the text is, and what may be said beside it. Returns the group."""
    text = parser.add_argument_group("the text")
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
    return text


def add_model_arguments(parser: argparse.ArgumentParser) -> Any:
    """Which model, and where it runs. Returns the group."""
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
    return model


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

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.model is not None:
        dtype = arguments.dtype and getattr(torch, arguments.dtype)
        aligner = Aligner.from_pretrained(arguments.model, device=device, dtype=dtype, language=arguments.language)
    elif arguments.onnx is not None:
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"][device == "cpu" :]
        aligner = Aligner.from_onnx(arguments.onnx, providers=providers)
    else:
        aligner = Aligner.english(arguments.device or "cpu")
    if arguments.batch_size is not None:
        aligner.batch_size = arguments.batch_size
    return aligner


# What is to be done -----------------------------------------------------------------------------------------------


def find_work(arguments: argparse.Namespace) -> tuple[Work, bool]:
    """What the command line names, and whether that is one recording, named as such.

    Raises:
        SpeechError: it makes no sense.
    """
    paths = [Path(name) for name in arguments.input]
    first, *rest = paths
    out_dir = arguments.out_dir
    if "-" in arguments.input[:1]:
        raise SpeechError("the recording cannot be read from standard input; give a file (- stands for the text)")
    if first.is_dir() or (first.suffix.lower() in MANIFEST_SUFFIXES and first.is_file()):
        kind = "folder" if first.is_dir() else "manifest"
        if rest or arguments.text is not None:
            raise SpeechError(f"{first} is a {kind}, which brings its texts; give no other text or recording")
        if kind == "folder":
            work = inputs.find_folder(first, out_dir)
            if not (work.items or work.without_text or work.failures):
                raise SpeechError(f"no recording in {first}: none of its files ends in .wav, .flac, .mp3, .m4a, ...")
            return work, False
        if (first.parent.resolve(), first.name) == ((out_dir or first.parent).resolve(), FAILURES):
            raise SpeechError(f"{first} is where failures are listed; rename the manifest, or give --out-dir")
        work = inputs.read_manifest(first, out_dir)
        if not (work.items or work.failures):
            raise SpeechError(f"{first} has no lines")
        return work, False

    if len(paths) == 2 and (arguments.input[1] == "-" or not inputs.is_audio(rest[0])):
        audio, text = paths
        if inputs.is_audio(text) or (inputs.is_text(audio) and not inputs.is_text(text)):
            refuse_swapped(audio, text)
        if arguments.text is not None:
            raise SpeechError(f"give the text once: as the file {text}, or with --text")
        if audio.exists() and str(text) != "-" and not text.exists():
            raise SpeechError(f"there is no text file {text}")
        return inputs.take_recordings([audio], read_stdin() if str(text) == "-" else text, out_dir), True
    if len(paths) == 2 and inputs.is_text(first):
        refuse_swapped(*paths)
    if "-" in arguments.input:
        raise SpeechError("- stands for the text of one recording; give that recording alone before it")
    strange = [path for path in paths if len(paths) > 1 and not inputs.is_audio(path)]
    if strange:
        raise SpeechError(f"{strange[0]} is among {len(paths)} files, but not a recording; give a recording and its "
                          "text, or recordings whose texts are beside them, or a folder")  # fmt: skip
    if arguments.text is not None and len(paths) > 1:
        raise SpeechError("--text is the text of one recording; give one")
    if inputs.is_text(first):
        raise SpeechError(f"{first} is a text; give the recording before it: ctc-align RECORDING {first}")
    return inputs.take_recordings(paths, arguments.text, out_dir), len(paths) == 1


def refuse_swapped(audio: Path, text: Path) -> NoReturn:
    """The first of the two should be the recording."""
    raise SpeechError(f"the recording comes first, then the text: ctc-align {text} {audio}")


def read_stdin() -> str:
    """The text, UTF-8."""
    if sys.stdin is None:
        raise SpeechError("standard input is closed, and - stands for a text from there; give a file, or --text")
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


# Doing it ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments. Default: those of the process.

    Returns:
        What the process should exit with: 0 all is aligned, 2 the command line is wrong or nothing could be done,
        3 some recordings failed, 130 interrupted.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    job: Callable[[argparse.Namespace], int] = run
    parser = build_parser()
    if list(argv[:1]) == ["corpus"]:
        from torch_ctc_align.speech.command import corpus

        job, parser, argv = corpus.run, corpus.build_parser(), argv[1:]
    try:
        arguments = parser.parse_intermixed_args(without_dashes(argv))
    except SystemExit as end:  # argparse has said what is wrong, or the help
        return end.code if isinstance(end.code, int) else USAGE
    try:
        return job(arguments)
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        warn(batch.explain(error))
        return USAGE


def without_dashes(arguments: Sequence[str]) -> list[str]:
    """Names behind -- begin with ./ in place of a dash: ``parse_intermixed_args`` would take them for options."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    names = ("./" + name if name.startswith("-") and name != "-" else name for name in arguments[place + 1 :])
    return [*arguments[:place], *names]


def run(arguments: argparse.Namespace) -> int:
    """Does what the arguments ask for, and returns the exit status."""
    check_arguments(arguments)
    formats = choose_formats(arguments.format)
    work, single = find_work(arguments)
    inputs.refuse_clashes(work, list(formats.values()))
    if arguments.out_dir is not None:
        batch.refuse_folder(arguments.out_dir)
    batch.refuse_formats(formats)
    progress = Progress(work.items, arguments.quiet)
    call = {
        "star": None if arguments.star == "none" else arguments.star,
        "unspoken": arguments.unspoken,
        "split": arguments.split,
        "language": arguments.language,
    }
    model = arguments.model or (arguments.onnx and arguments.onnx.name) or "english"
    results = batch.align_all(
        work.items,
        lambda: load_aligner(arguments),
        formats,
        {"model": model, "dtype": arguments.dtype, **call},
        call=call,
        force=arguments.force,
        resume=not single,
        progress=progress.function,
    )
    report = Report(
        work,
        single=single,
        quiet=arguments.quiet,
        with_tracebacks=arguments.debug,
        with_differences=arguments.star != "none" or arguments.unspoken,
    )
    try:
        for result in results:
            progress.clear()
            report.add(result)
    except KeyboardInterrupt:
        progress.clear()
        return report.interrupt(arguments.force)
    return report.end()
