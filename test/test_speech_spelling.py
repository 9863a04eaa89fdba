"""Words as labels: characters, numbers, other scripts, a model's own spelling, and libraries that are missing."""

import sys

import pytest
from harness.speech import hear, loud_model
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ctc_align.speech import AcousticModel, SpeechError
from torch_ctc_align.speech.models import STAR
from torch_ctc_align.speech.text import read_transcript, spelling

ASCII = "abcdefghijklmnopqrstuvwxyz'"


def model_of(letters, *more, **facts):
    """A model whose labels are a blank, a separator, some special ones, and the letters."""
    labels = ["<pad>", "|", "<unk>", "[UNK]", "<s>", *letters, *more]
    facts = {"blank": 0, "separator": 1, "name": "small"} | facts
    return AcousticModel(hear, labels, hop=320, sample_rate=16_000, **facts)


def spell(text, model=None, **options):
    """Every word as the labels say it; parts are apart, * is a star."""
    model = model or loud_model()
    transcript = read_transcript(text, model, **options)
    for word in transcript.words:
        assert word.inferred == any(STAR in part for part in word.labels)
    names = {STAR: "*"} | dict(enumerate(model.labels))
    return [" ".join("".join(names[label] for label in part) for part in word.labels) for word in transcript.words]


@pytest.fixture
def text_libraries(missing):
    """For tests that need what the extra [text] brings."""
    try:
        import langcodes  # noqa: F401
        import num2words  # noqa: F401
        import uroman  # noqa: F401
    except ImportError as error:
        missing("speech", str(error))


# ---- characters ----


def test_the_vocabulary_decides_the_case():
    assert spell("The cAt", model_of(ASCII)) == ["the", "cat"]
    assert spell("The cAt", model_of(ASCII.upper())) == ["THE", "CAT"]
    assert spell("The cAt", model_of("thecatTHECAT")) == ["The", "cAt"]
    assert spell("ΟΔΟΣ οδος", model_of("οδσς")) == ["οδοσ", "οδος"]


def test_accents_are_left_out_where_the_model_has_none():
    assert spell("Café Ångström naïve l’Été") == ["cafe", "angstrom", "naive", "l'ete"]
    assert spell("Café cafe\u0301", model_of("acfeé")) == ["café", "café"]
    assert spell("café cafe\u0301", model_of(["a", "c", "f", "e", "\u0301"])) == ["cafe\u0301", "cafe\u0301"]
    assert spell("Ёж йод", model_of("ежиод")) == ["еж", "иод"]


def test_letters_that_are_not_a_letter_with_a_mark_have_a_nearest_one():
    assert spell("Straße Øl Łódź Æon œuvre", romanize=False) == ["strasse", "ol", "lodz", "aeon", "oeuvre"]


def test_apostrophes_are_one_letter_and_none_where_the_model_has_none():
    assert spell("isn't isn’t isnʼt isn`t") == ["isn't"] * 4
    assert spell("isn’t", model_of(ASCII[:-1])) == ["isnt"]
    assert spell("isn't", model_of("isnt’")) == ["isn’t"]
    assert spell("dogs' 'tis") == ["dogs", "tis"]


def test_invisible_and_compatible_characters_are_spelt_plainly():
    assert spell("co\u00adope\u200drate \ufeffﬁne ｆｕｌｌ ② a\u0336", language="en") == [
        *("cooperate", "fine", "full", "two", "a")
    ]


def test_parts_stand_at_hyphens_and_what_else_is_between_letters():
    assert spell("hang-up and/or U.S.A. e_mail a‐b") == ["hang up", "and or", "u s a", "e mail", "a b"]
    assert spell("אב״ג ד׳ה col·legi", model_of("אבגדהcolegi")) == ["אבג", "דה", "collegi"]


def test_special_labels_and_punctuation_are_no_letters():
    model = model_of("ab-.", "|", "▁", " ")
    assert spell("ab a|b unk <s> a-b s", model) == ["ab", "a b", "*", "*", "a b", "*"]


def test_what_cannot_be_spelt_is_a_star_and_runs_of_it_are_one():
    assert spell("naЖive ЖЖ ЖaЖЖb a-Ж-Ж-b", romanize=False) == ["na*ive", "*", "*a*b", "a * b"]


