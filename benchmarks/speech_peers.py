"""Finds words in saved emissions with two other aligners, ctc-forced-aligner and whisperX, with the code they ship.

speech_accuracy.py starts this in the environment of `make test-clients`:

    LD_LIBRARY_PATH=.clients/stubs .clients/bin/python benchmarks/speech_peers.py EMISSIONS.pt RESULTS.json

EMISSIONS.pt, of torch.save: {"labels": C, "blank": class, "separator": class, "clips": [{"log_probs": (T, C),
"words": [[class, ...], ...], "samples": N}, ...]}, at 16 kHz. RESULTS.json: {"versions": {client: version}, "aligners":
{name: {"borders": [[[start, end], ...] or None, ...], "seconds": [...]}}}, for every clip; None is a clip that the
aligner refuses.
"""

import importlib
import json
import math
import statistics
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch

SAMPLE_RATE = 16_000
ROUNDS = 3  # of each clip; its time is the median


def load_ctc_forced_aligner():
    """librosa only reads audio there, and onnxruntime only runs a model that it fetches; empty modules replace them."""
    absent = ("librosa", "onnxruntime")
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
    client = importlib.import_module("ctc_forced_aligner")
    for name in absent:
        del sys.modules[name]  # transformers would take it for the library
    return client


def make_ctc_forced_aligner(given, stars):
    """With ``stars``: <star>, with log-probability 0, before every word, as its program does; else our targets."""
    client = load_ctc_forced_aligner()
    names = [f"c{label}" for label in range(given["labels"])]
    names[given["blank"]] = "<blank>"
    vocabulary = {name: label for label, name in enumerate(names)}
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, pad_token_id=given["blank"])

    def align(clip):
        star = torch.zeros(len(clip["log_probs"]), 1)  # generate_emissions appends this class
        emissions = torch.cat([clip["log_probs"], star], 1).numpy()
        stride = math.ceil(clip["samples"] * 1000 / len(emissions) / SAMPLE_RATE)  # as generate_emissions has it
        words = [" ".join(names[label] for label in word) for word in clip["words"]]
        # postprocess_results leaves out what is called <star> in the text, so the separators are called that, too.
        between = "<star>" if stars else names[given["separator"]]
        tokens = [token for word in words for token in (between, word)]
        text = [part for number in range(len(words)) for part in ("<star>", str(number))]
        if not stars:
            tokens, text = tokens[1:], text[1:]

        def call():
            segments, scores, blank = client.get_alignments(emissions, tokens, tokenizer)
            spans = client.get_spans(tokens, segments, blank)
            return client.postprocess_results(text, spans, stride, scores)

        return call

    return align


def make_whisperx(given):
    """Its whole align(), with a model that returns the emissions, and a character for every class."""
    client = importlib.import_module("whisperx.alignment")
    # Stands in for the sentence splitter, which is fetched: a clip is a sentence.
    client.nltk_load = lambda path: SimpleNamespace(span_tokenize=lambda text: [(0, len(text))])
    characters = [chr(0xE000 + label) for label in range(given["labels"])]
    characters[given["blank"]], characters[given["separator"]] = "[pad]", "|"
    metadata = {
        "language": "en",
        "dictionary": {character: label for label, character in enumerate(characters)},
        "type": "huggingface",
    }

    def align(clip):
        text = " ".join("".join(characters[label] for label in word) for word in clip["words"])
        transcript = [{"start": 0.0, "end": clip["samples"] / SAMPLE_RATE, "text": text}]
        audio = torch.zeros(1, clip["samples"])
        output = SimpleNamespace(logits=clip["log_probs"][None])

        def call():
            return client.align(transcript, lambda waveform: output, metadata, audio, "cpu")["word_segments"]

        return call

    return align


def measure(make_call, clips):
    borders, seconds = [], []
    for clip in clips:
        call = make_call(clip)
        times = []
        try:
            for _ in range(ROUNDS):
                began = time.perf_counter()
                words = call()
                times.append(time.perf_counter() - began)
            found = [[word["start"], word["end"]] for word in words]
            borders.append(found if len(found) == len(clip["words"]) else None)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            borders.append(None)
        seconds.append(statistics.median(times) if times else None)
    return {"borders": borders, "seconds": seconds}


def main() -> None:
    torch.set_num_threads(1)
    emissions, results = map(Path, sys.argv[1:])
    given = torch.load(emissions)
    aligners = {
        "ctc-forced-aligner": make_ctc_forced_aligner(given, stars=True),
        "ctc-forced-aligner, separators": make_ctc_forced_aligner(given, stars=False),
        "whisperX": make_whisperx(given),
    }
    found = {name: measure(make_call, given["clips"]) for name, make_call in aligners.items()}
    versions = {client: version(client) for client in ("ctc-forced-aligner", "whisperx", "torch")}
    results.write_text(json.dumps({"versions": versions, "aligners": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
