"""CTC models in ONNX files: their inputs and outputs, where their facts come from, what is wrong with them."""

import json
import re
from pathlib import Path

import pytest
import torch

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.models.onnx import choose_providers, load_onnx

LABELS = ["<blank>", "|", "a", "b", "c"]
FIELD, HOP, RATE = 40, 20, 1000
FACTS = {"labels": LABELS, "blank": 0, "sample_rate": RATE}


@pytest.fixture
def onnx(missing):
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        missing("speech", f"onnx or onnxruntime cannot be imported ({error})")
    return onnx


class Network(torch.nn.Module):
    """Samples (B, N) to log-probabilities (B, (N - 40) // 20 + 1, 5)."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv1d(1, classes, FIELD, HOP)

    def logits(self, samples):
        return 5 * self.convolution(samples[:, None]).transpose(1, 2)

    def forward(self, samples):
        return self.logits(samples).log_softmax(-1)


class Logits(Network):
    def forward(self, samples):
        return self.logits(samples)


class Probabilities(Network):
    def forward(self, samples):
        return self.logits(samples).softmax(-1)


class Flat(Network):
    """One item without a dimension for the batch."""

    def forward(self, samples):
        return super().forward(samples[None])[0]


class WithChannel(Network):
    def forward(self, samples):
        return super().forward(samples[:, 0])


class WithLengths(Network):
    """It says that one frame fewer is in use than there are."""

    def forward(self, samples, lengths):
        return super().forward(samples), (lengths - FIELD) // HOP


class WithMask(Network):
    """What the mask hides is heard as zero."""

    def forward(self, samples, mask):
        return super().forward(samples * mask)


@pytest.fixture
def export(onnx, tmp_path):
    """export(network, *inputs) saves it with free sizes. Returns the path."""

    def save(network, *inputs, free=None, names=("samples", "lengths"), metadata=None):
        inputs = inputs or (torch.zeros(2, 400),)
        names = list(names[: len(inputs)])
        free = {name: dict(enumerate(("batch", "n")[: x.dim()])) for name, x in zip(names, inputs, strict=True)} \
            if free is None else free  # fmt: skip
        network = network.eval()
        outputs = network(*inputs)
        out_names = ["emissions", "frames"][: len(outputs) if isinstance(outputs, tuple) else 1]
        if free:
            sizes = {3: ("batch", "t"), 2: ("t",), 1: ("batch",)}
            values = outputs if isinstance(outputs, tuple) else (outputs,)
            free |= {name: dict(enumerate(sizes[x.dim()])) for name, x in zip(out_names, values, strict=True)}
        path = tmp_path / "model.onnx"
        torch.onnx.export(
            network, inputs, str(path), dynamo=False, input_names=names, output_names=out_names, dynamic_axes=free
        )
        if metadata:
            model = onnx.load(path)
            onnx.helper.set_model_props(model, metadata)
            onnx.save(model, path)
        return path

    return save


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")


def hear(model, samples):
    return model.run(samples[None], torch.tensor([len(samples)]))[0][0]


def assert_same(log_probs, expected):
    """The same sums of 40 products of size 1 or less, in another order: off by less than 5 * 40 * 2**-23 = 3e-5."""
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=3e-5)


# Inputs and outputs -------------------------------------------------------------------------------------------------


def test_the_session_takes_the_threads_of_torch(export, threads, monkeypatch):
    import onnxruntime

    made = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, **options: made.append(session(*given, **options)) or made[-1]
    )
    for count in (1, 2):
        threads(count)
        load_onnx(export(Network()), **FACTS)
        assert made[-1].get_session_options().intra_op_num_threads == count


def test_the_english_session_takes_the_threads_of_torch(library, threads, monkeypatch):
    from torch_ctc_align.speech.models.english import load_english

    hama = library("hama")
    made = []
    model = hama.ASRModel
    monkeypatch.setattr(hama, "ASRModel", lambda **options: made.append(model(**options)) or made[-1])
    for count in (1, 2):
        threads(count)
        load_english()
        assert made[-1].session.get_session_options().intra_op_num_threads == count


@pytest.mark.parametrize("kind", [Network, Logits])
def test_log_probs_and_logits_come_out_as_log_probs(export, kind, recwarn, generator):
    model = load_onnx(export(kind()), **FACTS)
    assert not [warning for warning in recwarn if "log_softmax" in str(warning.message)]
    samples = torch.randn(777, generator=generator)
    assert_same(hear(model, samples), Network()(samples[None])[0])


def test_hop_and_receptive_field_are_measured(export):
    model = load_onnx(export(Network()), **FACTS)
    assert (model.hop, model.receptive_field) == (HOP, FIELD)
    assert model.frame_offset == (FIELD - HOP) / 2 / HOP
    assert (model.blank, model.separator, model.name) == (0, 1, "model")
    with pytest.raises(SpeechError, match=r"does not give \(N - 41\) // 20 \+ 1 frames"):
        load_onnx(export(Network()), **FACTS, hop=HOP, receptive_field=41)


@pytest.mark.parametrize(
    "network, example",
    [(Flat(), torch.zeros(400)), (WithChannel(), torch.zeros(2, 1, 400))],
    ids=["samples alone", "a channel"],
)
def test_samples_may_have_other_dimensions(export, network, example, generator):
    free = {"samples": {0: "n"} if example.dim() == 1 else {0: "batch", 2: "n"}}
    model = load_onnx(export(network, example, free=free), **FACTS)
    samples = torch.randn(2, 500, generator=generator)
    log_probs, frames = model.run(samples, torch.tensor([500, 500]))
    assert frames.tolist() == [24, 24]
    assert_same(log_probs, Network()(samples))


def test_batch_size_may_be_fixed(export, generator):
    path = export(Network(), torch.zeros(1, 400), free={"samples": {1: "n"}})
    samples = torch.randn(3, 500, generator=generator)
    assert_same(load_onnx(path, **FACTS).run(samples, torch.tensor([500] * 3))[0], Network()(samples))


def test_lengths_are_given_and_frames_are_taken(export, generator):
    model = load_onnx(export(WithLengths(), torch.zeros(2, 400), torch.tensor([400, 400])), **FACTS)
    assert model.receptive_field == FIELD + HOP  # one frame fewer
    samples = torch.randn(2, 500, generator=generator)
    log_probs, frames = model.run(samples, torch.tensor([500, 100]))
    assert frames.tolist() == [23, 3]
    assert_same(log_probs[0], Network()(samples)[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_attention_mask_is_given(export, dtype, generator):
    mask = torch.ones(2, 400, dtype=dtype)
    free = {name: {0: "batch", 1: "n"} for name in ("samples", "mask")}
    path = export(WithMask(), torch.zeros(2, 400), mask, names=("samples", "mask"), free=free)
    samples = torch.randn(500, generator=generator)
    assert_same(hear(load_onnx(path, **FACTS), samples), Network()(samples[None])[0])


def test_half_precision_input(export, generator):
    class Half(Network):
        def forward(self, samples):
            return super().forward(samples.float())

    path = export(Half(), torch.zeros(2, 400, dtype=torch.float16))
    samples = torch.randn(500, generator=generator)
    assert_same(hear(load_onnx(path, **FACTS), samples), Network()(samples.half().float()[None])[0])


def test_padding_is_never_heard(export, generator):
    model = load_onnx(export(Network()), **FACTS)
    samples = torch.full((3, 500), torch.nan)
    lengths = [300, 500, 300]
    for row, length in zip(samples, lengths, strict=True):
        row[:length] = torch.randn(length, generator=generator)
    log_probs, frames = model.run(samples, torch.tensor(lengths))
    assert frames.tolist() == [14, 24, 14]
    for row, item, length, count in zip(log_probs, samples, lengths, frames.tolist(), strict=True):
        assert_same(row[:count], Network()(item[None, :length])[0])


def test_normalisation_is_over_the_samples_of_an_item(export, generator):
    samples = 3 + torch.randn(2, 500, generator=generator) / 7
    lengths = torch.tensor([500, 300])
    log_probs, _ = load_onnx(export(Network()), **FACTS, normalize=True).run(samples, lengths)
    for row, item, length in zip(log_probs, samples, lengths.tolist(), strict=True):
        item = item[:length].double()
        item = ((item - item.mean()) / item.std(correction=0)).float()
        count = (length - FIELD) // HOP + 1
        # mean and deviation in float32: relative errors of 1e-6 in samples of size 3
        torch.testing.assert_close(row[:count], Network()(item[None])[0], rtol=0, atol=2e-4)


def test_export_of_the_page_hears_the_same_as_in_torch(tmp_path, monkeypatch, generator, missing, onnx):
    """Runs the program of docs/models.md, with a small model of random weights in place of the one that it names."""
    try:
        import transformers
    except ImportError as error:
        missing("speech", f"transformers cannot be imported ({error})")
    from torch_ctc_align.speech.models.huggingface import load_pretrained

    labels = ["<pad>", "<unk>", "|", "a", "b", "<s>", "</s>"]  # the last two are behind the classes
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=5, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    saved = tmp_path / "saved"
    transformers.Wav2Vec2ForCTC(config).save_pretrained(saved)
    (saved / "vocab.json").write_text(json.dumps({label: c for c, label in enumerate(labels)}))
    transformers.Wav2Vec2CTCTokenizer(saved / "vocab.json").save_pretrained(saved)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(saved)

    page = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")
    program = re.search(r"^```py\n(.*?)^```$", page.split("\n## ONNX\n")[1], re.MULTILINE | re.DOTALL)[1]
    assert '"facebook/wav2vec2-base-960h"' in program
    monkeypatch.chdir(tmp_path)
    exec(program.replace("facebook/wav2vec2-base-960h", "saved"), {})

    there, here = load_pretrained(saved), load_onnx(tmp_path / "exported")
    facts = ("labels", "blank", "hop", "sample_rate", "receptive_field", "separator", "frame_offset")
    assert [getattr(there, fact) for fact in facts] == [getattr(here, fact) for fact in facts]
    for length in (4_000, 8_000, 16_079, 16_080):
        samples = 2 + 3 * torch.randn(length, generator=generator)  # so that it matters whether they are normalised
        expected = hear(there, samples)
        assert len(expected) == (length - 400) // 320 + 1
        # Ten layers whose sums are taken in another order: see test_speech_pretrained.py; GELU and exp of onnxruntime
        # are polynomials of their own, good to about 1e-6 each.
        torch.testing.assert_close(hear(here, samples), expected, rtol=0, atol=1e-4)


# Facts --------------------------------------------------------------------------------------------------------------


def test_facts_in_the_metadata(export, tmp_path):
    metadata = {"labels": json.dumps(LABELS), "blank": "0", "sample_rate": str(RATE), "separator": "|",
                "language": "deu", "license": "mit"}  # fmt: skip
    (tmp_path / "vocab.json").write_text('{"not": 0, "this": 1}')
    model = load_onnx(export(Network(), metadata=metadata))
    assert (list(model.labels), model.blank, model.sample_rate, model.separator) == (LABELS, 0, RATE, 1)
    assert (model.language, model.licence) == ("deu", "mit")
    assert load_onnx(export(Network(), metadata=metadata), blank="c", separator=None).separator is None
    assert load_onnx(export(Network(), metadata=metadata), blank="c").blank == 4  # an argument goes first


@pytest.mark.parametrize("blank", ["<blk>", "<blank>"])
def test_facts_in_tokens_txt(export, tmp_path, blank):
    (tmp_path / "tokens.txt").write_text(f"{blank} 0\n  1\nß 2\n▁ 3\n\nc 4\n", encoding="utf-8")
    model = load_onnx(export(Network()), sample_rate=RATE)
    assert list(model.labels) == [blank, " ", "ß", "▁", "c"]
    assert (model.blank, model.separator) == (0, 1)


def test_facts_in_files_of_transformers(export, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({label: c for c, label in enumerate("ab#_-")}))
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 1000, "do_normalize": false}')
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "-"}, "word_delimiter_token": "_"}')
    model = load_onnx(export(Network()))
    assert (list(model.labels), model.blank, model.separator, model.sample_rate) == (list("ab#_-"), 4, 3, RATE)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"feature_extractor": {"sampling_rate": 500}}')
    assert load_onnx(export(Network())).sample_rate == 500
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"pad_token_id": 2}')
    assert load_onnx(export(Network())).blank == 2


def expect_error(path, *parts, **facts):
    with pytest.raises(SpeechError) as caught:
        load_onnx(path, **facts)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_all_missing_facts_are_listed(export):
    path = export(Network())
    expect_error(path, "model.onnx does not say labels", "blank", "sample_rate", "give them as arguments", "tokens.txt")
    expect_error(path, "does not say sample_rate (in Hz): give it", labels=LABELS)  # the blank is called <blank>


def test_facts_that_are_wrong(export, tmp_path):
    path = export(Network())
    expect_error(path, "5 classes", "labels has 4", **FACTS | {"labels": LABELS[:4]})
    expect_error(path, "blank is '<pad>'", **FACTS | {"blank": "<pad>"})
    expect_error(path, "(N - ", "hop", **FACTS, hop=21)
    (tmp_path / "tokens.txt").write_text("<blk> 0\nb two\n")
    expect_error(path, "tokens.txt, line 2", "'b two'", sample_rate=RATE)
    (tmp_path / "tokens.txt").write_bytes(b"<blk> 0\n\xff 1\n")
    expect_error(path, "cannot read", "tokens.txt as UTF-8", sample_rate=RATE)
    (tmp_path / "vocab.json").write_text("{")
    expect_error(path, "cannot read", "vocab.json as JSON")
    (tmp_path / "vocab.json").write_text("[1]")
    expect_error(path, "vocab.json must hold a JSON object")
    (tmp_path / "vocab.json").write_text('{"eng": {"a": 0}, "deu": {"b": 0}}')
    expect_error(path, "a vocabulary for each of 2 languages")
    expect_error(export(Network(), metadata={"labels": "a b"}), "must be a JSON list")
    expect_error(export(Network(), metadata={"sample_rate": "16k"}), "must be an integer, found '16k'", labels=LABELS)


# Files and models that are wrong ------------------------------------------------------------------------------------


def test_file_that_is_not_there(onnx, tmp_path):
    expect_error(tmp_path / "model.onnx", "no such file")
    expect_error(tmp_path, "has no ONNX files")
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    expect_error(tmp_path, "has 2 ONNX files (a.onnx, b.onnx): give one")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12"])
def test_file_that_is_broken(onnx, tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    expect_error(tmp_path / "model.onnx", "onnxruntime cannot read")


def test_file_that_is_cut_off(export):
    path = export(Network())
    path.write_bytes(path.read_bytes()[:-100])
    expect_error(path, "onnxruntime cannot read")


def test_model_that_takes_features(export):
    class Features(torch.nn.Module):
        def forward(self, features):
            return features.transpose(1, 2).log_softmax(-1)

    path = export(Features(), torch.zeros(1, 80, 50), free={"samples": {0: "batch", 2: "t"}})
    expect_error(path, "must take samples (batch, samples), and takes features", "(batch, 80, t)", **FACTS)


def test_model_with_inputs_that_are_not_known(export):
    class Two(Network):
        def forward(self, samples, state):
            return super().forward(samples + state)

    free = {name: {0: "batch", 1: "n"} for name in ("samples", "state")}
    path = export(Two(), torch.zeros(2, 400), torch.zeros(2, 400), names=("samples", "state"), free=free)
    expect_error(path, "must take samples", "state", **FACTS)


def test_model_of_one_length(export):
    expect_error(export(Network(), torch.zeros(1, 400), free={}), "takes exactly 400 samples", "dynamic_axes", **FACTS)


def test_model_that_returns_something_else(export):
    expect_error(export(Probabilities()), "returns probabilities", ".log()", **FACTS)

    class Numbers(Network):
        def forward(self, samples):
            return super().forward(samples).argmax(-1)

    expect_error(export(Numbers()), "must return log-probabilities", **FACTS)


def test_sound_that_is_too_short(export):
    model = load_onnx(export(Network()), **FACTS)
    with pytest.raises(SpeechError, match=r"model.onnx fails on 10 samples"):
        hear(model, torch.zeros(10))


def test_device_that_onnxruntime_lacks(export, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    expect_error(export(Network()), "cannot run a model on 'cuda'", "onnxruntime-gpu", **FACTS, device="cuda:0")
    expect_error(export(Network()), "no such device: 'fast'", **FACTS, device="fast")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert choose_providers("cuda") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_providers("cpu") == ["CPUExecutionProvider"]
