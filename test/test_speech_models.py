"""Acoustic models: any Python function, the English model, and the programs of docs/models.md."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from torch_ctc_align import speech
from torch_ctc_align.errors import AlignmentWarning
from torch_ctc_align.speech import SpeechError
from torch_ctc_align.speech.models.callable import from_callable
from torch_ctc_align.speech.models.measure import measure_geometry, what_sums_to_one

ROOT = Path(__file__).parents[1]
LABELS = ["-", "|", "a", "b"]


def network(field, hop, *, classes=4, say_frames=False, finish=torch.log_softmax):
    """A model of ``classes`` that gives (N - field) // hop + 1 frames and hears the mean loudness of each frame."""

    def run(samples, lengths):
        frames = (lengths - field).div(hop, rounding_mode="floor") + 1
        count = int(frames.max())
        padded = torch.nn.functional.pad(samples, (0, field + hop))
        loudness = padded.unfold(1, max(field, 1), hop)[:, :count].mean(-1, keepdim=True)
        scores = 3 - (loudness * 10 - torch.arange(classes)).abs()
        emissions = finish(scores, -1) if finish else scores
        return (emissions, frames) if say_frames else emissions

    return run


def load(run, **facts):
    return from_callable(run, **{"labels": LABELS, "blank": 0, "hop": 160, "sample_rate": 8000} | facts)


def expect_error(call, *parts):
    with pytest.raises(SpeechError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# How samples become frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("say_frames", [False, True])
@pytest.mark.parametrize("hop", [1, 2, 7, 160, 320])
def test_receptive_field_is_measured_exactly(hop, say_frames):
    for field in {0, 1, hop - 1, hop, hop + 1, 2 * hop + 3, 5 * hop, 400}:
        run = network(field, hop, say_frames=say_frames)
        assert measure_geometry(run, hop=hop, sample_rate=8000, name="it") == (hop, field)


@pytest.mark.parametrize("hop", [2, 7, 160, 320, 1280])
def test_hop_is_measured_exactly(hop):
    for field in {0, 1, hop + 1, 400}:
        assert measure_geometry(network(field, hop), hop=None, sample_rate=8000, name="it") == (hop, field)


def test_few_runs_measure():
    calls = []

    def run(samples, lengths):
        calls.append(len(samples[0]))
        return network(400, 320)(samples, lengths)

    measure_geometry(run, hop=320, sample_rate=16_000, name="it")
    assert len(calls) <= 2 + 9 + 6  # two, a bisection of 320, and the places around a border
    assert max(calls) < 2 * 16_000 + 320


@pytest.mark.parametrize(
    "frames",
    [
        lambda n: n // 161 + 1,  # another hop
        lambda n: 50,  # always 30 s
        lambda n: (n + 159) // 160 // 2 * 2,  # two at once
        lambda n: n // 160 + (n > 9000),  # one more later on
    ],
)
def test_other_numbers_of_frames_are_an_error_that_says_what_was_measured(frames):
    def run(samples, lengths):
        return torch.zeros(len(samples), frames(samples.shape[1]), 4).log_softmax(-1)

    expect_error(lambda: load(run), "does not give (N - ", "// 160 + 1 frames")
    with pytest.raises(SpeechError) as caught:
        load(run)
    shown = re.findall(r"(\d+) frames for (\d+) samples", str(caught.value))
    assert shown
    assert all(int(count) == frames(int(samples)) for count, samples in shown)


def test_more_frames_than_samples_allow():
    def run(samples, lengths):
        return torch.zeros(len(samples), samples.shape[1] // 160 + 2, 4).log_softmax(-1)

    expect_error(lambda: load(run), "more than N // 160 + 1", "102 frames for 16000 samples")


def test_receptive_field_that_is_wrong():
    assert load(network(400, 160), receptive_field=400).receptive_field == 400
    expect_error(
        lambda: load(network(400, 160), receptive_field=401), "(N - 401) // 160 + 1", "hop and receptive_field"
    )


def test_frame_offset_puts_the_middle_where_the_samples_are():
    assert load(network(400, 160)).frame_offset == 120 / 160  # samples 0 to 400 have their middle at 200 = 120 + 80
    assert load(network(160, 160)).frame_offset == 0
    assert load(network(400, 160), frame_offset=-0.5).frame_offset == -0.5


# What the function returns ------------------------------------------------------------------------------------------


def test_log_probs_stay_as_they_are(recwarn):
    run = network(400, 160, say_frames=True)
    samples, lengths = torch.rand(2, 4000), torch.tensor([4000, 1000])
    log_probs, frames = load(run).run(samples, lengths)
    assert torch.equal(log_probs, run(samples, lengths)[0])
    assert frames.tolist() == [23, 4]
    assert not recwarn.list


@pytest.mark.parametrize("finish", [torch.log_softmax, None])
def test_no_graph_is_kept(finish):
    weights = torch.ones(4, requires_grad=True)
    plain = network(400, 160, finish=None)

    def run(samples, lengths):
        scores = plain(samples, lengths) * weights
        return scores if finish is None else finish(scores, -1)

    log_probs, _ = load(run, logits=finish is None).run(torch.rand(1, 4000), torch.tensor([4000]))
    assert not log_probs.requires_grad


def test_frames_follow_from_the_lengths_where_the_function_does_not_say():
    _, frames = load(network(400, 160)).run(torch.rand(3, 4000), torch.tensor([4000, 1000, 100]))
    assert frames.tolist() == [23, 4, 0]


def test_logits_are_noticed():
    run = network(400, 160, finish=None)
    with pytest.warns(
        AlignmentWarning, match=r"^the model returns logits, so a log_softmax is applied; give logits=True"
    ):
        model = load(run, name="the model")
    samples, lengths = torch.rand(1, 4000), torch.tensor([4000])
    assert torch.equal(model.run(samples, lengths)[0], run(samples, lengths).log_softmax(-1))


def test_logits_that_are_meant(recwarn):
    run = network(400, 160, finish=None)
    samples, lengths = torch.rand(1, 4000), torch.tensor([4000])
    assert torch.equal(load(run, logits=True).run(samples, lengths)[0], run(samples, lengths).log_softmax(-1))
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 32, 5000])
def test_log_probs_of_any_dtype_are_known_as_such(dtype, classes, generator):
    logits = 5 * torch.randn(1, 50, classes, generator=generator, dtype=torch.float64)
    assert what_sums_to_one(logits.log_softmax(-1).to(dtype)) == "log_probs"
    assert what_sums_to_one(logits.softmax(-1).to(dtype)) == "probabilities"
    assert what_sums_to_one(logits.to(dtype)) == "logits"


