#!/usr/bin/env python3
"""Measures corpora: what the aligner costs, two workers beside one, memory, and every engine on a corpus with faults.

    .venv/bin/python benchmarks/corpora.py [--items 5000] [--engines loop,local,datasets,ray] [--out docs/measurements]

An item is one or two of the prompts and clips of examples/speech_data.py with a pause between them, as a WAV file. One
in a hundred is broken on purpose, in ten ways. Each engine aligns all of them with the English model, and its rows are
compared with those of a plain loop. Writes corpora.md; takes half an hour on two idle cores.

Engines that cannot be imported are left out; the environment of make test-corpora has all of them. Needs
examples/requirements.txt, and apt-get to fetch the prompts the first time.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import commit_and_date, configuration, output_of
from page import table
from processes import ROOT, add_child_option, run_as_child, run_child

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "test"))
import speech_data
from harness.speech import loud_model, samples_of

from torch_ctc_align.speech import Aligner
from torch_ctc_align.speech.corpus import COLUMNS, Align, align

LIMIT_S = 3600  # of a process
RATE = 16_000
BROKEN_EVERY = 100
PAUSE_S = 0.3
GIVEN_ITEMS, REPEATS = 600, 5
LONGER_ITEMS, LONGER_CLIPS = 120, (8, 14)
MEMORY_ITEMS, MEMORY_BATCH = 10_000, 1000
SCALING_SHARD_ROWS, SCALING_RUNS = 100, 3

# What is done to an item, and the status that it must get.
FAULTS = {
    "vanished": "unreadable",
    "empty file": "unreadable",
    "not sound": "unreadable",
    "cut short": "unreadable",
    "silent": "unreadable",
    "a folder": "unreadable",
    "shorter than a frame": "unreadable",
    "text that does not fit": "too_long_text",
    "text without words": "no_text",
    "a line that is no JSON": "bad_row",
}


# --------------------------------------------------------------------------------------------------- the corpus


def make_corpus(folder: Path, items: int, clips_an_item: tuple[int, int] = (1, 2)) -> dict[str, Any]:
    """Writes recordings and manifest.jsonl; returns the seconds of those that are not broken, and the faults."""
    clips = speech_data.read_corpus(speech_data.fetch_prompts()) + speech_data.read_corpus(speech_data.CLIPS)
    sounds = [read_frames(clip.path) for clip in clips]
    choose = random.Random(0)
    seconds, lines, expected = 0.0, [], Counter[str]()
    folder.mkdir(parents=True)
    for item in range(items):
        chosen = choose.sample(range(len(clips)), choose.randint(*clips_an_item))
        pause = bytes(2 * round(PAUSE_S * choose.random() * RATE))
        sound = pause.join(sounds[k] for k in chosen)
        text = " ".join(word for k in chosen for word in clips[k].words)
        name = f"{item:05d}.wav"
        path = folder / name
        line = None
        if item % BROKEN_EVERY == BROKEN_EVERY // 2:
            fault = list(FAULTS)[item // BROKEN_EVERY % len(FAULTS)]
            expected[FAULTS[fault]] += 1
            if fault == "text that does not fit":
                text = " ".join([text] * 60)
            elif fault == "text without words":
                text = "..."
            elif fault == "a line that is no JSON":
                line = '{"audio_filepath": "' + name
            elif fault == "silent":
                sound = bytes(len(sound))
            elif fault == "shorter than a frame":
                sound = sound[:100]
            write_wave(path, sound)
            spoil(path, fault)
        else:
            write_wave(path, sound)
            seconds += len(sound) / 2 / RATE
        lines.append(line or json.dumps({"audio_filepath": name, "text": text}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"items": items, "seconds": seconds, "expected": expected}


def read_frames(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert file.getparams()[:3] == (1, 2, RATE)
        return file.readframes(file.getnframes())


def write_wave(path: Path, sound: bytes) -> None:
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes(sound)


def spoil(path: Path, fault: str) -> None:
    if fault == "vanished":
        path.unlink()
    elif fault == "empty file":
        path.write_bytes(b"")
    elif fault == "not sound":
        path.write_bytes(b"<html>404 Not Found</html>")
    elif fault == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault == "a folder":
        path.unlink()
        path.mkdir()


def read_manifest(folder: str) -> dict[str, list[Any]]:
    """The rows that are JSON, as a user would read them."""
    rows = []
    for line in (Path(folder) / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return {
        "id": [row["audio_filepath"] for row in rows],
        "audio": [os.path.join(folder, row["audio_filepath"]) for row in rows],
        "text": [row["text"] for row in rows],
    }


# -------------------------------------------------------------------------------------- the aligner's own cost

STAGES = {
    "spell": "words of the text and their labels",
    "open_item": "opening, lengths",
    "read_ahead": "reading, checking and keeping samples",
    "listen": "cutting windows, emissions (given), star scores",
    "choose_words": "targets and wild gaps",
    "find_paths": "`forced_align`, one call for all",
    "place_words": "spans, words, borders",
    "_columns_of": "columns",
}
SOUND = ("open_item", "read_ahead", "listen")  # with a model they wait for it, or it for them


def measure_given(folder: str) -> dict[str, Any]:
    """One thread of torch; the English model has heard the items before, and its emissions are looked up."""
    torch.set_num_threads(1)
    manifest = read_manifest(folder)
    aligner = Aligner.english()
    heard: dict[Any, Any] = {}
    run = aligner.model.run

    def key(samples: torch.Tensor) -> tuple[Any, ...]:
        return (samples.shape[1], *samples[0, :: max(1, samples.shape[1] // 8)].tolist())

    def listen(samples: torch.Tensor, lengths: torch.Tensor) -> Any:
        heard[key(samples)] = run(samples, lengths)
        return heard[key(samples)]

    aligner.model.run = listen
    aligning = Align(lambda: aligner, threads=1)
    kept = {name: values[: GIVEN_ITEMS + GIVEN_ITEMS // 50] for name, values in manifest.items()}
    first = aligning(kept)
    good = [k for k, status in enumerate(first["status"]) if status == "ok"][:GIVEN_ITEMS]
    batch = {name: [values[k] for k in good] for name, values in kept.items()}
    batch["audio"] = [(torch.frombuffer(bytearray(read_frames(Path(path))), dtype=torch.int16), RATE)
                      for path in batch["audio"]]  # fmt: skip
    aligner.model.run = lambda samples, lengths: heard[key(samples)]
    seconds = sum(first["seconds"][k] for k in good)

    whole = [timed(lambda: aligning(batch)) for _ in range(REPEATS + 1)][1:]
    spent = dict.fromkeys(STAGES, 0.0)
    for name in STAGES:
        setattr(align, name, around(getattr(align, name), name, spent))
    for _ in range(REPEATS):
        aligning(batch)
    return {
        "items": len(good),
        "seconds": seconds,
        "labels": sum(map(len, first["words"])),
        "whole": statistics.median(whole),
        "spent": {name: value / REPEATS for name, value in spent.items()},
    }


def timed(function: Callable[[], Any]) -> float:
    """Processor seconds, of all threads."""
    began = time.process_time()
    function()
    return time.process_time() - began


def around(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Adds up the processor seconds of the thread that calls the function."""

    def clocked(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.thread_time() - began

    return clocked


def measure_share(folder: str) -> dict[str, Any]:
    """The same stages with the English model at work, in processor seconds of the whole process."""
    torch.set_num_threads(1)
    manifest = read_manifest(folder)
    batch = {name: values[:GIVEN_ITEMS] for name, values in manifest.items()}
    aligning = Align(threads=1)
    spent = dict.fromkeys(STAGES, 0.0)
    aligning({name: values[:20] for name, values in batch.items()})
    spelling = aligning._spelling
    known = {word for text in batch["text"][:20] for word in text.split()}
    new = {word for text in batch["text"] for word in text.split()} - known
    pronouncing = timed(lambda: [align.spell(word, aligning.aligner.model, aligning.options, spelling) for word in new])
    for name in STAGES:
        setattr(align, name, around(getattr(align, name), name, spent))
    whole = timed(lambda: aligning(batch))
    return {"whole": whole, "spent": spent, "pronouncing": pronouncing / len(new), "words": len(new)}


# ------------------------------------------------------------------------------------------------- memory


def measure_memory() -> dict[str, Any]:
    """Resident memory after each thousand items, with a model that costs nothing."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=choose.randint(1, 9))) for _ in range(50_000)]
    aligning, resident = Align(loud_model), []
    for _ in range(0, MEMORY_ITEMS, MEMORY_BATCH):
        texts = [" ".join(choose.choices(words, k=choose.randint(1, 8))) for _ in range(MEMORY_BATCH)]
        done = aligning({"audio": [(samples_of(text), RATE) for text in texts], "text": texts})
        assert set(done["status"]) == {"ok"}
        del done
        resident.append(1024 * int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1e6)
    return {"resident": resident, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


# ------------------------------------------------------------------------------------------------ engines


def run_command(folder: Path, out: Path, *options: str, cores: Sequence[int] = ()) -> float:
    """Seconds of ``ctc-align corpus``."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "torch_ctc_align.speech", "corpus", folder / "manifest.jsonl", out, "--quiet"]
    command += options
    if cores:
        command[:0] = ["taskset", "--cpu-list", ",".join(map(str, cores))]
    began = time.perf_counter()
    done = subprocess.run(list(map(str, command)), env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=2)
    if done.returncode not in (0, 3):
        sys.exit(f"corpora: {' '.join(map(str, command))} ended with {done.returncode}")
    return time.perf_counter() - began


def measure_scaling(folder: Path, scratch: Path) -> dict[str, list[float]]:
    """Seconds of one worker on a core, two on two, and two commands side by side, each with a worker and a core."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    shards = ("--shard-rows", str(SCALING_SHARD_ROWS))

    def one(core: int) -> float:
        return run_command(folder, scratch / f"core {core}", "--workers", "1", *shards, cores=[core])

    took: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    for _ in range(SCALING_RUNS):
        took["one"].append(one(first))
        took["two"].append(run_command(folder, scratch / "both", "--workers", "2", *shards, cores=[first, second]))
    with ThreadPoolExecutor(2) as pool:
        took["apart"].append(max(pool.map(one, (first, second))))
    print("scaling", took, file=sys.stderr)
    return took


def read_parts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl"))
            for line in part.read_text(encoding="utf-8").splitlines()]  # fmt: skip


def write_rows(done: dict[str, Any], path: str) -> None:
    rows = zip(*(done[name] for name in ("id", *COLUMNS)), strict=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(("id", *COLUMNS), row, strict=True))) + "\n")


def align_in_a_loop(folder: str, rows: str) -> dict[str, Any]:
    """Every item alone, with one thread of torch, as a worker has with this model."""
    torch.set_num_threads(1)
    manifest = read_manifest(folder)
    aligning = Align()
    aligning({name: values[:1] for name, values in manifest.items()})
    began = time.perf_counter()
    done: dict[str, list[Any]] = {name: [] for name in ("id", *COLUMNS)}
    for k in range(len(manifest["id"])):
        one = aligning({name: [values[k]] for name, values in manifest.items()})
        for name, values in done.items():
            values += one[name]
    took = time.perf_counter() - began
    write_rows(done, rows)
    return {"took": took}


def align_with_datasets(folder: str, rows: str) -> dict[str, Any]:
    """As docs/corpora.md has it."""
    import datasets

    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    corpus = datasets.Dataset.from_dict(read_manifest(folder)).with_format("arrow")
    began = time.perf_counter()
    done = corpus.map(Align(), batched=True, batch_size=1000, new_fingerprint="aligned")
    took = time.perf_counter() - began
    write_rows(done.with_format(None).to_dict(), rows)
    return {"took": took}


def compare(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    """How the rows of an engine differ from those of the loop, which has no rows for lines that are no JSON."""
    names = [name for name in COLUMNS if name != "message"]  # a path in it may be spelt otherwise
    found = {row["id"]: [row[name] for name in names] for row in rows if row["status"] != "bad_row"}
    wanted = {row["id"]: [row[name] for name in names] for row in expected}
    twice = len(rows) - len({row["id"] for row in rows})
    if found == wanted and not twice:
        return "none"
    different = sum(found.get(name) != row for name, row in wanted.items())
    return f"{different} rows, {twice} twice"


def run_engines(folder: Path, facts: dict[str, Any], engines: list[str], scratch: Path) -> list[list[str]]:
    lines, loop = [], []
    for engine in engines:
        rows_path = scratch / f"{engine}.jsonl"
        if engine in ("loop", "datasets"):
            name = {"loop": "align_in_a_loop", "datasets": "align_with_datasets"}[engine]
            done = run_child(name, {"folder": str(folder), "rows": str(rows_path)}, LIMIT_S)
            if "error" in done:
                sys.exit(f"corpora: {engine}: {done['error']}")
            took = done["took"]
            rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
        else:
            took = run_command(folder, scratch / engine, "--engine", engine)
            rows = read_parts(scratch / engine)
        loop = loop or rows
        statuses = Counter(row["status"] for row in rows)
        expected = Counter(facts["expected"])
        if engine in ("loop", "datasets"):
            del expected["bad_row"]
        wrong = {status: (statuses[status], count) for status, count in expected.items() if statuses[status] != count}
        if wrong:
            sys.exit(f"corpora: {engine} has other statuses than the faults that were made: {wrong}")
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        lines.append([engine, f"{took:.0f}", f"{len(rows) / took:.0f}", f"{facts['seconds'] / took:.0f}", counts,
                      compare(rows, loop)])  # fmt: skip
        print(lines[-1], file=sys.stderr)
    return lines


# ----------------------------------------------------------------------------------------------------- page


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def cost_rows(given: dict[str, Any], share: dict[str, Any]) -> list[list[str]]:
    def line(what: str, mine: float, theirs: float) -> list[str]:
        return [what, f"{1000 * mine / given['items']:.3f}", f"{given['seconds'] / mine:,.0f}",
                f"{100 * theirs / share['whole']:.2f} %"]  # fmt: skip

    own = [name for name in STAGES if name not in SOUND]
    rows = [line(STAGES[name], given["spent"][name], share["spent"][name]) for name in own]
    rows.append(line("the aligner: all of these", sum_of_own(given), sum_of_own(share)))
    rows += [line(STAGES[name], given["spent"][name], share["spent"][name]) for name in SOUND[:2]]
    return rows


def sum_of_own(result: dict[str, Any]) -> float:
    """Seconds of the aligner's own stages, whoever reads the sound."""
    return sum(value for name, value in result["spent"].items() if name not in SOUND)


def scaling_rows(facts: dict[str, Any], median: dict[str, float]) -> list[list[str]]:
    rows = []
    for what, name, times in (
        ("one worker", "one", 1),
        ("two workers", "two", 1),
        ("two commands side by side, a worker each", "apart", 2),
    ):
        took, work = median[name], times * facts["items"]
        speed = f"{times * facts['seconds'] / took:.0f}"
        rows.append([what, f"{took:.1f}", f"{work / took:.1f}", speed, f"{times * median['one'] / took:.2f}"])
    return rows


def write_page(path: Path, facts: dict[str, Any], measured: dict[str, Any], command: str) -> None:
    made, processor = commit_and_date(), re.search(r"Model name: *(.+)", output_of("lscpu"))
    given, longer, share, memory, scaling = (
        measured[name] for name in ("given", "longer", "share", "memory", "scaling")
    )
    own = sum_of_own(given)
    median = {name: statistics.median(times) for name, times in scaling.items()}
    parts = [
        "# What a corpus costs",
        paragraph(
            f"{made['date']}, package at {made['commit']}, torch {version('torch')}, hama {version('hama')}; "
            f"`{command}`. {processor[1] if processor else os.uname().machine}, {configuration()['cpu_in_use']}; "
            f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[1]:.1f} (5 minutes)."
        ),
        "## What the aligner costs",
        paragraph(
            f"{given['items']} recordings, {given['seconds'] / given['items']:.1f} s each on the mean, with emissions "
            "that the English model gave before: `Align` with one thread of torch, processor time. The last "
            "column is the share of each stage where the model works, of the processor time of the process; the rest "
            "of it is the model's."
        ),
        table(["stage", "ms an item", "times real time", "share with the model"], cost_rows(given, share)),
        paragraph(
            f"Of longer recordings, {longer['items']} of {longer['seconds'] / longer['items']:.1f} s on the mean, the "
            f"aligner takes {longer['seconds'] / sum_of_own(longer):,.0f} times real time a core."
        ),
        paragraph(
            f"The aligner takes {given['items'] / own:,.0f} items, or {given['seconds'] / own / 3600:.2f} hours of "
            f"sound, a second and core. With opening and reading of samples in memory, `Align` takes "
            f"{given['seconds'] / given['whole']:,.0f} times real time. All words have been seen before; a network of "
            f"the English model pronounces each new one, {1000 * share['pronouncing']:.1f} ms a word (measured with "
            f"{share['words']})."
        ),
        "## Two workers beside one",
        paragraph(
            f"`ctc-align corpus` with the English model and the items of the last section, in shards of "
            f"{SCALING_SHARD_ROWS}; each worker has a core. Seconds on the clock, start included, the median of "
            f"{SCALING_RUNS} runs that alternate. The last line does the work twice, once, in two commands that share "
            "nothing but the machine: it tells how much of a second core there was."
        ),
        table(["", "s", "items a second", "times real time", "beside one worker"], scaling_rows(facts, median)),
        "## Memory",
        paragraph(
            f"Resident memory of a process after each {MEMORY_BATCH:,} of {MEMORY_ITEMS:,} items, MB: "
            f"{', '.join(f'{value:.0f}' for value in memory['resident'])}; at most {memory['peak']:.0f}. The model is "
            "a stand-in that costs nothing, the words come from 50,000."
        ),
        "## Every engine, with faults",
        paragraph(
            f"{facts['items']:,} items, {facts['seconds'] / 3600:.2f} hours of sound, with the English model. One item "
            f"in {BROKEN_EVERY} is broken: {', '.join(FAULTS)}. Each has the status that its fault must get; all other "
            "rows are compared, bit by bit, with those of the loop, in which every item is alone. Torch has one "
            "thread in each process. (Only the command "
            "reads the manifest itself, so only there a line that is no JSON is a row.)"
        ),
        table(["engine", "s", "items a second", "times real time", "rows", "differences"], measured["engines"]),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", help="(default: %(default)s)")
    parser.add_argument("--items", type=int, default=5000, help="of the corpus (default: %(default)s)")
    parser.add_argument("--engines", default="loop,local,datasets,ray", help="(default: %(default)s)")
    add_child_option(parser)
    arguments = parser.parse_args()
    if arguments.child:
        measurements = [measure_given, measure_share, measure_memory, align_in_a_loop, align_with_datasets]
        run_as_child(measurements, *arguments.child)
        return

    engines = [name for name in arguments.engines.split(",")
               if name in ("loop", "local") or importlib.util.find_spec(name)]  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        folder, longer = scratch / "corpus", scratch / "longer"
        facts = make_corpus(folder, arguments.items)
        measured: dict[str, Any] = {}
        make_corpus(longer, LONGER_ITEMS, LONGER_CLIPS)
        for name, function, given in (
            ("given", "measure_given", {"folder": str(folder)}),
            ("longer", "measure_given", {"folder": str(longer)}),
            ("share", "measure_share", {"folder": str(folder)}),
            ("memory", "measure_memory", {}),
        ):
            measured[name] = run_child(function, given, LIMIT_S)
            print(name, measured[name], file=sys.stderr)
            if "error" in measured[name]:
                sys.exit(f"corpora: {measured[name]['error']}")
        measured["scaling"] = measure_scaling(folder, scratch)
        measured["engines"] = run_engines(folder, facts, engines, scratch)
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = arguments.out / "corpora.md"
    write_page(page, facts, measured, f"python benchmarks/corpora.py --engines {','.join(engines)}")
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except speech_data.InputError as error:
        sys.exit(f"corpora: {error}")
