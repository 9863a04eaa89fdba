"""Align: what becomes of every row, whatever the table is and whatever stands beside it."""

import math
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.speech import BLANK, HOP, LABELS, SAMPLE_RATE, hear, loud_model, samples_of, say, silence, sound_of

from torch_ctc_align import AlignmentWarning
from torch_ctc_align.speech import Aligner, SpeechError, path, stages
from torch_ctc_align.speech.corpus import COLUMNS, STATUSES, Align, align, arrow_schema
from torch_ctc_align.speech.path import BestPath, find_all

ROOT = Path(__file__).parents[1]

WORDS = "the cat sat on a mat and that was all it did to the rat in fact".split()  # noqa: SIM905


def rows_of(count, seed, extra=0.3):
    """Samples and texts of different lengths; some recordings hold more than their text."""
    choose = random.Random(seed)
    audio, text = [], []
    for _ in range(count):
        words = choose.choices(WORDS, k=choose.randint(1, 12))
        said = " ".join(words)
        if choose.random() < extra:
            said = f"zebra {said} quiz"
        audio.append((sound_of([*silence(choose.randint(0, 40)), *say(said)]), SAMPLE_RATE))
        text.append("\n".join(words) if choose.random() < 0.5 else " ".join(words))
    return audio, text


def write(file, samples):
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        out.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return file


