"""CTC models of transformers, tiny ones with random weights, saved to a directory and loaded from there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.models import huggingface
from torch_ctc_align.speech.models.huggingface import load_pretrained

LABELS = ["<s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'", "</s>", "<pad>"]
CLASSES, BLANK, SEPARATOR = len(LABELS), LABELS.index("<pad>"), LABELS.index("|")
PIECES = ["<unk>", "▁", "▁the", "▁c", "at", *"abcdefghijklmnopqrstuvwxyz", "<pad>"]

# Of PyTorch, about the convolutions of lasr_ctc, whose size is even.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONV = TINY | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
               "vocab_size": CLASSES, "pad_token_id": BLANK}  # fmt: skip


@pytest.fixture
def transformers(missing):
    try:
        import transformers
    except ImportError as error:
        missing("speech", f"transformers cannot be imported ({error})")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def added(transformers, name):
    """A class that not every version of transformers has."""
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def conv_config(transformers, name, **options):
    return getattr(transformers, f"{name}Config")(**CONV | options)


def bert_config(transformers, **options):
    return transformers.Wav2Vec2BertConfig(
        **TINY,
        vocab_size=CLASSES,
        pad_token_id=BLANK,
        feature_projection_input_dim=160,
        output_hidden_size=16,
        **options,
    )


def parakeet_config(transformers):
    encoder = TINY | {"num_mel_bins": 80, "subsampling_conv_channels": 8}
    return added(transformers, "ParakeetCTCConfig")(
        vocab_size=len(PIECES), pad_token_id=len(PIECES) - 1, encoder_config=encoder
    )


def lasr_config(transformers):
    encoder = TINY | {"num_key_value_heads": 2, "num_mel_bins": 128, "subsampling_conv_channels": 8}
    return added(transformers, "LasrCTCConfig")(
        vocab_size=len(PIECES), pad_token_id=len(PIECES) - 1, encoder_config=encoder
    )


def omniasr_config(transformers):
    audio = TINY | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return added(transformers, "OmniASRCTCConfig")(
        vocab_size=len(PIECES), blank_token_id=len(PIECES) - 1, pad_token_id=0, audio_config=audio
    )


# What is tested: a configuration, samples a frame, the samples that the first frame needs, the one in its middle.
SQUEEZED = {"squeeze_factor": 2, "conv_dim": (8,) * 5, "conv_kernel": (10, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 4)}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
LONGER_FRAMES = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 16}
KINDS = {
    "wav2vec2-group": (lambda t: conv_config(t, "Wav2Vec2", feat_extract_norm="group"), 320, 400, 200),
    "wav2vec2-layer": (lambda t: conv_config(t, "Wav2Vec2", **STABLE), 320, 400, 200),
    "wav2vec2-adapter": (lambda t: conv_config(t, "Wav2Vec2", **LONGER_FRAMES), 1280, 400, 200),
    "hubert": (lambda t: conv_config(t, "Hubert"), 320, 400, 200),
    "wavlm": (lambda t: conv_config(t, "WavLM"), 320, 400, 200),
    "sew": (lambda t: conv_config(t, "SEW", **SQUEEZED), 160, 100, 50),
    "sew-d": (lambda t: conv_config(t, "SEWD", **SQUEEZED), 160, 100, 50),
    "unispeech": (lambda t: conv_config(t, "UniSpeech"), 320, 400, 200),
    "unispeech-sat": (lambda t: conv_config(t, "UniSpeechSat"), 320, 400, 200),
    "data2vec-audio": (lambda t: conv_config(t, "Data2VecAudio"), 320, 400, 200),
    "wav2vec2-conformer": (lambda t: conv_config(t, "Wav2Vec2Conformer"), 320, 400, 200),
    "wav2vec2-bert": (bert_config, 320, 560, 280),
    "wav2vec2-bert-adapter": (lambda t: bert_config(t, add_adapter=True), 640, 560, 280),
    "parakeet_ctc": (parakeet_config, 1280, 160, 0),
    "lasr_ctc": (lasr_config, 640, 2320, 1160),
    "omniasr_ctc": (omniasr_config, 320, 400, 200),
}  # fmt: skip


def make_pieces_tokenizer(cls):
    import tokenizers

    scores = [(piece, -float(len(PIECES) - len(piece) * 10)) for piece in PIECES]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0, byte_fallback=False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return cls(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


def save_model(transformers, config, folder, labels=LABELS):
    """Saves a model with random weights and all that belongs to it. Returns network and feature extractor."""
    torch.manual_seed(0)
    network = transformers.MODEL_FOR_CTC_MAPPING[type(config)](config).eval()
    network.save_pretrained(folder)
    kind = config.model_type
    if kind in ("parakeet_ctc", "lasr_ctc", "omniasr_ctc"):
        tokenizer = "LasrTokenizer" if kind == "lasr_ctc" else "ParakeetTokenizer"
        make_pieces_tokenizer(added(transformers, tokenizer)).save_pretrained(folder)
    else:
        (folder / "vocab.json").write_text(json.dumps({label: c for c, label in enumerate(labels)}))
        transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    extractor = {
        "parakeet_ctc": "ParakeetFeatureExtractor",
        "lasr_ctc": "LasrFeatureExtractor",
        "omniasr_ctc": "OmniASRFeatureExtractor",
        "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    }.get(kind, "Wav2Vec2FeatureExtractor")
    with_mask = {"return_attention_mask": getattr(config, "feat_extract_norm", "layer") == "layer"}
    extractor = added(transformers, extractor)(**with_mask if extractor == "Wav2Vec2FeatureExtractor" else {})
    extractor.save_pretrained(folder)
    return network, extractor


class Saved:
    """A model in a directory, and what it computes without the code that is tested here."""

    def __init__(self, transformers, config, folder, labels=LABELS):
        self.folder = folder
        self.network, self.extractor = save_model(transformers, config, folder, labels)

    @torch.inference_mode()
    def listen(self, samples):
        """(T, C) log-probabilities of samples (N,), T counted by transformers."""
        features = self.extractor([samples.numpy()], sampling_rate=16_000, return_tensors="pt")
        logits = self.network(**features).logits[0]
        if "attention_mask" in features and "input_features" in features:
            valid = features["attention_mask"].sum(-1)
            if hasattr(self.network, "_get_subsampling_output_length"):
                valid = self.network._get_subsampling_output_length(valid)
            else:
                valid = self.network._get_feat_extract_output_lengths(valid)
            logits = logits[: int(valid[0])]
        return logits.float().log_softmax(-1)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def saved(transformers, kind, tmp_path):
    return Saved(transformers, KINDS[kind][0](transformers), tmp_path)


@pytest.fixture
def wav2vec2(transformers, tmp_path):
    return Saved(transformers, conv_config(transformers, "Wav2Vec2"), tmp_path)


def hear(model, samples):
    log_probs, frames = model.run(samples[None], torch.tensor([len(samples)]))
    assert frames.tolist() == [log_probs.shape[1]]
    return log_probs[0]


def assert_same(log_probs, expected):
    """The same computation, but its sums may be taken in another order, as memory is aligned and items are batched.

    Each of about ten layers then rounds values of size 1 otherwise, by some 2**-24 for each of tens of terms: together
    less than 10 * 50 * 2**-24 = 3e-5.
    """
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=3e-5)


def lengths_around(hop, field):
    """Lengths at which a frame is added, those before them, and others."""
    edges = [field + k * hop for k in (2, 3, 4, 8, 12)]
    return [*edges, *(edge - 1 for edge in edges), *(edges[0] + k * 97 for k in range(1, 12)), 15_999, 16_000]


def test_every_kind_that_transformers_has_is_tested_or_listed(transformers):
    kinds = {config.model_type for config in transformers.MODEL_FOR_CTC_MAPPING}
    tested = {re.sub("-(group|layer|adapter)$", "", kind) for kind in KINDS}
    # Features of the first need torchaudio; the second has gone with transformers 5.
    assert kinds - tested <= {"granite_speech5_ctc", "mctct"}, "add it to KINDS and to the table of docs/models.md"


def test_frames_and_log_probs_are_those_of_transformers(saved, kind, generator):
    model = load_pretrained(saved.folder)
    _, hop, field, middle = KINDS[kind]
    assert (model.hop, model.receptive_field, model.sample_rate) == (hop, field, 16_000)
    assert (model.frame_offset + 0.5) * hop == middle
    for length in lengths_around(hop, field):
        samples = torch.randn(length, generator=generator) / 10
        log_probs, expected = hear(model, samples), saved.listen(samples)
        assert len(log_probs) == (length - field) // hop + 1 == len(expected), length
        assert log_probs.dtype == torch.float32
        assert_same(log_probs, expected)


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "wav2vec2-adapter", "lasr_ctc"], indirect=True)
def test_kind_that_is_not_known_is_measured(saved, kind, monkeypatch):
    monkeypatch.setattr(huggingface, "find_layout", lambda config, extractor: None)
    model = load_pretrained(saved.folder)
    _, hop, field, middle = KINDS[kind]
    assert (model.hop, model.receptive_field) == (hop, field)
    assert (model.frame_offset + 0.5) * hop == middle


def test_padding_is_never_heard(saved, generator):
    model = load_pretrained(saved.folder)
    lengths = torch.tensor([9_000, 16_000, 9_000, 50])
    samples = torch.full((4, 16_000), torch.nan)
    for row, length in zip(samples, lengths.tolist(), strict=True):
        row[:length] = torch.randn(length, generator=generator) / 10
    log_probs, frames = model.run(samples, lengths)
    assert frames[3] == 0
    for row, item, length, count in zip(log_probs, samples, lengths.tolist(), frames.tolist(), strict=True):
        if count:
            assert_same(row[:count], saved.listen(item[:length]))


def test_samples_are_normalised_where_the_extractor_says_so(transformers, tmp_path, generator):
    config = conv_config(transformers, "Wav2Vec2", **STABLE, conv_bias=True)
    saved = Saved(transformers, config, tmp_path)
    torch.nn.init.normal_(saved.network.wav2vec2.feature_extractor.conv_layers[0].conv.bias)
    saved.network.save_pretrained(tmp_path)
    samples, lengths = 2 + 3 * torch.randn(2, 8000, generator=generator), torch.tensor([8000, 5000])
    normalised = load_pretrained(tmp_path).run(samples, lengths)[0]
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    plain = load_pretrained(tmp_path).run(samples, lengths)[0]
    for item, length in enumerate(lengths.tolist()):
        own = samples[item, :length].double()
        own = ((own - own.mean()) / (own.var(correction=0) + 1e-7).sqrt()).float()
        with torch.inference_mode():
            expected = saved.network(own[None]).logits[0].log_softmax(-1)
            unscaled = saved.network(samples[item : item + 1, :length]).logits[0].log_softmax(-1)
        assert (expected - unscaled).abs().max() > 0.01  # it matters here
        # Mean and variance in float32 move samples of size 3 by about 1e-6, ten layers pass that on.
        torch.testing.assert_close(normalised[item, : len(expected)], expected, rtol=0, atol=1e-4)
        assert_same(plain[item, : len(expected)], unscaled)


def test_middle_of_a_frame_is_where_the_model_looks(transformers, tmp_path):
    """A click in silence changes the frames whose receptive field has it, and no others."""
    saved = Saved(transformers, conv_config(transformers, "Wav2Vec2", feat_extract_norm="layer"), tmp_path)
    model = load_pretrained(saved.folder)
    samples = torch.zeros(1, 8000)
    samples[0, 4000] = 1
    with torch.inference_mode():
        heard, silent = (saved.network.wav2vec2.feature_extractor(x)[0] for x in (samples, torch.zeros(1, 8000)))
    changed = ((heard - silent).abs().amax(0) > 0).nonzero().flatten()
    # The receptive fields of frames t that have sample 4000: 320 t <= 4000 < 320 t + 400.
    assert changed.tolist() == [12] == [t for t in range(24) if 320 * t <= 4000 < 320 * t + 400]
    assert model.frame_offset == 40 / 320  # its middle, 320 t + 200, is that of a frame that begins at 320 t + 40


def test_frames_of_parakeet_are_centred_on_multiples_of_the_hop(transformers, tmp_path):
    saved = Saved(transformers, parakeet_config(transformers), tmp_path)
    samples = torch.zeros(2, 20_000)
    samples[0, 7 * 1280] = 1
    spectrograms = saved.extractor._torch_extract_fbank_features(samples)  # what comes after it spreads over all frames
    with torch.inference_mode():
        clicked, silent = saved.network.encoder.subsampling(spectrograms)
    changed = ((clicked - silent).abs().amax(1) > 0).nonzero().flatten()
    assert changed.tolist() == [6, 7, 8]


# Facts --------------------------------------------------------------------------------------------------------------


def test_vocabulary_names_classes_blank_and_separator(wav2vec2):
    model = load_pretrained(str(wav2vec2.folder))
    assert list(model.labels) == LABELS
    assert (model.blank, model.separator) == (BLANK, SEPARATOR)
    assert model.spell is None  # characters: the aligner spells
    assert model.name == wav2vec2.folder.name


def test_vocabulary_may_be_smaller_or_larger_than_the_model(transformers, tmp_path):
    labels = ["<pad>", "|", "a", "b", "<unk>", "<s>", "</s>"]
    config = conv_config(transformers, "Wav2Vec2", vocab_size=5, pad_token_id=0)
    Saved(transformers, config, tmp_path, labels)
    assert list(load_pretrained(tmp_path).labels) == labels[:5]
    config.vocab_size = 9
    Saved(transformers, config, tmp_path, labels)
    assert list(load_pretrained(tmp_path).labels) == [*labels, "<7>", "<8>"]


def test_pieces_of_words_are_spelt_by_the_tokenizer(transformers, tmp_path):
    Saved(transformers, parakeet_config(transformers), tmp_path)
    model = load_pretrained(tmp_path)
    assert [model.labels[c] for c in model.spell("cat")] == ["▁c", "at"]
    assert [model.labels[c] for c in model.spell("the")] == ["▁the"]
    assert model.spell("кот") is None  # <unk>
    assert model.separator is None  # "▁" begins words, nothing stands between them
    assert model.blank == len(PIECES) - 1


def test_separator_of_a_tokenizer_of_characters(transformers, tmp_path):
    import tokenizers

    Saved(transformers, parakeet_config(transformers), tmp_path)
    pieces = [(piece, -1.0) for piece in PIECES if len(piece) == 1]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), *pieces, ("<pad>", 0.0)], unk_id=0))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    transformers.ParakeetTokenizer(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>").save_pretrained(
        tmp_path
    )
    model = load_pretrained(tmp_path)
    assert [model.labels[c] for c in model.spell("cat")] == ["c", "a", "t"]
    assert model.labels[model.separator] == "▁"


def test_blank_is_the_token_of_the_configuration_where_the_vocabulary_has_none(transformers, tmp_path):
    config = conv_config(transformers, "Wav2Vec2", pad_token_id=5)
    Saved(transformers, config, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    assert load_pretrained(tmp_path).blank == 5


@pytest.mark.parametrize(
    "front, licence, language",
    [
        ("license: apache-2.0\nlanguage: en", "apache-2.0", "en"),
        ("language:\n- de\nlicense: cc-by-nc-4.0", "cc-by-nc-4.0", "de"),
        ("language:\n- de\n- fr\ntags: [speech]", None, None),
        ("license: [oh, : no", None, None),
    ],
)
def test_model_card_names_licence_and_language(wav2vec2, front, licence, language):
    (wav2vec2.folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n\nlicense: none\n")
    model = load_pretrained(wav2vec2.folder)
    assert (model.licence, model.language) == (licence, language)
    assert load_pretrained(wav2vec2.folder, language="fr").language == "fr"


def test_model_without_a_card_has_no_licence(wav2vec2):
    (wav2vec2.folder / "README.md").write_text("# A model\n")
    assert load_pretrained(wav2vec2.folder).licence is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_that_of_the_weights(wav2vec2, dtype, generator):
    model = load_pretrained(wav2vec2.folder, dtype=dtype)
    samples = torch.randn(8000, generator=generator)
    log_probs = hear(model, samples)
    halved = wav2vec2.network.to(dtype)
    heard = wav2vec2.extractor([samples.numpy()], sampling_rate=16_000, return_tensors="pt").input_values.to(dtype)
    with torch.inference_mode():
        assert torch.equal(log_probs, halved(heard).logits[0].float().log_softmax(-1))
    assert log_probs.dtype == torch.float32


def test_device_is_where_the_model_runs(wav2vec2):
    if not torch.cuda.is_available():
        with pytest.raises(SpeechError, match=r"cannot run on 'cuda'"):
            load_pretrained(wav2vec2.folder, device="cuda")
        return
    samples = torch.randn(8000)
    log_probs = hear(load_pretrained(wav2vec2.folder, device="cuda"), samples)
    assert log_probs.is_cuda
    # Sums in another order, and TF32 is off by default in matrix products but not in convolutions: 10 bits of mantissa
    # in values of size 1.
    torch.testing.assert_close(log_probs.cpu(), wav2vec2.listen(samples), rtol=0, atol=2e-2)


# Adapters (MMS) -----------------------------------------------------------------------------------------------------

LANGUAGES = {"eng": LABELS, "deu": [*LABELS[:-2], "ä", "ö", "ü", *LABELS[-2:]]}


@pytest.fixture
def mms(transformers, tmp_path):
    """A model of two languages: English among the weights, German in a file of its own."""
    from safetensors.torch import save_file

    config = conv_config(transformers, "Wav2Vec2", adapter_attn_dim=4)
    saved = Saved(transformers, config, tmp_path)
    vocabularies = {name: {label: c for c, label in enumerate(labels)} for name, labels in LANGUAGES.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabularies))
    transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", target_lang="eng").save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabularies))
    torch.manual_seed(1)
    german = transformers.Wav2Vec2ForCTC(
        conv_config(transformers, "Wav2Vec2", adapter_attn_dim=4, vocab_size=len(LANGUAGES["deu"]))
    )
    for weights in german._get_adapters().values():
        torch.nn.init.normal_(weights)
    save_file({k: v.detach().clone() for k, v in german._get_adapters().items()}, tmp_path / "adapter.deu.safetensors")
    saved.german = german
    return saved


def test_language_loads_its_adapter(mms, generator):
    samples = torch.randn(8000, generator=generator)
    english, german = load_pretrained(mms.folder), load_pretrained(mms.folder, language="deu")
    assert (english.language, list(english.labels)) == ("eng", LANGUAGES["eng"])
    assert (german.language, list(german.labels)) == ("deu", LANGUAGES["deu"])
    assert german.labels[german.blank] == "<pad>"
    assert_same(hear(english, samples), mms.listen(samples))

    adapted = mms.network
    adapted.lm_head = torch.nn.Linear(16, len(LANGUAGES["deu"]))
    adapted.load_state_dict({k: v.clone() for k, v in mms.german._get_adapters().items()}, strict=False)
    assert_same(hear(german, samples), mms.listen(samples))


def test_language_may_be_a_tag(mms, missing):
    try:
        import langcodes  # noqa: F401
    except ImportError:
        missing("speech", "langcodes is not installed")
    assert load_pretrained(mms.folder, language="de").language == "deu"


def test_language_that_is_not_there(mms):
    with pytest.raises(SpeechError, match=r"has no language 'xho'; it has eng, deu: give language="):
        load_pretrained(mms.folder, language="xho")
    (mms.folder / "adapter.deu.safetensors").unlink()
    with pytest.raises(SpeechError, match=r"cannot load the weights from the directory .*adapter.deu"):
        load_pretrained(mms.folder, language="deu")


# Errors -------------------------------------------------------------------------------------------------------------


def expect_error(source, *parts, **options):
    with pytest.raises(SpeechError) as caught:
        load_pretrained(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_directory_without_a_model(transformers, tmp_path):
    expect_error(tmp_path, "no config.json", "save_pretrained")
    expect_error(tmp_path / "nothing", "no such directory")
    expect_error("./nothing", "no such directory")
    expect_error("/nothing/at/all", "no such directory")
    (tmp_path / "model.onnx").write_bytes(b"")
    expect_error(tmp_path / "model.onnx", "is a file", "from_onnx")


def test_broken_files(wav2vec2):
    weights, config = wav2vec2.folder / "model.safetensors", wav2vec2.folder / "config.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:100])
    expect_error(wav2vec2.folder, "cannot load the weights from the directory")
    weights.unlink()
    expect_error(wav2vec2.folder, "cannot load the weights from the directory", "model.safetensors")
    config.write_text("{")
    expect_error(wav2vec2.folder, "cannot load config.json from the directory")
    config.write_text("{}")
    expect_error(wav2vec2.folder, "cannot load config.json from the directory")


def test_model_of_another_kind(transformers, tmp_path):
    config = transformers.BertConfig(**TINY, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path)
    expect_error(tmp_path, "is no CTC model: its kind is 'bert'", "wav2vec2")


def test_model_that_was_not_fine_tuned(transformers, wav2vec2):
    wav2vec2.network.wav2vec2.save_pretrained(wav2vec2.folder)
    expect_error(wav2vec2.folder, "has no CTC head", "lm_head.weight", "fine-tuned")


def test_model_without_tokenizer_or_extractor(wav2vec2):
    (wav2vec2.folder / "preprocessor_config.json").unlink()
    expect_error(wav2vec2.folder, "cannot load a feature extractor (preprocessor_config.json)")
    wav2vec2.extractor.save_pretrained(wav2vec2.folder)
    (wav2vec2.folder / "vocab.json").unlink()
    expect_error(wav2vec2.folder, "cannot load a tokenizer (vocab.json or tokenizer.json)")


def test_model_without_a_blank(transformers, tmp_path):
    config = conv_config(transformers, "Wav2Vec2", vocab_size=4, pad_token_id=None)
    Saved(transformers, config, tmp_path, ["<unk>", "|", "a", "b", "<s>", "</s>", "<pad>"])
    expect_error(tmp_path, "has no token for padding among its 4 classes", "pad_token_id in its config.json")


def test_name_that_cannot_be_reached(transformers):
    """Nothing is fetched: the hub's library is told that there is no network."""
    code = (
        "from torch_ctc_align.speech import SpeechError\n"
        "from torch_ctc_align.speech.models.huggingface import load_pretrained\n"
        "try: load_pretrained('nobody/nothing')\n"
        "except SpeechError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'nobody/nothing'" in done.stdout
    assert "neither a directory here nor a model that the Hugging Face hub gives" in done.stdout
    assert "give their directory" in done.stdout


def test_transformers_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    expect_error(tmp_path, "pip install 'torch_ctc_align[hf]'")