def test_a_vocabulary_of_another_script_is_used_as_it_is(text_libraries):
    cyrillic = model_of("абвгдежзийклмнопрстуфхцчшщъыьэюя", language="ru")
    assert spell("Привет, Мир 2", cyrillic) == ["привет", "мир", "два"]
    assert spell("мир peace", cyrillic) == ["мир", "*"]
    both = model_of("абвгдежзийклмнопрстуфхцчшщъыьэюя" + ASCII)
    assert spell("мир peace їж Αθήνα", both) == ["мир", "peace", "*ж", "athena"]  # Cyrillic is not romanised
    assert spell("北京 好", model_of("北京你")) == ["北", "京", "*"]
    assert spell("ラーメン らーめん", model_of("ラーメン")) == ["ラー", "メ", "ン"] * 2
    assert spell("नमस्ते", model_of("नमसतेा्")) == ["नमस्ते"]
    assert spell("한국", model_of("한국")) == ["한국"]
    assert spell("שָׁלוֹם", model_of("שלום")) == ["שלום"]  # vowel points are left out
    assert spell("مَرحــبا", model_of("مرحبا")) == ["مرحبا"]
    assert spell("کی", model_of("كي")) == ["كي"]  # the Persian letters for the Arabic ones


def test_labels_may_be_letters_that_unicode_takes_apart():
    assert spell("น้ำ", model_of("น\u0e49\u0e33")) == ["น\u0e49\u0e33"]  # NFKC makes two of the last one
    assert spell("ड\u093cक", model_of(["\u0921", "\u095c", "\u0915"])) == ["\u095c\u0915"]
    assert spell("ड\u093cक", model_of(["\u0921", "\u0921\u093c", "\u0915"])) == ["\u0921\u093c\u0915"]
    assert spell("한국", model_of("ㅎㅏㄴㄱㅜ")) == ["ㅎㅏㄴㄱㅜㄱ"]
    assert spell("한국", model_of("\u1112\u1161\u11ab\u1100\u116e\u11a8")) == ["\u1112\u1161\u11ab\u1100\u116e\u11a8"]
    assert spell("é", model_of(["e", "e\u0301"])) == ["e\u0301"]


# ---- numbers ----

ENGLISH = {
    "1811": "one thousand eight hundred and eleven",
    "1,000": "one thousand",
    "1,000.5": "one thousand point five",
    "1\u00a0000": "one thousand",
    "3.05": "three point zero five",
    "3.30": "three point three zero",
    ".5": "zero point five",
    "0": "zero",
    "007": "zero zero seven",
    "18th": "eighteenth",
    "21ST": "twenty first",
    "1990s": "nineteen nineties",
    "80's": "eighties",
    "2000s": "two thousands",
    "-4": "minus four",
    "\u22123.5": "minus three point five",
    "$5": "five dollars",
    "$1": "one dollar",
    "-$3": "minus three dollars",
    "$5.20": "five dollars twenty cents",
    "$3.5": "three point five dollars",
    "€5": "five euros",
    "£2.50": "two pounds fifty pence",
    "50%": "fifty percent",
    "3.5%": "three point five percent",
    "20°": "twenty degrees",
    "AT&T": "at and t",
    "mp3": "mp three",
    "B2B": "b two b",
    "3.5kg": "three point five kg",
    "5-10": "five ten",
    "12:30": "twelve thirty",
    "24/7": "twenty four seven",
    "192.168.1.1": "one hundred and ninety two one hundred and sixty eight one one",
    "18th-century": "eighteenth century",
    "555-1234": "five five five one two three four",
    "+49": "four nine",
    "030-123-4567": "zero three zero one two three four five six seven",
    "1234567890": "one two three four five six seven eight nine zero",
    "123456789": "one hundred and twenty three million four hundred and fifty six thousand seven hundred and eighty "
    "nine",
    "٣": "three",
}


@pytest.mark.parametrize("written, said", ENGLISH.items())
def test_english_numbers_are_spelt_as_said(text_libraries, written, said):
    assert spell(written, language="en") == [said]


OTHERS = [
    (
        "deu",
        "1.000,5 5,20€ 3.30 -7",
        ["eintausend komma funf", "funf euro zwanzig cent", "drei dreissig", "minus sieben"],
    ),
    ("fr", "10 000 1er 2e 3,5", ["dix mille", "premier", "deuxieme", "trois virgule cinq"]),
    ("es", "1.234 1º 50%", ["mil doscientos treinta y cuatro", "primero", "cincuenta por ciento"]),
    ("it", "3,05 5,5", ["tre virgola zero cinque", "cinque virgola cinque"]),  # num2words says "tre" for both
    ("pt-BR", "16", ["dezesseis"]),
    ("pt", "16", ["dezasseis"]),
    ("por", "16", ["dezasseis"]),
    ("nob", "12", ["tolv"]),
    ("vi", "7", ["bay"]),
    ("tr", "7 -7 5%", ["yedi", "eksi yedi", "yuzde bes"]),
    ("de-CH", "1'000", ["eintausend"]),
    ("pl", "-7", ["minus siedem"]),
]


@pytest.mark.parametrize("language, written, said", OTHERS)
def test_numbers_follow_the_language(text_libraries, language, written, said):
    assert spell(written, language=language) == said


