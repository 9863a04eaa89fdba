"""A page to listen to: one HTML file with the text, the recording, and what the aligner is not sure of.

``page.html`` is the template: its CSS and its JavaScript. What this module writes into it is the text as HTML, the
times as JSON, and the recording as base64, so that the page needs nothing but a browser: no server, no network.

Whatever comes from the alignment is escaped, and a content security policy with the hash of the one script keeps the
browser from running anything else.
"""

import base64
import bisect
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch_ctc_align.speech.alignment import SpeechAlignment, Word
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.formats.page_sound import listen

__all__ = ["make_page"]

CLASSES = {"spoken": "w", "inferred": "w i", "unspoken": "w u"}
LONGEST_QUOTE = 120  # characters of a stretch of text in the list of what is not in the recording


def make_page(alignment: SpeechAlignment, *, embed: bool | None = None) -> str:
    """Makes an HTML page that plays the recording and lights its words.

    A recording up to 10 MB in which browsers seek exactly (WAV, FLAC, Ogg Opus) is embedded as it is. Any other is
    encoded anew, mono: as FLAC up to ten minutes, as Ogg Opus beyond (13 MB and two minutes of one core for an hour).
    So is MP3: browsers estimate where a time lies in it, and miss by up to seconds.

    Args:
        alignment: its recording must be a file that is still there.
        embed: True puts the recording into the page, False links to a file of its name beside the page. Default: puts
            it in unless it would be larger than 40 MB.

    Returns:
        The page, to be written as UTF-8. It loads nothing but, if it is not embedded, the recording.

    Raises:
        SpeechError: the alignment does not know its recording, or the recording cannot be read.
    """
    if alignment.audio is None:
        raise SpeechError(
            "a page to listen to needs the recording's file, but this alignment was made from samples; "
            "give it the file: dataclasses.replace(alignment, audio=Path('talk.wav'))"
        )
    path = Path(alignment.audio)
    sound = listen(path, alignment.seconds, embed)
    template = files("torch_ctc_align.speech.formats").joinpath("page.html").read_text("utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    chips = _places_of_stretches(alignment)
    facts = _facts(alignment) | {
        "source": quote(path.name, errors="replace"),
        "peaks": list(sound.peaks),
        "peakSeconds": sound.seconds,
    }
    values = {
        "title": _escape(path.name),
        "language": f' lang="{_escape(alignment.language)}"' if alignment.language else "",
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "about": _about(alignment),
        "lists": _list_of_stretches(alignment, chips) + _list_of_unspoken(alignment),
        "text": "".join(_blocks(alignment, chips)),
        "facts": _json_for_html(facts),
        "sound": f"data:{sound.kind};base64,{base64.b64encode(sound.data).decode()}" if sound.data else "",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _escape(text: str) -> str:
    """Text as HTML. What a page cannot hold (a NUL, half of a surrogate pair) becomes a replacement character."""
    return html.escape(re.sub("[\0\ud800-\udfff]", "\ufffd", text))


def _json_for_html(value: Any) -> str:
    """JSON that may stand inside <script>: no tag or comment can begin or end in it, and UTF-8 can encode it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _round(value: float | None) -> float | None:
    """To the millisecond, or the thousandth of a probability; None for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, 3)


def _facts(alignment: SpeechAlignment) -> dict[str, Any]:
    """What the script needs: columns of the words; rows of the segments and stretches."""
    words = alignment.words
    columns = {
        name: [_round(getattr(word, name)) for word in words] for name in ("start", "end", "confidence", "posterior")
    }
    return {
        "seconds": _round(alignment.seconds),
        "words": columns
        | {"status": "".join(word.status[0] for word in words), "segment": [word.segment for word in words]},
        "segments": [
            [segment.words.start, segment.words.stop, _round(segment.start)] for segment in alignment.segments
        ],
        "stretches": [[_round(stretch.start), _round(stretch.end)] for stretch in alignment.unexplained],
    }


# ---- The text ----


def _blocks(alignment: SpeechAlignment, chips: dict[int, list[int]]) -> Iterator[str]:
    """The whole text: a block with its time for every segment, and what lies between them.

    Segments of one word each (``split="words"``) share a block until the text has a new line.
    """
    text, segments = alignment.text, alignment.segments
    place, is_open = 0, False
    for index, segment in enumerate(segments):
        between = text[place : segment.begin]
        joins = (
            is_open
            and len(segment.words) == len(segments[index - 1].words) == 1
            and "\n" not in between
            and "\r" not in between
        )
        if joins:
            yield _escape(between)
        else:
            yield "</p></div>\n" if is_open else ""
            yield _rest(between)
            apart = " apart" if index and len(re.findall(r"\r\n|\r|\n", between)) > 1 else ""
            yield f'<div class="s{apart}">{_time_of(index, segment.start)}<p dir="auto">'
            is_open = True
        place = segment.begin
        for k in segment.words:
            word = alignment.words[k]
            yield _escape(text[place : word.begin])
            if k == 0:
                yield _chips(alignment, chips.get(-1, ()))
            yield f'<span class="{CLASSES[word.status]}">{_escape(word.text)}</span>'
            place = word.stop
            if k in chips:  # behind the word and its punctuation
                end = alignment.words[k + 1].begin if k + 1 < segment.words.stop else segment.stop
                mark = re.match(r"\S*", text[place:end])
                yield _escape(mark[0] if mark else "")
                place += len(mark[0]) if mark else 0
                yield _chips(alignment, chips[k])
        yield _escape(text[place : segment.stop])
        place = segment.stop
    yield "</p></div>\n" if is_open else ""
    yield _rest(text[place:])


def _rest(text: str) -> str:
    """Lines without any word, such as a row of asterisks."""
    return f'<p class="rest" dir="auto">{_escape(text.strip())}</p>\n' if text.strip() else ""


def _time_of(index: int, start: float | None) -> str:
    if start is None:
        return '<span class="t" aria-label="not in the recording">&ndash;</span>'
    time = _clock(start)
    return f'<button class="t" type="button" data-segment="{index}" aria-label="Play from {time}">{time}</button>'


def _places_of_stretches(alignment: SpeechAlignment) -> dict[int, list[int]]:
    """Which stretches are shown behind which word: the last one that began before the middle of the stretch, or -1."""
    timed = [k for k, word in enumerate(alignment.words) if word.start is not None]
    starts = [alignment.words[k].start or 0.0 for k in timed]
    places: dict[int, list[int]] = {}
    for index, stretch in enumerate(alignment.unexplained):
        place = bisect.bisect_left(starts, (stretch.start + stretch.end) / 2)
        places.setdefault(timed[place - 1] if place else -1, []).append(index)
    return places


def _chips(alignment: SpeechAlignment, indices: Sequence[int]) -> str:
    chips = []
    for index in indices:
        stretch = alignment.unexplained[index]
        seconds = f"{stretch.end - stretch.start:.1f}"
        label = f"Play {seconds} seconds that are not in the text"
        chips.append(
            f'<button class="gap" dir="ltr" type="button" data-stretch="{index}" aria-label="{label}" title="{label}">'
            f"{seconds} s</button>"
        )
    return "".join(chips)


# ---- What surrounds the text ----


def _about(alignment: SpeechAlignment) -> str:
    spoken = sum(word.status == "spoken" for word in alignment.words)
    inferred = sum(word.status == "inferred" for word in alignment.words)
    unspoken = len(alignment.words) - spoken - inferred
    parts = [f"{len(alignment.words):,}"]
    parts += [f"{inferred:,} inferred"] if inferred else []
    parts += [f"{unspoken:,} not in the recording"] if unspoken else []
    rows = {
        "Duration": _clock(alignment.seconds),
        "Words": ", ".join(parts),
        "Segments": f"{len(alignment.segments):,}",
        "Mean confidence": _percent(alignment.confidence),
        "Mean posterior": _percent(alignment.posterior),
        "Language": alignment.language,
        "Model": alignment.model,
    }
    return "".join(f"<div><dt>{name}</dt><dd>{_escape(value)}</dd></div>" for name, value in rows.items() if value)


def _list_of_stretches(alignment: SpeechAlignment, chips: dict[int, list[int]]) -> str:
    rows = []
    for k, indices in sorted(chips.items()):
        where = f"after {_bidi(alignment.words[k].text)}" if k >= 0 else "before the first word"
        for index in indices:
            stretch = alignment.unexplained[index]
            times = " &ndash; ".join(_clock(round(time, 1), 1) for time in (stretch.start, stretch.end))
            rows.append(
                f'<li><button type="button" data-stretch="{index}"><b>{times}</b>'
                f"<span>{stretch.end - stretch.start:.1f} s, {where}</span></button></li>"
            )
    return _list("In the recording, not in the text", rows)


def _list_of_unspoken(alignment: SpeechAlignment) -> str:
    rows = []
    for first, last in _runs_of_unspoken(alignment.words):
        text = " ".join(alignment.text[alignment.words[first].begin : alignment.words[last].stop].split())
        if len(text) > LONGEST_QUOTE:
            text = text[: LONGEST_QUOTE - 1].rstrip() + "…"
        count = f"{last - first + 1} word{'s' if last > first else ''}"
        rows.append(
            f'<li><button type="button" data-word="{first}"><b>{count}</b><span>{_bidi(text)}</span></button></li>'
        )
    return _list("In the text, not in the recording", rows)


def _list(title: str, rows: Sequence[str]) -> str:
    if not rows:
        return ""
    count = f"<span>{len(rows):,}</span>"
    return f"<details><summary><h2>{title}</h2>{count}</summary><ol>{''.join(rows)}</ol></details>\n"


def _runs_of_unspoken(words: Sequence[Word]) -> list[tuple[int, int]]:
    """First and last index of every run of unspoken words."""
    runs: list[tuple[int, int]] = []
    for k, word in enumerate(words):
        if word.status == "unspoken":
            runs[-1:] = [(runs[-1][0], k)] if runs and runs[-1][1] == k - 1 else [*runs[-1:], (k, k)]
    return runs


def _bidi(text: str) -> str:
    return f'<bdi dir="auto">{_escape(text)}</bdi>'


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}".replace("%", " %")


def _clock(seconds: float, digits: int = 0) -> str:
    """Hours only where there are any: "0:07", "1:02:03.5"; cut off, not rounded, as clocks do."""
    whole, part = divmod(math.floor(seconds * 10**digits + 1e-6), 10**digits)
    minutes = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else f"{whole // 60}"
    return f"{minutes}:{whole % 60:02}" + (f".{part:0{digits}}" if digits else "")
