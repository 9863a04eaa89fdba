"""The whole way from samples and a text to words, with a model whose letters are as loud as their numbers.

What the recording and the text do not share is built frame by frame, so the right answer is known.
"""

import math

import pytest
import torch
from harness.speech import BLANK, HOP, LABELS, SAMPLE_RATE, loud_model, samples_of, say, silence, sound_of

from torch_ctc_align import span_posteriors
from torch_ctc_align.speech import Aligner, SpeechError

SECONDS_PER_FRAME = HOP / SAMPLE_RATE


@pytest.fixture(autouse=True)
def libraries(missing):
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")


@pytest.fixture
def aligner():
    return Aligner.from_model(loud_model())


def align(aligner, frames, text, **options):
    return aligner((sound_of(frames), SAMPLE_RATE), text, **options)


def at(frame):
    """When a frame begins."""
    return pytest.approx(frame * SECONDS_PER_FRAME, abs=1e-6)


def times(words):
    return [(word.text, word.start, word.end) for word in words]


def test_words_are_where_they_are_said(aligner):
    aligner.borders = "drop"
    alignment = align(aligner, silence(20) + say("the cat sat") + silence(30), "The cat, sat!")
    begins = [20, 20 + len(say("the ")), 20 + len(say("the cat "))]
    # A word of three letters: 2 frames each, with 2 of silence between two of them.
    assert times(alignment.words) == [
        (word, at(begin), at(begin + 10)) for word, begin in zip(["The", "cat", "sat"], begins, strict=True)
    ]
    assert [alignment.text[word.begin : word.stop] for word in alignment.words] == ["The", "cat", "sat"]
    assert [word.status for word in alignment.words] == ["spoken"] * 3
    for word in alignment.words:
        assert word.confidence == pytest.approx(0.9, abs=1e-5)
        assert word.posterior > 0.9
    assert alignment.confidence == pytest.approx(0.9, abs=1e-5)
    assert alignment.score == pytest.approx((20 + len(say("the cat sat")) + 30) * math.log(0.9), rel=1e-4)
    assert alignment.unexplained == []


def test_tokens_are_the_labels_of_their_words(aligner):
    alignment = align(aligner, say("a cat"), "A cat")
    assert [(token.label, token.word) for token in alignment.tokens] == [("a", 0), ("|", -1), *((c, 1) for c in "cat")]
    assert [(token.start, token.end) for token in alignment.tokens] == [(at(4 * k), at(4 * k + 2)) for k in range(5)]
    assert alignment.tokens[2].confidence == pytest.approx(0.9, abs=1e-5)


def test_lines_are_segments(aligner):
    text = "\nThe cat sat.\n\n  On the mat!  \n..."
    alignment = align(aligner, samples_as_frames("the cat sat on the mat"), text)
    assert [segment.text.strip() for segment in alignment.segments] == ["The cat sat.", "On the mat!"]
    assert [list(segment.words) for segment in alignment.segments] == [[0, 1, 2], [3, 4, 5]]
    first, second = alignment.segments
    assert (first.start, first.end) == (alignment.words[0].start, alignment.words[2].end)
    assert first.end <= second.start
    assert first.confidence == pytest.approx(0.9, abs=1e-5)
    assert [word.segment for word in alignment.words] == [0] * 3 + [1] * 3


def samples_as_frames(text):
    return say(text)


def test_a_segment_has_mean_and_weakest_confidence(aligner):
    frames = say("the cat")
    frames[len(say("the ")) :] = [LABELS.index("z") if f == LABELS.index("c") else f for f in say("cat")]
    (segment,) = align(aligner, frames, "the cat").segments
    the, cat = align(aligner, frames, "the cat").words
    assert cat.confidence < 0.5 < the.confidence
    assert segment.weakest == cat.confidence
    spans = [word.end - word.start for word in (the, cat)]
    mean = (spans[0] * the.confidence + spans[1] * cat.confidence) / sum(spans)
    assert segment.confidence == pytest.approx(mean)


@pytest.mark.parametrize("star", ["ends", "words"])
def test_stars_change_nothing_where_the_text_is_right(aligner, star):
    frames = silence(20) + say("the cat sat on the mat") + silence(30)
    plain = align(aligner, frames, "The cat sat. On the mat.", star=None)
    found = align(aligner, frames, "The cat sat. On the mat.", star=star)
    assert times(found.words) == times(plain.words)
    assert found.tokens == plain.tokens
    assert found.score == plain.score
    assert found.unexplained == []