def results(done):
    """The columns of the result, row by row."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*(done[name] for name in COLUMNS), strict=True)]


@pytest.mark.parametrize("options", [{}, {"star": "words"}, {"star": None}, {"star": "words", "unspoken": True}])
def test_the_rows_are_those_of_a_plain_loop(options):
    audio, text = rows_of(60, seed=1)
    text[7] += "\nnobody would believe this"
    text[8] += " 19!"  # digits are star labels here
    aligner = Aligner.from_model(loud_model())
    aligner.posteriors = False
    done = results(Align(loud_model, **options)({"audio": audio, "text": text}))
    for row, (samples, rate), words in zip(done, audio, text, strict=True):
        if row["status"] != "ok":
            with pytest.raises(SpeechError) as error:
                aligner((samples, rate), words, **options)
            assert (row["message"], row["words"]) == (str(error.value), [])
            continue
        alone = aligner((samples, rate), words, **options)
        assert row["words"] == [word.text for word in alone.words]
        assert row["score"] == alone.score
        for name, value in (("starts", "start"), ("ends", "end")):
            expected = [getattr(word, value) for word in alone.words]
            assert [time is None for time in row[name]] == [time is None for time in expected]
            assert row[name] == pytest.approx(expected, abs=0.0005 + 1e-8)  # rounded to the millisecond
        assert row["unspoken"] == [k for k, word in enumerate(alone.words) if word.status == "unspoken"]
        assert len(row["unexplained"]) == len(alone.unexplained)
    assert sum(row["status"] == "ok" for row in done) >= 59


@pytest.mark.parametrize("cells", [1, 3000, 1 << 24])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_does_not_depend_on_its_batch(cells, threads, monkeypatch):
    audio, text = rows_of(40, seed=2)
    audio[5], text[9], text[11] = "nowhere.wav", "", "much " * 500
    aligning = Align(loud_model, threads=threads)
    alone = [results(aligning({"audio": [a], "text": [t]}))[0] for a, t in zip(audio, text, strict=True)]
    monkeypatch.setattr(align, "GROUP_CELLS", cells)
    order = random.Random(cells).sample(range(40), 40)
    done = results(aligning({"audio": [audio[k] for k in order], "text": [text[k] for k in order]}))
    assert done == [alone[k] for k in order]
    assert {"ok", "unreadable", "no_text", "too_long_text"} == {row["status"] for row in done}


def test_paths_do_not_depend_on_their_group(random_case, monkeypatch):
    """Recordings of 1 to 300 frames, some with stars, full of ties; never more than half of a call is padding."""
    sizes, calls = [1, 2, 3, 40, 41, 60, 150, 300, 299, 7], []
    forced_align = path.forced_align
    monkeypatch.setattr(path, "forced_align", lambda *a, **k: calls.append(a) or forced_align(*a, **k))

    def ask():
        asked = []
        for k, frames in enumerate(sizes):
            log_probs, targets = random_case(1, frames, max(frames // 3, 1), 6, steps=3)
            stars = wild = None
            if k % 2:
                stars, wild = log_probs[0].max(-1).values - 0.5, torch.ones(targets.shape[1] + 1, dtype=torch.bool)
            asked.append(BestPath(log_probs[0], targets[0], [], stars, wild))
        return asked

    asked = ask()
    alone = [BestPath(each.log_probs, each.targets, [], each.stars, each.wild) for each in asked]
    for each in alone:
        find_all([each], 0)
    calls.clear()
    find_all(asked, 0)
    for one, other in zip(asked, alone, strict=True):
        assert torch.equal(one.path, other.path)
        assert torch.equal(one.scores, other.scores)
    assert len(calls) < len(sizes)
    for log_probs, _, lengths, _ in calls:
        assert log_probs.shape[0] * log_probs.shape[1] <= 2 * int(lengths.sum())


# What is wrong with a row -------------------------------------------------------------------------------------------


def test_every_fault_has_its_status(tmp_path):
    good = samples_of("the cat")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    whole = write(tmp_path / "whole.wav", good)
    (tmp_path / "cut.wav").write_bytes(whole.read_bytes()[:3000])
    bad = good.copy()
    bad[500] = math.nan
    cases = [
        ((good, SAMPLE_RATE), "the cat", "ok", None),
        (str(whole), "the cat", "ok", None),
        (str(tmp_path / "gone.wav"), "the cat", "unreadable", "there is no file"),
        (str(tmp_path / "empty.wav"), "the cat", "unreadable", "is empty"),
        (str(tmp_path / "noise.wav"), "the cat", "unreadable", "cannot be read as sound"),
        (str(tmp_path / "cut.wav"), "the cat", "unreadable", "cut short"),
        (str(tmp_path), "the cat", "unreadable", "is a folder"),
        ((good[:100], SAMPLE_RATE), "the cat", "unreadable", "too short"),
        ((good * 0, SAMPLE_RATE), "the cat", "unreadable", "silent"),
        ((bad, SAMPLE_RATE), "the cat", "unreadable", "holds nan"),
        (None, "the cat", "unreadable", "the cell is empty"),
        (math.nan, "the cat", "unreadable", "the cell is empty"),
        (17, "the cat", "unreadable", "found int"),
        ({"something": 1}, "the cat", "unreadable", "found ['something']"),
        (good, "the cat", "unreadable", "give a column sampling_rate"),
        ((good, SAMPLE_RATE), "", "no_text", "has no words"),
        ((good, SAMPLE_RATE), None, "no_text", "must be a string"),
        ((good, SAMPLE_RATE), b"\xff\xfe", "no_text", "has no words"),
        ((good, SAMPLE_RATE), "the cat " * 50, "too_long_text", "the text is too long"),
    ]
    done = Align(loud_model)({"audio": [case[0] for case in cases], "text": [case[1] for case in cases]})
    for row, (_, _, status, message) in zip(results(done), cases, strict=True):
        assert row["status"] == status, row["message"]
        assert status in STATUSES
        if message is None:
            assert (row["message"], row["words"]) == (None, ["the", "cat"])
        else:
            assert message in row["message"]
            assert (row["words"], row["starts"], row["unexplained"], row["score"]) == ([], [], [], None)


def test_the_name_of_a_temporary_file_is_in_no_message(library):
    library("soundfile")
    content = b"fLaC" + bytes(1000)
    done = Align(loud_model)({"audio": [content, b""], "text": ["the cat"] * 2})
    assert done["status"] == ["unreadable"] * 2
    assert all(message.startswith("the recording ") and "tmp" not in message for message in done["message"])


def test_no_segment_is_in_the_recording():
    done = Align(loud_model, star="words", unspoken=True)(
        {"audio": [(samples_of("quiz zebra quiz zebra quiz"), SAMPLE_RATE)], "text": ["the cat\nsat on a mat"]}
    )
    assert done["status"] == ["unspoken"]


def test_a_model_that_fails_on_an_item_costs_no_other():
    def run(samples, lengths):
        if float(samples.max()) > 0.279:  # the apostrophe is the loudest label
            raise ValueError("shapes\n  differ")
        return hear(samples, lengths)

    audio = [(samples_of(text), SAMPLE_RATE) for text in ("the cat", "it's", "the cat")]
    done = Align(lambda: loud_model(run=run))({"audio": audio, "text": ["the cat", "it's", "the cat"]})
    assert done["status"] == ["ok", "error", "ok"]
    assert done["message"][1] == "ValueError: shapes differ"
    assert done["words"][0] == done["words"][2] == ["the", "cat"]


def test_emissions_without_a_path_cost_no_other():
    """All of a letter's frames are impossible in one recording of a group."""

    def run(samples, lengths):
        log_probs, frames = hear(samples, lengths)
        if float(samples.max()) > 0.279:
            log_probs[:, :, LABELS.index("'")] = -math.inf
        return log_probs, frames

    audio = [(samples_of(text), SAMPLE_RATE) for text in ("the cat", "it's", "the cat")]
    done = Align(lambda: loud_model(run=run))({"audio": audio, "text": ["the cat", "it's", "the cat"]})
    assert done["status"] == ["ok", "error", "ok"]
    assert "leave no path" in done["message"][1]


