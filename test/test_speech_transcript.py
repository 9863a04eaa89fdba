"""The text: words with their places in it, segments, targets, files, and what is said about them."""

import random
import re
import time
import unicodedata

import pytest
from harness.speech import BLANK, LABELS, SEPARATOR, loud_model
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.models import STAR
from torch_ctc_align.speech.text import read_text_file, read_transcript

STAR_LABEL = len(LABELS)


def words_of(text, **options):
    return [word.text for word in read_transcript(text, loud_model(), romanize=False, **options).words]


def segments_of(text, split):
    """The text of each segment; each is what its words, in order, stand in."""
    transcript = read_transcript(text, loud_model(), split=split, romanize=False)
    found = []
    for index, segment in enumerate(transcript.segments):
        assert text[segment.begin : segment.stop] == segment.text
        assert [word.segment for word in transcript.words[segment.words.start : segment.words.stop]] == [
            index for _ in segment.words
        ]
        for k in segment.words:
            assert segment.begin <= transcript.words[k].begin < transcript.words[k].stop <= segment.stop
        found.append(segment.text)
    assert [k for segment in transcript.segments for k in segment.words] == list(range(len(transcript.words)))
    return found


# ---- words ----

WORDS = [
    ("It's 'it' -- \"So\"—he said…", ["It's", "it", "So", "he", "said"]),
    ("(hang-up), isn’t it?", ["hang-up", "isn’t", "it"]),
    ("ends.Not [there]", ["ends.Not", "there"]),
    ("one–two a--b c―d", ["one", "two", "a", "b", "c", "d"]),
    ("*stressed* _and_ so on", ["stressed", "and", "so", "on"]),
    ("a \u00a0b\tc\u2003d\u3000e\u200bf", ["a", "b", "c", "d", "e", "f"]),
    ("co\u00adoperate \ufeffa", ["co\u00adoperate", "a"]),
    ("cafe\u0301 e\u0301te\u0301.", ["cafe\u0301", "e\u0301te\u0301"]),
    ("a नमस्ते। हिन्दी", ["a", "नमस्ते", "हिन्दी"]),  # vowel signs are marks, not letters
    ("a \u202bשלום, עולם!\u202c", ["a", "שלום", "עולם"]),
    ("a مرحبا، كيف؟", ["a", "مرحبا", "كيف"]),
    ("我用Python3写a。", ["我", "用", "Python3", "写", "a"]),
    ("2024年 a", ["2024", "年", "a"]),
    ("a ラーメン、きょう がっこう あっ", ["a", "ラー", "メ", "ン", "きょ", "う", "が", "っこ", "う", "あっ"]),
    ("a 안녕하세요 여러분", ["a", "안녕하세요", "여러분"]),
    ("a😀b 😀 ☎️ c", ["a😀b", "c"]),
    ("a \ud800 b\x00c", ["a", "b", "c"]),
    ("-4 −5 $5 5€ (5 €) 50% 5 %, 20°.", ["-4", "−5", "$5", "5€", "5", "€", "50%", "5", "%", "20°"]),
    ("a € % - & § 3 .5 1.", ["a", "&", "§", "3", ".5", "1"]),
    ("5 ☃ € 2 + 2 = 4", ["5", "2", "+", "2", "=", "4"]),  # a sign alone is a word behind a number
    ("1\u00a0000\u202f000 a", ["1\u00a0000\u202f000", "a"]),
    ("10 000 a", ["10", "000", "a"]),
]


@pytest.mark.parametrize("text, words", WORDS)
def test_words_are_without_the_punctuation_around_them(text, words):
    assert words_of(text) == words


def test_thousands_are_one_word_where_the_language_sets_them_apart_with_spaces(missing):
    try:
        import num2words  # noqa: F401
    except ImportError as error:
        missing("speech", str(error))
    assert words_of("en 2019 100 personnes, 10 000 1 000 000", language="fr") == [
        *("en", "2019", "100", "personnes", "10 000", "1 000 000")
    ]


CHARACTERS = st.one_of(
    st.characters(),  # lone surrogates too
    st.sampled_from("abcXYZ019'’-–—.,!?%$€& \t\n\r\u00a0\u200b\u200d\ufeff\u00ad\u0301"),
    st.sampled_from("éßøАяωשלםكلन्ते中国ラーっㅎ한ไทย😀\u2028½²Ⅷ"),
)


@settings(max_examples=1000, deadline=None)
@given(text=st.text(CHARACTERS, max_size=60), split=st.sampled_from(["lines", "sentences", "words"]))
def test_words_and_what_lies_between_them_give_the_text_back(text, split):
    text = "a " + text  # one word that can be spelt
    transcript = read_transcript(text, loud_model(language=None), split=split, romanize=False)
    assert transcript.text == text
    rebuilt, end = "", 0
    for word in transcript.words:
        assert end <= word.begin < word.stop
        assert text[word.begin : word.stop] == word.text
        between = text[end : word.begin]
        # Every letter and digit is in a word. (Some letters of Unicode are apostrophes.)
        assert not any(unicodedata.category(c)[0] in "LN" for c in between if c not in "ʼʻ\u02b9")
        rebuilt += between + word.text
        end = word.stop
        segment = transcript.segments[word.segment]
        assert segment.begin <= word.begin
        assert word.stop <= segment.stop
        assert len(word.parts) == len(word.labels) >= 1
        assert all(word.labels)
        assert word.inferred == any(STAR in part for part in word.labels)
    assert rebuilt + text[end:] == text
    assert not any(unicodedata.category(c)[0] in "LN" for c in text[end:] if c not in "ʼʻ\u02b9")
    targets, counts = transcript.targets(star=STAR_LABEL, separator=None)
    assert len(targets) == sum(counts)
    assert BLANK not in targets
    assert min(counts) >= 1


