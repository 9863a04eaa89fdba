"""Numbers as they are said: "1,811", "3.5", "18th", "$5", "50%" as words of the language, by num2words."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Any

from torch_ctc_align.speech.errors import SpeechError, require

__all__ = ["CURRENCIES", "Numbers"]

LONGEST_NUMBER = 9  # digits; a longer run is a telephone number or the like and is read digit by digit

LONGEST_AMOUNT = 24  # digits, of a number that is grouped or has a fraction; num2words knows no names beyond

CURRENCIES = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB", "₩": "KRW", "₴": "UAH"}

# Signs whose names num2words does not have. A word that changes with the number has the three forms of the Slavic
# languages, which the converter's `pluralize` chooses from.
SIGNS: dict[str, dict[str, str | tuple[str, str, str]]] = {
    "%": {
        "ca": "per cent", "cs": ("procento", "procenta", "procent"), "da": "procent", "de": "Prozent", "en": "percent",
        "es": "por ciento", "fi": "prosenttia", "fr": "pour cent", "hu": "százalék", "id": "persen", "it": "per cento",
        "nl": "procent", "no": "prosent", "pl": "procent", "pt": "por cento", "ro": "la sută",
        "ru": ("процент", "процента", "процентов"), "sv": "procent", "tr": "yüzde",
        "uk": ("відсоток", "відсотки", "відсотків"), "vi": "phần trăm",
    },
    "&": {
        "ca": "i", "cs": "a", "da": "og", "de": "und", "en": "and", "es": "y", "fi": "ja", "fr": "et", "hu": "és",
        "id": "dan", "it": "e", "nl": "en", "no": "og", "pl": "i", "pt": "e", "ro": "și", "ru": "и", "sv": "och",
        "tr": "ve", "uk": "і", "vi": "và",
    },
    "+": {"de": "plus", "en": "plus", "es": "más", "fr": "plus", "it": "più", "nl": "plus", "pt": "mais"},
    "°": {"de": "Grad", "en": "degrees", "es": "grados", "fr": "degrés", "it": "gradi", "nl": "graden", "pt": "graus"},
    "=": {"de": "gleich", "en": "equals", "es": "igual a", "fr": "égale", "it": "uguale", "nl": "is", "pt": "igual a"},
}  # fmt: skip
PERCENT_FIRST = {"tr"}  # "%5" and "5%" are both said "yüzde beş"

# Languages whose decimal sign is a point and whose thousands are marked with a comma; all others have it the other way.
DECIMAL_POINT = {"am", "ar", "bn", "cy", "en", "es_GT", "es_NI", "fa", "he", "ja", "kn", "ko", "te", "th"}

YEARS_DIFFER = {"da", "de", "en", "nl", "no", "sv"}

# How an ordinal ends that is written with a figure.
ORDINALS = {
    "ca": "r|n|t|è|a", "en": "st|nd|rd|th", "es": r"\.?[oa]", "fr": "er|re|ère|e|è|ème|nd|nde|d", "it": "[oa]",
    "nl": "e|de|ste", "pt": r"\.?[oa]",
}  # fmt: skip

POINTS = {"cy": "pwynt", "it": "virgola", "vi": "phẩy"}  # the word for the decimal sign that num2words lacks

# Where num2words has a name of its own for a language.
CONVERTER_NAMES = {"kk": "kz", "nb": "no"}

_SPACES = "\u00a0\u2009\u202f "
_SIGNED = re.compile(
    rf"(?P<minus>[-\u2212])?(?P<before>[{''.join(CURRENCIES)}])?(?P<minus2>[-\u2212])?"
    rf"(?P<body>\.?\d+(?:[.,'{_SPACES}]\d+)*)"
    rf"(?P<after>[%°{''.join(CURRENCIES)}])?(?P<suffix>[^\W\d]+|\.[^\W\d]|'s)?"
)


class Numbers:
    """Says numbers in a language.

    Attributes:
        reason: why the numbers so far could not be said, for the reader of a note; None if all of them could.
    """

    def __init__(self, language: str | None):
        self.language = language
        self.reason: str | None = None
        self._loaded = False
        self._name = ""
        self._converter: Any = None
        self._decimals: bool | None = None

    @property
    def known(self) -> bool:
        """Whether numbers can be said; imports num2words."""
        if not self._loaded:
            self._loaded = True
            self._converter = self._find_converter()
        return self._converter is not None

    def _find_converter(self) -> Any:
        if self.language is None:
            self.reason = "the language is not known; give it, as in language='en'"
            return None
        try:
            classes = require("num2words", "saying numbers").CONVERTER_CLASSES
        except SpeechError as error:
            self.reason = str(error)
            return None
        try:
            candidates = _candidates(self.language)
        except SpeechError as error:
            self.reason = str(error)
            return None
        for name in candidates:
            name = CONVERTER_NAMES.get(name, name)
            if name in classes:
                self._name = name
                return classes[name]
        self.reason = f"num2words has no language {self.language!r}"
        return None

    @property
    def decimal_point(self) -> bool:
        """Whether "3.5" is three and a half, and not "3,5"."""
        if not self.known:
            return True
        return self._name in DECIMAL_POINT or self._name.partition("_")[0] in DECIMAL_POINT

    @property
    def years_differ(self) -> bool:
        """Whether 1811 as a year is said otherwise than as a number: "eighteen eleven"."""
        return self._name.partition("_")[0] in YEARS_DIFFER

    @property
    def spaces_group(self) -> bool:
        """Whether thousands are set apart with spaces, "10 000"."""
        return self.known and not self.decimal_point

    def value(self, figures: str) -> Decimal | None:
        """The number that figures with the language's separators stand for; None if they are none."""
        point, comma = (r"\.", ",") if self.decimal_point else (",", r"\.")
        groups = rf"\d{{1,3}}(?:(?P<by>[{comma}'{_SPACES}])\d{{3}})(?:(?P=by)\d{{3}})*|\d{{1,2}}(?:,\d{{2}})+,\d{{3}}"
        if not re.fullmatch(rf"(?:{groups}|\d*)(?:{point}\d+)?", figures) or not figures:
            return None
        whole, _, fraction = figures.partition("." if self.decimal_point else ",")
        return Decimal(re.sub(r"\D", "", whole) + (f".{fraction}" if fraction else ""))

    def say(self, written: str) -> list[str] | None:
        """Says a number.

        Args:
            written: what a word of the text has, in NFKC and with ASCII digits: "1,811", "-3.5", "18th", "$5", "50%".

        Returns:
            The words; None if this is not a number of the language, or cannot be said.
        """
        if not (found := _SIGNED.fullmatch(written)) or not self.known:
            return None
        body, suffix = found["body"], found["suffix"]
        digits = len(re.sub(r"\D", "", body))
        value = self.value(body)
        if value is not None and digits > LONGEST_AMOUNT:
            return None
        minus = bool(found["minus"] or found["minus2"])
        currency = found["before"] or (found["after"] if found["after"] in CURRENCIES else None)
        alone = body.isdigit() and not (minus or currency or found["after"] or suffix)
        if alone and (digits > LONGEST_NUMBER or (digits > 1 and body[0] == "0")):
            return self._say_digits(body)
        if value is None:
            return None
        if suffix:
            if minus or currency or found["after"] or not body.isdigit():
                return None
            return self._say_suffixed(value, suffix)
        words = self._say_money(value, currency) if currency else self._convert(value)
        if words is not None and (after := found["after"]) and after in SIGNS:
            name = self.say_sign(after, value)
            if name is None:
                return None
            words = name + words if after == "%" and self._name in PERCENT_FIRST else words + name
        return self._negate(words, value) if minus and words else words

    def say_sign(self, sign: str, value: Decimal | None = None) -> list[str] | None:
        """Says "%", "&", "+", "=" or a currency after a number; None if the language's word is not known."""
        if not self.known:
            return None
        if sign in CURRENCIES:
            value = Decimal(int(value)) if value is not None else Decimal(2)
            money, amount = self._say_money(value, sign), self._convert(value)
            return money[len(amount) :] or None if money and amount else None
        names = SIGNS.get(sign, {})
        name = names.get(self._name, names.get(self._name.partition("_")[0]))
        if isinstance(name, tuple):  # a fraction takes the form of a few: "3,5 процента"
            whole = value is not None and value == int(value)
            name = str(self._converter.pluralize(int(value or 0), name)) if value is None or whole else name[1]
        return _words(name) if name else None

    def _say_digits(self, digits: str) -> list[str] | None:
        said = {digit: self._convert(Decimal(digit)) for digit in set(digits)}
        if any(words is None for words in said.values()):
            return None
        return [word for digit in digits for word in said[digit] or ()]

    def _say_suffixed(self, value: Decimal, suffix: str) -> list[str] | None:
        ending = ORDINALS.get(self._name, ORDINALS.get(self._name.partition("_")[0]))
        if ending and re.fullmatch(ending, suffix.lower()):
            return self._convert(value, to="ordinal")
        if self._name.startswith("en") and suffix.lower() in ("s", "'s"):  # "the 1990s"
            words = self._convert(value, to="year" if 1100 < value < 2100 else "cardinal")
            if words:
                words[-1] = words[-1][:-1] + "ies" if words[-1].endswith("y") else words[-1] + "s"
            return words
        return None

    def _say_money(self, value: Decimal, sign: str) -> list[str] | None:
        cents = value if -int(value.as_tuple().exponent) == 2 else Decimal(int(value))
        # A mark that is in no word stands between the two units, so that "and no cents" can be left out.
        text = self._call("to_currency", float(cents), currency=CURRENCIES[sign], separator=" \x1f ")
        units, mark, rest = (text or "").partition("\x1f")
        if not mark:
            return None
        words = _words(units)
        if self._name.startswith("en"):  # num2words says "5 euro" and "5 pounds sterling"
            names = {"sterling": "", "euro": "euro" if int(value) == 1 else "euros"}
            words = [name for word in words if (name := names.get(word, word))]
        if cents != int(cents):
            return words + _words(rest)
        if value == int(value):
            return words
        whole, said = self._convert(Decimal(int(value))), self._convert(value)  # "$3.5": three point five dollars
        return None if whole is None or said is None else said + words[len(whole) :]

    def _convert(self, value: Decimal, to: str = "cardinal") -> list[str] | None:
        """The words for a number that is not negative."""
        if value == int(value):
            return _words(self._call(f"to_{to}", int(value))) or None
        whole, fraction = str(value).split(".")
        point = getattr(self._converter, "pointword", None) or POINTS.get(self._name)
        if self._has_decimals() and (fraction[-1] != "0" or not isinstance(point, str)):
            return _words(self._call("to_cardinal", value)) or None
        before, after = self._convert(Decimal(whole)), self._say_digits(fraction)  # num2words takes 3.30 for 3.3
        return [*before, *_words(point), *after] if isinstance(point, str) and before and after else None

    def _has_decimals(self) -> bool:
        """Whether the converter tells fractions apart: some leave out the zero of 3.05, or all that follows the 3."""
        if self._decimals is None:
            said = [tuple(_words(self._call("to_cardinal", Decimal(v)))) for v in ("3", "3.5", "3.05", "3.25")]
            self._decimals = len(set(said)) == len(said) and all(said)
        return self._decimals

    def _negate(self, words: list[str], value: Decimal) -> list[str] | None:
        """Puts "minus" in front: the converter's word, or what its negative numbers have more than others."""
        if minus := _words(getattr(self._converter, "negword", None)):
            return minus + words
        seven, less = (_words(self._call("to_cardinal", number)) for number in (7, -7))
        return less[: -len(seven)] + words if len(less) > len(seven) and less[-len(seven) :] == seven else None

    def _call(self, method: str, number: Any, **options: Any) -> str | None:
        # Converters raise whatever they meet: NotImplementedError, OverflowError, KeyError, IndexError ...
        try:
            text = getattr(self._converter, method)(number, **options)
        except Exception:
            return None
        return text if isinstance(text, str) and not re.search(r"\d", text) else None


def _candidates(language: str) -> list[str]:
    """Names that num2words may have for a language: "pt_BR", "pt"."""
    if re.fullmatch("[a-z][a-z]", language):  # most callers: no need of langcodes
        return [language]
    langcodes = require("langcodes", f"finding the language {language!r}")
    found = []
    for macro in (False, True):
        try:
            tag = langcodes.Language.get(langcodes.standardize_tag(language, macro=macro))
        except ValueError:  # not a tag at all
            continue
        if tag.territory:
            found.append(f"{tag.language}_{tag.territory}")
        found.append(tag.language)
    return found


def _words(text: str | None) -> list[str]:
    """What stands between spaces, hyphens and the like."""
    kept = (c if unicodedata.category(c)[0] in "LM" or c in "'’" else " " for c in text or "")
    return "".join(kept).split()
