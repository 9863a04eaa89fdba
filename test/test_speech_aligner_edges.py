"""Recordings, texts and models at the edge of what the aligner takes, with the model of harness/speech.py."""

import dataclasses
import math
import pickle
import random

import pytest
import torch
from harness.speech import HOP, LABELS, SAMPLE_RATE, hear, loud_model, say, silence, sound_of

from torch_ctc_align import Pauses
from torch_ctc_align.speech import Aligner, SpeechError, path, stages


@pytest.fixture(autouse=True)
def libraries(missing):
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")


def align(model, frames, text, **options):
    return Aligner.from_model(model)((sound_of(frames), model.sample_rate), text, **options)


def hear_one_more(samples, lengths):
    """A model that pads its input: N samples give N // HOP + 1 frames, and the last one hears the last samples."""
    log_probs, frames = hear(samples, lengths)
    return torch.cat([log_probs, log_probs[:, -1:]], 1), frames + 1


@pytest.mark.parametrize("frames", [34, 35, 36])
def test_a_word_in_the_frame_that_begins_where_the_recording_ends(frames):
    """Frame 35 begins at 35 * 0.02 s, which comes out as 0.7000000000000001, above the 0.7 s of the recording."""
    model = loud_model(receptive_field=0)
    letter = LABELS.index("a")

    def run(samples, lengths):
        log_probs, count = hear_one_more(samples, lengths)
        log_probs[:, -1] = -9.0
        log_probs[:, -1, letter] = -0.01
        return log_probs, count

    model.run = run
    (word,) = align(model, [LABELS.index("b"), *silence(frames - 1)], "a", star=None).words
    assert 0 <= word.start <= word.end == frames * HOP / SAMPLE_RATE


def test_frames_that_are_later_than_the_recording_end_with_it():
    found = align(loud_model(frame_offset=1.5), silence(20) + say("a")[:1], "a")
    (word,) = found.words
    assert word.start == pytest.approx(0.43 - 0.04)  # the lead-in of Pauses
    assert word.end == found.seconds == pytest.approx(0.42)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8000])
def test_what_is_noted_of_the_last_sample_is_told(rate, missing):
    if rate != SAMPLE_RATE:
        try:
            import soxr  # noqa: F401
        except ImportError as error:
            missing("speech", f"{error}; see requirements-dev.txt")
    samples = sound_of(say("the cat"))
    samples[-1] = 3.0
    aligner = Aligner.from_model(loud_model())
    aligner((samples, rate), "cat")
    assert [note for note in aligner.notes if "clipped" in note] == ["samples up to 3.00 clipped to 1"]


@pytest.mark.parametrize("star", ["ends", "words"])
def test_a_star_label_takes_no_free_end_from_the_letter_beside_it(star):
    """The model has no K, so "ak" is a letter and a star label, and more is said before it and after it."""
    labels = ["<k>" if label == "k" else label for label in LABELS]
    intro, outro = [*say("good evening"), *silence(50)], [*silence(50), *say("good evening")]
    found = align(loud_model(labels=labels, language=None), intro + say("ak cat ka") + outro, "ak cat ka", star=star)
    first, cat, last = found.words
    assert [first.status, cat.status, last.status] == ["inferred", "spoken", "inferred"]
    assert cat.confidence == pytest.approx(0.9, abs=1e-5)
    begin = len(intro) * HOP / SAMPLE_RATE
    end = (len(intro) + len(say("ak cat ka"))) * HOP / SAMPLE_RATE
    pauses = Pauses()  # before the first letter and after the last one is silence
    assert begin - pauses.lead_in == pytest.approx(first.start)
    assert first.start < cat.start < last.start < last.end < end + pauses.tail
    assert len(found.unexplained) == 2


def make_text(segments, seed):
    """Segments of three words, and with probability 1/2 a segment after each that is not said."""
    choose = random.Random(seed)

    def segment():
        return " ".join("".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(3))

    said, lines, missing = [], [], []
    for _ in range(segments):
        said.append(segment())
        lines.append(said[-1])
        if choose.random() < 0.5:
            missing.append(len(lines))
            lines.append(segment())
    return " ".join(said), "\n".join(lines), missing


def test_unspoken_segments_cost_no_pass_through_the_whole_recording_each(monkeypatch):
    """A recording of 8 minutes. Beside the first path and the last one, each segment costs two paths, without it and
    with it, through 20 s before its place and after it and the words there, less than 45 s in all."""
    said, text, missing = make_text(400, seed=0)
    assert len(missing) > 150
    seen = []

    def find(asked, blank):
        seen.extend(len(each.log_probs) for each in asked)
        find_all(asked, blank)

    find_all = path.find_all
    for module in (path, stages):
        monkeypatch.setattr(module, "find_all", find)
    found = align(loud_model(), say(said), text, star="words", unspoken=True)
    assert [k for k, segment in enumerate(found.segments) if segment.start is None] == missing
    frames = len(found.evidence.log_probs)
    assert sum(seen) <= 2 * frames + 2 * len(missing) * 45 * SAMPLE_RATE / HOP < len(missing) * frames / 4