@settings(max_examples=1000, deadline=None)
@given(text=st.text("abYZ'’-.,!?_/()\"@ \n\t", max_size=40))
def test_english_words_are_those_of_two_regular_expressions(text):
    text = "a " + text
    chunks = re.split(r"\s+|--+", text)
    expected = [word for word in (re.sub(r"^[\W_]+|[\W_]+$", "", chunk) for chunk in chunks) if word]
    assert words_of(text) == expected


LETTERS = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=1, max_size=9)


@settings(max_examples=1000, deadline=None)
@given(
    words=st.lists(st.builds("{}{}{}".format, LETTERS, st.sampled_from(["", "'"]), LETTERS), min_size=1, max_size=8),
    gaps=st.lists(st.sampled_from([" ", ", ", "\n", " -- ", "—", "! (", "’ ‘"]), min_size=8, max_size=8),
)
def test_labels_of_a_character_model_give_the_letters_back(words, gaps):
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=False))
    targets, counts = read_transcript(text, loud_model()).targets(star=STAR_LABEL, separator=SEPARATOR)
    assert "".join(LABELS[label] for label in targets) == "|".join(words).lower()
    assert counts == [len(word) for word in words]


# ---- segments ----


def test_lines_with_words_are_segments():
    text = "\ufeff  One two.\r\n\r\n---\r\nThree\tfour \rfive\u2028six\n"
    assert segments_of(text, "lines") == ["One two.", "Three\tfour", "five", "six"]


def test_every_word_may_be_a_segment():
    assert segments_of("One, two-three\nfour.", "words") == ["One", "two-three", "four"]


SENTENCES = [
    ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
    (
        '"Why?" He left. (So.) [Yes.] “No.” ‘Ah.’ End',
        ['"Why?"', "He left.", "(So.)", "[Yes.]", "“No.”", "‘Ah.’", "End"],
    ),
    ("A line\nNext. Last\r\nEnd", ["A line", "Next.", "Last", "End"]),
    ("It is 3.30. No, 3.5!", ["It is 3.30.", "No, 3.5!"]),
    ("See p. 12 of No. 5. No. So", ["See p. 12 of No. 5.", "No.", "So"]),
    ("Mr. and Mrs. Fox, Dr. Ox, St. Ives. Next", ["Mr. and Mrs. Fox, Dr. Ox, St. Ives.", "Next"]),
    ("J. R. Tolkien wrote. So did I. Yes", ["J. R. Tolkien wrote.", "So did I.", "Yes"]),
    ("'No!' he said. e.g. this", ["'No!' he said. e.g. this"]),  # a small letter continues a sentence
    ("1. One. 2. Two", ["1. One.", "2. Two"]),
    ("a.b.c Wait ... What?! Oh...", ["a.b.c Wait ...", "What?!", "Oh..."]),
    ("a 你好。再见！“好。”吗？", ["a 你好。", "再见！", "“好。”", "吗？"]),
    ("a كيف؟ نعم. لا", ["a كيف؟", "نعم.", "لا"]),
    ("a है। नहीं॥ b", ["a है।", "नहीं॥", "b"]),
    ("?! One. --- . Two", ["One.", "Two"]),
]


@pytest.mark.parametrize("text, sentences", SENTENCES)
def test_sentences_end_with_their_marks_and_with_lines(text, sentences):
    assert segments_of(text, "sentences") == sentences


def test_a_text_is_a_string():
    with pytest.raises(SpeechError, match="the text must be a string, found list"):
        read_transcript(["a"], loud_model())


def test_another_split_is_an_error():
    with pytest.raises(SpeechError, match="split must be 'lines', 'sentences' or 'words', found 'pages'"):
        read_transcript("a", loud_model(), split="pages")


# ---- targets ----


def test_separators_stand_between_words_and_parts_and_not_at_the_ends():
    transcript = read_transcript("Hang-up, ☃ now", loud_model())
    assert transcript.targets(star=STAR_LABEL, separator=SEPARATOR) == (
        [*(9, 2, 15, 8), 1, *(22, 17), 1, *(15, 16, 24)],
        [6, 3],
    )
    assert transcript.targets(star=STAR_LABEL, separator=None) == ([9, 2, 15, 8, 22, 17, 15, 16, 24], [6, 3])


