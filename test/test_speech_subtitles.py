"""Subtitles: what a cue shows and for how long, SubRip, WebVTT and ASS; and any alignment in all formats.

The examples that hypothesis draws are the same in every run; another CTC_ALIGN_SEED draws others.
"""

import csv
import html
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from conftest import SEED
from harness.alignments import aligned, small

from torch_ctc_align.speech import Segment, SpeechAlignment, SpeechError, Word
from torch_ctc_align.speech.formats import load, round_alignment, save
from torch_ctc_align.speech.formats.subtitles import ass_text, columns, make_cues, srt_text, vtt_text


@pytest.fixture
def ffmpeg(missing, tmp_path):
    """ffmpeg(text, "srt", "webvtt"): a subtitle file as FFmpeg reads it and writes it in another format."""

    def convert(text, suffix, format):
        if shutil.which("ffmpeg") is None:
            missing("ffmpeg", "there is no ffmpeg here")
        path = tmp_path / f"talk.{suffix}"
        path.write_text(text, encoding="utf-8")
        command = ["ffmpeg", "-v", "error", "-i", os.fspath(path), "-f", format, "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return convert


# -------------------------------------------------------------------------------------------------- readers, by hand


def milliseconds(time):
    """Of a time with hours, minutes and seconds, or minutes and seconds, or seconds, with any decimals."""
    *before, seconds = time.replace(",", ".").split(":")
    total = Fraction(seconds)
    for place, number in enumerate(reversed(before), 1):
        total += int(number) * 60**place
    assert total * 1000 == int(total * 1000), time
    return int(total * 1000)


def read_blocks(text):
    """[(start, end, lines)] of SubRip or WebVTT."""
    cues = []
    for block in re.split(r"\n{2,}", text.removeprefix("WEBVTT\n\n").rstrip("\n")):
        lines = block.split("\n")
        if lines[0].isdecimal() and len(lines) > 1 and " --> " in lines[1]:
            assert lines.pop(0) == str(len(cues) + 1)
        start, end = lines[0].split(" --> ")
        cues.append((milliseconds(start), milliseconds(end), lines[1:]))
    return cues


def read_ass(text):
    """[(start, end, [(start of a word, its end, its text)])] of ASS with karaoke, in milliseconds."""
    cues = []
    for line in re.findall(r"^Dialogue: (.*)$", text, re.MULTILINE):
        _, start, end, _, _, _, _, _, _, shown = line.split(",", 9)
        now, words = milliseconds(start), []
        pieces = re.split(r"{\\k(\d+)}", shown)
        assert pieces[0] == ""
        for duration, word in zip(pieces[1::2], pieces[2::2], strict=True):
            after = now + 10 * int(duration)
            word = word.replace(r"\N", " ").strip(" ")
            if word:
                words.append((now, after, word.replace("\u2060", "").replace(r"\{", "{").replace(r"\}", "}")))
            now = after
        assert now == milliseconds(end), "the centiseconds do not add up"
        cues.append((milliseconds(start), milliseconds(end), words))
    return cues


def lines_of(cue):
    return ["".join(" " * (piece.space and index > 0) + piece.text for index, piece in enumerate(line))
            for line in cue.lines]  # fmt: skip


def spoken(text, *, rate=14, pauses=None, seconds_after=5, **facts):
    """A text of one line that is read at `rate` letters a second, with pauses behind some characters."""
    now, words = 0.0, []
    for match in re.finditer(r"[\w'’]+", text):
        end = now + len(match[0]) / rate
        words.append((match[0], round(now, 3), round(end, 3), -0.1))
        now = end + 0.05 + (pauses or {}).get(text[match.end() : match.end() + 1], 0)
    return aligned([words], text, seconds=now + seconds_after, **facts)


# ------------------------------------------------------------------------------------------------------------ by hand

SRT = """\
1
00:00:00,500 --> 00:00:02,000
He said: "Wait!"

2
00:00:02,500 --> 00:00:03,300
{No} <\u20604>.
"""
VTT = """\
WEBVTT

00:00:00.500 --> 00:00:02.000
He said: "Wait!"

00:00:02.500 --> 00:00:03.300
{No} &lt;4&gt;.
"""
VTT_WORDS = """\
WEBVTT

00:00:00.500 --> 00:00:02.000
He <00:00:00.700>said: <00:00:01.500>"Wait!"

00:00:02.500 --> 00:00:03.300
{No} <00:00:03.000>&lt;4&gt;.
"""
EVENTS = r"""
Dialogue: 0,0:00:00.50,0:00:02.00,Default,,0,0,0,,{\k20}He {\k34}said: {\k46}{\k50}"Wait!"
Dialogue: 0,0:00:02.50,0:00:03.30,Default,,0,0,0,,{\k20}\{No\} {\k30}{\k20}<4>.{\k10}
"""
EVENTS_PLAIN = r"""
Dialogue: 0,0:00:00.50,0:00:02.00,Default,,0,0,0,,He said: "Wait!"
Dialogue: 0,0:00:02.50,0:00:03.30,Default,,0,0,0,,\{No\} <4>.
"""


def test_subtitles_of_a_small_alignment(library):
    """Unspoken words are not shown, inferred ones are; the second cue gets the 0.1 s that it lacks to 0.8 s."""
    library("pysubs2")
    assert srt_text(small()) == SRT
    assert vtt_text(small()) == VTT
    assert vtt_text(small(), words=True) == VTT_WORDS
    assert ass_text(small()).endswith("Effect, Text" + EVENTS)
    assert ass_text(small(), words=False).endswith("Effect, Text" + EVENTS_PLAIN)


def test_nothing_to_show_is_an_empty_file(library):
    library("pysubs2")
    alignment = aligned([[("a", None, None, None)]], "a", seconds=1.0)
    assert srt_text(alignment) == ""
    assert vtt_text(alignment) == "WEBVTT\n"
    assert "Dialogue" not in ass_text(alignment)


def test_hours_have_as_many_digits_as_they_need(library):
    library("pysubs2")
    times = [(3600 * hours + 61.5, 3600 * hours + 62.5) for hours in (9, 123)]
    short, long = (aligned([[("a", *time, -1.0)]], "a", seconds=time[1]) for time in times)
    assert srt_text(short) == "1\n09:01:01,500 --> 09:01:02,500\na\n"
    assert srt_text(long) == "1\n123:01:01,500 --> 123:01:02,500\na\n"
    assert "Dialogue: 0,9:01:01.50,9:01:02.50,Default" in ass_text(short)
    with pytest.raises(SpeechError, match=r"the format ass has times below 10 hours, found a word at 123:01:02\.500"):
        ass_text(long)


# ------------------------------------------------------------------------------------------------ what a word is with


@pytest.mark.parametrize(
    "text, words, pieces",
    [
        ("one, two.", ["one", "two"], ["one,", "two."]),
        ('He said, "no" -- and (so) on...', ["He", "said", "no", "and", "so", "on"],
         ["He", "said,", '"no" --', "and", "(so)", "on..."]),
        ("for—the", ["for", "the"], ["for—", "the"]),
        ("¿Qué? ¡No!", ["Qué", "No"], ["¿Qué?", "¡No!"]),
        ("(a)[b] “c”", ["a", "b", "c"], ["(a)", "[b]", "“c”"]),
        ("他说。「好」", ["他", "说", "好"], ["他", "说。", "「好」"]),
        ("oui«non»", ["oui", "non"], ["oui", "«non»"]),
        ("« oui » -  non", ["oui", "non"], ["« oui » -", "non"]),
        ("שלום, עולם!", ["שלום", "עולם"], ["שלום,", "עולם!"]),
    ],
)  # fmt: skip
def test_punctuation_is_shown_with_its_word(text, words, pieces):
    times = [(word, float(place), place + 1.0, -1.0) for place, word in enumerate(words)]
    (cue,) = make_cues(aligned([times], text, seconds=10.0))
    assert [piece.text for line in cue.lines for piece in line] == pieces
    assert lines_of(cue) == [" ".join(text.split())]


def test_an_unspoken_word_goes_with_its_punctuation():
    words = [("a", 0.0, 1.0, -1.0), ("b", None, None, None), ("c", 2.0, 3.0, -1.0)]
    (cue,) = make_cues(aligned([words], "a, (b), c.", seconds=10.0))
    assert lines_of(cue) == ["a, c."]


# --------------------------------------------------------------------------------------------------- cuts and lines

DASHWOOD = (
    "The family of Dashwood had long been settled in Sussex. Their estate was large, and their residence was at "
    "Norland Park, in the centre of their property, where, for many generations, they had lived in so respectable a "
    "manner as to engage the general good opinion of their surrounding acquaintance. His nephew Mr. Henry Dashwood was "
    "the legal inheritor of the Norland estate, and the person to whom he intended to bequeath it."
)


def test_a_long_segment_is_cut_at_good_places():
    """Sentences end a cue, or else clauses do; "Mr." ends neither."""
    pauses = {".": 0.5, ",": 0.2}
    assert [lines_of(cue) for cue in make_cues(spoken(DASHWOOD, pauses=pauses))] == [
        ["The family of Dashwood had", "long been settled in Sussex."],
        ["Their estate was large, and their", "residence was at Norland Park,"],
        ["in the centre of their property,", "where, for many generations,"],
        ["they had lived in so respectable", "a manner as to engage the"],
        ["general good opinion of their", "surrounding acquaintance."],
        ["His nephew Mr. Henry Dashwood was the", "legal inheritor of the Norland estate,"],
        ["and the person to whom he", "intended to bequeath it."],
    ]


def test_a_pause_is_a_good_place():
    words = " ".join(["word"] * 20)  # 99 columns
    early, late = (
        replace(
            alignment,
            words=[
                replace(word, start=word.start + 0.8 * (place >= at), end=word.end + 0.8 * (place >= at))
                for place, word in enumerate(alignment.words)
            ],
        )
        for at, alignment in ((7, spoken(words)), (12, spoken(words)))
    )
    assert [len(" ".join(lines_of(cue)).split()) for cue in make_cues(early)] == [7, 13]
    assert [len(" ".join(lines_of(cue)).split()) for cue in make_cues(late)] == [12, 8]


def test_a_segment_that_fits_is_one_cue():
    text = "Yes. No, I do. " * 5 + "Yes. No."  # 83 columns; every cut would be at a sentence's end
    alignment = spoken(text, rate=100)
    (cue,) = make_cues(alignment)
    assert (cue.start, cue.end) == (0, round(1000 * alignment.words[-1].end))
    assert len(cue.lines) == 2


@pytest.mark.parametrize("last, cues", [(6.9, 1), (7.0, 1), (7.001, 2)])
def test_a_cue_lasts_seven_seconds_at_most(last, cues):
    words = [("a", 0.0, 1.0, -1.0), ("b", 3.0, 4.0, -1.0), ("c", 6.0, last, -1.0)]
    assert len(make_cues(aligned([words], "a b c", seconds=10.0))) == cues


@pytest.mark.parametrize("letter, most", [("a", 84), ("日", 42), ("é", 84), ("e\u0301", 84), ("ｱ", 84), ("Ａ", 42)])
def test_wide_letters_count_for_two_columns(letter, most):
    """Two lines of 42 columns. (An accent of its own takes none.)"""
    for count, cues in ((most, 1), (most + 1, 2)):
        words = [(letter, 0.01 * place, 0.01 * place + 0.01, -1.0) for place in range(count)]
        found = make_cues(aligned([words], letter * count, seconds=10.0))
        assert len(found) == cues
        assert max(columns(line) for cue in found for line in lines_of(cue)) <= 42


@pytest.mark.parametrize("count, lines", [(42, 1), (43, 2)])
def test_a_line_has_42_columns(count, lines):
    text = "a " * (count // 2) + "a" * (count % 2)
    text = text if count % 2 else text[:-1] + "b"
    words = [(word, 0.01 * place, 0.01 * place + 0.01, -1.0) for place, word in enumerate(text.split())]
    (cue,) = make_cues(aligned([words], text, seconds=10.0))
    assert columns(text) == count
    assert len(cue.lines) == lines


def test_lines_break_behind_punctuation():
    """Unless that makes them too unlike: 27 and 33 columns are better than 31 and 29, 19 and 38 are not."""
    (cue,) = make_cues(spoken("He went home so early today, and then he slept for a long time"))
    assert lines_of(cue) == ["He went home so early today,", "and then he slept for a long time"]
    (cue,) = make_cues(spoken("He went home early, and then he slept for a very long time"))
    assert lines_of(cue) == ["He went home early, and then", "he slept for a very long time"]


def test_a_word_that_is_longer_than_a_line_is_whole():
    text = f"see {'x' * 50} there"
    alignment = spoken(text)
    assert [lines_of(cue) for cue in make_cues(alignment)] == [["see"], ["x" * 50], ["there"]]


def test_a_short_cue_gets_the_room_there_is():
    lines = [[("a", 1.0, 1.2, -1.0)], [("b", 1.5, 1.6, -1.0)], [("c", 4.0, 4.1, -1.0)], [("d", 9.8, 9.9, -1.0)]]
    cues = make_cues(aligned(lines, "a\nb\nc\nd", seconds=10.0))
    assert [(cue.start, cue.end) for cue in cues] == [(1000, 1500), (1500, 2300), (4000, 4800), (9800, 10000)]


@pytest.mark.parametrize(
    "times, shown",
    [
        ([(0, 1), (1, 1), (1, 2)], [(0, 1000, "a"), (1000, 2000, "b c")]),  # no room: with what begins there
        ([(0, 1), (2, 2), (3, 4)], [(0, 1000, "a"), (2000, 2800, "b"), (3000, 4000, "c")]),  # room
        ([(0, 1), (2, 2), (2, 2)], [(0, 1000, "a"), (2000, 2800, "b c")]),
        ([(8, 9), (9, 10), (10, 10)], [(8000, 9000, "a"), (9000, 10000, "b c")]),  # the recording ends
        ([(8, 9), (10, 10), (10, 10)], [(8000, 9000, "a"), (10000, 10001, "b c")]),
    ],
)
def test_words_without_duration_are_shown(times, shown):
    lines = [[(word, float(start), float(end), -1.0)] for word, (start, end) in zip("abc", times, strict=True)]
    cues = make_cues(aligned(lines, "a\nb\nc", seconds=10.0))
    assert [(cue.start, cue.end, " ".join(lines_of(cue))) for cue in cues] == shown


def test_text_from_right_to_left_is_left_as_it_is():
    text = "אמר לו: „לך!” والعربية، أيضا؟"
    words = re.findall(r"\w+", text)
    times = [(word, float(place), place + 1.0, -1.0) for place, word in enumerate(words)]
    alignment = aligned([times], text, seconds=10.0)
    assert [lines for _, _, lines in read_blocks(srt_text(alignment))] == [[text]]
    assert [lines for _, _, lines in read_blocks(vtt_text(alignment))] == [[text]]


# -------------------------------------------------------------------------------- characters that mean something


def one_cue(text):
    return aligned([[(text, 1.0, 2.0, -1.0)]], text, seconds=3.0)


STRANGE = [
    "<b>",
    "a<i>b",
    "&amp;",
    "a-->b",
    "{\\an8}x",
    "C:\\new\\N",
    "{b}",
    "a\\",
    "\\{",
    "}{",
    "00:00:01",
    "1",
    "<",
    "R&D",
]


@pytest.mark.parametrize("text", STRANGE)
def test_characters_that_mean_something_are_escaped(text, library):
    library("pysubs2")
    ((_, _, (shown,)),) = read_blocks(srt_text(one_cue(text)))
    assert shown.replace("\u2060", "") == text
    ((_, _, (shown,)),) = read_blocks(vtt_text(one_cue(text)))
    shown = shown.replace("\u2060", "")
    assert not re.search(r"<|>|&(?!amp;|lt;|gt;)", shown)
    assert html.unescape(shown) == text
    ((_, _, ((_, _, shown),)),) = read_ass(ass_text(one_cue(text)))
    assert shown == text


@pytest.mark.parametrize("text", STRANGE)
def test_ffmpeg_shows_the_text(text, library, ffmpeg):
    """What comes out is WebVTT, after FFmpeg has read the codes of each format. It keeps the backslashes of escapes and
    escapes nothing.
    """
    library("pysubs2")
    for suffix, write in {"srt": srt_text, "vtt": vtt_text, "ass": ass_text}.items():
        ((start, end, (shown,)),) = read_blocks(ffmpeg(write(one_cue(text)), suffix, "webvtt"))
        assert (start, end) == (1000, 2000)
        shown = shown.replace("\u2060", "")
        assert shown.replace("\\", "") == text.replace("\\", "")
        assert shown.count("\\") >= text.count("\\")


def test_ffmpeg_reads_times_and_lines(library, ffmpeg):
    library("pysubs2")
    alignment = spoken(DASHWOOD)
    expected = [(cue.start, cue.end, lines_of(cue)) for cue in make_cues(alignment)]
    assert read_blocks(ffmpeg(srt_text(alignment), "srt", "srt")) == expected
    for words in (False, True):
        assert read_blocks(ffmpeg(vtt_text(alignment, words), "vtt", "srt")) == expected
        hundredths = [((start + 5) // 10 * 10, (end + 5) // 10 * 10, lines) for start, end, lines in expected]
        assert read_blocks(ffmpeg(ass_text(alignment, words), "ass", "webvtt")) == hundredths


def test_ffmpeg_keeps_the_karaoke(library, ffmpeg):
    library("pysubs2")
    assert EVENTS in ffmpeg(ass_text(small()), "ass", "ass").replace("\r\n", "\n")


def test_pysubs2_reads_times_and_lines(library):
    pysubs2 = library("pysubs2")
    alignment = spoken(DASHWOOD)
    expected = [(cue.start, cue.end, "\n".join(lines_of(cue))) for cue in make_cues(alignment)]
    for text in (srt_text(alignment), vtt_text(alignment)):
        found = pysubs2.SSAFile.from_string(text)
        assert [(cue.start, cue.end, cue.plaintext) for cue in found] == expected
    hundredths = [((start + 5) // 10 * 10, (end + 5) // 10 * 10, text) for start, end, text in expected]
    found = pysubs2.SSAFile.from_string(ass_text(alignment))
    assert [(cue.start, cue.end, cue.plaintext) for cue in found] == hundredths


# ------------------------------------------------------------------------------------------------ any alignment at all

# No surrogates, no control characters, no white space: a word has none.
letters = st.one_of(
    st.sampled_from("aZ.,!?'\"\\{}<>&-—…()«»「」。日本אבéß🙂\u0301\u200d\u2060"),
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
)
some_words = st.lists(
    st.tuples(
        st.text(letters, min_size=1, max_size=12),
        st.sampled_from([" ", "  ", ", ", ". ", " – ", "—", "", "\t", "」「", ' "']),  # before it
        st.sampled_from([0, 0, 0, 1, 20, 300, 5000, 4_000_000]),  # milliseconds before it
        st.sampled_from([0, 1, 20, 60, 400, 9000]),  # that it lasts
        st.sampled_from(["spoken", "spoken", "inferred", "unspoken"]),
    ),
    min_size=1,
    max_size=25,
)


@st.composite
def alignments(draw):
    offset = draw(st.sampled_from([0.0, 0.0025, 1 / 3]))
    text, words, segments, now = "", [], [], 0
    for number, line in enumerate(draw(st.lists(some_words, min_size=1, max_size=4))):
        begin, first = len(text), len(words)
        for word, before, pause, duration, status in line:
            text += before if len(text) > begin else ""
            start = end = None
            if status != "unspoken":
                start, end = (now + pause) / 1000 + offset, (now + pause + duration) / 1000 + offset
                now += pause + duration
            score = -0.5 if status == "spoken" else None
            words.append(Word(word, len(text), len(text) + len(word), number, start, end, score, score and 0.5, status))
            text += word
        timed = [word for word in words[first:] if word.start is not None]
        ends = (timed[0].start, timed[-1].end) if timed else (None, None)
        segments.append(
            Segment(text[begin:], begin, len(text), range(first, len(words)), *ends, None, None, None)  # confidences
        )
        text += draw(st.sampled_from(["\n", "\n\n", "\r\n"]))
    seconds = now / 1000 + offset + draw(st.sampled_from([0.0, 2.0]))
    return SpeechAlignment(text, words, segments, [], [], seconds, 0.02, -1.5, "drawn", audio=Path("a talk.wav"))


def in_order(times):
    return all(start <= end for start, end in times) and all(
        one[1] <= other[0] for one, other in itertools.pairwise(times)
    )


def squeeze(text):
    """Without white space, nor what the escapes put in."""
    return "".join(text.split()).replace("\u2060", "")


@hypothesis.seed(SEED)
@hypothesis.settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],  # it is a function, the same for all
)
@hypothesis.given(alignment=alignments())
def test_any_alignment_is_the_same_in_all_formats(library, alignment):
    library("praatio"), library("pysubs2")
    shown = [word for word in alignment.words if word.start is not None]
    # Half a millisecond up; 1e-9 s is more than the error of a float of some hours, and less than what it could move.
    times = [tuple(int((time + 1e-9) * 1000 + 0.5) for time in (word.start, word.end)) for word in shown]
    texts = [word.text for word in shown]
    assert in_order(times)
    with tempfile.TemporaryDirectory() as folder:

        def written(format, **options):
            return save(alignment, Path(folder) / "a", format, **options).read_text(encoding="utf-8")

        data = json.loads(written("json"))
        assert [
            (round(word["start"] * 1000), round(word["end"] * 1000))
            for word in data["words"]
            if word["end"] is not None
        ] == times
        assert load(Path(folder) / "a") == round_alignment(alignment)

        rows = list(csv.reader(io.StringIO(written("tsv"), newline=""), dialect="excel-tab"))[1:]
        assert [(milliseconds(row[0]), milliseconds(row[1])) for row in rows] == times
        assert [row[2] for row in rows] == texts
        fields = [line.split("\t") for line in written("audacity").split("\n")[:-1]]
        assert [(milliseconds(start), milliseconds(end), text) for start, end, text in fields] == [
            (*time, text) for time, text in zip(times, texts, strict=True)
        ]
        fields = [line.split(" ") for line in written("ctm").split("\n")[:-1]]
        assert [(milliseconds(row[2]), milliseconds(row[2]) + milliseconds(row[3])) for row in fields] == times
        assert [row[4] for row in fields] == texts
        check_textgrid(written("textgrid"), times, texts)

        everything = squeeze("".join(texts))
        blocks = {"srt": read_blocks(written("srt")), "vtt": read_blocks(written("vtt"))} if shown else {}
        for cues in blocks.values():
            assert in_order([cue[:2] for cue in cues])
            assert all(start < end for start, end, _ in cues)
            assert all(len(lines) <= 2 and all(lines) for _, _, lines in cues)
        if shown:
            check_cues(blocks["srt"], alignment, everything, lambda text: text)
            check_cues(blocks["vtt"], alignment, everything, html.unescape)
            stamps = re.findall(r"<([\d:.]+)>", written("vtt", words=True))
            assert {milliseconds(stamp) for stamp in stamps} <= {start for start, _ in times}
        if alignment.words and times and times[-1][1] >= 35_999_000:
            return  # ASS ends there
        cues = read_ass(written("ass"))
        assert in_order([cue[:2] for cue in cues])
        found = [word for _, _, words in cues for word in words]
        assert [(start, end) for start, end, _ in found] == [
            ((start + 5) // 10 * 10, (end + 5) // 10 * 10) for start, end in times
        ]
        assert all(squeeze(text) in squeeze(piece) for (_, _, piece), text in zip(found, texts, strict=True))


def check_cues(cues, alignment, everything, unescape):
    """Every word is shown, in order; the whole text is, if none is unspoken."""
    found = squeeze(unescape("".join("".join(lines) for _, _, lines in cues)))
    if all(word.start is not None for word in alignment.words):
        assert found == squeeze(alignment.text)
    letters = iter(found)
    assert all(letter in letters for letter in everything)


def check_textgrid(text, times, texts):
    """The first tier is the words; its intervals fill the recording and all last some time."""
    tier = text.split("item [2]:")[0].split("item [1]:")[1]
    interval = r'intervals \[\d+\]:\s*xmin = (\S+)\s*xmax = (\S+)\s*text = "((?:[^"]|"")*)"'
    found = [(milliseconds(a), milliseconds(b), label.replace('""', '"')) for a, b, label in re.findall(interval, tier)]
    assert f"intervals: size = {len(found)} " in tier
    assert all(start < end for start, end, _ in found)
    assert found[0][0] == 0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
    assert " ".join(label for _, _, label in found if label) == " ".join(texts)
    labelled = {(start, end) for start, end, label in found if label}
    assert {(start, end) for start, end in times if start < end} <= labelled
