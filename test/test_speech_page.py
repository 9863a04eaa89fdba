"""The page to listen to, in a real browser: what is lit, what is clicked, what is heard."""

import json
import shutil
from pathlib import Path

import pytest

from torch_ctc_align.speech import Segment, SpeechAlignment, SpeechError, Word
from torch_ctc_align.speech.page import make_page

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "examples/data/sense_and_sensibility_01_austen_64kb-0870.wav"
CLIP_TEXT = CLIP.with_suffix(".txt").read_text("utf-8").strip()
# The times of another aligner: start and end of each word, in seconds.
CLIP_TIMES = json.loads((ROOT / "test/data/sense_and_sensibility_0870_pocketsphinx.json").read_text("utf-8"))["words"]


def clip_alignment(**changes):
    """The alignment of the clip, one segment, every word spoken."""
    words, place = [], 0
    for spelled, (_, start, end) in zip(CLIP_TEXT.rstrip(".").split(), CLIP_TIMES, strict=True):
        begin = CLIP_TEXT.index(spelled, place)
        place = begin + len(spelled)
        words.append(Word(spelled, begin, place, 0, start, end, -0.1, 0.9, "spoken"))
    segment = Segment(CLIP_TEXT, 0, len(CLIP_TEXT), range(len(words)), words[0].start, words[-1].end, 0.9, 0.9, 0.9)
    facts = {"text": CLIP_TEXT, "words": words, "segments": [segment], "tokens": [], "unexplained": [],
             "seconds": 7.1, "seconds_per_frame": 0.02, "score": -30.0, "model": "by hand", "audio": CLIP}  # fmt: skip
    return SpeechAlignment(**(facts | changes))


@pytest.fixture(scope="module")
def chromium():
    """A browser, or why there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        yield str(error)
        return
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        yield "there is no chromium"
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, missing, tmp_path):
    """show(alignment, embed=..., **of the browser's context) opens the page from a file."""
    if isinstance(chromium, str):
        missing("chromium", chromium)
    contexts, complaints = [], []

    def open_page(alignment, *, embed=None, **context):
        file = tmp_path / "page.html"
        file.write_text(make_page(alignment, embed=embed), "utf-8")
        contexts.append(chromium.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "http" in request.url[:4] else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def until(page, condition):
    """Waits for a JavaScript expression. (The page's security policy forbids playwright's own way.)"""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"within 4 seconds there was no {condition}")


def test_an_alignment_of_samples_has_no_page():
    with pytest.raises(SpeechError, match="needs the recording's file"):
        make_page(clip_alignment(audio=None))


def test_a_click_on_a_word_plays_from_there_and_lights_it(show):
    page = show(clip_alignment())
    page.get_by_text("leisure", exact=True).click()
    until(page, "page.audio.currentTime > 2.3")
    assert page.locator(".lit").inner_text() == "leisure"


def test_space_plays_and_pauses(show):
    page = show(clip_alignment())
    page.keyboard.press(" ")
    until(page, "page.audio.currentTime > 0.1")
    page.keyboard.press(" ")
    assert page.evaluate("page.audio.paused")