def test_targets_of_some_words():
    transcript = read_transcript("a § b c", loud_model())
    assert transcript.targets(star=STAR_LABEL, separator=SEPARATOR) == ([2, 1, 29, 1, 3, 1, 4], [1, 1, 1, 1])
    assert transcript.targets(star=STAR_LABEL, separator=SEPARATOR, words=[1, 3]) == ([29, 1, 4], [1, 1])
    assert transcript.targets(star=STAR_LABEL, separator=SEPARATOR, words=[]) == ([], [])


# ---- errors and notes ----


@pytest.mark.parametrize("text", ["", " \n\t", "-- … ☃ \n", "\ufeff", "\ud800", "€ %"])
def test_a_text_without_words_is_an_error(text):
    with pytest.raises(SpeechError, match="the text has no words"):
        read_transcript(text, loud_model())


def test_a_text_of_which_no_word_can_be_spelt_is_an_error():
    with pytest.raises(SpeechError) as error:
        read_transcript("Привет, мир", loud_model(), romanize=False)
    assert str(error.value) == (
        "no word of the text ('Привет', 'мир') can be spelt with the labels of loud (abcdefghijklmnopqrstuvwxyz'): "
        "use a model of the text's language or write the text with these labels"
    )


def test_a_model_that_spells_for_itself_cannot_pronounce_the_text():
    with pytest.raises(SpeechError) as error:
        read_transcript("漢字", loud_model(spell=lambda part: None, name="hama (English)"), romanize=False)
    assert str(error.value) == (
        "hama (English) cannot pronounce any word of the text ('漢', '字'): "
        "use a model of the language and script of the text"
    )


def test_words_that_cannot_be_spelt_are_noted():
    assert read_transcript("plain words", loud_model()).notes == []
    assert read_transcript("a §", loud_model()).notes == [
        "1 word cannot be spelt with the model's labels and gets the time that is left: '§'"
    ]
    assert read_transcript("a § Ж § \ud800Ж", loud_model(), romanize=False).notes == [
        "4 words cannot be spelt with the model's labels and get the time that is left: '§', 'Ж'"
    ]


# ---- speed ----


def long_text():
    """An hour of speech: 10,000 words, 3,000 of them distinct and the frequent ones far more frequent."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(3000)]
    lines = (" ".join(draw.choices(words, [1 / (k + 1) for k in range(3000)], k=10)) for _ in range(1000))
    return ".\n".join(lines)


@pytest.mark.alone
@pytest.mark.parametrize("split", ["lines", "sentences", "words"])
def test_an_hour_of_speech_takes_less_than_a_quarter_of_a_second(split):
    # Measured: 0.05 s, on a core that others use too; five times as much is left for slower ones. The best of five, as
    # the first may have to wait for Python's collector to look at all of torch.
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert len(read_transcript(long_text_once, loud_model(), split=split).words) == 10_000
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.25


long_text_once = long_text()

ENDLESS = [
    "." * 50_000, "no. " * 10_000, ". " * 20_000, "1," * 5_000, "-" * 50_000, "a1" * 3_000, "('" * 20_000, "$" * 50_000,
    "1" * 5_000, "Mr. " * 10_000, "a\u0301" * 20_000, "a." + ")" * 50_000 + "b", "1 000 " * 5_000,
]  # fmt: skip


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: f"{text[:4]}...")
def test_strange_long_texts_take_linear_time(text):
    # Quadratic time took 100 s for some of these; linear time takes 1 s at most, on a machine that is busy.
    start = time.process_time()
    read_transcript("a " + text, loud_model(), split="sentences")
    assert time.process_time() - start < 10


# ---- files ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_is_utf_8_or_utf_16(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes("Größe\r\nशब्द 😀".encode(encoding))
    assert read_text_file(path) == "Größe\r\nशब्द 😀"
    assert read_text_file(str(path)) == "Größe\r\nशब्द 😀"


def test_another_encoding_is_named_with_the_byte_and_the_way_out(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Größe".encode("iso-8859-1"))
    with pytest.raises(SpeechError) as error:
        read_text_file(path)
    assert str(error.value) == (
        f"{path} is not UTF-8 at byte 2; convert it, with the encoding that it has in place of ISO-8859-1: "
        f"iconv -f ISO-8859-1 -t UTF-8 {path} > new.txt"
    )
    path.write_bytes(b"\xff\xfeabc")
    with pytest.raises(SpeechError, match="is not UTF-16, as its first two bytes say, at byte 4"):
        read_text_file(path)


def test_files_that_hold_no_text_are_errors(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(50_000_001)
    for name, message in [
        ("empty.txt", r"empty\.txt is empty; expected what is said in the recording"),
        ("mark.txt", r"mark\.txt is empty"),
        ("large.txt", r"large\.txt has 50,000,001 bytes; a text may have at most 50,000,000"),
        ("missing.txt", r"there is no text file .*missing\.txt"),
        ("empty.txt/below", r"cannot read .*below: Not a directory"),
        (".", "is a folder; expected a text file"),
        ("a\0b", "cannot read"),
        ("x" * 5000, "cannot read .*: File name too long"),
    ]:
        with pytest.raises(SpeechError, match=message):
            read_text_file(tmp_path / name)
