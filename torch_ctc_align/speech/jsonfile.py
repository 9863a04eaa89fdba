"""The JSON of an alignment, which holds all that is known of it, and how to read it again. ``schema.json`` describes it."""

import json
import os
from pathlib import Path
from typing import Any

from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Stretch, Token, Word
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["DIGITS", "VERSION", "load", "to_json"]

VERSION = 1
DIGITS = 6  # decimals of scores, confidences and posteriors


def to_json(alignment: SpeechAlignment) -> str:
    """The JSON of a rounded alignment: each word, segment and token on a line of its own."""
    from torch_ctc_align import __version__

    def certain(value: float | None) -> float | None:
        return None if value is None else round(value, DIGITS)

    data = {
        "version": VERSION,
        "generator": f"torch_ctc_align {__version__}",
        "audio": None if alignment.audio is None else os.fspath(alignment.audio),
        "seconds": alignment.seconds,
        "model": alignment.model,
        "language": alignment.language,
        "seconds_per_frame": alignment.seconds_per_frame,
        "score": alignment.score,
        "confidence": certain(alignment.confidence),
        "posterior": certain(alignment.posterior),
        "text": alignment.text,
        "segments": [
            {
                "text": segment.text,
                "start": segment.start,
                "end": segment.end,
                "confidence": segment.confidence,
                "weakest": segment.weakest,
                "posterior": segment.posterior,
                "words": [segment.words.start, segment.words.stop],
                "begin": segment.begin,
                "stop": segment.stop,
            }
            for segment in alignment.segments
        ],
        "words": [
            {
                "text": word.text,
                "start": word.start,
                "end": word.end,
                "status": word.status,
                "confidence": certain(word.confidence),
                "posterior": word.posterior,
                "score": word.score,
                "segment": word.segment,
                "begin": word.begin,
                "stop": word.stop,
            }
            for word in alignment.words
        ],
        "tokens": [
            {"label": token.label, "start": token.start, "end": token.end, "score": token.score, "word": token.word}
            for token in alignment.tokens
        ],
        "unexplained": [{"start": stretch.start, "end": stretch.end} for stretch in alignment.unexplained],
    }
    text = _dump(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from the name of a file that is not UTF-8
        text = _dump(data, ensure_ascii=True)
    return text


def _dump(data: dict[str, Any], *, ensure_ascii: bool) -> str:
    def dump(value: Any) -> str:
        try:
            return json.dumps(value, ensure_ascii=ensure_ascii, allow_nan=False)
        except ValueError:
            raise SpeechError(f"JSON has no infinity and no NaN, found {value!r}") from None

    entries = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"    {dump(item)}" for item in value)
            entries.append(f'  "{key}": [\n{lines}\n  ]')
        else:
            entries.append(f'  "{key}": {dump(value)}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


def load(path: str | os.PathLike[str]) -> SpeechAlignment:
    """Reads an alignment from the JSON that ``save`` wrote.

    Everything is as it was saved, times to the millisecond and scores to the sixth decimal, but for ``evidence``,
    which is None. Fields that are not known are left alone.

    Raises:
        SpeechError: the file is not such JSON, or of a version that this release does not know.
        OSError: the file cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise SpeechError(f"{path} is not JSON: {error}") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise SpeechError(
            f'{path} must be the JSON of an alignment, with "version": {VERSION}, found '
            + (f'"version": {version!r}; a newer torch_ctc_align may read it' if version is not None else "no version")
        )
    try:
        return _from_json(data)
    except KeyError as error:
        raise SpeechError(f"{path} is not a whole alignment: a field {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise SpeechError(f"{path} is not an alignment as docs/formats.md describes it: {error}") from None


def _from_json(data: dict[str, Any]) -> SpeechAlignment:
    def fields(item: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: item[name] for name in names}

    return SpeechAlignment(
        **fields(data, "text", "seconds", "seconds_per_frame", "score", "model", "language"),
        words=[
            Word(**fields(word, "text", "begin", "stop", "segment", "start", "end", "score", "posterior", "status"))
            for word in data["words"]
        ],
        segments=[
            Segment(
                **fields(segment, "text", "begin", "stop", "start", "end", "confidence", "weakest", "posterior"),
                words=range(*segment["words"]),
            )
            for segment in data["segments"]
        ],
        tokens=[Token(**fields(token, "label", "start", "end", "score", "word")) for token in data["tokens"]],
        unexplained=[Stretch(**fields(stretch, "start", "end")) for stretch in data["unexplained"]],
        audio=None if data["audio"] is None else Path(data["audio"]),
    )
