"""A page to listen to: one HTML file with the text, the recording, and what the aligner is not sure of.

``page.html`` is the template: its CSS and its JavaScript. What this module writes into it is the text as HTML, the times
as JSON, and the recording as base64, so that the page needs nothing but a browser: no server, no network.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Word
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["make_page"]

MEGABYTE = 1_000_000
LARGEST_EMBEDDED = 40 * MEGABYTE  # of the recording as it is embedded; base64 makes a third more of it


def make_page(alignment: SpeechAlignment, *, embed: bool | None = None) -> str:
    """Makes an HTML page that plays the recording and lights its words.

    Args:
        alignment: its recording must be a file that is still there.
        embed: True puts the recording into the page, False links to a file of its name beside the page. Default: puts
            it in unless it is larger than 40 MB.

    Returns:
        The page, to be written as UTF-8. It loads nothing but, if it is not embedded, the recording.

    Raises:
        SpeechError: the alignment does not know its recording, or the recording cannot be read.
    """
    if alignment.audio is None:
        raise SpeechError(
            "a page to listen to needs the recording's file, but this alignment was made from samples; "
            "set its audio: dataclasses.replace(alignment, audio=Path('talk.wav'))"
        )
    path = Path(alignment.audio)
    source = quote(path.name)
    sound = ""
    if embed is not False:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SpeechError(
                f"{path} cannot be read for the page: {error.strerror}; embed=False links to it"
            ) from error
        sound = "data:audio/wav;base64," + base64.b64encode(data).decode()
    template = files("torch_ctc_align.speech").joinpath("page.html").read_text("utf-8")
    facts = _facts(alignment) | {"source": source}
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    values = {
        "title": html.escape(path.name),
        "language": html.escape(alignment.language or ""),
        "script_hash": digest,
        "text": _text_as_html(alignment),
        "facts": _json_for_html(facts),
        "sound": sound,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _json_for_html(value: Any) -> str:
    """JSON that may stand inside <script>: no tag or comment can begin or end in it, and UTF-8 can encode it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _facts(alignment: SpeechAlignment) -> dict[str, Any]:
    """What the script needs: columns of words, segments and stretches, by index."""
    words, segments = alignment.words, alignment.segments
    return {
        "seconds": _round(alignment.seconds),
        "words": {
            "start": [_round(word.start) for word in words],
            "end": [_round(word.end) for word in words],
            "confidence": [_round(word.confidence) for word in words],
            "posterior": [_round(word.posterior) for word in words],
            "status": "".join(word.status[0] for word in words),
        },
        "segments": [
            [segment.words.start, segment.words.stop, _round(segment.start), _round(segment.end)]
            for segment in segments
        ],
        "stretches": [[_round(stretch.start), _round(stretch.end)] for stretch in alignment.unexplained],
    }


def _text_as_html(alignment: SpeechAlignment) -> str:
    return "".join(_pieces(alignment))


def _pieces(alignment: SpeechAlignment) -> Iterator[str]:
    place = 0
    for index, segment in enumerate(alignment.segments):
        yield from _between(alignment.text[place : segment.begin])
        yield from _segment(alignment, index, segment)
        place = segment.stop
    yield from _between(alignment.text[place:])


def _between(text: str) -> Iterator[str]:
    if text.strip():
        yield f'<p class="rest" dir="auto">{html.escape(text.strip())}</p>\n'


def _segment(alignment: SpeechAlignment, index: int, segment: Segment) -> Iterator[str]:
    time = "&ndash;" if segment.start is None else _clock(segment.start)
    yield f'<div class="s" data-s="{index}"><button class="t" type="button">{time}</button><p dir="auto">'
    place = segment.begin
    for word in (alignment.words[k] for k in segment.words):
        yield html.escape(alignment.text[place : word.begin])
        yield _word(word)
        place = word.stop
    yield html.escape(alignment.text[place : segment.stop]) + "</p></div>\n"


def _word(word: Word) -> str:
    return f'<span class="w {word.status[0]}">{html.escape(word.text)}</span>'


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02}"