def test_an_intro_is_unexplained(aligner):
    text, intro = "the cat sat", say("good evening") + silence(40)
    plain = align(aligner, say(text), text)
    found = align(aligner, intro + say(text), text)
    # Until the last frame of the last letter.
    (stretch,) = found.unexplained
    assert (stretch.start, stretch.end) == (at(0), at(len(say("good evening")) - 2))
    for ours, alone in zip(found.words[1:], plain.words[1:], strict=True):  # "the" has more silence before it
        assert ours.start == pytest.approx(alone.start + SECONDS_PER_FRAME * len(intro), abs=1e-6)


def test_left_out_words_are_unexplained_where_they_are(aligner):
    found = align(aligner, say("the cat and two dogs sat down"), "the cat sat down", star="words")
    begin, end = len(say("the cat ")), len(say("the cat and two dogs")) - 2
    (stretch,) = found.unexplained
    assert (stretch.start, stretch.end) == (at(begin), at(end))
    assert found.words[2].start >= stretch.end


def test_an_unspoken_segment_is_left_out_and_named(aligner):
    frames = say("the cat sat on the mat")
    plain = align(aligner, frames, "The cat sat.\nOn the mat.", star="words")
    text = "The cat sat.\nNobody would believe it!\nOn the mat.\nWhich was green."
    found = align(aligner, frames, text, star="words", unspoken=True)
    assert [segment.text for segment in found.unspoken] == ["Nobody would believe it!", "Which was green."]
    missing = [word for word in found.words if word.status == "unspoken"]
    assert [word.text for word in missing] == ["Nobody", "would", "believe", "it", "Which", "was", "green"]
    assert {(word.start, word.end, word.score, word.posterior, word.confidence) for word in missing} == {(None,) * 5}
    assert times(word for word in found.words if word.status != "unspoken") == times(plain.words)
    # Tokens name the words of the whole text.
    assert "".join(token.label for token in found.tokens if token.word == 7) == "on"
    assert found.words[7].text == "On"
    assert {segment.start for segment in found.unspoken} == {None}


def test_sentences_can_be_the_segments(aligner):
    found = align(aligner, say("he left did he"), "He left. Did he?", split="sentences")
    assert [segment.text for segment in found.segments] == ["He left.", "Did he?"]


@pytest.mark.parametrize("star", [None, "ends", "words"])
def test_words_that_cannot_be_spelt_get_what_is_left(star):
    aligner = Aligner.from_model(loud_model(language=None))
    found = align(aligner, say("call nine one one now"), "call 911 now", star=star)
    assert [word.status for word in found.words] == ["spoken", "inferred", "spoken"]
    call, number, now = found.words
    assert (number.confidence, number.posterior) == (None, None)
    begin, end = len(say("call ")), len(say("call nine one one"))
    assert call.end == number.start == pytest.approx(SECONDS_PER_FRAME * begin, abs=0.1)
    assert number.end == now.start == pytest.approx(SECONDS_PER_FRAME * end, abs=0.1)
    assert found.unexplained == []
    assert "911" in " ".join(aligner.notes)
    assert [token.label for token in found.tokens if token.word == 1] == ["*"]


def test_a_part_of_a_recording_has_the_times_of_the_whole(aligner):
    frames = silence(50) + say("the cat") + silence(50)
    whole = align(aligner, frames, "the cat")
    part = align(aligner, frames, "the cat", offset=0.5, duration=2.0)
    assert times(part.words) == [(text, pytest.approx(s), pytest.approx(e)) for text, s, e in times(whole.words)]
    assert part.seconds == pytest.approx(2.5)
    assert part.evidence.start == 0.5


def test_windows_give_what_one_pass_gives(aligner):
    """The model has no context of its own, so windows must not change anything."""
    text = "the cat sat on the mat and the dog lay on the floor " * 6
    one = align(aligner, say(text.strip()), text)
    cut = Aligner.from_model(loud_model(window=3.0, context=0.5))
    cut.batch_size = 3
    calls = []
    found = align(cut, say(text.strip()), text, progress=lambda *call: calls.append(call))
    assert torch.equal(found.evidence.log_probs, one.evidence.log_probs)
    assert found.words == one.words
    frames = len(found.evidence.log_probs)
    assert len(calls) > 3
    assert {(what, total) for what, _, total in calls} == {("listening", frames)}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == frames


def test_emissions_can_be_half_as_wide(aligner):
    aligner.dtype = torch.float16
    found = align(aligner, say("the cat sat"), "the cat sat")
    assert found.evidence.log_probs.dtype == torch.float16
    assert [word.status for word in found.words] == ["spoken"] * 3


