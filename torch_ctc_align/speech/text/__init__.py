"""The text as the aligner needs it: words with their places, and the labels that spell them."""

from __future__ import annotations

import codecs
import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import STAR, AcousticModel
from torch_ctc_align.speech.text.spelling import APOSTROPHES, Spelling
from torch_ctc_align.speech.text.spoken_numbers import CURRENCIES

__all__ = ["Transcript", "TranscriptSegment", "TranscriptWord", "read_text_file", "read_transcript"]

Split = Literal["lines", "sentences", "words"]

LARGEST_FILE = 50_000_000  # bytes; a thousand hours of speech are 60 MB

# What stands between spaces. A space that cannot break, between groups of digits, is part of a number; so is any space
# in languages that set thousands apart with it.
_CHARACTER = r"[^\s\x00-\x1f\x7f-\x9f\u200b]"
_GROUPS = r"(?:(?<=\b\d)|(?<=\b\d\d)|(?<=\b\d\d\d))[{spaces}](?=\d\d\d\b)"
_CHUNK, _CHUNK_OR_GROUPS = (
    re.compile(f"(?:{_CHARACTER}|{_GROUPS.format(spaces=spaces)})+")
    for spaces in ("\u00a0\u2009\u202f", "\u00a0\u2009\u202f ")
)
# Most chunks are a word of ASCII letters among ASCII punctuation: no look at each character is needed.
_SIMPLE = re.compile(r"[!-/:-@\[-`{-~]*([a-zA-Z]+(?:['-][a-zA-Z]+)*)[!-/:-@\[-`{-~]*")
_DASH = re.compile("--+|[–—―⸺⸻]")
_QUOTES = "\"'’”»›)\\]}」』）】〉》"
_STOP = re.compile(rf"(?<![.!?…])[.!?…]+[{_QUOTES}]*(?=\s)|[。！？｡؟۔।॥։።၊။]+[{_QUOTES}]*")
# After these a full stop ends no sentence; nor does it after the initial of a name.
_ABBREVIATIONS = {
    *("Capt", "Col", "Dr", "Gen", "Hon", "Lt", "Messrs", "Mlle", "Mme", "Mr", "Mrs", "Ms", "Mt", "Prof", "Rev", "Sgt"),
    *("Sr", "St", "vs"),
}
_BEFORE_NUMBERS = {"art", "ch", "fig", "no", "nos", "nr", "p", "pp", "vol"}
LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))
_BETWEEN = re.compile(r"[\W_]{0,40}")
_ONLY_DIGITS = re.compile(r"\s*\d+")
_LETTERS_AT_END = re.compile(r"[^\W\d_]*\Z")
_LINE = re.compile("[^\n\r\v\f\x85\u2028\u2029]+")
# Han, Hiragana, Katakana: every character is a word, with the small kana and marks that change its sound. A small tsu
# doubles the consonant that follows it.
_KANA = "\u3041-\u3062\u3064-\u3096\u309d-\u309f\u30a1-\u30c2\u30c4-\u30fa\u30ff\u31f0-\u31ff\uff66-\uff6e\uff71-\uff9d"
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK = re.compile(
    rf"(?:[っッｯ]*[{_KANA}]|[{_HAN}]|[っッｯ])"
    rf"(?:[ぁぃぅぇぉゃゅょゎァィゥェォャュョヮヵヶーｧ-ｮｰﾞﾟ々ゝゞヽヾ\u3099\u309a\ufe00-\ufe0f]|[っッｯ](?![{_KANA}]))*"
)
_NUMBER_START = re.compile(rf"(?:[-+\u2212]?[{''.join(CURRENCIES)}]?[-\u2212]?|(?<![.\d])\.)\Z")
_NUMBER_STOP = re.compile(rf"[%‰°{''.join(CURRENCIES)}]")
_SIGN_ALONE = re.compile(rf"[^\w]*?([&§]|[%‰+=°{''.join(CURRENCIES)}])[^\w]*")