def test_a_failing_call_of_the_operator_is_tried_in_halves(monkeypatch):
    sizes = []
    forced_align = path.forced_align

    def fail(log_probs, *arguments, **options):
        sizes.append(len(log_probs))
        if len(log_probs) > 2:
            raise MemoryError
        return forced_align(log_probs, *arguments, **options)

    audio, text = rows_of(8, seed=3)
    expected = Align(loud_model)({"audio": audio, "text": text})
    monkeypatch.setattr(path, "forced_align", fail)
    monkeypatch.setattr(path, "MOST_PADDED", 100)
    assert results(Align(loud_model)({"audio": audio, "text": text})) == results(expected)
    assert sizes[:3] == [8, 4, 2]


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"audio": [], "words": []}, "the batch has no column 'text', it has audio, words; name the column with text="),
        ({"text": ["a"]}, "the batch has no column 'audio', it has text; name the column with audio="),
        ({"audio": [1], "text": ["a"], "score": [1]},
         "the batch has a column 'score' already, which the result would replace; rename it"),
        ({"audio": [1, 2], "text": ["a"]},
         "the columns of a batch must be equally long, found 2 in 'audio' and 1 in 'text'"),
        ([("a.wav", "a")], "a batch is a mapping of columns, a pyarrow.Table or a pandas.DataFrame, found list"),
    ],
)  # fmt: skip
def test_mistakes_of_a_program_are_raised(batch, message):
    with pytest.raises(SpeechError) as error:
        Align(loud_model)(batch)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "options", [{"star": "all"}, {"split": "pages"}, {"batch_seconds": 0}, {"batch_seconds": math.inf}, {"threads": 0}]
)
def test_wrong_options_are_raised_at_once(options):
    with pytest.raises(SpeechError, match=f"{next(iter(options))} must be"):
        Align(loud_model, **options)


def test_a_model_that_cannot_be_loaded_is_raised(tmp_path):
    with pytest.raises(SpeechError, match="no such directory"):
        Align(tmp_path / "nowhere")({"audio": ["a.wav"], "text": ["a"]})


def test_a_broken_device_is_raised():
    """Nothing more can be done in such a process: the engine has to start another."""
    broken = getattr(torch, "AcceleratorError", None)
    if broken is None:
        pytest.skip("this torch has no AcceleratorError")

    def run(samples, lengths):
        raise broken("CUDA error: device-side assert triggered")

    with pytest.raises(broken):
        Align(lambda: loud_model(run=run))({"audio": [(samples_of("a"), SAMPLE_RATE)], "text": ["a"]})