def test_a_model_without_a_separator(aligner):
    frames = [frame for frame in say("thecatsat") if frame != LABELS.index("|")]
    found = align(Aligner.from_model(loud_model(separator=None)), frames, "the cat sat", star="words")
    assert [token.label for token in found.tokens] == [*"thecatsat"]
    assert [word.status for word in found.words] == ["spoken"] * 3


def test_posteriors_of_pieces_are_those_of_the_whole(aligner, monkeypatch):
    """Pieces leave out the paths on which the labels beside them lie elsewhere: as many as their posteriors say."""
    from torch_ctc_align.speech import stages

    text = "the cat sat on the mat"
    frames = say(text)
    for place in range(10, len(frames), 7):  # a doubtful frame here and there
        frames[place] = LABELS.index("q")
    whole = align(aligner, frames, text)
    evidence = whole.evidence
    starts = torch.tensor([[round(token.start / SECONDS_PER_FRAME) for token in whole.tokens]])
    ends = torch.tensor([[round(token.end / SECONDS_PER_FRAME) for token in whole.tokens]])
    stars = {"star_scores": evidence.star_scores[None], "wild_gaps": evidence.wild_gaps[None]}
    exact, _ = span_posteriors(evidence.log_probs[None], evidence.targets[None], starts, ends, blank=BLANK, **stars)
    lengths = (ends - starts)[0]
    for k, word in enumerate(whole.words):
        mine = torch.tensor([token.word == k for token in whole.tokens])
        assert word.posterior == pytest.approx(float((exact[0] * lengths)[mine].sum() / lengths[mine].sum()), rel=1e-5)

    monkeypatch.setattr(stages, "POSTERIOR_CORE", 20 * SECONDS_PER_FRAME)
    monkeypatch.setattr(stages, "POSTERIOR_CONTEXT", 20 * SECONDS_PER_FRAME)
    pieces = align(aligner, frames, text)
    elsewhere = 2 * (1 - float(exact.min()))
    assert [word.posterior for word in pieces.words] == [
        pytest.approx(word.posterior, abs=elsewhere) for word in whole.words
    ]
    assert [word.posterior for word in pieces.words] != [word.posterior for word in whole.words]
    assert min(word.posterior for word in whole.words) < 0.99


def test_posteriors_can_be_left_out(aligner):
    aligner.posteriors = False
    found = align(aligner, say("the cat"), "the cat")
    assert found.posterior is None
    assert found.confidence == pytest.approx(0.9, abs=1e-5)


def test_the_evidence_is_what_was_aligned(aligner):
    found = align(aligner, say("a cat"), "a cat")
    evidence = found.evidence
    labels = [LABELS[k] for k in evidence.targets.tolist()]
    assert "".join(labels) == "a|cat"
    assert list(evidence.tokens_per_word) == [1, 3]
    torch.testing.assert_close(evidence.scores, evidence.log_probs.gather(1, evidence.path[:, None])[:, 0])
    assert evidence.path.tolist() == say("a cat")
    assert evidence.model.blank == BLANK


@pytest.mark.parametrize(
    "frames, text, options, message",
    [
        (say("the cat"), "...", {}, "words"),
        (say("the cat"), "", {}, "words"),
        (say("the cat"), "the cat " * 9, {}, r"the text is too long for the recording: its 18 words are \d+ labels"),
        (say("the cat"), "the cat " * 9, {"unspoken": True}, "the text is too long for the recording"),
        (say("the cat sat"), "An owl flew.", {"star": "words", "unspoken": True}, "no segment of the text is in"),
        (silence(100), "the cat", {}, "the recording is silent"),
        (say("the cat"), "the cat", {"star": "all"}, "star must be one of ends, words, None, found 'all'"),
    ],
)
def test_what_cannot_be_aligned_is_said(aligner, frames, text, options, message):
    with pytest.raises(SpeechError, match=message):
        align(aligner, frames, text, **options)


def test_a_recording_of_less_than_a_frame_is_too_short(aligner):
    with pytest.raises(SpeechError, match=r"the recording is too short: 0\.006 s, and a frame of the model takes 0\.0"):
        aligner((samples_of("a")[:100], SAMPLE_RATE), "a")


def test_emissions_that_are_no_numbers_are_said():
    model = loud_model()
    hear = model.run
    model.run = lambda *arguments: (hear(*arguments)[0] * torch.nan, hear(*arguments)[1])
    with pytest.raises(SpeechError, match="are NaN at frame 0 of the recording"):
        align(Aligner.from_model(model), say("the cat"), "the cat")
