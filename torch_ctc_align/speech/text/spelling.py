"""Words as labels of a model: by its own ``spell`` or by characters; numbers as said, other scripts romanised."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import unicodedata
from typing import Any

from torch_ctc_align.speech.errors import SpeechError, require
from torch_ctc_align.speech.models import STAR, AcousticModel
from torch_ctc_align.speech.text.spoken_numbers import CURRENCIES, LONGEST_NUMBER, Numbers

__all__ = ["APOSTROPHES", "Spelling", "letters_of", "plain"]

APOSTROPHES = "'’‘ʼʻ`´＇\u02b9"
# Letters that Unicode does not take apart into a base letter and marks.
BASE_LETTERS = {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ß": "ss", "ı": "i", "ħ": "h",
                "ی": "ي", "ي": "ی", "ک": "ك", "ك": "ک"}  # fmt: skip
# Within a word, no sounds: Hebrew geresh and gershayim, the point of Catalan "col·legi", Arabic's stretching line.
DROPPED = "\u05f3\u05f4·\u0640"
SPOKEN_SIGNS = "&@%‰+=°§" + "".join(CURRENCIES)
# uroman makes figures of the Han numerals; alone they are not said so.
HAN_NUMERALS = {
    "零": "ling", "〇": "ling", "一": "yi", "二": "er", "三": "san", "四": "si", "五": "wu", "六": "liu", "七": "qi",
    "八": "ba", "九": "jiu", "十": "shi", "百": "bai", "千": "qian",
}  # fmt: skip

_ROMANS = re.compile(r"[a-z]")
_MARKS = ("Mn", "Mc", "Me")
_APOSTROPHES = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))
_TELEPHONE = re.compile(r"\+?\d[\d().-]*\d")
_SHORT_CALL = re.compile(r"\d{3}-\d{4}")
_MONEY = "".join(CURRENCIES)
_FIGURES = re.compile(
    rf"(?P<number>[{_MONEY}]?\d+(?:[.,'\u00a0\u2009\u202f ]\d+)*[%°{_MONEY}]?)(?P<suffix>'s(?![^\W\d])|[^\W\d]+)?"
    rf"|.+?(?=[{_MONEY}]?\d|$)",
    re.DOTALL,
)
_romanizing = threading.Lock()

MOST_KNOWN = 1 << 17  # distinct words that are remembered; a corpus of many languages has millions

# (parts, labels of each part, whether there is a STAR among them)
Spelt = tuple[tuple[str, ...], tuple[tuple[int, ...], ...], bool]


def letters_of(model: AcousticModel) -> dict[str, int]:
    """The labels that are letters, digits, marks or the apostrophe, in NFKC, some of them a letter with its marks.

    Names like ``<unk>`` and ``[PAD]``, the blank, the separator and punctuation are none.

    Raises:
        SpeechError: the labels are pieces of words or phonemes, which only ``AcousticModel.spell`` can choose from.
    """
    letters: dict[str, int] = {}
    pieces = []
    for index, label in enumerate(model.labels):
        if index in (model.blank, model.separator) or not label or re.fullmatch(r"<.*>|\[.*\]|\|", label, re.DOTALL):
            continue
        name = unicodedata.normalize("NFKC", label)
        one = len(label) == 1 or all(unicodedata.category(mark) in _MARKS for mark in name[1:])
        if not one and len(name) > 1:
            pieces.append(label)
        elif unicodedata.category(name[0])[0] in "LNM" or name in APOSTROPHES:
            letters.setdefault(unicodedata.normalize("NFC", label), index)
    if len(pieces) > 0.25 * (len(pieces) + len(letters)) or any(re.match("▁.|##.|Ġ.", piece) for piece in pieces):
        raise SpeechError(
            f"the labels of {model.name} are pieces of words or phonemes ({', '.join(map(repr, pieces[:3]))}, ...), "
            "and a text can be cut into them in many ways; pass spell=, a function from a word to labels"
        )
    for name, index in list(letters.items()):
        letters.setdefault(unicodedata.normalize("NFKC", name), index)  # as `plain` writes it
        if unicodedata.name(name[0], "").startswith("HANGUL LETTER"):  # in a syllable it has other code points
            for place in ("CHOSEONG", "JUNGSEONG", "JONGSEONG"):
                with contextlib.suppress(KeyError):
                    jamo = unicodedata.lookup(unicodedata.name(name[0]).replace("LETTER", place))
                    letters.setdefault(jamo, index)
    return letters


def plain(word: str) -> str:
    """NFKC, one kind of apostrophe and of digits, without invisible characters."""
    if word.isascii():
        return word.replace("`", "'")
    word = unicodedata.normalize("NFKC", word.translate(_APOSTROPHES)).translate(_APOSTROPHES)
    return "".join(
        str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c
        for c in word
        if unicodedata.category(c)[0] != "C" and c not in DROPPED and not "\ufe00" <= c <= "\ufe0f"
    )


@functools.cache
def _load_uroman() -> Any:
    # 3 s of loading on a laptop's core, then about 0.2 ms a word.
    return require("uroman", "romanising words").Uroman()


@functools.lru_cache(maxsize=1 << 16)
def _romanize(word: str) -> str:
    if word in HAN_NUMERALS:
        return HAN_NUMERALS[word]
    with _romanizing:
        text: str = _load_uroman().romanize_string(re.sub("(.)々", r"\1\1", word))
    return text


class Spelling:
    """Spells words with a model's labels, each distinct word once. It may serve text after text.

    Attributes:
        notes: what the reader of a result should know, in sentences.
    """

    def __init__(self, model: AcousticModel, language: str | None, romanize: bool | None):
        self.model = model
        self.romanize = romanize
        self.letters = {} if model.spell else letters_of(model)
        self.has_digits = all(digit in self.letters for digit in "0123456789")
        self.has_romans = sum(letter.lower() in self.letters or letter in self.letters for letter in "ETAOINSRHL") >= 8
        self.scripts = {_script(letter[0]) for letter in self.letters}
        longer = sorted((letter for letter in self.letters if len(letter) > 1), key=len, reverse=True)
        self._units = re.compile("|".join([*map(re.escape, longer), "."]), re.DOTALL)
        self.numbers = Numbers(language)
        self.starred_numbers = 0
        self.years: list[str] = []  # numbers that may be years, which are said otherwise
        self.uroman_missing: str | None = None
        self._words: dict[tuple[str, str], Spelt] = {}
        self._characters: dict[str, list[int] | None] = {}
        self._parts: dict[str, tuple[int, ...]] = {}

    def spell(self, word: str, number: str = "") -> Spelt:
        """Spells a word.

        Args:
            word: as the text has it.
            number: for a sign that stands apart, "€" in "5 €": the number before it.

        Returns:
            What is said, part by part; the labels of each part; whether there is a ``STAR`` among them, for what cannot
            be spelt.
        """
        if (spelt := self._words.get((word, number))) is None:
            if len(self._words) >= MOST_KNOWN:
                self._words.clear()
                self._parts.clear()
            spelt = self._words[word, number] = self._spell(word, number)
        return spelt

    def _spell(self, word: str, number: str) -> Spelt:
        parts: list[str] = []
        labels: list[tuple[int, ...]] = []
        for part, readable in self._parts_of(plain(word), plain(number)):
            spelt = self._spell_part(part) if readable else (STAR,)
            if not spelt:
                continue
            if spelt == (STAR,) and labels and labels[-1] == (STAR,):
                parts[-1] += part
                continue
            parts.append(part)
            labels.append(spelt)
        if not labels:
            return (word,), ((STAR,),), True
        return tuple(parts), tuple(labels), any(STAR in part for part in labels)

    def _parts_of(self, word: str, number: str) -> list[tuple[str, bool]]:
        """What is said of a word, part by part, and whether it can be read as letters."""
        if word.isascii() and word.isalpha():  # what follows would say the same, ten times slower
            return [(word, True)]
        if word in SPOKEN_SIGNS:
            name = self.numbers.say_sign(word, self.numbers.value(number) if number else None)
            return [(part, True) for part in name] if name else [(word, False)]
        if re.search(r"\d", word) is None:
            return self._split(word)
        if self.has_digits:
            return self._split(re.sub(r"(?<=\d)[,.' \u00a0\u2009\u202f](?=\d{3}(?!\d))", "", word))
        if said := self._say(word):
            if re.fullmatch("1[1-9][0-9][0-9]", word) and self.numbers.years_differ:
                self.years.append(word)
            return said
        # Digits among other things: "mp3", "B2B", "12:30", "555-1234", "+49".
        if _TELEPHONE.fullmatch(word) and (
            word[0] == "+" or len(re.findall(r"\d", word)) > LONGEST_NUMBER or _SHORT_CALL.fullmatch(word)
        ):
            return [part for digit in re.findall(r"\d", word) for part in self._say(digit) or self._raw(digit)]
        pieces: list[tuple[str, bool]] = []
        for piece in _FIGURES.finditer(word):
            number, suffix = piece["number"], piece["suffix"] or ""
            if number is None:
                pieces += self._split(piece.group())
            elif said := self._say(number + suffix):
                pieces += said
            else:
                pieces += self._say(number) or self._say_figures(number)
                pieces += self._split(suffix)
        return pieces

    def _say_figures(self, number: str) -> list[tuple[str, bool]]:
        """Says what is no number of the language, "3.30" in German: its figures one after the other, signs last."""
        pieces = [part for figures in re.findall(r"\d+", number) for part in self._say(figures) or self._raw(figures)]
        return pieces + self._split("".join(re.findall(f"[{SPOKEN_SIGNS}]", number)))

    def _say(self, written: str) -> list[tuple[str, bool]] | None:
        said = self.numbers.say(written)
        return None if said is None else [(word, True) for word in said]

    def _raw(self, figures: str) -> list[tuple[str, bool]]:
        """Figures that cannot be said, which a model's own spell may know."""
        readable = self.model.spell is not None and self._spell_part(figures) != (STAR,)
        self.starred_numbers += not readable
        return [(figures, readable)]

    def _split(self, word: str) -> list[tuple[str, bool]]:
        """Splits at everything that is not a letter: "hang-up", "and/or", "U.S.A."."""
        pieces: list[tuple[str, bool]] = []
        letters = ""
        for c in word:
            if unicodedata.category(c)[0] in "LNM" or c == "'":
                letters += c
                continue
            if letters.strip("'"):
                pieces.append((letters, True))
            letters = ""
            if c in SPOKEN_SIGNS:
                said = self.numbers.say_sign(c)
                pieces += [(part, True) for part in said] if said else [(c, False)]
        if letters.strip("'"):
            pieces.append((letters, True))
        return pieces

    def _spell_part(self, part: str) -> tuple[int, ...]:
        if self.model.spell:
            part = part.lower()
        if part not in self._parts:
            self._parts[part] = self._by_model(part) if self.model.spell else self._by_characters(part)
        return self._parts[part]

    def _by_model(self, part: str) -> tuple[int, ...]:
        assert self.model.spell is not None
        if self.romanize and not part.isascii():
            part = (self._try_romanize(part) or part).lower()
        spelt = self.model.spell(part)
        labels = [] if spelt is None else [int(label) for label in spelt]
        for label in labels:
            if label == self.model.separator:
                raise SpeechError(
                    f"spell({part!r}) of {self.model.name} gave the label {label}, the separator, which stands between "
                    "words and not within them"
                )
            if not 0 <= label < len(self.model.labels) or label == self.model.blank:
                raise SpeechError(
                    f"spell({part!r}) of {self.model.name} gave the label {label}; expected labels from 0 to "
                    f"{len(self.model.labels) - 1} without the blank, {self.model.blank}"
                )
        return tuple(labels) or (STAR,)

    def _by_characters(self, part: str) -> tuple[int, ...]:
        if self.romanize and not part.isascii():
            part = self._try_romanize(part) or part
        labels, strange = self._look_up(part)
        if strange and self.romanize is None and self.has_romans:
            scripts = {_script(c) for c in strange if unicodedata.category(c)[0] == "L"}
            if scripts - self.scripts and (romans := self._try_romanize(part)):
                labels, _ = self._look_up(romans)
        return tuple(labels)

    def _look_up(self, part: str) -> tuple[list[int], str]:
        """The labels of characters, and the characters that have none."""
        labels: list[int] = []
        strange = ""
        for c in self._units.findall(part):
            if c not in self._characters:
                self._characters[c] = [self.letters[c]] if c in self.letters else self._character(c)
            found = self._characters[c]
            if found is None:
                strange += c
                found = [STAR]
            if found != [STAR] or labels[-1:] != [STAR]:
                labels += found
        return labels, strange

    def _character(self, c: str) -> list[int] | None:
        base = "".join(b for b in unicodedata.normalize("NFKD", c) if not unicodedata.combining(b))
        taken_apart = unicodedata.normalize("NFD", c)
        for form in (c, taken_apart, base, BASE_LETTERS.get(c.lower(), c), _other_kana(c)):
            for spelling in (form, form.lower(), form.upper(), form.upper().lower()):  # the last for a final sigma
                labels = [self.letters.get(letter) for letter in spelling]
                if spelling and None not in labels:
                    return [label for label in labels if label is not None]
        if c == "'":
            other = [self.letters[a] for a in APOSTROPHES if a in self.letters]
            return other[:1]
        # Marks that are no sounds: accents, vowel points, the frame of a keycap.
        return [] if unicodedata.combining(c) or unicodedata.category(c) == "Me" else None

    def _try_romanize(self, part: str) -> str | None:
        try:
            romans = _romanize(part)
        except SpeechError as error:
            self.uroman_missing = str(error)
            return None
        return "".join(c for c in romans if c.isalpha() or c == "'") or None


@functools.lru_cache(maxsize=4096)
def _script(c: str) -> str:
    return unicodedata.name(c, "").partition(" ")[0]


def _other_kana(c: str) -> str:
    """Hiragana for Katakana and the other way round."""
    if "ぁ" <= c <= "ゖ":
        return chr(ord(c) + 0x60)
    return chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c