# Memory, threads ----------------------------------------------------------------------------------------------------


class Counting:
    """A loud model that notes how many windows it gets, and has memory for so many."""

    def __init__(self, most=math.inf, error=None):
        self.sizes, self.most, self.error = [], most, error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self):
        return loud_model(run=self.run, window=1.0, context=0.1)

    def run(self, samples, lengths):
        self.sizes.append(len(samples))
        if len(samples) > self.most:
            raise self.error
        return hear(samples, lengths)


def long_row():
    said = " ".join(WORDS * 2)
    return {"audio": [(samples_of(said), SAMPLE_RATE)], "text": [said]}


def test_windows_of_one_recording_go_through_the_model_together():
    counting = Counting()
    expected = results(Align(loud_model)(long_row()))
    assert results(Align(counting, batch_seconds=4.9)(long_row())) == expected
    assert max(counting.sizes) == 4
    counting = Counting()
    Align(counting)(long_row())
    assert max(counting.sizes) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_half_as_many_windows_are_tried_where_memory_is_short(error):
    counting = Counting(most=2, error=error)
    with pytest.warns(AlignmentWarning) as warned:
        done = results(Align(counting, batch_seconds=8)(long_row()))
    assert done == results(Align(loud_model)(long_row()))
    assert counting.sizes[:3] == [8, 4, 2]
    assert [str(warning.message) for warning in warned] == [
        "loud: 8 windows of 1 s at once do not fit into memory; 4 are tried. batch_seconds=4 would try no more",
        "loud: 4 windows of 1 s at once do not fit into memory; 2 are tried. batch_seconds=2 would try no more",
    ]


