"""The picture of an alignment: it shows what the alignment says, and mistakes are sentences."""

import re
import sys
import warnings
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from torch_ctc_align import forced_align, star_scores, wild_gaps
from torch_ctc_align.speech import Segment, SpeechAlignment, SpeechError, Stretch, Word
from torch_ctc_align.speech.alignment import Evidence


@pytest.fixture
def picture(missing, tmp_path):
    """The module of pictures, the harness's model, numpy and soundfile."""
    try:
        import matplotlib.figure
        import numpy
        import soundfile
        from harness import speech
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")
    from torch_ctc_align.speech.formats import picture

    return SimpleNamespace(module=picture, numpy=numpy, soundfile=soundfile, speech=speech, matplotlib=matplotlib)


def align(picture, folder, said, text, *, star=None, unspoken=(), inferred=(), unexplained=(), model=None, start=0.0):
    """An alignment of ``said`` with ``text``, by hand: the words of ``text`` that are spoken are aligned."""
    speech = picture.speech
    model = model or speech.loud_model()
    audio = folder / "a.wav"
    classes = speech.silence(round(start * 50)) + speech.say(said)
    picture.soundfile.write(audio, speech.sound_of(classes), speech.SAMPLE_RATE, subtype="FLOAT")
    samples = torch.from_numpy(speech.sound_of(speech.say(said)))[None]
    log_probs, _ = model.run(samples, torch.tensor([samples.shape[1]]))
    words = text.split()
    spoken = [word for word in words if word not in unspoken]
    star_label = log_probs.shape[2]
    labels = [[star_label] if word in inferred else [speech.LABELS.index(c) for c in word] for word in spoken]
    targets = torch.tensor([[c for k, word in enumerate(labels) for c in ([speech.SEPARATOR] if k else []) + word]])
    counts = [len(word) for word in labels]
    options = {}
    if star:
        words_end = {"separator": speech.SEPARATOR, "tokens_per_word": [counts]} if star == "words" else {}
        gaps = wild_gaps(targets, where=star, **words_end)
        options = {"star_scores": star_scores(log_probs), "wild_gaps": gaps}
    paths, scores = torch.ops.ctc_align.forced_align(
        log_probs, targets, None, None, model.blank, *options.values()
    ) if options else forced_align(log_probs, targets, blank=model.blank)  # fmt: skip

    # The k-th word's frames: runs of equal labels of the path, in the order of the targets.
    runs = []
    place = 0
    for label, group in groupby(paths[0].tolist()):
        length = len(list(group))
        if label not in (model.blank, -2):
            runs.append((label, place, place + length))
        place += length
    made, at, begin = [], 0, 0
    for word in words:
        begin = text.index(word, begin)
        times = None, None
        if word not in unspoken:
            own = runs[at : at + counts[spoken.index(word)]]
            at += len(own) + 1
            times = tuple(start + frame * model.seconds_per_frame for frame in (own[0][1], own[-1][2]))
        status = "unspoken" if word in unspoken else "inferred" if word in inferred else "spoken"
        score = -0.1 if status == "spoken" else None
        made.append(Word(word, begin, begin + len(word), 0, *times, score, None, status))
    segment = Segment(text, 0, len(text), range(len(words)), made[0].start, made[-1].end, 0.9, 0.9, None)
    evidence = Evidence(
        log_probs[0], paths[0], scores[0], targets[0], counts, *(x[0] for x in options.values() or ((None,), (None,))),
        model=model, start=start,
    )  # fmt: skip
    return SpeechAlignment(
        text, made, [segment], [], [Stretch(*pair) for pair in unexplained], len(classes) * 0.02, 0.02,
        float(scores.sum()), "loud", audio=audio, evidence=evidence,
    )  # fmt: skip


