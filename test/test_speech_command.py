"""The command ctc-align: what it takes, prints, writes and exits with. No model: see harness/stand_in.py."""

import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from harness.stand_in import StandIn, alignment_of

import torch_ctc_align
from torch_ctc_align.speech import command
from torch_ctc_align.speech.command import report

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "test/harness/stand_in.py"


class Runner:
    """run("talk.mp3", ...) runs the command in an empty folder; then .status, .out, .err, .aligners."""

    def __init__(self, capsys, monkeypatch):
        self.capsys, self.aligners = capsys, []
        monkeypatch.setattr(command, "load_aligner", self.load)

    def load(self, arguments):
        self.arguments = arguments
        self.aligners.append(StandIn())
        return self.aligners[-1]

    def __call__(self, *arguments):
        self.aligners.clear()
        self.status = command.main(list(arguments))
        self.out, self.err = self.capsys.readouterr()
        return self.status

    @property
    def calls(self):
        return [call for aligner in self.aligners for call in aligner.calls]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Runner(capsys, monkeypatch)


def put(**texts):
    for name, text in texts.items():
        path = Path(name.replace("__", "/").replace("_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("[!.]*") if path.is_file())


# One recording --------------------------------------------------------------------------------------------------------

TABLE = """\
talk.mp3: 4.00 s, 6 words

word         start       end  confidence
Good          0.00      0.50        0.90
evening       0.50      1.00        0.90
NOT              -         -    unspoken
SAID             -         -    unspoken
18th          1.00      1.50    inferred
applause      1.50      2.00        0.90

in the recording, not in the text:
  2.00 to 3.25 s (1.25 s)
in the text, not in the recording:
  NOT SAID

mean confidence 0.90
wrote talk.json, talk.srt
"""


def test_the_table_of_one_recording(run):
    put(talk_mp3="", talk_txt="Good evening\nNOT  SAID\n18th applause\n")
    assert run("talk.mp3", "talk.txt") == 0
    assert run.out == TABLE
    assert run.err == ""
    assert files() == ["talk.json", "talk.mp3", "talk.srt", "talk.txt"]
    assert json.loads(Path("talk.json").read_text())["words"][0]["text"] == "Good"


@pytest.mark.parametrize("suffix", ["txt", "lab"])
def test_the_text_beside_the_recording(run, suffix):
    put(talk_mp3="", **{f"talk_{suffix}": "Good evening"})
    assert run("talk.mp3") == 0
    assert run.calls[0][:2] == ("talk.mp3", "Good evening")


def test_the_text_on_the_command_line(run):
    put(talk_mp3="")
    assert run("talk.mp3", "--text", "Good evening") == 0
    assert run.calls[0][1] == "Good evening"


def test_the_text_from_standard_input(run, monkeypatch):
    put(talk_mp3="")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffGuten Abend, Jürgen".encode())))
    assert run("talk.mp3", "-") == 0
    assert run.calls[0][1] == "Guten Abend, Jürgen"


def test_options_may_stand_between_the_recording_and_its_text(run):
    put(talk_mp3="", words_txt="Good evening")
    assert run("talk.mp3", "--format", "SRT", "words.txt", "--out-dir", "x/y") == 0
    assert files("x") == ["y/talk.srt"]


def test_behind_two_dashes_stand_names(run):
    put(**{"-a_mp3": "", "-a_txt": "one"})
    assert run("--format", "json", "--", "-a.mp3", "-a.txt") == 0
    assert files() == ["-a.json", "-a.mp3", "-a.txt"]


def test_a_name_commands_no_terminal(run):
    put(a_txt="one", **{"\x1b[2Ja\nb_wav": "", "\x1b[2Ja\nb_txt": "one", "\x7fc_wav": "", "\x7fc_txt": "broken"})
    assert run(".") == 3
    assert r"\x1b[2Ja\nb.wav       2.5       1        0.90" in run.out.splitlines()
    assert r"ctc-align: \x7fc.wav is broken" in run.err.splitlines()
    assert run("\x1b[2Ja\nb.wav", "--force") == 0
    assert not re.search("[\x1b\r]", run.out)


def test_options_reach_the_aligner(run):
    put(talk_mp3="", talk_txt="Good evening")
    assert run("talk.mp3") == 0
    assert run.calls[0][4] == {"star": "ends", "unspoken": False, "split": "lines", "language": None}
    assert run("talk.mp3", *["--star", "none", "--unspoken", "--split", "words", "--language", "de"]) == 0
    assert run.calls[0][4] == {"star": None, "unspoken": True, "split": "words", "language": "de"}


def test_a_named_recording_is_aligned_each_time(run):
    put(talk_mp3="", talk_txt="Good evening")
    assert (run("talk.mp3"), run("talk.mp3")) == (0, 0)
    assert len(run.calls) == 1
    assert "wrote talk.json" in run.out


def test_an_unlikely_text_is_doubted(run):
    put(talk_mp3="", talk_txt="unsure words")
    assert run("talk.mp3") == 0
    assert run.err == "ctc-align: talk.mp3: mean confidence is only 0.01: is this what is said in the recording?\n"


def test_quiet_prints_warnings_alone(run):
    put(talk_mp3="", talk_txt="unsure words")
    assert run("talk.mp3", "--quiet") == 0
    assert run.out == ""
    assert "is this what is said" in run.err


def test_notes_are_printed_beside_the_result(run):
    put(talk_mp3="", talk_txt="resampled words")
    run("talk.mp3")
    assert run.err == "ctc-align: talk.mp3: resampled from 44100 Hz to 16000 Hz\n"


def test_wide_letters_take_two_columns():
    lines = list(report.word_table(alignment_of("你好 cafe\u0301 word")))
    assert lines[1:] == [
        "你好      0.00      0.50        0.90",
        "cafe\u0301      0.50      1.00        0.90",
        "word      1.00      1.50        0.90",
    ]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "the following arguments are required: RECORDING"),
        ("talk.txt talk.mp3", "the recording comes first, then the text: ctc-align talk.mp3 talk.txt"),
        ("talk.txt", "talk.txt is a text; give the recording before it"),
        ("none.mp3", "none.mp3: no such file"),
        ("none.mp3 talk.txt", "none.mp3: no such file"),
        ("talk.mp3 none.txt", "there is no text file none.txt"),
        ("lone.wav", "lone.wav: has no text: there is no lone.txt or lone.lab beside it"),
        ("talk.mp3 talk.txt --text t", "give the text once"),
        ("folder talk.txt", "folder is a folder, which brings its texts"),
        ("folder --text t", "folder is a folder, which brings its texts"),
        ("folder", "no recording in folder"),
        ("talk.mp3 talk.txt lone.wav", "talk.txt is among 3 files, but not a recording"),
        ("talk.mp3 lone.wav --text t", "--text is the text of one recording"),
        ("- talk.txt", "the recording cannot be read from standard input"),
        ("talk.mp3 --format srt,docx", "must be some of json, srt, vtt, .* found 'docx'"),
        ("talk.mp3 --format ,", "found none"),
        ("talk.mp3 --batch-size 0", "must be a whole number of at least 1, found '0'"),
        ("talk.mp3 --star sometimes", "invalid choice: 'sometimes'"),
        ("talk.mp3 --model a --onnx b", "not allowed with"),
        ("talk.mp3 --dtype float16", "--dtype is for a model that --model names"),
        ("talk.mp3 --device gpu", "--device must be cpu, cuda or cuda:1, found 'gpu'"),
        ("talk.mp3 --device cuda:99", "torch sees . such devices"),
        ("talk.mp3 --out-dir talk.txt", "talk.txt is not a folder"),
        ("empty.jsonl", "empty.jsonl has no lines"),
        ("failures.jsonl", "failures.jsonl is where failures are listed"),
    ],
)
def test_nothing_could_be_done(run, arguments, message):
    put(talk_mp3="", talk_txt="t", lone_wav="", folder__readme="", empty_jsonl="\n", failures_jsonl="{}")
    before = files()
    assert run(*arguments.split()) == 2
    assert re.search(message, run.err), run.err
    assert "Traceback" not in run.err
    assert run.aligners == [], "a model was loaded"
    assert files() == before