def test_signs_after_a_number_are_words_of_their_own(text_libraries):
    assert spell("5 €, 1 € und 5 % & so", language="de") == [
        "funf",
        "euro",
        "eins",
        "euro",
        "und",
        "funf",
        "prozent",
        "und",
        "so",
    ]
    assert spell("1 % 3 % 5 %", model_of("адинтрпяьоцевь"), language="ru") == [
        *("один", "процент", "три", "процента", "пять", "процентов")
    ]


def test_the_sign_of_money_that_has_no_name_is_a_star_after_the_number(text_libraries):
    assert spell("¥300", language="en") == ["three hundred *"]


def test_a_vocabulary_with_digits_keeps_them(text_libraries):
    model = model_of(ASCII + "0123456789", language="en")
    assert spell("1,811 mp3 18th 3.5 ٣ 50%", model) == ["1811", "mp3", "18th", "3 5", "3", "50 percent"]


def test_years_are_cardinals_and_a_note_says_so(text_libraries):
    assert read_transcript("in 1811", loud_model()).notes == [
        "years are spelt as other numbers are, 1811 as 'one thousand eight hundred and eleven'; write them as they are "
        "spoken"
    ]
    assert read_transcript("en 1811", loud_model(), language="fr").notes == []  # years are said as numbers


@pytest.mark.parametrize("language", ["Klingon", "tlh", "zxx", "fil", "not a tag", "x", "tete"])
def test_numbers_of_a_language_that_num2words_lacks_are_stars(text_libraries, language):
    assert spell("a 12 b", language=language) == ["a", "*", "b"]
    assert read_transcript("a 12 18th", loud_model(), language=language).notes == [
        f"numbers are not spelt: num2words has no language {language!r}",
        "2 words cannot be spelt with the model's labels and get the time that is left: '12', '18th'",
    ]


def test_numbers_of_an_unknown_language_are_stars():
    assert read_transcript("a 12", loud_model(language=None)).notes == [
        "numbers are not spelt: the language is not known; give it, as in language='en'",
        "1 word cannot be spelt with the model's labels and gets the time that is left: '12'",
    ]


@pytest.mark.parametrize(
    "number", ["$" + "9" * 60, "1." + "9" * 60, "-" + "9" * 5000, "1,000" * 90, "9" * 30 + "%", "9th" * 9]
)
@pytest.mark.parametrize("language", ["en", "de", "ru", "ja", "am", "vi"])
def test_no_number_is_too_large(text_libraries, number, language):
    assert len(read_transcript(f"a {number}", loud_model(), language=language, romanize=False).words) == 2


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("0123456789.,-+$€£¥%°'stndrhe oaeº½²:/&=\u2212\u00a0", max_size=14),
    language=st.sampled_from(
        ["am", "ar", "bn", "ce", "cs", "cy", "en", "fa", "fr", "he", "it", "ja", "kk", "ro", "ru", "tr"]
    ),
)
def test_nothing_that_looks_like_a_number_is_an_error(text, language):
    read_transcript(f"a {text}", loud_model(), language=language, romanize=False, split="sentences")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(categories=["L", "N", "M", "S", "Cs", "Cf"]), max_size=14), romanize=st.booleans())
def test_no_character_is_an_error(text, romanize):
    read_transcript(f"a {text}", loud_model(language=None), romanize=romanize or None)


def test_a_missing_num2words_is_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    transcript = read_transcript("a 12", loud_model())
    assert transcript.words[1].labels == ((STAR,),)
    assert transcript.notes[0] == (
        "numbers are not spelt: saying numbers needs the package num2words, which is not installed; run: "
        "pip install 'torch_ctc_align[text]'"
    )


