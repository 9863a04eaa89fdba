"""The command with real models, as a user runs it: the built-in one on real and on bad recordings, and a model of
transformers and its ONNX export out of a folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import torch_ctc_align
from torch_ctc_align.speech.command import main
from torch_ctc_align.speech.formats import FORMATS, load

CLIPS = Path(__file__).parents[1] / "examples" / "data"
NAME = "sense_and_sensibility_01_austen_64kb-"


@pytest.fixture(autouse=True)
def libraries(missing):
    try:
        import hama  # noqa: F401
        import onnxruntime  # noqa: F401
        import soundfile
        import soxr  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        missing("speech", f"{error}; see requirements-dev.txt")
    return soundfile


@pytest.fixture
def clip(tmp_path):
    """A folder with a real recording and its text."""
    for suffix in (".wav", ".txt"):
        shutil.copy(CLIPS / f"{NAME}0870{suffix}", tmp_path / f"talk{suffix}")
    return tmp_path


def test_a_recording_in_every_format(clip, capsys):
    """Times and confidences are those that an independent Viterbi gave: see test_real_speech.py."""
    assert main([str(clip / "talk.wav"), str(clip / "talk.txt"), "--format", ",".join(FORMATS)]) == 0
    said = capsys.readouterr().out
    assert "John           0.67      1.00        0.82\nDashwood       1.00      1.62        0.63\n" in said
    assert "mean confidence 0.89" in said
    for format in FORMATS.values():
        assert (clip / f"talk{format.suffix}").stat().st_size > 100, format.name
    alignment = load(clip / "talk.json")
    assert [word.text for word in alignment.words[:4]] == ["And", "Mister", "John", "Dashwood"]
    assert alignment.text == (clip / "talk.txt").read_text()
    assert alignment.unexplained == []
    # "Mister" is not what is said, and its place is held by its neighbours.
    assert alignment.words[1].confidence < 0.05
    assert min(word.posterior for word in alignment.words[2:]) > 0.5


def test_bad_recordings_and_texts_cost_the_others_nothing(clip, libraries, capsys):
    """Each has a sentence of its own. The long text is 40 times what is said."""
    good, text = (clip / "talk.wav").read_bytes(), (clip / "talk.txt").read_text()
    quiet = torch.zeros(32_000).numpy()
    libraries.write(clip / "silent.wav", quiet, 16_000)
    libraries.write(clip / "short.wav", quiet[:100], 16_000)
    for name, sound in {"empty": b"", "broken": b"RIFF and nothing else", "cut": good[: len(good) // 2]}.items():
        (clip / f"{name}.wav").write_bytes(sound)
    texts = {"no_words": b"... --- ...", "no_text": b"", "latin": "Gr\xfc\xdfe".encode("latin-1")}
    texts |= {"long": 40 * text.encode(), "other_script": "это не английский текст".encode()}
    for name, words in texts.items():
        (clip / f"{name}.wav").write_bytes(good)
        (clip / f"{name}.txt").write_bytes(words)
    for name in ("silent", "short", "empty", "broken", "cut"):
        (clip / f"{name}.txt").write_text(text)

    assert main([str(clip), "--out-dir", str(clip / "out")]) == 3
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    failures = [json.loads(line) for line in (clip / "out/failures.jsonl").read_text().splitlines()]
    reasons = {Path(failure["path"]).stem: failure["reason"] for failure in failures}
    expected = {
        "silent": "is silent",
        "short": "is too short",
        "empty": "is empty",
        "broken": "cannot be read",
        "cut": "duration=",  # what can be read of it
        "no_words": "has no words",
        "no_text": "is empty",
        "latin": "iconv -f ISO-8859-1 -t UTF-8",
        "long": "pass the text of this recording alone",
        "other_script": "cannot pronounce",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name], reasons[name]
        assert "\n" not in reasons[name]
    assert sorted(path.name for path in (clip / "out").iterdir() if not path.name.startswith(".")) == [
        "failures.jsonl", "talk.json", "talk.srt"
    ]  # fmt: skip


def test_a_wrong_text_is_a_warning(clip, capsys):
    assert (
        main([str(clip / "talk.wav"), "--text", "Something else entirely was the subject of their conversation."]) == 0
    )
    assert "is this" in capsys.readouterr().err


@pytest.fixture
def letters(tmp_path):
    """A tiny wav2vec 2.0 of capitals with random weights, in a folder, and its export."""
    import transformers

    folder = tmp_path / "model"
    folder.mkdir()
    labels = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({label: c for c, label in enumerate(labels)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(labels), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(folder)
    sizes = {"samples": {0: "batch", 1: "samples"}, "logits": {0: "batch", 1: "frames"}}
    torch.onnx.export(
        model, (torch.zeros(2, 16_000),), str(folder / "model.onnx"), input_names=["samples"],
        output_names=["logits"], dynamic_axes=sizes, dynamo=False,
    )  # fmt: skip
    return folder


def test_a_model_of_transformers_and_its_export_agree(clip, letters, capsys):
    """Its weights are random, so what it finds is no speech; both have to find the same, in windows as well."""
    found = []
    for option, model in (("--model", letters), ("--onnx", letters / "model.onnx")):
        out = clip / option
        assert main([str(clip / "talk.wav"), option, str(model), "--out-dir", str(out), "--star", "none"]) == 0
        found.append(load(out / "talk.json"))
    assert "is this" in capsys.readouterr().err
    ours, exported = found
    assert [word.text for word in ours.words] == (clip / "talk.txt").read_text().rstrip(".\n").split()
    assert ours.words[0].start >= 0
    # The two computers of the network round otherwise; times are in frames of 20 ms, so they are equal or far apart.
    assert [(word.start, word.end) for word in ours.words] == [(word.start, word.end) for word in exported.words]
    assert ours.score == pytest.approx(exported.score, rel=1e-4)
    assert ours.seconds_per_frame == exported.seconds_per_frame == 0.02


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ctc-align {torch_ctc_align.__version__}\n"