def draw(picture, alignment, folder, **options):
    """The texts of the picture, from its SVG, in the order in which they are drawn; a warning is an error."""
    path = folder / "a.svg"
    with warnings.catch_warnings(), picture.matplotlib.rc_context({"svg.fonttype": "none"}):
        warnings.simplefilter("error")
        picture.module.draw_picture(alignment, path, **options)
    root = ElementTree.parse(path).getroot()
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_words_and_rows_are_those_of_the_path(picture, tmp_path):
    texts = draw(picture, align(picture, tmp_path, "the cat sat", "the cat sat"), tmp_path)
    texts = [text for text in texts if not re.fullmatch(r"\d+\.\d+", text)]
    # Rows from above: as the path comes by. No row for the other 20 letters.
    rows = [*"thecas|", "blank"]
    assert [text for text in texts if text in rows] == rows
    assert sorted(texts) == sorted([*rows, "the", "cat", "sat", "waveform", "class", "probability", "time (s)"])


def test_only_what_is_drawn_is_read(picture, tmp_path, monkeypatch):
    alignment = align(picture, tmp_path, "the cat sat on a mat", "the cat sat on a mat", start=1.0)
    calls = []
    real = picture.module.read_samples

    def read_samples(*arguments, **options):
        calls.append((arguments, options))
        return real(*arguments, **options)

    monkeypatch.setattr(picture.module, "read_samples", read_samples)
    texts = draw(picture, alignment, tmp_path, seconds=0.5)
    ((arguments, options),) = calls
    assert arguments == (tmp_path / "a.wav", 16_000)
    assert options == {"offset": 1.0, "duration": pytest.approx(0.5)}
    # "cat" begins at 1.32 s, "sat" at 1.64 s; "cat" is cut after its a.
    assert {"the", "cat"} <= set(texts)
    assert not {"sat", "on", "mat", "s", "o"} & set(texts)


def test_what_does_not_fit_is_said(picture, tmp_path):
    # "xyz" is said in frames 34 to 45, after "the cat"; "never" is not said at all.
    alignment = align(
        picture, tmp_path, "the cat xyz sat on a mat", "the cat sat never on a mat",
        star="words", unspoken=["never"], unexplained=[(0.66, 0.92)],
    )  # fmt: skip
    texts = draw(picture, alignment, tmp_path)
    assert "in the recording, not in the text" in texts
    assert "in the text, not in the recording: never" in texts
    assert "star" in texts
    assert not {"never", "x", "y", "z"} & set(texts)

    view = picture.module.View(alignment, alignment.evidence, 10.0)
    assert list(view.unspoken()) == [(pytest.approx(1.16), "never")]  # the end of "sat"
    assert view.edges[[0, 1, -1]].tolist() == pytest.approx([0, 0.02, 1.92])
    assert view.words[0][1:] == (0.0, 0.2)


def test_frames_stand_where_the_offset_says(picture, tmp_path):
    model = picture.speech.loud_model(frame_offset=-0.5)
    alignment = align(picture, tmp_path, "the cat", "the cat", model=model, start=2.0)
    view = picture.module.View(alignment, alignment.evidence, 0.1)
    assert view.edges.tolist() == pytest.approx([1.99, 2.01, 2.03, 2.05, 2.07, 2.09])
    assert view.probabilities[:, 0].tolist() == pytest.approx([0.9, 0.9] + 3 * [0.1 / 28])  # "t"


def test_words_that_cannot_be_spelt_are_in_italics(picture, tmp_path):
    alignment = align(picture, tmp_path, "the x sat", "the 東京 sat", star="ends", inferred=["東京"])
    texts = draw(picture, alignment, tmp_path)
    assert {"東京", "star"} <= set(texts)
    assert any(text.startswith("in italics: ") for text in texts)


@pytest.mark.parametrize("word", ["東京", "한국", "नमस्ते", "שלום", "مرحبا", "🎉", "$x^2$", "\\frac", "_a", "\ue000"])
def test_any_word_can_be_drawn(word, picture, tmp_path):
    alignment = align(picture, tmp_path, "the x sat", f"the {word} sat", star="ends", inferred=[word])
    assert picture.module.order(word) in draw(picture, alignment, tmp_path)
    unspoken = align(picture, tmp_path, "the sat", f"the {word} sat", star="ends", unspoken=[word])
    assert f"in the text, not in the recording: {picture.module.order(word)}" in draw(picture, unspoken, tmp_path)