def test_memory_that_is_short_for_one_window_is_a_failure_of_the_item():
    counting = Counting(most=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = Align(counting, batch_seconds=2)(long_row())
    assert done["status"] == ["error"]
    assert done["message"] == ["does not fit into memory: CUDA out of memory"]


def test_recordings_are_opened_while_the_model_listens(tmp_path, monkeypatch):
    """The model waits until the next recordings are open: it would wait forever if they were not opened meanwhile."""
    opened, lock = [], threading.Condition()
    open_item = stages.open_item

    def note(audio, *arguments):
        item = open_item(audio, *arguments)
        with lock:
            opened.append(audio)
            lock.notify_all()
        assert threading.current_thread() is not threading.main_thread()
        return item

    heard = []

    def run(samples, lengths):
        heard.append(len(opened))
        with lock:
            assert lock.wait_for(lambda: len(opened) >= min(len(heard) + 3, 20), timeout=60)
        return hear(samples, lengths)

    monkeypatch.setattr(align, "open_item", note)
    done = Align(lambda: loud_model(run=run))(
        {
            "audio": [str(write(tmp_path / f"{k}.wav", samples_of("the cat"))) for k in range(20)],
            "text": ["the cat"] * 20,
        }
    )
    assert done["status"] == ["ok"] * 20
    # Not all at once: what has been read and not been heard takes memory.
    assert all(count <= place + 1 + align.AHEAD * 2 + 1 for place, count in enumerate(heard))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ctc-align")]


def test_a_long_recording_is_not_read_ahead(monkeypatch):
    kept = []
    listen = align.listen
    monkeypatch.setattr(align, "listen", lambda item, *a: kept.append(item.samples) or listen(item, *a))
    monkeypatch.setattr(align, "LONGEST_READ_AHEAD", 1.0)
    done = Align(loud_model)({"audio": [(samples_of("a"), SAMPLE_RATE), *long_row()["audio"]],
                              "text": ["a", *long_row()["text"]]})  # fmt: skip
    assert done["status"] == ["ok", "ok"]
    assert [samples is None for samples in kept] == [False, True]


def test_ctrl_c_passes_and_leaves_no_thread():
    def run(samples, lengths):
        raise KeyboardInterrupt

    audio, text = rows_of(30, seed=4)
    with pytest.raises(KeyboardInterrupt):
        Align(lambda: loud_model(run=run))({"audio": audio, "text": text})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ctc-align")]


def test_progress_counts_every_row_once():
    audio, text = rows_of(30, seed=5)
    text[3], audio[4] = "", "nowhere.wav"
    aligning, counts = Align(loud_model), []
    aligning.progress = counts.append
    aligning({"audio": audio, "text": text})
    assert sum(counts) == 30


# Tables -------------------------------------------------------------------------------------------------------------


def columns():
    samples = samples_of("the cat")
    return {
        "id": ["a", "b", "c"],
        "audio": [
            {"array": samples, "sampling_rate": SAMPLE_RATE},
            None,
            {"array": samples, "sampling_rate": SAMPLE_RATE},
        ],
        "text": ["the cat", "the cat", "The c-a-t!"],
        "speaker": [7, 8, 9],
    }


def test_columns_pass_through_untouched():
    before = columns()
    done = Align(loud_model)(before)
    assert list(done) == [*before, *COLUMNS]
    assert all(done[name] is before[name] for name in before)


def test_pandas_holds_the_same(library):
    pandas, arrow = library("pandas"), library("pyarrow")
    expected = results(Align(loud_model)(columns()))
    frame = pandas.DataFrame({**columns(), "offset": [0, None, 0], "duration": pandas.array([None] * 3, "Float64")})
    frame.index = [10, 20, 30]
    done = Align(loud_model)(frame)
    assert list(done.index) == [10, 20, 30]
    assert list(done["speaker"]) == [7, 8, 9]
    assert arrow.Schema.from_pandas(done[list(COLUMNS)], preserve_index=False).types == arrow_schema().types
    assert arrow.Table.from_pandas(done[list(COLUMNS)], preserve_index=False).to_pylist() == expected


def test_columns_of_numpy_get_columns_of_arrow(library):
    """Ray makes other types of lists of lists, and guesses them anew for every batch."""
    arrow = library("pyarrow")
    expected = results(Align(loud_model)(columns()))
    batch = {name: np.array(values, dtype=object) for name, values in columns().items()}
    batch |= {"offset": np.array([0, math.nan, 0], np.float32), "duration": np.array([math.nan] * 3)}
    done = Align(loud_model)(batch)
    assert [done[name].type for name in COLUMNS] == arrow_schema().types
    assert arrow.table({name: done[name] for name in COLUMNS}).to_pylist() == expected


@pytest.mark.parametrize("kind", ["Table", "RecordBatch"])
def test_arrow_keeps_its_types_even_where_all_rows_fail(kind, library):
    arrow = library("pyarrow")
    expected = results(Align(loud_model)(columns()))
    batch = columns()
    for cell in batch["audio"]:
        if cell is not None:
            cell["array"] = cell["array"].tolist()
    table = getattr(arrow, kind).from_pydict(batch)
    done = Align(loud_model)(table)
    assert [field for field in done.schema if field.name in COLUMNS] == list(arrow_schema())
    assert [{name: row[name] for name in COLUMNS} for row in done.to_pylist()] == expected
    failed = Align(loud_model)(table.slice(1, 1))
    assert failed.schema.equals(done.schema)
    assert failed.column("status").to_pylist() == ["unreadable"]
    assert Align(loud_model)(table.slice(0, 0)).schema.equals(done.schema)


def test_every_spelling_of_a_recording_is_the_same_recording(tmp_path, library):
    library("soundfile")
    samples = samples_of("the cat")
    file = write(tmp_path / "a b.wav", samples)
    exact = np.round(samples * 32767) / 32768

    class Decoder:
        """As torchcodec has it."""

        def get_all_samples(self):
            return type("Samples", (), {"data": torch.from_numpy(exact)[None], "sample_rate": float(SAMPLE_RATE)})

    cells = [
        str(file),
        file,
        file.read_bytes(),
        bytearray(file.read_bytes()),
        {"bytes": file.read_bytes(), "path": "elsewhere.wav"},
        {"bytes": None, "path": str(file)},
        {"array": exact, "sampling_rate": SAMPLE_RATE},
        {"array": exact.tolist(), "sampling_rate": SAMPLE_RATE, "path": "elsewhere.wav"},
        (exact, SAMPLE_RATE),
        [exact.tolist(), SAMPLE_RATE],
        (torch.from_numpy(exact), SAMPLE_RATE),
        exact,
        Decoder(),
    ]
    rates = [None] * 11 + [SAMPLE_RATE, None]
    done = Align(loud_model)({"audio": cells, "text": ["the cat"] * len(cells), "sampling_rate": rates})
    assert done["status"] == ["ok"] * len(cells), done["message"]
    assert all(row == results(done)[0] for row in results(done))
    assert done["words"][0] == ["the", "cat"]


def test_columns_may_have_other_names_and_a_part_may_be_meant():
    sound = (np.concatenate([samples_of("zebra"), samples_of("the cat")]), SAMPLE_RATE)
    begin = len(samples_of("zebra")) / SAMPLE_RATE
    aligning = Align(loud_model, audio="wav", text="sentence", offset="from", duration="long", star=None)
    done = aligning({
        "wav": [sound] * 3,
        "sentence": ["zebra", "the cat", "zebra the cat"],
        "from": [0, begin, None],
        "long": [np.float32(begin), math.nan, None],
    })  # fmt: skip
    assert done["status"] == ["ok"] * 3, done["message"]
    assert done["starts"][1][0] == pytest.approx(begin, abs=0.04)
    assert done["seconds"] == pytest.approx(
        [begin, len(samples_of("the cat")) / SAMPLE_RATE, len(sound[0]) / SAMPLE_RATE]
    )


LOADED = []


def count_loads():
    LOADED.append(1)
    return loud_model()


def test_a_pickle_holds_settings_and_the_model_is_loaded_once():
    LOADED.clear()
    aligning = Align(count_loads, star="words")
    assert not LOADED
    batch = {"audio": [(samples_of("the cat"), SAMPLE_RATE)], "text": ["the cat"]}
    first, again = aligning(batch), aligning(batch)
    assert results(first) == results(again)
    assert len(LOADED) == 1
    aligning.progress = print
    data = pickle.dumps(aligning)
    assert data == pickle.dumps(Align(count_loads, star="words"))  # a cache may be named after it
    assert len(data) < 2000
    other = pickle.loads(data)
    assert len(LOADED) == 1
    assert results(other(batch)) == results(first)
    assert len(LOADED) == 2


FORKED = """
import os, signal, sys
import torch
from torch_ctc_align.speech.corpus import Align

torch.set_num_threads(2)
align = Align()
batch = {"audio": [sys.argv[1]], "text": [open(sys.argv[2]).read()]}
done = align(batch)
torch.ones(1 << 22).exp()  # with threads
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if align(batch) == Align()(batch) == done else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_loads_the_model_again(library):
    """As ``datasets.map(num_proc=...)`` forks. Nothing waits for the threads of the process before it."""
    library("soundfile"), library("hama")
    clip = ROOT / "examples/data/sense_and_sensibility_01_austen_64kb-0870"
    command = [sys.executable, "-c", FORKED, f"{clip}.wav", f"{clip}.txt"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_versions_name_what_the_result_depends_on():
    import torch_ctc_align

    done = Align(loud_model)({"audio": [(samples_of("a"), SAMPLE_RATE), None], "text": ["a", "a"]})
    expected = f"torch_ctc_align {torch_ctc_align.__version__}, torch {torch.__version__}, model loud"
    assert done["versions"] == [expected] * 2


def test_seconds_are_those_of_the_sound():
    frames = [*say("the cat"), *[BLANK] * 10]
    done = Align(loud_model)({"audio": [(sound_of(frames), SAMPLE_RATE)], "text": ["the cat"]})
    assert done["seconds"] == [len(frames) * HOP / SAMPLE_RATE]
