"""What the files of an alignment hold: JSON, tables, TextGrid, NumPy.

Subtitles are in test_speech_subtitles.py, what all files have in common in test_speech_saving.py.
"""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import types
import wave
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.alignments import aligned, small, with_evidence
from harness.speech import loud_model

import torch_ctc_align
from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.formats import FORMATS, load, round_alignment, save

TEXTS = ["json", "srt", "vtt", "ass", "textgrid", "ctm", "tsv", "audacity"]
SCHEMA = Path(torch_ctc_align.__file__).parent / "speech" / "formats" / "schema.json"


@pytest.fixture
def run_program(missing):
    """run_program("praat", ...): standard output of a program of the system, or a test that is skipped."""

    def run(name, *arguments):
        if shutil.which(name) is None:
            missing(name, f"there is no {name} here")
        done = subprocess.run([name, *map(os.fspath, arguments)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def saved(alignment, folder, format, **options):
    return save(alignment, folder / f"talk{FORMATS[format].suffix}", format, **options).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- by hand

GOLDEN = {
    "json": """\
{
  "version": 1,
  "generator": "torch_ctc_align VERSION",
  "audio": "talk.wav",
  "seconds": 4.0,
  "model": "by hand",
  "language": "en",
  "seconds_per_frame": 0.02,
  "score": -12.5,
  "confidence": 0.664512,
  "posterior": 0.75,
  "text": "He said: \\"Wait!\\"\\n{No} 3 & <4>.\\nGone...",
  "segments": [
    {"text": "He said: \\"Wait!\\"", "start": 0.5, "end": 2.0, "confidence": 0.76339, "weakest": 0.606531, \
"posterior": 0.75, "words": [0, 3], "begin": 0, "stop": 16},
    {"text": "{No} 3 & <4>.", "start": 2.5, "end": 3.2, "confidence": 0.367879, "weakest": 0.367879, \
"posterior": 0.75, "words": [3, 6], "begin": 17, "stop": 30},
    {"text": "Gone...", "start": null, "end": null, "confidence": null, "weakest": null, \
"posterior": null, "words": [6, 7], "begin": 31, "stop": 38}
  ],
  "words": [
    {"text": "He", "start": 0.5, "end": 0.7, "status": "spoken", "confidence": 0.904837, "posterior": 0.75, \
"score": -0.1, "segment": 0, "begin": 0, "stop": 2},
    {"text": "said", "start": 0.7, "end": 1.04, "status": "spoken", "confidence": 0.778801, "posterior": 0.75, \
"score": -0.25, "segment": 0, "begin": 3, "stop": 7},
    {"text": "Wait", "start": 1.5, "end": 2.0, "status": "spoken", "confidence": 0.606531, "posterior": 0.75, \
"score": -0.5, "segment": 0, "begin": 10, "stop": 14},
    {"text": "No", "start": 2.5, "end": 2.7, "status": "spoken", "confidence": 0.367879, "posterior": 0.75, \
"score": -1.0, "segment": 1, "begin": 18, "stop": 20},
    {"text": "3", "start": null, "end": null, "status": "unspoken", "confidence": null, "posterior": null, \
"score": null, "segment": 1, "begin": 22, "stop": 23},
    {"text": "4", "start": 3.0, "end": 3.2, "status": "inferred", "confidence": null, "posterior": null, \
"score": null, "segment": 1, "begin": 27, "stop": 28},
    {"text": "Gone", "start": null, "end": null, "status": "unspoken", "confidence": null, "posterior": null, \
"score": null, "segment": 2, "begin": 31, "stop": 35}
  ],
  "tokens": [
    {"label": "h", "start": 0.5, "end": 0.6, "score": -0.1, "word": 0},
    {"label": "\\"", "start": 0.6, "end": 0.7, "score": -0.1, "word": 0},
    {"label": "|", "start": 1.04, "end": 1.1, "score": -0.3, "word": -1},
    {"label": "*", "start": 3.0, "end": 3.2, "score": -2.0, "word": 5}
  ],
  "unexplained": [
    {"start": 3.2, "end": 4.0}
  ]
}
""",
    "ctm": """\
talk 1 0.500 0.200 He 0.9048
talk 1 0.700 0.340 said 0.7788
talk 1 1.500 0.500 Wait 0.6065
talk 1 2.500 0.200 No 0.3679
talk 1 3.000 0.200 4
""",
    "tsv": """\
start\tend\ttext\tconfidence\tstatus
0.500\t0.700\tHe\t0.9048\tspoken
0.700\t1.040\tsaid\t0.7788\tspoken
1.500\t2.000\tWait\t0.6065\tspoken
2.500\t2.700\tNo\t0.3679\tspoken
3.000\t3.200\t4\t\tinferred
""",
    "audacity": """\
0.500\t0.700\tHe
0.700\t1.040\tsaid
1.500\t2.000\tWait
2.500\t2.700\tNo
3.000\t3.200\t4
""",
}
# The intervals of each tier, gaps included.
TIERS = {
    "words": [(0, 0.5, ""), (0.5, 0.7, "He"), (0.7, 1.04, "said"), (1.04, 1.5, ""), (1.5, 2, "Wait"), (2, 2.5, ""),
              (2.5, 2.7, "No"), (2.7, 3, ""), (3, 3.2, "4"), (3.2, 4, "")],
    "segments": [(0, 0.5, ""), (0.5, 2, 'He said: "Wait!"'), (2, 2.5, ""), (2.5, 3.2, "{No} 3 & <4>."), (3.2, 4, "")],
    "tokens": [(0, 0.5, ""), (0.5, 0.6, "h"), (0.6, 0.7, '"'), (0.7, 1.04, ""), (1.04, 1.1, "|"), (1.1, 3, ""),
               (3, 3.2, "*"), (3.2, 4, "")],
}  # fmt: skip


@pytest.mark.parametrize("format", GOLDEN)
def test_text_of_a_small_alignment(format, tmp_path):
    expected = GOLDEN[format].replace("VERSION", torch_ctc_align.__version__)
    assert saved(small(), tmp_path, format) == expected


def test_textgrid_of_a_small_alignment(tmp_path, library):
    """Praat's long form, as its manual shows it; all white space is alike to Praat."""
    library("praatio.textgrid")
    expected = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "xmin = 0", "xmax = 4", "tiers? <exists>"]
    expected += ["size = 3", "item []:"]
    for number, (name, intervals) in enumerate(TIERS.items(), 1):
        expected += [f"item [{number}]:", 'class = "IntervalTier"', f'name = "{name}"', "xmin = 0", "xmax = 4"]
        expected += [f"intervals: size = {len(intervals)}"]
        for place, (start, end, label) in enumerate(intervals, 1):
            label = label.replace('"', '""')
            expected += [f"intervals [{place}]:", f"xmin = {start}", f"xmax = {end}", f'text = "{label}"']
    lines = [line.strip() for line in saved(small(), tmp_path, "textgrid").splitlines()]
    assert [line for line in lines if line] == expected


def test_segments_and_tokens_as_tables(tmp_path):
    assert saved(small(), tmp_path, "tsv", level="segments") == (
        "start\tend\ttext\tconfidence\tstatus\n"
        '0.500\t2.000\t"He said: ""Wait!"""\t0.7634\tspoken\n'
        "2.500\t3.200\t{No} 3 & <4>.\t0.3679\tspoken\n"
    )
    assert saved(small(), tmp_path, "ctm", level="segments").splitlines()[0] == (
        'talk 1 0.500 1.500 He<space>said:<space>"Wait!" 0.7634'
    )
    assert saved(small(), tmp_path, "audacity", level="tokens").splitlines()[2] == "1.040\t1.100\t|"


def test_white_space_in_a_text_does_not_break_a_table(tmp_path):
    alignment = aligned([[("a\tb\nc", 0.0, 1.0, -0.5)]], "a\tb\nc", seconds=1.0, audio="my talk.tar.wav")
    assert saved(alignment, tmp_path, "ctm") == "my<space>talk.tar 1 0.000 1.000 a<space>b<space>c 0.6065\n"
    assert saved(alignment, tmp_path, "audacity") == "0.000\t1.000\ta b c\n"
    assert saved(alignment, tmp_path, "tsv").splitlines()[1] == "0.000\t1.000\ta b c\t0.6065\tspoken"


def test_a_recording_without_a_name_has_one_in_ctm(tmp_path):
    alignment = aligned([[("a", 0.0, 1.0, -0.5)]], "a", seconds=1.0, audio=None)
    assert saved(alignment, tmp_path, "ctm") == "recording 1 0.000 1.000 a 0.6065\n"
    alignment = replace(alignment, audio=Path(";;talk.wav"))  # two of them begin a comment
    assert saved(alignment, tmp_path, "ctm") == "_;talk 1 0.000 1.000 a 0.6065\n"


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_holds_everything_but_evidence(tmp_path):
    path = save(with_evidence(small()), tmp_path / "talk.json")
    assert load(path) == small()
    assert load(path).evidence is None


def test_json_is_rounded_once(tmp_path):
    """What was loaded and is saved again is the same, to the byte."""
    third = 1 / 3
    words = [("a", third, 2 * third, -third), ("b", 2 * third, 1.0, -0.1234565)]
    tokens = [("a", third, 2 * third, -third, 0)]
    alignment = aligned([words], "a b", seconds=10 * third, score=-third, tokens=tokens)
    path = save(alignment, tmp_path / "talk.json")
    first = path.read_bytes()
    again = load(path)
    assert (again.words[0].start, again.words[0].end, again.words[1].start) == (0.333, 0.667, 0.667)
    assert (again.words[0].score, again.score, again.seconds) == (-0.333333, -0.333333, 3.333)
    save(again, path)
    assert path.read_bytes() == first


def test_half_a_millisecond_goes_up():
    """A word's end and the next one's start are one time; they stay one where the last bit of a float differs."""
    for frame in range(2000):
        time = 0.0025 + 0.02 * frame
        words = [("a", 0.0, math.nextafter(time, 0), -1.0), ("b", math.nextafter(time, 99), 50.0, -1.0)]
        one, other = round_alignment(aligned([words], "a b", seconds=50.0)).words
        assert one.end == other.start == (3 + 20 * frame) / 1000


def test_json_fits_its_schema(tmp_path, library):
    jsonschema = library("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    data = json.loads(saved(small(), tmp_path, "json"))
    validator.validate(data)
    for change in [
        {"version": 2}, {"seconds": -1}, {"seconds": None}, {"text": None}, {"confidence": 1.5}, {"words": {}},
        {"words": [data["words"][0] | {"status": "said"}]}, {"words": [data["words"][0] | {"start": None}]},
        {"words": [data["words"][4] | {"end": 1.0}]}, {"segments": [data["segments"][0] | {"words": [1]}]},
        {"tokens": [data["tokens"][0] | {"score": None}]}, {"unexplained": [{"start": 0}]},
    ]:  # fmt: skip
        assert not validator.is_valid(data | change), change
    assert validator.is_valid(data | {"speakers": ["of a later release"]})
    del data["model"]
    assert not validator.is_valid(data)


def test_the_schema_names_every_property(tmp_path):
    """It lets others pass, for later releases; so this is the test that none of this release is missing in it."""
    data, schema = json.loads(saved(small(), tmp_path, "json")), json.loads(SCHEMA.read_text())
    parts = {"segments": "segment", "words": "word", "tokens": "token"}
    pairs = [(data, schema), *((data[name][0], schema["$defs"][part]) for name, part in parts.items())]
    pairs.append((data["unexplained"][0], schema["properties"]["unexplained"]["items"]))
    for written, described in pairs:
        assert set(written) == set(described["properties"]) == set(described["required"])


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "is not JSON"),
        ("\x80", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "found no version"),
        ("{}", "found no version"),
        ('{"version": 2}', 'found "version": 2; a newer torch_ctc_align may read it'),
        ('{"version": 1}', "words must be a list"),
    ],
)
def test_what_is_not_an_alignment_is_not_loaded(content, sentence, tmp_path):
    path = tmp_path / "talk.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SpeechError) as caught:
        load(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "where, wrong, sentence",
    [
        ("text", 3, "text must not be 3"),
        ("score", None, "score must not be None"),
        ("words", [1], "words[0] must be an object"),
        ("words.0.start", "0.5", "start must not be '0.5'"),
        ("words.0.begin", True, "begin must not be True"),
        ("words.0.start", None, "a word has a start and an end unless it is unspoken"),
        ("words.0.status", "said", "status must be spoken, inferred or unspoken"),
        ("words.0.segment", 3, "segment must be one of 3"),
        ("segments.0.words", [0, 8], "0 <= first <= stop <= 7"),
        ("segments.0.words", ["0", 1], "0 <= first <= stop <= 7"),
        ("tokens.0.word", 7, "a token must have a score and the index of a word"),
        ("tokens.0.start", None, "start and end must be numbers"),
        ("unexplained.0.end", "x", "end must not be 'x'"),
    ],
)
def test_a_wrong_field_is_named(where, wrong, sentence, tmp_path):
    data = json.loads(saved(small(), tmp_path, "json"))
    *way, last = [int(step) if step.isdigit() else step for step in where.split(".")]
    item = data
    for step in way:
        item = item[step]
    item[last] = wrong
    (tmp_path / "talk.json").write_text(json.dumps(data))
    with pytest.raises(SpeechError) as caught:
        load(tmp_path / "talk.json")
    assert sentence in str(caught.value)
    del item[last]
    (tmp_path / "talk.json").write_text(json.dumps(data))
    with pytest.raises(SpeechError, match=r"missing|must be|found None"):
        load(tmp_path / "talk.json")