@pytest.mark.parametrize("silent_frames", [0, 6000])
def test_a_segment_in_which_more_is_said_comes_back(silent_frames, monkeypatch):
    """Where only some of its words are missing in the text it is spoken; far from the ends as well as near them."""
    before, after = [*say("an owl flew by "), *silence(silent_frames)], [*silence(silent_frames), *say(" they left")]
    frames = before + say("friend of my old uncle had bought himself that very fine long coat") + after
    text = "An owl flew by.\nFriend had coat.\nNobody would believe it!\nThey left."
    found = align(loud_model(), frames, text, star="words", unspoken=True)
    assert [segment.text for segment in found.unspoken] == ["Nobody would believe it!"]
    assert all(word.confidence == pytest.approx(0.9, abs=1e-5) for word in found.words if word.start is not None)
    monkeypatch.setattr(path, "LEAST_GAIN", -math.inf)  # find_unspoken alone leaves it out
    found = align(loud_model(), frames, text, star="words", unspoken=True)
    assert [segment.text for segment in found.unspoken] == ["Friend had coat.", "Nobody would believe it!"]


def test_a_text_that_is_too_long_is_refused_before_the_recording_is_heard():
    model = loud_model()
    model.run = lambda samples, lengths: pytest.fail("the model was run")
    with pytest.raises(
        SpeechError, match=r"its 18 words are 71 labels, which take 71 frames of the model or more, and"
    ):
        align(model, say("the cat"), "the cat " * 9)


@pytest.mark.parametrize("more", [-1, 0, 1, HOP - 1])
@pytest.mark.parametrize("field", [0, 100, HOP, 400])
def test_a_window_is_never_longer_than_the_model_takes(field, more):
    """Windows of 0.4 s are 6400 samples, and the recording has five times as many, a sample less or some more."""
    longest = []

    def run(samples, lengths):
        longest.append(samples.shape[1])
        frames = (lengths - field) // HOP + 1
        return hear(torch.nn.functional.pad(samples, (0, 400)), frames * HOP)[0][:, : int(frames[0])], frames

    model = loud_model(receptive_field=field, window=0.4, context=0.1)
    model.run = run
    samples = torch.full((5 * 6400 + more,), LABELS.index("a") / 100)
    Aligner.from_model(model)((samples, SAMPLE_RATE), "a")
    assert len(longest) > 5
    assert 6400 - HOP - field <= max(longest) <= 6400


def test_a_window_without_end_is_one_pass():
    calls = []
    model = loud_model(window=math.inf)
    model.run = lambda samples, lengths: calls.append(samples.shape) or hear(samples, lengths)
    align(model, say("the cat") + silence(3000), "the cat")
    assert len(calls) == 1


@pytest.mark.parametrize("facts", [{"window": 0.01, "context": 0.0}, {"window": 4.0, "context": 2.0}])
def test_a_window_that_holds_context_alone_is_refused(facts):
    with pytest.raises(SpeechError, match="a window of loud must be longer than a frame and its context of"):
        align(loud_model(**facts), say("the cat"), "the cat")


def test_a_separator_within_the_spelling_of_a_word_is_refused():
    """Words are counted by their labels, and a separator is between them."""
    model = loud_model(spell=lambda part: [LABELS.index(c) for c in part.replace("x", "|")])
    with pytest.raises(SpeechError, match=r"spell\('thexcat'\) of loud gave the label 1, the separator"):
        align(model, say("the cat"), "thexcat")


@pytest.mark.parametrize("letter", ["ä", "ö"])
def test_more_labels_than_classes_are_refused(letter):
    """The first label too many is the number of a star label, the second one that of no class."""
    model = loud_model(labels=[*LABELS, "ä", "ö"])
    with pytest.raises(SpeechError, match="loud has 31 labels and returns 29 classes; give one label for each class"):
        align(model, say("the cat"), f"the c{letter}t")


@pytest.mark.parametrize(
    "frames, milliseconds, reported", [(1, 80, False), (2, 80, True), (4, 20, False), (5, 20, True)]
)
def test_what_is_unexplained_lasts_for_a_tenth_of_a_second(frames, milliseconds, reported):
    """One frame of a model of 80 ms a frame is less; five of 20 ms are 0.1 s, whatever 5 * 0.02 rounds to."""
    model = loud_model(sample_rate=HOP * 1000 // milliseconds)
    sound = [*say("the cat"), *silence(20), *[LABELS.index("z")] * frames]
    found = align(model, sound, "the cat")
    assert [(round(s.start, 2), round(s.end, 2)) for s in found.unexplained] == (
        [((len(sound) - frames) * milliseconds / 1000, len(sound) * milliseconds / 1000)] if reported else []
    )


def test_without_its_evidence_an_alignment_can_be_pickled():
    model = loud_model()
    model.run = lambda samples, lengths: hear(samples, lengths)  # which itself cannot
    found = align(model, say("the cat"), "the cat")
    alone = dataclasses.replace(found, evidence=None)
    assert pickle.loads(pickle.dumps(alone)) == found  # evidence is not compared


def test_what_progress_raises_ends_the_call():
    class Stop(Exception):
        pass

    def stop(what, done, total):
        calls.append(done)
        raise Stop

    calls = []
    with pytest.raises(Stop):
        align(loud_model(window=1.0, context=0.1), say("the cat sat on the mat"), "the cat", progress=stop)
    assert len(calls) == 1