def test_probabilities_are_an_error():
    expect_error(lambda: load(network(400, 160, finish=torch.softmax)), "returns probabilities", ".log()")


@pytest.mark.parametrize(
    "result, parts",
    [
        (lambda s: None, ["found NoneType"]),
        (lambda s: torch.zeros(50, 4), ["(B, T, C)", "shape (50, 4)"]),
        (lambda s: torch.zeros(1, 50, 4, dtype=torch.int64), ["torch.int64"]),
        (lambda s: torch.zeros(50, 1, 4), ["given 1 items and returned 50"]),
        (lambda s: (torch.zeros(1, 50, 4), torch.tensor(50)), ["frames of each item", "shape ()"]),
        (lambda s: (torch.zeros(1, 50, 4), [50]), ["frames of each item", "found list"]),
        (lambda s: (torch.zeros(1, 50, 4), torch.tensor([51])), ["returns 50 frames and says that 51"]),
        (lambda s: torch.zeros(1, 0, 4), ["returns no frames"]),
        (lambda s: torch.full((1, 50, 4), torch.nan), ["returns NaN"]),
        (lambda s: s.wrong, ["fails on 8000 samples of silence", "AttributeError", "'wrong'"]),
    ],
)
def test_results_that_are_wrong(result, parts):
    expect_error(lambda: load(lambda samples, lengths: result(samples)), *parts)


# Labels -------------------------------------------------------------------------------------------------------------


def test_labels_may_be_a_vocabulary():
    model = load(network(400, 160, classes=5), labels={"b": 3, "-": 0, "a": 1}, blank="-")
    assert list(model.labels) == ["-", "a", "<2>", "b", "<4>"]
    assert model.blank == 0


@pytest.mark.parametrize(
    "labels, separator",
    [
        (["-", "|", "a", " "], 1),
        (["-", "▁", "a", " "], 3),
        (["-", "▁", "a", "b"], 1),
        (["-", "▁", "▁a", "b"], None),  # words begin with it
        (["-", "c", "a", "b"], None),
        (["|", "c", "a", "b"], None),  # the blank
    ],
)
def test_separator_is_the_label_that_is_usual(labels, separator):
    assert load(network(400, 160), labels=labels).separator == separator
    assert load(network(400, 160), labels=labels, separator=None).separator is None
    assert load(network(400, 160), labels=labels, separator=labels[2]).separator == 2