def test_help_and_version_exit_with_0(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    assert max(map(len, run.out.splitlines())) <= 80
    assert "examples:" in run.out
    assert run("--version") == 0
    assert run.out == f"ctc-align {torch_ctc_align.__version__}\n"


def test_a_model_that_cannot_be_loaded_ends_it(run, monkeypatch):
    def load(arguments):
        raise command.SpeechError("no model is called x")

    monkeypatch.setattr(command, "load_aligner", load)
    put(a_wav="", a_txt="a", b_wav="", b_txt="b")
    assert run(".") == 2
    assert run.err == "ctc-align: no model is called x\n"


def test_a_recording_that_fails(run):
    put(talk_mp3="", talk_txt="broken")
    assert run("talk.mp3") == 3
    assert run.err == "ctc-align: talk.mp3 is broken\n", "the name stands there once"
    assert files() == ["talk.mp3", "talk.txt"]


def test_debug_shows_the_traceback(run):
    put(talk_mp3="", talk_txt="bug")
    assert run("talk.mp3") == 3
    assert "Traceback" not in run.err
    assert run("talk.mp3", "--debug") == 3
    assert "Traceback" in run.err
    assert 'raise RuntimeError("shapes' in run.err


# Many recordings ------------------------------------------------------------------------------------------------------


def test_the_table_of_many(run):
    put(a_wav="", a_txt="one 2 THREE", x__b_mp3="", x__b_lab="four applause", c_wav="", d_txt="", e_wav="", e_txt="bug")
    assert run(".", "--format", "json") == 3
    lines = run.out.splitlines()
    assert lines[:4] == [
        "recording   seconds   words  confidence",
        "a.wav           3.0       3        0.90  1 unspoken, 1 inferred",
        "x/b.mp3         3.0       2        0.90  1.2 s not in the text",
        "",
    ]
    assert lines[4].startswith("2 aligned, 0 finished before, 1 failed; 6 s of audio in ")
    assert lines[4].endswith(" times real time")
    assert run.err.splitlines() == [
        "ctc-align: 1 recording without text: c.wav",
        "ctc-align: 1 text without recording: d.txt",
        "ctc-align: e.wav: RuntimeError: shapes differ (unexpected: please report it, with what --debug prints)",
        "ctc-align: 1 failure, listed in failures.jsonl",
    ]
    assert len(run.aligners) == 1


def test_a_second_run_does_what_is_left(run):
    put(a_wav="", a_txt="one", b_wav="", b_txt="bug")
    assert run(".") == 3
    put(b_txt="mended")
    assert run(".") == 0
    assert [call[0] for call in run.calls] == ["b.wav"]
    assert "1 aligned, 1 finished before, 0 failed" in run.out
    assert "failures.jsonl" not in files()
    assert run(".") == 0
    assert run.aligners == []
    assert run.out == "0 aligned, 2 finished before, 0 failed\n"


def test_a_manifest(run):
    put(x__a_wav="", x__b_wav="")
    entries = [("x/a.wav", "one"), ("x/b.wav", "two"), ("x/none.wav", "three"), ("x/a.wav", "four")]
    lines = [json.dumps({"audio_filepath": path, "text": text}) for path, text in entries]
    Path("m.json").write_text("\n".join([*lines, "{"]))
    assert run("m.json", "--out-dir", "out", "--format", "json") == 3
    assert files("out") == ["failures.jsonl", "x/a-1.json", "x/a-2.json", "x/b.json"]
    listed = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [(each["path"], each["reason"][:20]) for each in listed] == [
        ("m.json:5", "is not JSON (Expecti"),
        ("m.json:3", "x/none.wav: no such "),
    ]


def test_several_recordings_take_the_texts_beside_them(run):
    put(a_wav="", a_txt="one", b_wav="", b_txt="two", c_wav="")
    assert run("a.wav", "b.wav", "c.wav") == 3
    assert [call[:2] for call in run.calls] == [("a.wav", "one"), ("b.wav", "two")]
    assert "c.wav: has no text" in run.err


def test_a_note_that_many_share_is_printed_once(run):
    put(a_wav="", a_txt="resampled", b_wav="", b_txt="resampled")
    run(".")
    assert run.err == "ctc-align: 2 recordings: resampled from 44100 Hz to 16000 Hz\n"


def test_seconds_of_a_part_are_those_of_the_part(run):
    put(a_wav="")
    Path("m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "one two", "offset": 1.0}')  # of 3 s
    assert run("m.jsonl") == 0
    assert run.out.splitlines()[1] == "a.wav           2.0       2        0.90"


def test_many_doubts_are_one_warning(run):
    put(**{f"a{number}_{suffix}": "unsure" for number in range(7) for suffix in ("wav", "txt")})
    assert run(".") == 0
    assert run.err == (
        "ctc-align: 7 recordings have a mean confidence below 0.3: are their texts what is said in them? "
        "a0.wav, a1.wav, a2.wav, a3.wav, a4.wav and 2 more\n"
    )


def test_many_bad_lines_are_not_all_printed(run):
    Path("m.jsonl").write_text("x\n" * 100)
    assert run("m.jsonl") == 3
    assert len(run.err.splitlines()) == 22
    assert "and 80 more such failures" in run.err
    assert len(Path("failures.jsonl").read_text().splitlines()) == 100


def test_a_folder_without_any_text_is_nothing_to_do(run):
    put(a_wav="", b_wav="")
    assert run(".") == 2
    assert run.err.splitlines() == [
        "ctc-align: 2 recordings without text: a.wav, b.wav",
        "ctc-align: nothing to align: no recording has a text",
    ]


def test_an_input_is_never_overwritten_by_force_either(run):
    put(talk_wav="", talk_tsv="one")
    assert run("talk.wav", "talk.tsv", "--format", "tsv", "--force") == 2
    assert run.err == "ctc-align: talk.wav: would overwrite talk.tsv, which is an input: give --out-dir\n"
    assert Path("talk.tsv").read_text() == "one"


def test_a_long_name_loses_its_beginning(run):
    name = "x" * 50 + "/recording.wav"
    put(**{name.replace("/", "__").replace(".", "_"): "", f"{'x' * 50}__recording_txt": "one"})
    assert run(".") == 0
    (line,) = [line for line in run.out.splitlines() if "recording.wav" in line]
    assert line.startswith("…" + "x" * 33 + "/recording.wav  ")


# The model ------------------------------------------------------------------------------------------------------------


class Loaded:
    """Stands for Aligner: remembers how it was made."""

    def __getattr__(self, name):
        def make(*args, **kwargs):
            made = StandIn()
            made.made = (name, args, kwargs)
            return made

        return make


@pytest.mark.parametrize(
    "arguments, made",
    [
        ("", ("english", ("cpu",), {})),
        ("--device cpu", ("english", ("cpu",), {})),
        ("--model m/n", ("from_pretrained", ("m/n",), {"device": "cpu", "dtype": None, "language": None})),
        (
            "--model m --dtype float16 --language deu",
            ("from_pretrained", ("m",), {"device": "cpu", "dtype": torch.float16, "language": "deu"}),
        ),
        ("--onnx m.onnx", ("from_onnx", (Path("m.onnx"),), {"providers": ["CPUExecutionProvider"]})),
    ],
)
def test_the_aligner_that_is_asked_for(monkeypatch, arguments, made):
    from torch_ctc_align.speech import aligner

    monkeypatch.setattr(aligner, "Aligner", Loaded())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = command.build_parser().parse_args(["a.wav", "--batch-size", "4", *arguments.split()])
    loaded = command.load_aligner(arguments)
    assert loaded.made == made
    assert loaded.batch_size == 4


def test_from_a_recording_to_a_file(tmp_path, monkeypatch, capsys, missing):
    """With the real aligner, and a model that hears how loud a letter is (harness/speech.py)."""
    try:
        import soundfile
        import soxr  # noqa: F401
    except ImportError as error:
        missing("speech", str(error))
    from harness.speech import SAMPLE_RATE, loud_model, samples_of

    from torch_ctc_align.speech.aligner import Aligner

    soundfile.write(tmp_path / "talk.wav", samples_of("the cat sat"), SAMPLE_RATE, subtype="FLOAT")
    monkeypatch.setattr(command, "load_aligner", lambda arguments: Aligner.from_model(loud_model()))
    assert command.main([str(tmp_path / "talk.wav"), "--text", "The cat sat.", "--format", "json"]) == 0
    words = json.loads((tmp_path / "talk.json").read_text())["words"]
    # A letter and a space are 2 frames, and 2 of silence; a frame is 0.02 s. Between "the" (to frame 10) and "cat"
    # (from frame 16) the border is in the middle, frame 13. The next one is 16 frames later.
    assert [(word["text"], word["start"]) for word in words] == [("The", 0.0), ("cat", 0.26), ("sat", 0.58)]
    assert "wrote" in capsys.readouterr().out


# Ends -----------------------------------------------------------------------------------------------------------------


def start(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {}),
        stdout=subprocess.PIPE, text=True, encoding="utf-8", **{"stderr": subprocess.PIPE} | options,
    )  # fmt: skip


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(run):
    put(a_wav="", a_txt="one", b_wav="", b_txt="signal", c_wav="", c_txt="three")
    process = start(".", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "ctc-align: interrupted after 1 of 3; the same command goes on from here\n"
    assert "a.wav" in out
    put(b_txt="mended")
    assert run(".") == 0
    assert [call[0] for call in run.calls] == ["b.wav", "c.wav"]


def test_force_is_no_way_to_go_on(run):
    put(a_wav="", a_txt="one", b_wav="", b_txt="interrupt")
    assert run(".", "--force") == 130
    assert "interrupted after 1 of 2; without --force the same command goes on" in run.err


@pytest.mark.parametrize("closed, status", [("<&-", 0), (">&-", 0), ("2>&-", 0), ("- <&-", 2)])
def test_what_is_closed_is_not_needed(run, closed, status):
    put(a_wav="", a_txt="one")
    command = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(PROGRAM))} a.wav {closed}"
    done = subprocess.run(command, shell=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == status, done
    assert (b"standard input is closed" in done.stderr) == (status == 2)
    assert b"unexpected" not in done.stdout + done.stderr


def test_a_reader_that_ends_is_no_failure(run):
    put(**{f"a{number}_{suffix}": "one two" for number in range(20) for suffix in ("wav", "txt")})
    process = start(".", "--format", "json")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
    assert len([name for name in files() if name.endswith(".json")]) == 20


def test_standard_error_may_end_too(run):
    put(a_wav="", a_txt="broken", b_wav="", b_txt="one")
    process = start(".", "--format", "json")
    process.stderr.close()
    process.stdout.close()
    assert process.wait(timeout=60) == 3
    assert "b.json" in files()


@pytest.mark.parametrize("watched", [True, False])
def test_bars_are_shown_where_somebody_watches(run, watched, missing):
    if importlib.util.find_spec("tqdm") is None:
        missing("speech", "tqdm cannot be imported")
    put(a_wav="", a_txt="one", b_wav="", b_txt="two")
    if not watched:
        assert start(".").communicate(timeout=60)[1] == ""
        return
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # a terminal without width has no bars
    process = start(".", stderr=theirs)
    process.communicate(timeout=60)
    assert select.select([ours], [], [], 1)[0], "nothing is shown"
    shown = os.read(ours, 10_000).decode()  # while `theirs` is open, what was written to it stays
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 0
    assert "1/2 a.wav: listening" in shown
    assert "2/2 b.wav: listening" in shown


@pytest.mark.parametrize("text, status", [("one", 0), ("broken", 3), ("interrupt", 130)])
def test_exit_status_of_the_process(run, text, status):
    put(a_wav="", a_txt=text)
    process = start("a.wav")
    process.communicate(timeout=60)
    assert process.returncode == status


def test_letters_that_the_terminal_lacks_are_printed_as_numbers(run):
    put(a_wav="", a_txt="naïve 你好")
    process = start("a.wav", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "na\\xefve" in out


# The page -------------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/ctc_align.md").read_text(encoding="utf-8")


def test_the_page_has_every_option_and_format():
    rows = "".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    options = {option for action in command.build_parser()._actions for option in action.option_strings}
    assert {option for option in options if option.startswith("--")} == set(re.findall(r"(?<=`)--[a-z-]+", rows))
    for name, suffix in command.known_formats().items():
        assert f"`{name}`" in rows
        assert f"`{suffix}`" in rows


def test_the_commands_of_the_page_and_of_the_help_are_understood(run):
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in [*blocks, command.EXAMPLES] for line in block.splitlines() if "ctc-align " in line]
    assert len(lines) > 15
    for line in lines:
        arguments = shlex.split(re.split("ctc-align ", re.split(r"  +(?! *-)", line.strip())[0])[1], comments=True)
        assert command.build_parser().parse_intermixed_args(arguments), line