@dataclass(frozen=True)
class TranscriptWord:
    """A word of the text.

    Attributes:
        text: ``transcript.text[begin:stop]``, without the punctuation around it.
        begin, stop: its characters in the text.
        segment: index of its segment.
        parts: what is spelt: ``("eighteen",)`` for "18", ``("hang", "up")`` for "hang-up".
        labels: the labels of each part; ``STAR`` stands for characters that cannot be spelt.
        inferred: whether there is a ``STAR`` among them.
    """

    text: str
    begin: int
    stop: int
    segment: int
    parts: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    inferred: bool


@dataclass(frozen=True)
class TranscriptSegment:
    """A line of the text, a sentence or a word (``split``): ``transcript.text[begin:stop]`` and its words."""

    text: str
    begin: int
    stop: int
    words: range


@dataclass(frozen=True)
class Transcript:
    """A text, its words and its segments, in order; ``notes`` are sentences for the reader of the result."""

    text: str
    words: list[TranscriptWord]
    segments: list[TranscriptSegment]
    notes: list[str]

    def targets(
        self, *, star: int, separator: int | None, words: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """The labels to align.

        Args:
            star: the label that stands for ``STAR``.
            separator: the label between words, and between the parts of a word; None for none.
            words: indices of the words to take. Default: all.

        Returns:
            targets: the labels; no separator at the ends.
            tokens_per_word: how many of them belong to each word, without separators.
        """
        targets: list[int] = []
        tokens_per_word = []
        for word in self.words if words is None else [self.words[index] for index in words]:
            for part in word.labels:
                if targets and separator is not None:
                    targets.append(separator)
                targets += [star if label == STAR else label for label in part]
            tokens_per_word.append(sum(map(len, word.labels)))
        return targets, tokens_per_word


def read_transcript(
    text: str,
    model: AcousticModel,
    *,
    split: Split = "lines",
    language: str | None = None,
    romanize: bool | None = None,
    spelling: Spelling | None = None,
) -> Transcript:
    """Finds the words of a text and spells them with a model's labels.

    Args:
        text: what is said.
        model: its labels, ``spell`` and language.
        split: what a segment is: one of the ``"lines"``, ``"sentences"`` or ``"words"`` of the text.
        language: what numbers are said in, as an IETF tag ("en", "pt-BR") or an ISO 639-3 name ("eng"). Default: the
            model's.
        romanize: whether to romanise words with uroman before they are spelt. Default: where the labels are Latin
            letters, words in other scripts.
        spelling: of the same model and language, from an earlier text: it knows the words that it has spelt. Notes are
            then about all of its texts.

    Raises:
        SpeechError: the text has no words, or none that can be spelt; the labels are pieces of words.

    A word is what stands between spaces and dashes, without the punctuation around it; in Chinese and Japanese it is
    a character. Numbers that are set apart with spaces ("10 000", where the language does so) are one word. Ten
    thousand words take 0.05 s; uroman, where it is needed, 3 s to load and 0.5 ms for each distinct word.

    Example:
        >>> labels = ["<pad>", "|", *"abcdefghijklmnopqrstuvwxyz"]
        >>> model = AcousticModel(run=..., labels=labels, blank=0, separator=1, hop=320, sample_rate=16000)
        >>> transcript = read_transcript("A café, twenty-one", model)
        >>> [(word.text, word.parts) for word in transcript.words]
        [('A', ('A',)), ('café', ('café',)), ('twenty-one', ('twenty', 'one'))]
        >>> targets, tokens_per_word = transcript.targets(star=len(labels), separator=1)
        >>> "".join(labels[label] for label in targets), tokens_per_word
        ('a|cafe|twenty|one', [1, 4, 9])
    """
    if not isinstance(text, str):
        raise SpeechError(f"the text must be a string, found {type(text).__name__}")
    if split not in ("lines", "sentences", "words"):
        raise SpeechError(f"split must be 'lines', 'sentences' or 'words', found {split!r}")
    if spelling is None:
        spelling = Spelling(model, language or model.language, romanize)
    grouped = re.search(r"\d \d", text) and spelling.numbers.spaces_group
    chunks = _CHUNK_OR_GROUPS if grouped else _CHUNK
    words: list[TranscriptWord] = []
    segments: list[TranscriptSegment] = []
    for begin, stop in _segments(text, split):
        first = len(words)
        for word_begin, word_stop, number in _words(text, begin, stop, chunks):
            word = text[word_begin:word_stop]
            parts, labels, inferred = spelling.spell(word, number)
            words.append(TranscriptWord(word, word_begin, word_stop, len(segments), parts, labels, inferred))
            if split == "words":
                here = range(len(words) - 1, len(words))
                segments.append(TranscriptSegment(word, word_begin, word_stop, here))
        if split != "words" and len(words) > first:
            segments.append(TranscriptSegment(text[begin:stop], begin, stop, range(first, len(words))))
    if not words:
        raise SpeechError("the text has no words; expected what is said in the recording")
    strange = [word.text for word in words if word.inferred]
    if all(label == STAR for word in words for part in word.labels for label in part):
        raise SpeechError(_nothing_spelt(strange, model, spelling))
    return Transcript(text, words, segments, _notes(strange, spelling))


def _segments(text: str, split: Split) -> Iterator[tuple[int, int]]:
    """Lines or sentences, without the space around them; words are found in lines."""
    cut = _sentences if split == "sentences" else lambda _, begin, stop: [(begin, stop)]
    for line in _LINE.finditer(text):
        for begin, stop in cut(text, *line.span()):
            while begin < stop and (text[begin].isspace() or text[begin] == "\ufeff"):
                begin += 1
            while begin < stop and text[stop - 1].isspace():
                stop -= 1
            if begin < stop:
                yield begin, stop


def _sentences(text: str, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    for end in _STOP.finditer(text, begin, stop):
        if _ends_sentence(text, begin, end, stop):
            yield begin, end.end()
            begin = end.end()
    yield begin, stop


def _ends_sentence(text: str, begin: int, end: re.Match[str], stop: int) -> bool:
    """Whether a sentence ends here.

    It does not if a small letter follows ("'No!' he said"), nor after "Mr.", the "p." of "p. 5", the "J." of a name or
    the "1." of a list.
    """
    if end.group()[0] not in ".!?…":
        return True
    follows = _BETWEEN.match(text, end.end(), stop)
    if follows and follows.end() < stop and text[follows.end()].islower():
        return False
    if end.group() != ".":
        return True
    if _ONLY_DIGITS.fullmatch(text, begin, end.start()):
        return False
    last = _LETTERS_AT_END.search(text[max(begin, end.start() - LONGEST_ABBREVIATION - 1) : end.start()])
    word = last.group() if last else ""
    if word.lower() in _BEFORE_NUMBERS and follows and text[follows.end() : follows.end() + 1].isdigit():
        return False
    return word not in _ABBREVIATIONS and not (len(word) == 1 and word.isupper() and word != "I")


def _words(text: str, begin: int, stop: int, chunks: re.Pattern[str]) -> Iterator[tuple[int, int, str]]:
    """Begin and stop of every word, and for a sign that stands apart the number before it."""
    number = ""
    for chunk in chunks.finditer(text, begin, stop):
        start = chunk.start()
        found = _words_of_chunk(chunk.group())
        for first, last in found:
            yield start + first, start + last, ""
        if not found and (sign := _SIGN_ALONE.fullmatch(chunk.group())) and (number or sign[1] in "&§"):
            yield start + sign.start(1), start + sign.end(1), number
        first, last = found[-1] if found else (0, 0)
        number = chunk.group()[first:last] if last and chunk.group()[last - 1].isdigit() else ""


@functools.lru_cache(maxsize=1 << 16)
def _words_of_chunk(chunk: str) -> tuple[tuple[int, int], ...]:
    if simple := _SIMPLE.fullmatch(chunk):
        return (simple.span(1),)
    words = []
    begin = 0
    for dash in [*_DASH.finditer(chunk), None]:
        stop = dash.start() if dash else len(chunk)
        for cjk in [*_CJK.finditer(chunk, begin, stop), None]:
            if word := _strip(chunk, begin, cjk.start() if cjk else stop):
                words.append(word)
            if cjk:
                words.append(cjk.span())
                begin = cjk.end()
        begin = dash.end() if dash else stop
    return tuple(words)


def _strip(chunk: str, begin: int, stop: int) -> tuple[int, int] | None:
    """A word without what surrounds it: from its first letter or digit to the last one, with the marks on it."""
    places = [
        k for k in range(begin, stop) if unicodedata.category(chunk[k])[0] in "LN" and chunk[k] not in APOSTROPHES
    ]
    if not places:
        return None
    first, last = places[0], places[-1] + 1
    while last < stop and unicodedata.category(chunk[last])[0] == "M":
        last += 1
    if chunk[first].isdigit() and (sign := _NUMBER_START.search(chunk, begin, first)):
        first = sign.start()
    if chunk[places[-1]].isdigit() and (sign := _NUMBER_STOP.match(chunk, last, stop)):
        last = sign.end()
    return first, last


def _nothing_spelt(words: Sequence[str], model: AcousticModel, spelling: Spelling) -> str:
    reason = spelling.uroman_missing or spelling.numbers.reason
    shown = ", ".join(map(repr, words[:5]))
    if model.spell is not None:  # its labels, phonemes or pieces of words, say nothing to the user
        return (
            f"{model.name} cannot pronounce any word of the text ({shown}): "
            f"{reason or 'use a model of the language and script of the text'}"
        )
    labels = "".join(spelling.letters) or ", ".join(map(str, model.labels))
    labels = labels if len(labels) <= 60 else f"{labels[:57]}..."
    advice = reason or "use a model of the text's language or write the text with these labels"
    return f"no word of the text ({shown}) can be spelt with the labels of {model.name} ({labels}): {advice}"


def _notes(strange: Sequence[str], spelling: Spelling) -> list[str]:
    notes = []
    if spelling.starred_numbers:
        notes.append(f"numbers are not spelt: {spelling.numbers.reason or 'num2words has no words for them'}")
    if spelling.years:
        year = spelling.years[0]
        said = " ".join(spelling.spell(year)[0])
        notes.append(f"years are spelt as other numbers are, {year} as {said!r}; write them as they are spoken")
    if spelling.uroman_missing:
        notes.append(spelling.uroman_missing)
    if strange:
        distinct = list(dict.fromkeys(strange))
        shown = ", ".join(map(repr, distinct[:5])) + (", ..." if len(distinct) > 5 else "")
        many = "1 word" if len(strange) == 1 else f"{len(strange)} words"
        verb = "gets" if len(strange) == 1 else "get"
        notes.append(f"{many} cannot be spelt with the model's labels and {verb} the time that is left: {shown}")
    return notes


def read_text_file(path: str | os.PathLike[str]) -> str:
    """Reads a text.

    Args:
        path: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        SpeechError: there is no such file, it is a folder, empty, larger than 50 MB, or in another encoding.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise SpeechError(f"{path} is a folder; expected a text file")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise SpeechError(f"{path} has {size:,} bytes; a text may have at most {LARGEST_FILE:,}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise SpeechError(f"there is no text file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero character
        if isinstance(error, SpeechError):
            raise
        raise SpeechError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if data in (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise SpeechError(f"{path} is empty; expected what is said in the recording")
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise SpeechError(f"{path} is not UTF-16, as its first two bytes say, at byte {error.start}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpeechError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, with the encoding that it has in place of "
            f"ISO-8859-1: iconv -f ISO-8859-1 -t UTF-8 {path} > new.txt"
        ) from None