@pytest.mark.parametrize(
    "facts, parts",
    [
        ({"labels": []}, ["labels of a CTC model are empty"]),
        ({"labels": {}}, ["labels of a CTC model are empty"]),
        ({"labels": ["-", "a", "b", 3]}, ["must be strings, found 3"]),
        ({"labels": ["-", "a", "b", "a"]}, ["'a' twice, as classes 1 and 3"]),
        ({"labels": {"-": 0, "a": 1, "b": 1}}, ["class 1 two names, 'a' and 'b'"]),
        ({"labels": {"-": 0, "a": -1}}, ["found 'a': -1"]),
        ({"labels": ["-", "a", "b"]}, ["returns 4 classes, and labels has 3"]),
        ({"labels": ["-", *"abcd"]}, ["returns 4 classes, and labels has 5"]),
        ({"blank": 4}, ["blank must be a class from 0 to 3 or its name, found 4"]),
        ({"blank": -1}, ["found -1"]),
        ({"blank": True}, ["found True"]),
        ({"blank": "<blk>"}, ["blank is '<blk>', which is not among the labels: '-' '|' 'a' 'b'"]),
        ({"separator": 9}, ["separator must be a class from 0 to 3"]),
        ({"separator": "-"}, ["separator and blank are the same class, 0"]),
        ({"hop": 0}, ["hop must be a positive integer (samples a frame), found 0"]),
        ({"hop": 160.0}, ["found 160.0"]),
        ({"sample_rate": -8000}, ["sample_rate must be a positive integer (Hz), found -8000"]),
        ({"window": 4.0, "context": 2.0}, ["window must be longer than twice context (seconds), found 4.0 and 2.0"]),
        ({"context": -1.0}, ["found 30.0 and -1.0"]),
        ({"name": "mine", "labels": []}, ["labels of mine are empty"]),
    ],
)
def test_facts_that_are_wrong(facts, parts):
    expect_error(lambda: load(network(400, 160), **facts), *parts)


def test_names_of_several_characters_may_be_equal():
    assert load(network(400, 160), labels=["-", "<x>", "a", "<x>"]).labels[3] == "<x>"


def test_other_facts_are_handed_on():
    facts = {"window": 10.0, "context": 1.0, "language": "de", "name": "mine", "licence": "MIT", "spell": len}
    model = load(network(400, 160), **facts)
    assert {name: getattr(model, name) for name in facts} == facts
    assert model.seconds_per_frame == 0.02


# English ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _english():
    return {}


@pytest.fixture
def english(missing, _english):
    """The model, loaded once."""
    try:
        import hama  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        missing("speech", f"hama cannot be imported ({error})")
    from torch_ctc_align.speech.models.english import load_english

    if not _english:
        _english["model"] = load_english()
    return _english["model"]


@pytest.fixture
def clip(missing):
    """Samples of a recording, (N,), and what the aligner was given for it before."""
    try:
        import numpy as np
        import soundfile
    except ImportError as error:
        missing("speech", f"soundfile cannot be imported ({error})")
    samples, rate = soundfile.read(
        ROOT / "examples/data/sense_and_sensibility_01_austen_64kb-0870.wav", dtype="float32"
    )
    assert rate == 16_000
    return torch.from_numpy(samples), np.load(ROOT / "test/data/sense_and_sensibility_0870.npz")