@pytest.mark.parametrize("label", ["$", "$a$", " ", "\u0301", "▁the", "ש", "嗯", ""])
def test_any_label_can_be_drawn(label, picture, tmp_path):
    labels = [label if name == "t" else name for name in picture.speech.LABELS]
    alignment = align(picture, tmp_path, "the", "the", model=picture.speech.loud_model(labels=labels))
    texts = draw(picture, alignment, tmp_path)
    expected = {" ": "␣", "\u0301": "◌\u0301"}.get(label, label)
    assert expected in texts or not label


def test_right_to_left_is_drawn_in_reverse_where_matplotlib_does_not(picture):
    order = picture.module.order
    reverses = picture.matplotlib.__version_info__[:2] < (3, 11)
    assert order("the") == "the"
    assert order("שלום") == ("םולש" if reverses else "שלום")
    assert order("שָׁ") == "שָׁ"  # a letter with its marks stays one


def test_a_large_vocabulary_has_the_rows_of_the_path(picture, tmp_path):
    alignment = align(picture, tmp_path, "the cat", "the cat")
    wide = torch.cat([alignment.evidence.log_probs, torch.full((28, 50_000), -torch.inf)], 1).half()
    labels = [*picture.speech.LABELS, *map(str, range(50_000))]
    evidence = replace(alignment.evidence, log_probs=wide, model=picture.speech.loud_model(labels=labels))
    view = picture.module.View(alignment, evidence, 10.0)
    assert [view.name(c) for c in view.classes] == ["t", "h", "e", "c", "a", "|", "blank"]
    assert view.probabilities.shape == (28, 7)
    draw(picture, replace(alignment, evidence=evidence), tmp_path)


@pytest.mark.parametrize(
    "name, magic",
    [
        ("a.png", b"\x89PNG"),
        ("a.svg", b"<?xml"),
        ("a.pdf", b"%PDF"),
        ("a.PNG", b"\x89PNG"),
        (".a.png.tmp7", b"\x89PNG"),
    ],
)
def test_the_suffix_says_the_format_or_it_is_png(name, magic, picture, tmp_path):
    alignment = align(picture, tmp_path, "the cat", "the cat")
    picture.module.draw_picture(alignment, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_the_settings_of_matplotlib_stay(picture, tmp_path):
    before = dict(picture.matplotlib.rcParams)
    picture.module.draw_picture(align(picture, tmp_path, "the", "the"), tmp_path / "a.png")
    assert dict(picture.matplotlib.rcParams) == before


def test_mistakes_are_sentences(picture, tmp_path, monkeypatch):
    alignment = align(picture, tmp_path, "the", "the")

    def refuse(alignment, **options):
        with pytest.raises(SpeechError) as error:
            picture.module.draw_picture(alignment, tmp_path / "a.png", **options)
        assert not (tmp_path / "a.png").exists()
        return str(error.value)

    assert refuse(replace(alignment, evidence=None)) == (
        "a picture needs the model's emissions, and this alignment has none; draw it when you align, since a file does "
        "not keep them"
    )
    assert refuse(replace(alignment, audio=None)) == (
        "a picture needs the recording, and this alignment was made of samples in memory; write them to a file and "
        "align that"
    )
    assert refuse(replace(alignment, audio=Path("gone.wav"))) == "there is no file gone.wav"
    for seconds in (0, -1, 61, float("nan"), "5"):
        assert refuse(alignment, seconds=seconds) == (
            f"a picture shows above 0 and at most 60 seconds, found {seconds!r}"
        )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refuse(alignment) == (
        "drawing a picture needs the package matplotlib, which is not installed; "
        "run: pip install 'torch_ctc_align[picture]'"
    )
