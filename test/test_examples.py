"""The training examples: their data, their steps, and a quick run of both that is killed twice and goes on. And
align_speech.py on its clip.

Nothing is fetched: the clips are those in examples/data, and packages are made here.
"""

import hashlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WITH_PICTURE = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(scope="module")
def examples():
    """Makes the examples importable, as they are for each other."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def data(examples):
    import speech_data

    return speech_data


@pytest.fixture(scope="module")
def ctc(examples):
    import train_ctc

    return train_ctc


@pytest.fixture(scope="module")
def clips(data):
    return data.read_corpus(data.CLIPS)


@pytest.fixture
def batch(data, clips):
    dataset = data.SpeechDataset(clips)
    return data.collate([dataset[0], dataset[1]])


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("Press 3, or hang-up.", "press three or hang up"),
        ("dash [-]", "dash"),
        ("I'm sorry; that's 'it'...", "i'm sorry that's it"),
        ("PBX", ""),
        ("dial 8500", ""),
        ("a 28.8 modem", ""),
        ("(4 seconds of silence)", ""),
        ("[this is a beep]", ""),
        ("press * or #", ""),
    ],
)
def test_words_are_read_as_they_are_spoken(data, text, words):
    assert " ".join(data.read_words(text)) == words


def test_a_frame_is_centred_on_its_time(data):
    samples = 1e-3 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    samples[9600] = 1.0  # 0.6 s, frame 30
    features = data.log_mel(samples)
    assert features.shape == (51, data.FEATURES)
    assert features.sum(1).argmax() == 30
    left, _, right = features[30].unflatten(0, (3, -1)).sum(1)
    assert abs(left - right) < 0.05 * abs(features[30].sum())


def test_batches_hold_every_item_once_and_none_alone(data):
    lengths = torch.randint(10, 500, (101,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = data.BucketSampler(lengths, size=1300, seed=3)
    epochs = []
    for sampler.epoch in (0, 1, 0):
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(101))
        assert all(len(batch) > 1 and len(batch) * max(lengths[i] for i in batch) <= 1300 + 500 for batch in batches)
        epochs.append(batches)
    assert epochs[0] == epochs[2] != epochs[1]


def test_equal_texts_are_held_out_together(data, clips):
    twice = [*clips, *clips]
    for fold in range(6):
        train, held_out = data.split(twice, fold)
        assert len(train) + len(held_out) == 4
        assert not {tuple(clip.words) for clip in train} & {tuple(clip.words) for clip in held_out}


def make_deb(name: str, content: bytes) -> bytes:
    """A Debian package of one file, as far as read_deb looks at it; the first member has an odd size."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    members = [(b"debian-binary", b"2.0"), (b"data.tar.xz", tar.getvalue())]
    package = b"!<arch>\n"
    for title, body in members:
        package += title.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"100644".ljust(8)
        package += str(len(body)).encode().ljust(10) + b"`\n" + body + b"\n" * (len(body) % 2)
    return package


def test_the_files_of_a_package_are_read(data):
    assert data.read_deb(make_deb("./usr/share/a.txt", b"hello")) == {"./usr/share/a.txt": b"hello"}


def put_apt_get(folder: Path, monkeypatch, script: str) -> None:
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_a_package_is_fetched_once(data, tmp_path, monkeypatch):
    package = make_deb("./a", b"a")
    (tmp_path / "package").write_bytes(package)
    put_apt_get(tmp_path / "bin", monkeypatch, f'cp "{tmp_path}/package" got.deb; echo x >> "{tmp_path}/calls"')
    for _ in range(2):
        assert data.fetch_package("p=1", hashlib.sha256(package).hexdigest(), tmp_path) == package
    assert (tmp_path / "calls").read_text() == "x\n"


