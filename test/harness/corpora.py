"""Corpora for tests: recordings that say their texts, and a model that notes what it hears and obeys some words.

As a program, ``python corpora.py ARGUMENTS``, it is the command ``ctc-align corpus`` with this model. The environment
says more:

    HEARD    a file; whatever the model hears is a line in it, with the number of the process
    ONCE     a folder for marks: "zap" kills the process, and "sleep" takes half a minute, but for the first time only
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from harness.speech import LABELS, SAMPLE_RATE, hear, loud_model, samples_of
from torch_ctc_align.speech.models import AcousticModel

WORDS = ["the cat sat", "a dog ran", "we all know", "it was late", "go home now"]


def put_corpus(folder, texts):
    """Writes 16-bit recordings 0.wav, 1.wav, ... and manifest.jsonl. Returns its path.

    A text may be a pair: what the recording says, and what the manifest says. None: there is no recording.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k, text in enumerate(texts):
        said, written = text if isinstance(text, tuple) else (text, text)
        if said is not None:
            put_sound(folder / f"{k}.wav", said)
        lines.append({"id": f"item {k}", "audio_filepath": f"{k}.wav", "text": written})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def put_sound(path, text):
    """A 16-bit recording, in whose steps of 1/32768 a loudness of 1/100 more is a class of its own still."""
    import soundfile

    soundfile.write(path, samples_of(text), SAMPLE_RATE, subtype="PCM_16")


def texts(count):
    return [WORDS[k % len(WORDS)] for k in range(count)]


def heard(path):
    """[(process, text)]: what the model noted."""
    if not path.exists():
        return []
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in path.read_text().splitlines()]


def spell(classes):
    """The text of a row of classes, as ``harness.speech.say`` spells it: two frames a letter, two of silence."""
    return "".join(LABELS[c] for c in classes[::4] if c).replace("|", " ")


def listen(samples, lengths):
    log_probs, frames = hear(samples, lengths)
    for row, count in zip(log_probs.argmax(2).tolist(), frames.tolist(), strict=True):
        text = spell(row[:count])
        if "HEARD" in os.environ:
            with open(os.environ["HEARD"], "a") as file:
                file.write(f"{os.getpid()} {text}\n")
        obey(text)
    return log_probs, frames


def obey(text):
    if "kill" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "zap" in text and is_first("zap"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "sleep" in text and is_first("sleep"):
        time.sleep(30)
    if "nap" in text:
        time.sleep(0.1)
    if "fail" in text:
        raise RuntimeError("the model is broken")
    if "stop" in text:
        raise KeyboardInterrupt


def is_first(name):
    try:
        Path(os.environ["ONCE"], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def watched_model():
    """loud_model() that notes and obeys."""
    model = loud_model()
    facts = {name: getattr(model, name) for name in ("labels", "blank", "hop", "sample_rate", "receptive_field")}
    return AcousticModel(listen, separator=model.separator, language="en", name="loud", **facts)


def broken_model():
    raise RuntimeError("no such layer")


def deadly_model():
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments):
    from torch_ctc_align.speech import command
    from torch_ctc_align.speech.command import corpus

    corpus.choose_model = lambda arguments: watched_model
    return command.main(["corpus", *arguments])


if __name__ == "__main__":
    from harness import corpora

    sys.exit(corpora.main(sys.argv[1:]))