def test_a_file_of_windows_is_loaded(tmp_path):
    path = save(small(), tmp_path / "talk.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path) == small()


def test_names_that_are_not_utf8_are_kept(tmp_path):
    """A file's name is bytes; Python makes half a surrogate pair of a byte that is not UTF-8."""
    alignment = replace(small(), audio=Path(os.fsdecode(b"caf\xe9.wav")))
    assert load(save(alignment, tmp_path / "talk.json")).audio == alignment.audio
    assert saved(alignment, tmp_path, "ctm").startswith("caf? 1 ")


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_json_has_no_infinity(number, tmp_path):
    with pytest.raises(SpeechError, match="no infinity and no NaN"):
        save(replace(small(), score=number), tmp_path / "talk.json")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- TextGrid, npz


def words_of_textgrid(path, library):
    tier = library("praatio.textgrid").openTextgrid(str(path), includeEmptyIntervals=False).getTier("words")
    return [tuple(entry) for entry in tier.entries]


@pytest.mark.parametrize(
    "times, intervals",
    [
        ([(1, 1), (1, 2)], [(1, 2, "a b")]),  # the next word begins there
        ([(0, 1), (1, 1)], [(0, 1, "a b")]),  # the last word ended there
        ([(0, 1), (1, 1), (1, 2)], [(0, 1, "a b"), (1, 2, "c")]),
        ([(0, 1), (2, 2), (3, 4)], [(0, 1, "a"), (2, 2.001, "b"), (3, 4, "c")]),  # in a gap
        ([(0, 0), (0, 0), (0, 1), (1, 1)], [(0, 1, "a b c d")]),
        ([(5, 5)], [(4.999, 5, "a")]),  # at the end
        ([(0, 4), (5, 5), (5, 5)], [(0, 4, "a"), (4.999, 5, "b c")]),
        ([(1, 1), (3, 3), (3, 4)], [(1, 1.001, "a"), (3, 4, "b c")]),
        ([(1, 1), (1.001, 2)], [(1, 1.001, "a"), (1.001, 2, "b")]),
    ],
)
def test_a_word_without_duration_is_in_the_textgrid(times, intervals, tmp_path, library):
    """Praat knows no interval that lasts no time."""
    library("praatio.textgrid")
    words = [(letter, float(start), float(end), -1.0) for letter, (start, end) in zip("abcd", times, strict=False)]
    path = save(aligned([words], " ".join("abcd"[: len(words)]), seconds=5.0), tmp_path / "x.TextGrid")
    assert words_of_textgrid(path, library) == intervals


def test_a_textgrid_without_words_is_one_gap(tmp_path, library):
    textgrid = library("praatio.textgrid")
    path = save(aligned([[("a", None, None, None)]], "a", seconds=2.0), tmp_path / "x.TextGrid")
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    assert grid.tierNames == ("words", "segments", "tokens")
    for tier in grid.tiers:
        assert [tuple(entry) for entry in tier.entries] == [(0, 2, "")]


def test_npz_holds_the_inputs_of_the_aligner(tmp_path, library):
    numpy = library("numpy")
    alignment = with_evidence(small())
    with numpy.load(save(alignment, tmp_path / "talk.npz")) as data:
        assert sorted(data) == sorted(
            ["log_probs", "targets", "words", "tokens_per_word", "blank", "separator", "seconds_per_frame"]
        )
        assert torch.equal(torch.from_numpy(data["log_probs"]), alignment.evidence.log_probs)
        assert data["targets"].tolist() == [1, 2]
        assert data["targets"].dtype == data["tokens_per_word"].dtype == numpy.int64
        assert data["words"].tolist() == ["He", "said", "Wait", "No", "4"]  # without the unspoken ones
        assert data["tokens_per_word"].tolist() == [1, 1, 0, 0, 0]
        assert (data["blank"], data["separator"], data["seconds_per_frame"]) == (0, 1, 0.02)


def test_npz_holds_stars(tmp_path, library):
    numpy = library("numpy")
    alignment = with_evidence(
        small(),
        star_scores=torch.zeros(4, dtype=torch.bfloat16),
        wild_gaps=torch.tensor([True, False, True]),
        log_probs=torch.zeros(4, 3, dtype=torch.bfloat16),
        model=loud_model(separator=None),
    )
    with numpy.load(save(alignment, tmp_path / "talk.npz")) as data:
        assert data["star_scores"].tolist() == [0, 0, 0, 0]
        assert data["wild_gaps"].tolist() == [True, False, True]
        assert data["log_probs"].dtype == numpy.float32  # NumPy has no bfloat16
        assert "separator" not in data


@pytest.mark.parametrize("format", ["npz", "png"])
def test_what_was_read_from_a_file_has_no_frames(format, tmp_path, monkeypatch):
    stand_in(monkeypatch, "picture", draw_picture=None)
    with pytest.raises(SpeechError, match=f"the format {format} needs the model's output for each frame"):
        save(small(), tmp_path / "talk", format)


# ----------------------------------------------------------------------------------------------------- other people's


def stand_in(monkeypatch, name, **functions):
    module = types.ModuleType(f"torch_ctc_align.speech.formats.{name}")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_html_is_what_the_page_is(tmp_path, monkeypatch):
    asked = []
    stand_in(monkeypatch, "page", make_page=lambda alignment, *, embed=None: asked.append(embed) or "<p>é\n")
    assert saved(small(), tmp_path, "html") == "<p>é\n"
    assert saved(small(), tmp_path, "html", embed=False) == "<p>é\n"
    assert asked == [None, False]


def test_png_is_what_the_picture_is(tmp_path, monkeypatch):
    def draw_picture(alignment, path, *, seconds):
        assert path.suffix == ".png"  # matplotlib looks at it
        path.write_text(f"{len(alignment.words)} words, {seconds} s a row")

    stand_in(monkeypatch, "picture", draw_picture=draw_picture)
    assert saved(with_evidence(small()), tmp_path, "png", seconds=20) == "7 words, 20 s a row"


# ------------------------------------------------------------------------------------------- by the programs of users


def test_praat_reads_the_textgrid(tmp_path, library, run_program):
    library("praatio.textgrid")
    alignment = small()
    alignment = replace(
        alignment,
        words=[replace(alignment.words[0], text='日本 "x"'), *alignment.words[1:]],
    )
    save(alignment, tmp_path / "talk.TextGrid")
    (tmp_path / "print.praat").write_text(
        f"""Read from file: "{tmp_path / "talk.TextGrid"}"
tiers = Get number of tiers
for tier to tiers
    name$ = Get tier name: tier
    intervals = Get number of intervals: tier
    for interval to intervals
        start = Get starting point: tier, interval
        end = Get end point: tier, interval
        label$ = Get label of interval: tier, interval
        appendInfoLine: name$, tab$, fixed$ (start, 3), tab$, fixed$ (end, 3), tab$, label$
    endfor
endfor
""",
        encoding="utf-8",
    )
    printed = run_program("praat", "--run", tmp_path / "print.praat")
    found = [tuple(line.split("\t")) for line in printed.splitlines()]
    tiers = {**TIERS, "words": [(a, b, '日本 "x"' if label == "He" else label) for a, b, label in TIERS["words"]]}

    def shown(time):  # Praat's fixed$ writes a zero without decimals
        return f"{time:.3f}" if time else "0"

    assert found == [(name, shown(a), shown(b), label) for name, tier in tiers.items() for a, b, label in tier]


def test_sox_cuts_the_words_out(tmp_path, run_program):
    """In this recording the samples of a word are the number of the word."""
    alignment = small()
    samples = [0] * 64_000
    for number, word in enumerate(alignment.words, 1):
        if word.start is not None:
            for sample in range(round(word.start * 16_000), round(word.end * 16_000)):
                samples[sample] = number
    with wave.open(str(tmp_path / "talk.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(b"".join(sample.to_bytes(2, "little") for sample in samples))
    with save(alignment, tmp_path / "talk.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, dialect="excel-tab"))
    assert [row["text"] for row in rows] == ["He", "said", "Wait", "No", "4"]
    for row, number in zip(rows, [1, 2, 3, 4, 6], strict=True):
        cut = tmp_path / "word.wav"
        run_program("sox", "-D", tmp_path / "talk.wav", cut, "trim", f"={row['start']}", f"={row['end']}")
        with wave.open(str(cut)) as file:
            word = file.readframes(file.getnframes())
        assert word == number.to_bytes(2, "little") * round(16_000 * (float(row["end"]) - float(row["start"])))