def test_english_model_hears_what_was_recorded(english, clip):
    samples, recorded = clip
    log_probs, frames = english.run(samples[None], torch.tensor([len(samples)]))
    assert frames.tolist() == [len(samples) // 320 + 1] == [356]
    # Another processor or onnxruntime may take sums in another order. Values reach -20: float32 sums of some hundred
    # terms of that size are off by 20 * 100 * 2**-24 = 1e-4 at most, and each of ten layers adds as much.
    torch.testing.assert_close(log_probs[0], torch.from_numpy(recorded["log_probs"]), rtol=0, atol=1e-3)
    assert (english.blank, english.separator) == (int(recorded["blank"]), int(recorded["separator"]))
    assert english.seconds_per_frame == float(recorded["seconds_per_frame"])
    assert len(english.labels) == log_probs.shape[-1]


def test_english_words_are_spelt_as_recorded(english, clip):
    _, recorded = clip
    phonemes = [label for label in recorded["targets"].tolist() if label != english.separator]
    for word, count in zip(recorded["words"].tolist(), recorded["tokens_per_word"].tolist(), strict=True):
        assert english.spell(word.lower()) == phonemes[:count], word
        phonemes = phonemes[count:]
    assert not phonemes


@pytest.mark.parametrize("part", ["", "'", "7", "a1", "слово", "a-b", "a b", "ß", "x" * 61])
def test_english_model_spells_letters_alone(english, part):
    assert english.spell(part) is None


def test_english_spelling_ends(english, monkeypatch):
    """The phonemizer of hama 1.3.10 repeats itself over a lone m."""
    from torch_ctc_align.speech.models import english as module

    assert [english.labels[label] for label in english.spell("m")] == ["ɛ", "m"]
    assert len(english.spell("antidisestablishmentarianism")) > 20
    monkeypatch.setattr(module, "UNSAID", {})
    assert module.load_english().spell("m") is None


def test_phonemes_are_those_of_hama_with_its_tables_made_once(library):
    from torch_ctc_align.speech.models import english as module

    theirs, ours = library("hama").G2PModel(), library("hama").G2PModel()
    module.keep_tables(ours.vocab)
    assert ours.vocab.encoder_token_to_id is ours.vocab.encoder_token_to_id
    assert all(ours.predict(word) == theirs.predict(word) for word in ["sensibility", "o'clock", "Ümlaut", "7"])


def test_english_spelling_forgets_accents_and_case(english):
    assert english.spell("café") == english.spell("cafe") == english.spell("CAFÉ")
    assert english.spell("don’t") == english.spell("don't")
    assert english.spell("cafe")
    assert {english.blank, english.separator}.isdisjoint(english.spell("internationalization"))


def test_english_model_gives_one_frame_for_any_sound_however_short(english):
    for length in (0, 1, 160, 318, 319, 320, 640):
        log_probs, frames = english.run(torch.zeros(1, length), torch.tensor([length]))
        assert frames.tolist() == [log_probs.shape[1]] == [length // 320 + 1]


def test_english_model_never_hears_padding(english, generator):
    samples = torch.full((2, 8000), torch.nan)
    samples[0], samples[1, :5000] = torch.randn(8000, generator=generator) / 10, torch.randn(5000, generator=generator)
    log_probs, frames = english.run(samples, torch.tensor([8000, 5000]))
    assert frames.tolist() == [26, 16]
    alone, _ = english.run(samples[1:, :5000], torch.tensor([5000]))
    assert torch.equal(log_probs[1, :16], alone[0])


def test_english_model_counts_frames_as_it_says(english):
    geometry = measure_geometry(english.run, hop=320, sample_rate=16_000, name="hama")
    assert geometry.receptive_field == english.receptive_field == 0
    assert english.frame_offset == -0.5


def test_english_model_needs_hama(monkeypatch):
    from torch_ctc_align.speech.models.english import load_english

    monkeypatch.setitem(sys.modules, "hama", None)
    expect_error(load_english, "the English model needs the package hama", "pip install 'torch_ctc_align[speech]'")


def test_english_model_of_another_version(english, monkeypatch):
    from torch_ctc_align.speech.models.english import load_english

    monkeypatch.setitem(sys.modules, "hama", ModuleType("hama"))
    expect_error(load_english, "cannot load its model", "hama>=1.3.10,<1.4")


def test_english_model_on_another_device(english, monkeypatch):
    import onnxruntime

    from torch_ctc_align.speech.models.english import load_english

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SpeechError, match=r"^onnxruntime cannot run a model on 'cuda'.*CPUExecutionProvider") as caught:
        load_english("cuda")
    assert "hama" not in str(caught.value), "another version of it would not help"


# docs/models.md -----------------------------------------------------------------------------------------------------
# Stand-ins for libraries that are large and whose weights are elsewhere: what they are given and return, with types and
# numbers of frames, is that of NeMo 3.0.1, torchaudio 2.11.0 and ESPnet 202609.


def block(heading, number=0):
    """A Python program of the page."""
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```py(?:thon)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture
def run_block(monkeypatch):
    """Runs a program with stand-ins for modules; returns its names."""
    if not hasattr(speech, "Aligner"):
        monkeypatch.setattr(
            speech, "Aligner", lambda run, **facts: SimpleNamespace(model=from_callable(run, **facts)), raising=False
        )

    def run(source, **modules):
        for name, names in modules.items():
            path = name.replace("__", ".")
            for depth in range(1, path.count(".") + 2):
                part = ".".join(path.split(".")[:depth])
                monkeypatch.setitem(sys.modules, part, ModuleType(part))
            for key, value in names.items():
                setattr(sys.modules[path], key, value)
        names = {}
        exec(compile(source, "docs/models.md", "exec"), names)
        return names

    return run


def test_function_of_the_page(run_block):
    assert run_block(block("A function"))["aligner"].model.labels[0] == "-"


def emissions_for(samples, frames, classes):
    """(B, T, C) logits; T is that of the longest item."""
    count = int(frames.max())
    return torch.sin(torch.arange(len(samples) * count * classes).float()).reshape(len(samples), count, classes)


class NeMoModel:
    """EncDecCTCModelBPE with a Fast Conformer: 10 ms features, three convolutions with stride 2 and padding."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.cfg = SimpleNamespace(preprocessor=SimpleNamespace(window_stride=0.01, sample_rate=16_000))
        self.encoder = SimpleNamespace(subsampling_factor=8)
        self.decoder = SimpleNamespace(vocabulary=["<unk>", "▁the", "▁c", "at"])
        self.tokenizer = SimpleNamespace(text_to_ids={"the": [1], "cat": [2, 3]}.__getitem__)

    @classmethod
    def from_pretrained(cls, model_name):
        assert isinstance(model_name, str)
        return cls()

    def eval(self):
        return self

    def __call__(self, *, input_signal, input_signal_length):  # by keyword alone: @typecheck
        assert input_signal.dtype == torch.float32
        assert input_signal_length.dtype == torch.int64
        frames = input_signal_length // 160
        for _ in range(3):
            frames = (frames + 2 - 3) // 2 + 1
        # The spectrogram has a frame more than counts, and is filled up to a multiple of 16.
        shown = frames + 2
        log_probs = emissions_for(input_signal, shown, 5).log_softmax(-1)
        return log_probs, frames, log_probs.argmax(-1)


def test_nemo(run_block):
    names = run_block(block("NeMo"), nemo__collections__asr__models={"ASRModel": NeMoModel})
    model = names["aligner"].model
    assert (model.hop, model.sample_rate, model.blank, model.separator) == (1280, 16_000, 4, None)
    assert (model.receptive_field, model.frame_offset) == (160, -0.5)  # ceil((N // 160) / 8)
    assert [model.labels[c] for c in model.spell("cat")] == ["▁c", "at"]
    assert model.run(torch.zeros(2, 16_000), torch.tensor([16_000, 8_000]))[1].tolist() == [13, 7]


class Wav2Vec2Model:
    """torchaudio.models.Wav2Vec2Model, and the wrapper around it that bundles make."""

    def __init__(self, classes, log_softmax, normalize):
        self.classes, self.log_softmax, self.normalize = classes, log_softmax, normalize

    def __call__(self, waveforms, lengths=None):
        if self.normalize:
            assert len(waveforms) == 1  # it takes mean and variance of the whole batch
        shown = torch.tensor([waveforms.shape[1]] * len(waveforms))
        logits = emissions_for(waveforms, (shown - 400) // 320 + 1, self.classes)
        if self.log_softmax:
            logits = logits.log_softmax(-1)
        return logits, None if lengths is None else (lengths - 400).div(320, rounding_mode="floor") + 1


class Bundle:
    sample_rate = 16000.0
    _labels = tuple("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")

    def get_model(self, *, dl_kwargs=None):
        return Wav2Vec2Model(29, log_softmax=False, normalize=False)

    def get_labels(self, *, blank="-"):
        return (blank, *self._labels)


class BundleForAlignment(Bundle):
    _labels = tuple("aienoutsrmkldghybpwcvjzf'qx")

    def get_labels(self, star="*", blank="-"):
        return (blank, *self._labels) if star is None else (blank, *self._labels, star)

    def get_model(self, with_star=True, *, dl_kwargs=None):
        return Wav2Vec2Model(29 if with_star else 28, log_softmax=True, normalize=True)


def test_torchaudio_mms_fa(run_block):
    names = run_block(block("torchaudio", 0), torchaudio__pipelines={"MMS_FA": BundleForAlignment()})
    model = names["aligner"].model
    assert (len(model.labels), model.blank, model.separator) == (28, 0, None)
    assert (model.hop, model.receptive_field, model.frame_offset) == (320, 400, 0.125)
    assert model.run(torch.zeros(2, 16_000), torch.tensor([16_000, 8_000]))[1].tolist() == [49, 24]


def test_torchaudio_bundle(run_block, recwarn):
    names = run_block(block("torchaudio", 1), torchaudio__pipelines={"WAV2VEC2_ASR_BASE_960H": Bundle()})
    model = names["aligner"].model
    assert (len(model.labels), model.blank, model.separator, model.sample_rate) == (29, 0, 1, 16_000)
    assert (model.hop, model.receptive_field) == (320, 400)
    log_probs, frames = model.run(torch.zeros(2, 16_000), torch.tensor([16_000, 8_000]))
    assert frames.tolist() == [49, 24]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 49))  # of float32
    assert not [warning for warning in recwarn if issubclass(warning.category, AlignmentWarning)]


def test_stand_ins_are_as_torchaudio_is(torchaudio):
    from torchaudio.pipelines import MMS_FA, WAV2VEC2_ASR_BASE_960H

    for real, stand_in in [(MMS_FA, BundleForAlignment()), (WAV2VEC2_ASR_BASE_960H, Bundle())]:
        assert real.get_labels() == stand_in.get_labels()
        assert real.sample_rate == stand_in.sample_rate
    assert MMS_FA.get_labels(star=None) == BundleForAlignment().get_labels(star=None)
    tiny = {"encoder_embed_dim": 16, "encoder_num_layers": 1, "encoder_num_heads": 2, "encoder_pos_conv_kernel": 8,
            "encoder_ff_interm_features": 16, "encoder_pos_conv_groups": 2}  # fmt: skip
    parameters = WAV2VEC2_ASR_BASE_960H._params | tiny
    model = torchaudio.models.wav2vec2_model(**parameters).eval()
    stand_in = Bundle().get_model()
    for length in (719, 720, 16_000):
        samples, lengths = torch.zeros(2, length), torch.tensor([length, 500])
        real, heard = model(samples, lengths), stand_in(samples, lengths)
        assert real[0].shape == heard[0].shape
        assert real[1].tolist() == heard[1].tolist()
    assert model(samples)[1] is stand_in(samples)[1] is None


class ESPnetModel:
    """ESPnetASRModel with its default frontend and a conv2d input layer: two convolutions of 3 with stride 2."""

    token_list = ("<blank>", "<unk>", "▁THE", "▁C", "AT", "<sos/eos>")
    blank_id = 0
    frontend = SimpleNamespace(hop_length=128)
    ctc = SimpleNamespace(log_softmax=lambda encoded: encoded.log_softmax(2))

    def __init__(self, intermediate):
        self.intermediate = intermediate

    def eval(self):
        return self

    def encode(self, speech, speech_lengths):
        frames = speech_lengths // 128 + 1
        for _ in range(2):
            frames = (frames - 3) // 2 + 1
        encoded = emissions_for(speech, frames, 6)
        return ((encoded, [(3, encoded)]) if self.intermediate else encoded), frames


@pytest.mark.parametrize("intermediate", [False, True])
def test_espnet(run_block, intermediate):
    class Speech2Text:
        asr_model = ESPnetModel(intermediate)
        tokenizer = SimpleNamespace(text2tokens={"THE": ["▁THE"], "CAT": ["▁C", "AT"]}.__getitem__)
        converter = SimpleNamespace(tokens2ids=lambda tokens: [ESPnetModel.token_list.index(token) for token in tokens])

        @staticmethod
        def from_pretrained(model_tag):
            assert isinstance(model_tag, str)
            return Speech2Text()

    names = run_block(block("ESPnet"), espnet2__bin__asr_inference={"Speech2Text": Speech2Text})
    model = names["aligner"].model
    assert (model.hop, model.blank, model.separator, model.sample_rate) == (512, 0, None, 16_000)
    # Frames 4t to 4t + 6 of the spectrogram, centred on 128 (4t + 3) = 512 t + 384: half a frame is 256, so 128 later.
    assert (model.receptive_field, model.frame_offset) == (768, 128 / 512)
    assert [model.labels[c] for c in model.spell("cat")] == ["▁C", "AT"]
