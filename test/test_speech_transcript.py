"""The text: words with their places in it, segments, and what is said about both."""

import pytest
from harness.speech import LABELS, SEPARATOR, loud_model

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.transcript import read_text_file, read_transcript

STAR_LABEL = len(LABELS)


def words_of(text, **options):
    return [word.text for word in read_transcript(text, loud_model(), **options).words]


def test_words_are_what_stands_between_spaces_and_dashes_without_punctuation():
    assert words_of("It's 'it' -- \"So\"—he said… (hang-up), isn’t it?") == [
        *("It's", "it", "So", "he", "said", "hang-up", "isn’t", "it")
    ]


def test_targets_have_separators_between_words_and_parts():
    transcript = read_transcript("Hang-up, now", loud_model())
    targets, counts = transcript.targets(star=STAR_LABEL, separator=SEPARATOR)
    assert "".join(LABELS[label] for label in targets) == "hang|up|now"
    assert counts == [6, 3]


def test_a_text_without_words_is_an_error():
    with pytest.raises(SpeechError, match="the text has no words"):
        read_transcript(" -- … ☃ \n", loud_model())


def test_a_text_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("Größe".encode("utf-8-sig"))
    assert read_text_file(path) == "Größe"
