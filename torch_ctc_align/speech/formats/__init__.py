"""The files that an alignment is written to: ``FORMATS``, ``save`` and, for JSON, ``load``.

Times are rounded to the millisecond once, by ``round_alignment``, before any format sees them: so all formats agree.
Rounding keeps the order of times, so that words that do not overlap still do not.
"""

import errno
import inspect
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch_ctc_align.speech.alignment import Evidence, Segment, SpeechAlignment, Stretch, Token, Word, round_time
from torch_ctc_align.speech.errors import SpeechError, require
from torch_ctc_align.speech.formats.jsonfile import DIGITS, VERSION, load, to_json
from torch_ctc_align.speech.formats.subtitles import ass_text, srt_text, vtt_text
from torch_ctc_align.speech.formats.tables import to_audacity, to_ctm, to_tsv, write_textgrid

__all__ = ["FORMATS", "VERSION", "Format", "format_of", "load", "round_alignment", "save", "save_all"]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: what ``format=`` and the command call it.
        suffix: of its files, with the dot.
        description: one line for a list of formats.
        write: ``write(alignment, path, **options)`` writes the file at ``path``, in place.
    """

    name: str
    suffix: str
    description: str
    write: Callable[..., None]

    @property
    def options(self) -> list[str]:
        """The names of its options."""
        return list(inspect.signature(self.write).parameters)[2:]


def save(alignment: SpeechAlignment, path: Path, format: str | None = None, **options: Any) -> Path:
    """Writes an alignment to a file, which appears whole or not at all.

    Folders that are missing are created. A symbolic link stays one: the file that it points to is replaced. What is
    neither a file nor a folder, ``/dev/stdout`` for one, is written to.

    Args:
        alignment: what to write.
        path: where to.
        format: a name in ``FORMATS``. Default: the one whose suffix ``path`` has, in either case.
        options: of the format.

    Returns:
        The path.

    Raises:
        SpeechError: the format or an option is not known, the format lacks a library or needs what the alignment does
            not have, or the alignment's times are not in order.
        OSError: the file cannot be written.
    """
    path = Path(path)
    chosen = format_of(path, format)
    for option in options:
        if option not in chosen.options:
            known = f"its options are {', '.join(chosen.options)}" if chosen.options else "it has none"
            raise SpeechError(f"the format {chosen.name} has no option {option}; {known}")
    _write(_rounded(alignment), path, chosen, options)
    return path


def save_all(alignment: SpeechAlignment, files: Mapping[Path, str]) -> None:
    """Writes an alignment to several files, as :func:`save` writes each, and rounds it once for all of them.

    Args:
        alignment: what to write.
        files: the name in ``FORMATS`` of each file's format.
    """
    rounded = _rounded(alignment)
    for path, format in files.items():
        _write(rounded, path, format_of(path, format), {})


def _rounded(alignment: SpeechAlignment) -> SpeechAlignment:
    rounded = round_alignment(alignment)
    check_times(rounded)
    return rounded


def _write(rounded: SpeechAlignment, path: Path, format: Format, options: Mapping[str, Any]) -> None:
    with appear_whole(path, format.suffix) as temporary:
        format.write(rounded, temporary, **options)


def format_of(path: Path, format: str | None = None) -> Format:
    """The format called ``format``; if that is None, the one that the suffix of ``path`` tells."""
    if format is not None:
        if format.lower() not in FORMATS:
            raise SpeechError(f"format must be one of {', '.join(FORMATS)}, found {format!r}")
        return FORMATS[format.lower()]
    for candidate in FORMATS.values():
        if path.name.lower().endswith(candidate.suffix.lower()):
            return candidate
    suffixes = ", ".join(candidate.suffix for candidate in FORMATS.values())
    raise SpeechError(
        f"the name of a file must end with one of {suffixes} to tell its format, found {path}; "
        f"or name the format: one of {', '.join(FORMATS)}"
    )


def check_times(alignment: SpeechAlignment) -> None:
    """Raises SpeechError if a word, token or segment ends before it begins, or begins before the last one has ended."""
    every: dict[str, Sequence[Word | Token | Segment]]
    every = {"word": alignment.words, "token": alignment.tokens, "segment": alignment.segments}
    for what, items in every.items():
        last = 0.0
        for index, item in enumerate(items):
            if item.start is None or item.end is None:
                continue
            if not last <= item.start <= item.end < float("inf"):
                raise SpeechError(
                    f"the times of an alignment must not decrease, but {what} {index} is from {item.start} s to "
                    f"{item.end} s, after {last} s"
                )
            last = item.end


def round_alignment(alignment: SpeechAlignment) -> SpeechAlignment:
    """Times to the millisecond, scores to the sixth decimal; the evidence stays as it is."""

    def number(value: float | None) -> Any:
        return None if value is None else round(value, DIGITS)

    return replace(
        alignment,
        words=[
            replace(word, start=round_time(word.start), end=round_time(word.end), score=number(word.score),
                    posterior=number(word.posterior))
            for word in alignment.words
        ],
        segments=[
            replace(segment, start=round_time(segment.start), end=round_time(segment.end),
                    confidence=number(segment.confidence), weakest=number(segment.weakest),
                    posterior=number(segment.posterior))
            for segment in alignment.segments
        ],
        tokens=[
            replace(token, start=round_time(token.start), end=round_time(token.end), score=number(token.score))
            for token in alignment.tokens
        ],
        unexplained=[Stretch(round_time(stretch.start), round_time(stretch.end)) for stretch in alignment.unexplained],
        seconds=round_time(alignment.seconds),
        score=number(alignment.score),
    )  # fmt: skip


@contextmanager
def appear_whole(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end, or is removed if anything went wrong.

    Its name has the format's suffix, because libraries look at it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    special = path.exists() and not path.is_file()
    target = path.resolve() if path.is_symlink() else path
    if not special:
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = (Path(tempfile.gettempdir()) if special else target.parent) / f".{secrets.token_hex(8)}{suffix}"
    try:
        # As open() makes a file, so that the umask holds; tempfile would make it private.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        if special:
            with temporary.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            os.replace(temporary, target)
    except OSError as error:
        if error.filename not in (None, os.fspath(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # nobody knows the temporary file
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- writers


def text_writer(make: Callable[..., str]) -> Callable[..., None]:
    """From a function that makes a text, with options, to one that writes it."""

    def write(alignment: SpeechAlignment, path: Path, **options: Any) -> None:
        # What UTF-8 cannot write, from the name of a file for example, is a question mark.
        path.write_bytes(make(alignment, **options).encode("utf-8", "replace"))

    parameters = list(inspect.signature(make).parameters.values())
    place = inspect.Parameter("path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    write.__signature__ = inspect.Signature([parameters[0], place, *parameters[1:]])  # type: ignore[attr-defined]
    return write


def write_html(alignment: SpeechAlignment, path: Path, embed: bool | None = None) -> None:
    """A page to read and listen to."""
    from torch_ctc_align.speech.formats.page import make_page

    path.write_bytes(make_page(alignment, embed=embed).encode("utf-8", "replace"))


def write_png(alignment: SpeechAlignment, path: Path, seconds: float = 10.0) -> None:
    """A drawing."""
    from torch_ctc_align.speech.formats.picture import draw_picture

    evidence_of(alignment, "png")
    draw_picture(alignment, path, seconds=seconds)


def write_npz(alignment: SpeechAlignment, path: Path) -> None:
    """What the aligner was given; ``separator``, ``star_scores`` and ``wild_gaps`` only where there are any."""
    numpy = require("numpy", "the format npz")
    evidence = evidence_of(alignment, "npz")
    log_probs = evidence.log_probs.detach().cpu()
    arrays: dict[str, Any] = {
        "log_probs": (
            log_probs.float() if log_probs.element_size() < 4 else log_probs
        ).numpy(),  # NumPy has no bfloat16
        "targets": evidence.targets.cpu().numpy(),
        "words": numpy.array([word.text for word in alignment.words if word.status != "unspoken"], dtype=str),
        "tokens_per_word": numpy.array(evidence.tokens_per_word, dtype=numpy.int64),
        "blank": evidence.model.blank,
        "seconds_per_frame": alignment.seconds_per_frame,
    }
    if evidence.model.separator is not None:
        arrays["separator"] = evidence.model.separator
    for name in ("star_scores", "wild_gaps"):
        tensor = getattr(evidence, name)
        if tensor is not None:
            arrays[name] = (tensor.float() if tensor.dtype.is_floating_point else tensor).detach().cpu().numpy()
    with path.open("wb") as file:  # given a name, savez would append .npz
        numpy.savez_compressed(file, **arrays)


def evidence_of(alignment: SpeechAlignment, format: str) -> Evidence:
    """What a format needs of each frame."""
    if alignment.evidence is None:
        raise SpeechError(
            f"the format {format} needs the model's output for each frame, which an alignment that was read from a "
            "file does not have; align the recording again"
        )
    return alignment.evidence


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("json", ".json", "everything that is known, for programs", text_writer(to_json)),
        Format("srt", ".srt", "subtitles", text_writer(srt_text)),
        Format("vtt", ".vtt", "subtitles for the web (WebVTT)", text_writer(vtt_text)),
        Format("ass", ".ass", "subtitles that light up word by word (karaoke)", text_writer(ass_text)),
        Format("textgrid", ".TextGrid", "words, segments and tokens for Praat", write_textgrid),
        Format("ctm", ".ctm", "words for NIST's tools and Kaldi", text_writer(to_ctm)),
        Format("tsv", ".tsv", "a table of words, for spreadsheets and scripts", text_writer(to_tsv)),
        Format("audacity", ".labels.txt", "a label track for Audacity", text_writer(to_audacity)),
        Format("html", ".html", "a page to read and listen to", write_html),
        Format("png", ".png", "a drawing of the sound, the words and the model's output", write_png),
        Format("npz", ".npz", "the aligner's inputs, for NumPy", write_npz),
    )
}