def test_what_can_go_wrong_with_fetching_is_said(data, tmp_path, monkeypatch):
    put_apt_get(tmp_path / "bin", monkeypatch, "echo 'E: Unable to locate package p' >&2; exit 100")
    with pytest.raises(data.InputError, match=r"Unable to locate package p.*apt-get update may help"):
        data.fetch_package("p=1", "", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(data.InputError, match=r"no apt-get here.*--data DIR"):
        data.fetch_package("p=1", "", tmp_path)
    (tmp_path / "p.deb").write_bytes(b"something else")
    with pytest.raises(data.InputError, match=r"p\.deb is not the package p=1.*delete it"):
        data.fetch_package("p=1", "", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "p.deb"]


def test_a_broken_recording_is_named(data, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(data.InputError, match=r"cannot read .*a\.wav"):
        data.read_corpus(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    path = tmp_path / "folder" / "a.pt"
    assert data.load_checkpoint(path, {"seed": 0}) is None
    data.save_checkpoint(path, {"settings": {"seed": 0}, "epoch": 3})
    assert data.load_checkpoint(path, {"seed": 0})["epoch"] == 3
    assert os.listdir(path.parent) == ["a.pt"]
    with pytest.raises(data.InputError, match=r"seed = 0, this run has 1.*--restart"):
        data.load_checkpoint(path, {"seed": 1})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(data.InputError, match=r"cannot read .*--restart"):
        data.load_checkpoint(path, {"seed": 0})


# Steps ----------------------------------------------------------------------------------------------------------------


def test_padding_does_not_change_what_the_model_says(ctc, batch):
    model = ctc.Recogniser(width=16, blocks=2).eval()
    log_probs = model(batch.features, batch.frames)
    for item, length in enumerate(batch.frames.tolist()):
        alone = model(batch.features[item : item + 1, :length], batch.frames[item : item + 1])
        torch.testing.assert_close(log_probs[item, :length], alone[0])


def test_an_item_without_a_path_is_masked(ctc, batch):
    """The loss, its gradients and the priors are those of the batch without it; only the count tells."""
    torch.manual_seed(0)
    model = ctc.Recogniser(width=16, blocks=2).eval()
    priors = torch.zeros(len(ctc.ALPHABET))
    short = batch._replace(frames=torch.stack([batch.frames[0], batch.target_lengths[1] - 1]))
    alone = type(batch)(*(field[:1] for field in batch))
    found = []
    for case in (short, alone):
        step = ctc.refine_step(model, case, priors, 0.75)
        gradients = torch.autograd.grad(step.loss, list(model.parameters()))
        found.append((step.loss.detach(), step.posteriors, *gradients))
        assert int(step.marked) == (case is short)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_batch_of_marked_items_alone_has_loss_0(ctc, batch):
    model = ctc.Recogniser(width=16, blocks=2)
    step = ctc.refine_step(model, batch._replace(frames=torch.tensor([5, 5])), torch.zeros(len(ctc.ALPHABET)), 0.75)
    step.loss.backward()
    assert step.loss == 0
    assert step.marked == 2
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_priors_make_the_blank_expensive(ctc, batch):
    """With a blank of prior 0.9 among equal emissions, fewer frames go to it."""
    log_probs = torch.zeros(2, batch.features.shape[1], len(ctc.ALPHABET))
    log_probs[:, :, ctc.BLANK] += 1
    priors = torch.full((len(ctc.ALPHABET),), 0.1 / (len(ctc.ALPHABET) - 1)).log()
    priors[ctc.BLANK] = torch.tensor(0.9).log()
    blanks = [
        int((ctc.ALIGNER(emissions, batch.targets, batch.frames, batch.target_lengths).paths == ctc.BLANK).sum())
        for emissions in (log_probs, log_probs - 0.75 * priors)
    ]
    assert blanks[1] < blanks[0]


def test_both_losses_train_alike(ctc, batch):
    """The step with our ctc_loss and the one with torch's, in float64."""
    found = {}
    for loss in ctc.LOSSES:
        torch.manual_seed(0)
        model = ctc.Recogniser(width=16, blocks=2).double().eval()
        step = ctc.ctc_step(model, batch._replace(features=batch.features.double()), loss)
        step.loss.backward()
        found[loss] = step.loss.detach(), step.posteriors, model.last.weight.grad
    torch.testing.assert_close(found["ours"], found["torch"])
    assert found["ours"][2].abs().max() > 0.01


def test_edit_distance(ctc):
    assert [ctc.edit_distance(*pair) for pair in (("", ""), ("abc", "abc"), ("kitten", "sitting"), ("", "ab"))] == [
        0, 0, 3, 2
    ]  # fmt: skip


# Runs -----------------------------------------------------------------------------------------------------------------


def start(script: str, out: Path, *arguments: str) -> subprocess.Popen:
    """Starts a quick run as a process group of its own. It prints as it goes."""
    arguments = (*arguments, *([] if WITH_PICTURE else ["--no-picture"]))
    return subprocess.Popen(
        [sys.executable, "-u", str(EXAMPLES / script), "--quick", "--out", str(out), *arguments],
        # Sums over threads would be the same only as long as their number is.
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:] + errors[-3000:]
    return output


def kill_at(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder of a quick run that was not interrupted, and its output."""
    out = tmp_path_factory.mktemp("trained")
    return out, finish(start("train_ctc.py", out))


def read_rows(output: str) -> dict[str, list[float]]:
    """Label -> numbers, of the lines of a table."""
    rows = re.findall(r"^(\S.*?)  +(-?[\d.]+ .*)$", output, re.MULTILINE)
    return {label: [float(number) for number in re.findall(r"[-+]?\d[\d.]*", cells)] for label, cells in rows}


@pytest.mark.slow
def test_training_learns(trained):
    out, output = trained
    state = torch.load(out / "quick_ctc.pt")
    ctc_epochs = state["settings"]["ctc_epochs"]
    losses = state["losses"]
    assert losses[ctc_epochs - 1] < 0.1 * losses[0]
    rows = read_rows(output)
    assert rows["character error rate"][0] < 20
    peaky, _, refined = rows["blanks on the paths"]
    assert refined < peaky
    assert "items without a path, masked while refining: 0" in output
    assert (out / "quick_ctc.png").is_file() == WITH_PICTURE


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(trained, tmp_path):
    kill_at(start("train_ctc.py", tmp_path), "ctc_loss epoch 10/")
    time.sleep(0.5)
    kill_at(start("train_ctc.py", tmp_path), "refining epoch  5/")
    finish(start("train_ctc.py", tmp_path))
    expected, found = (torch.load(folder / "quick_ctc.pt") for folder in (trained[0], tmp_path))
    assert found["losses"] == expected["losses"]
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name


@pytest.mark.slow
def test_another_seed_needs_another_folder(trained):
    process = start("train_ctc.py", trained[0], "--seed", "1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("train_ctc: ")
    assert "seed = 0, this run has 1" in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_training_on_a_missing_device(tmp_path):
    process = start("train_ctc.py", tmp_path, "--device", "cuda", "--loss", "torch")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "train_ctc: there is no CUDA device here; leave out --device"


@pytest.mark.slow
def test_durations_add_up_to_lengths(trained, examples, ctc, clips):
    import train_durations

    state = torch.load(trained[0] / "quick_ctc.pt")
    utterances, without_path = train_durations.find_durations(ctc.load_model(state["model"], state["settings"]), clips)
    assert without_path == 0
    for utterance, clip in zip(utterances, clips, strict=True):
        assert int(utterance.durations.sum()) == len(clip.features)
        assert int(utterance.durations.min()) >= 1
        assert torch.equal(utterance.targets, clip.targets)


def test_padding_counts_for_nothing_in_the_loss_of_durations(examples):
    import train_durations

    items = [train_durations.Utterance(torch.arange(1, n), torch.arange(1, n)) for n in (9, 4)]
    together = train_durations.collate(items)
    predicted = torch.randn(together.targets.shape)
    alone = [(predicted[i, :n] - items[i].durations.log()).square() for i, n in enumerate(together.lengths.tolist())]
    torch.testing.assert_close(train_durations.duration_loss(predicted, together), torch.cat(alone).mean())


@pytest.mark.slow
def test_durations_are_learnt(trained):
    out, _ = trained
    output = finish(start("train_durations.py", out))
    first, last = map(float, re.search(r"loss ([\d.]+) to ([\d.]+)", output).groups())
    assert last < first
    untrained, _, predicted = read_rows(output)["error of a letter, mean"]
    assert predicted < untrained
    assert (out / "quick_durations.png").is_file() == WITH_PICTURE


# align_speech.py ------------------------------------------------------------------------------------------------------


def test_the_example_aligns_its_clip(missing, tmp_path):
    """With the built-in model; the times are those of test_real_speech.py."""
    for module in ("hama", "soundfile", "soxr", "pysubs2"):
        if importlib.util.find_spec(module) is None:
            missing("speech", f"no {module}; see requirements-dev.txt")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "align_speech.py")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert len(rows) == 23
    assert rows[3] == ["Dashwood", "1.00", "1.62", "0.63", "spoken"]
    (subtitles,) = (tmp_path / "aligned").iterdir()
    assert rows[-1] == ["wrote", f"aligned/{subtitles.name}"]
    assert "prudently" in subtitles.read_text()


def test_the_example_says_what_is_wrong(tmp_path):
    (tmp_path / "text.txt").write_text("the cat")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "align_speech.py"), "missing.wav", "text.txt"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 1
    assert re.fullmatch("align_speech: .*\n", run.stderr)


def test_the_example_is_short():
    """It shows how little it takes; what it needs more belongs into the package."""
    lines = (EXAMPLES / "align_speech.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