def test_a_missing_num2words_is_a_note_where_the_model_spells(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    model = model_of(["AH", "B"], spell=lambda part: [5] if part.isalpha() else None, language="en")
    assert read_transcript("a 12", model).notes[0].startswith("numbers are not spelt: saying numbers needs the package")


def test_a_missing_langcodes_matters_for_long_names_alone(monkeypatch, text_libraries):
    monkeypatch.setitem(sys.modules, "langcodes", None)
    assert spell("12", language="en") == ["twelve"]
    assert read_transcript("a 12", loud_model(), language="eng").notes[0] == (
        "numbers are not spelt: finding the language 'eng' needs the package langcodes, which is not installed; run: "
        "pip install 'torch_ctc_align[text]'"
    )


# ---- other scripts ----

# Written by hand from the letters of each script, in the Latin letters that uroman's page names: consonants and long
# vowels for Arabic and Hebrew, sounds by syllable for Hangul, pinyin without tones for Han.
ROMANS = [
    ("Привет Щука", "privet shchuka"),
    ("Αθήνα Ελλάδα", "athena ellada"),
    ("سلام مرحبا", "slam mrhba"),
    ("שלום", "shlvm"),
    ("नमस्ते भारत", "namaste bhaarat"),
    ("สวัสดี", "swatdii"),
    ("北京 三", "bei jing san"),
    ("きょう がっこう ラーメン", "kyo u ga kko u raa me n"),
    ("서울 안녕하세요", "seoul annyeonghaseyo"),
    ("人々", "renren"),
]


@pytest.mark.parametrize("text, romans", ROMANS)
def test_other_scripts_are_romanised_for_latin_labels(text_libraries, text, romans):
    assert spell(text) == romans.split()
    assert spell(text, model_of(ASCII.upper())) == romans.upper().split()
    assert set(spell(f"a {text}", romanize=False)[1:]) == {"*"}


def test_romanize_true_asks_uroman_before_the_letters(text_libraries):
    assert spell("Müller", model_of(ASCII)) == ["muller"]
    assert spell("Müller", model_of(ASCII), romanize=True) == ["mueller"]
    assert spell("Müller", model_of(ASCII + "ü")) == ["müller"]


def test_a_word_is_romanised_once(text_libraries, monkeypatch):
    calls = []

    class Counting:
        def romanize_string(self, word):
            calls.append(word)
            return "x"

    monkeypatch.setattr(spelling, "_load_uroman", Counting)
    spelling._romanize.cache_clear()
    assert spell("Жук Жук жук") == ["x", "x", "x"]
    assert spell("Жук") == ["x"]
    spelling._romanize.cache_clear()
    assert calls == ["Жук", "жук"]


def test_a_missing_uroman_is_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "uroman", None)
    spelling._load_uroman.cache_clear()
    spelling._romanize.cache_clear()
    transcript = read_transcript("a Жук", loud_model())
    assert transcript.words[1].labels == ((STAR,),)
    assert transcript.notes[0] == (
        "romanising words needs the package uroman, which is not installed; run: pip install 'torch_ctc_align[text]'"
    )
    with pytest.raises(SpeechError, match="romanising words needs the package uroman"):
        read_transcript("Жук", loud_model())


# ---- a model's own spelling, and labels without one ----


def test_spell_of_the_model_gets_parts_in_lower_case(text_libraries):
    asked = []

    def phonemes(part):
        asked.append(part)
        return None if part == "ok" else [5, 6]

    model = model_of(["AH", "B", "TH"], spell=phonemes, language="en")
    assert spell("Hang-up ISN’T ok 2nd Été hang", model) == ["AHB AHB", "AHB", "*", "AHB", "AHB", "AHB"]
    assert asked == ["hang", "up", "isn't", "ok", "second", "été"]


def test_spell_of_the_model_gets_digits_where_they_cannot_be_said():
    model = model_of(["AH", "B"], spell=lambda part: [5] if part == "12" else [6])
    assert spell("a 12", model) == ["B", "AH"]


@pytest.mark.parametrize("label", [0, 8, -1])
def test_spell_must_give_labels(label):
    with pytest.raises(SpeechError) as error:
        spell("Hm", model_of("abc", spell=lambda part: [5, label]))
    assert str(error.value) == (
        f"spell('hm') of small gave the label {label}; expected labels from 0 to 7 without the blank, 0"
    )


@pytest.mark.parametrize("pieces", [["▁the", "▁a", "t"], ["the", "##ing", *ASCII], ["Ġthe", *ASCII], ["AA", "AE", "B"]])
def test_pieces_of_words_need_spell(pieces):
    with pytest.raises(SpeechError) as error:
        spell("the", model_of(pieces))
    assert str(error.value).startswith("the labels of small are pieces of words or phonemes (")
    assert str(error.value).endswith("pass spell=, a function from a word to labels")


def test_the_old_example_holds_for_english(missing):
    try:
        import hama
    except ImportError as error:
        missing("speech", str(error))
    phonemizer = hama.G2PModel(max_output_len=128)
    tokens = hama.ASRModel().decoder_tokens

    def by_hama(part):
        said = [a.phoneme for a in phonemizer.predict(part).alignments]
        return [tokens.index(phoneme) for phoneme in said if phoneme not in (" ", "<unk>")]

    boundary = tokens.index("<wb>")
    model = AcousticModel(hear, tokens, blank=0, hop=320, sample_rate=16_000, separator=boundary, spell=by_hama)
    transcript = read_transcript("'It's a hang-up,' she said--twice.", model)
    words = [["it's"], ["a"], ["hang", "up"], ["she"], ["said"], ["twice"]]
    assert [list(word.parts) for word in transcript.words] == [["It's"], *words[1:]]
    expected = []
    for part in (part for word in words for part in word):
        expected += ([boundary] if expected else []) + by_hama(part)
    assert transcript.targets(star=len(tokens), separator=boundary)[0] == expected
