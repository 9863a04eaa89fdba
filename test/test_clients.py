"""Real clients, with our functions in place of theirs: same results on the code paths that their users run.

A client that calls torchaudio runs unchanged under install_in_torchaudio: lhotse's MMS aligner, easyaligner, and
ctc-forced-aligner with torch. A client with an aligner of its own gets ours in its place through an adapter of a few
lines: ctc-forced-aligner with ONNX, whisperX, lhotse's ASR aligner. transformers has a model and no aligner.

They run in an environment of their own: make test-clients. With CTC_ALIGN_REQUIRE=clients a missing client is a
failure. Stand-ins replace only what has to be fetched (models, a sentence splitter) or is not under test. A comment
names each of them where it is put in.
"""

import importlib
import io
import json
import re
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import torch_ctc_align
from torch_ctc_align import ForcedAligner, install_in_torchaudio, merge_words, token_spans

SAMPLE_RATE = 16000
TEXT = "the quick brown fox jumps over the lazy dog"
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


@pytest.fixture
def client(missing, monkeypatch):
    """client(name, absent=[...]) imports a client; modules that it imports and that are not under test stay empty."""

    def find(name, absent=()):
        for module in absent:
            stand_in(monkeypatch, module)
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            return missing("clients", f"{name} cannot be imported ({error}); see make test-clients")

    return find


def stand_in(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec finds it
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


class Model(torch.nn.Module):
    """Stands in for a fetched acoustic model: returns a given emission, like torchaudio's models and transformers'."""

    def __init__(self, emission):
        super().__init__()
        self.emission = emission

    def forward(self, waveform, lengths=None):
        return Emission((self.emission, lengths))


class Emission(tuple):
    @property
    def logits(self):
        return self[0]


def spiky(labels, starts, frames, classes, blank=0):
    """(1, frames, classes): label k at starts[k] with probability 0.9, and the blank elsewhere."""
    best = torch.full((frames,), blank)
    best[starts] = torch.tensor(labels)
    probabilities = torch.full((1, frames, classes), 0.1 / (classes - 1))
    return probabilities.scatter(2, best[None, :, None], 0.9).log()


@pytest.fixture
def starts(generator):
    """starts(count, frames): where labels are spoken; at least one frame lies between two."""

    def choose(count, frames):
        return [2 * i + 1 for i in sorted(torch.randperm(frames // 2 - 1, generator=generator)[:count].tolist())]

    return choose


@pytest.fixture
def noisy(generator):
    """noisy(frames, classes): (1, frames, classes), no ties, and no path that stands out."""
    return lambda frames, classes: torch.randn(1, frames, classes, generator=generator).log_softmax(-1)


# ctc-forced-aligner


@pytest.fixture
def ctc_forced_aligner(client):
    """librosa only loads audio there, and onnxruntime only runs a fetched model."""
    return client("ctc_forced_aligner", absent=["librosa", "onnxruntime"])


def in_numpy(log_probs, targets, blank):
    """Ours in place of ctc-forced-aligner's kernel: arrays in and out, scores of the one item."""
    paths, scores = torch_ctc_align.forced_align(torch.from_numpy(log_probs), torch.from_numpy(targets), blank=blank)
    return paths.numpy(), scores[0].numpy()


def test_ctc_forced_aligner_with_onnx(ctc_forced_aligner, noisy, monkeypatch):
    """Its own words: emissions of windows, romanised text with <star>, segments, spans and seconds."""
    np = pytest.importorskip("numpy")
    c = ctc_forced_aligner
    logits = noisy(1699, len(c.VOCAB_DICT)).numpy()  # 34 s: a window of 30 s, and 2 s of context at either end
    session = SimpleNamespace(run=lambda names, inputs: [logits])
    tokens, text = c.preprocess_text(TEXT, romanize=True, language="eng")

    def align():
        emissions, stride = c.generate_emissions(session, np.zeros(3 * SAMPLE_RATE, dtype=np.float32))
        assert emissions.shape == (150, 32)
        segments, scores, blank = c.get_alignments(emissions, tokens, c.Tokenizer())
        spans = c.get_spans(tokens, segments, blank)
        return segments, scores, spans, c.postprocess_results(text, spans, stride, scores)

    theirs = align()
    calls = []
    monkeypatch.setattr(
        c, "forced_align", lambda *arguments, **options: calls.append(1) or in_numpy(*arguments, **options)
    )
    ours = align()
    assert len(calls) == 1
    assert ours[0] == theirs[0]
    assert np.array_equal(ours[1], theirs[1])
    assert ours[2:] == theirs[2:]
    assert [word["text"] for word in ours[3]] == TEXT.split()


def test_ctc_forced_aligner_with_torch(ctc_forced_aligner, torchaudio, noisy, monkeypatch, tmp_path):
    """From a file of audio and one of text to words, with the model of torchaudio's pipeline handed over."""
    c = ctc_forced_aligner
    (tmp_path / "text.txt").write_text(TEXT.replace("fox", "fox\n"))
    waveform = torch.zeros(3 * SAMPLE_RATE).numpy()
    monkeypatch.setattr(c.librosa, "load", lambda path, sr, mono: (waveform, sr), raising=False)
    model = Model(noisy(150, len(torchaudio.pipelines.MMS_FA.get_labels(star=None))))

    def align():
        return c.get_word_stamps("speech.wav", tmp_path / "text.txt", model)

    theirs = align()
    with install_in_torchaudio():
        ours = align()
    assert ours == theirs
    assert [word["text"] for word in ours[0]] == TEXT.split()
    # It comes from our kernel: emissions that are not contiguous stop torchaudio's.
    model.emission = model.emission.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="contiguous"):
        align()
    with install_in_torchaudio():
        assert align() == theirs


# Aligners after torchaudio's tutorial: a trellis, and points along it


def use_our_kernel(monkeypatch, module, trellis, backtrack):
    """Ours in place of the two functions, which whisperX and lhotse have in common.

    Their path has one point for each frame from the first token to the last, with the token that was last entered; a
    token lasts until the next one begins. So its points follow from the starts of our spans, and the end of the last.
    """

    def get_trellis(emission, tokens, blank_id=0):
        return torch.empty(len(emission) + 1, 1)  # its length is all that is asked for

    def points(_, emission, tokens, blank_id=0):
        targets = torch.tensor([tokens])
        paths, scores = torch_ctc_align.forced_align(emission[None], targets, blank=blank_id)
        spans = token_spans(paths, scores, targets, blank=blank_id)
        frames = torch.arange(int(spans.starts[0, 0]), int(spans.ends[0, -1]))
        entered = torch.searchsorted(spans.starts[0], frames, right=True) - 1
        return [
            module.Point(k, t, p)
            for k, t, p in zip(entered.tolist(), frames.tolist(), scores[0, frames].exp().tolist(), strict=True)
        ]

    monkeypatch.setattr(module, trellis, get_trellis)
    monkeypatch.setattr(module, backtrack, points)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="whisperX cannot be installed on Python 3.14")
@pytest.mark.parametrize("return_characters", [False, True])
def test_whisperx(client, starts, monkeypatch, return_characters):
    """Two segments of a recording, one of them with a character that the model does not know."""
    alignment = client("whisperx.alignment")
    labels = ["[pad]", "|", *LETTERS]
    dictionary = {label: i for i, label in enumerate(labels)}
    texts = [f" {TEXT}", "lorem 1psum"]
    # The digit is a wildcard: whisperX gives it the best label of any frame, so any label will do in its place.
    spoken = [[dictionary.get(c, 1) for c in text.strip().replace(" ", "|")] for text in texts]
    frames = [200, 60]
    emissions = []
    for text_labels, length in zip(spoken, frames, strict=True):
        emissions.append(spiky(text_labels, starts(len(text_labels), length), length, len(labels)))
    splitter = SimpleNamespace(span_tokenize=lambda text: [(0, len(text))])  # stands in for a fetched one
    monkeypatch.setattr(alignment, "nltk_load", lambda path: splitter)
    transcript = [{"start": 0.5, "end": 4.5, "text": texts[0]}, {"start": 5.0, "end": 6.2, "text": texts[1]}]
    metadata = {"language": "en", "dictionary": dictionary, "type": "huggingface"}

    def align():
        queue = iter(emissions)
        model = Model(None)
        model.register_forward_pre_hook(lambda module, _: setattr(module, "emission", next(queue)))
        audio = torch.zeros(7 * SAMPLE_RATE)
        return alignment.align(transcript, model, metadata, audio, "cpu", return_char_alignments=return_characters)

    theirs = align()
    use_our_kernel(monkeypatch, alignment, "get_trellis", "backtrack")
    ours = align()
    assert ours == theirs
    assert [word["word"] for word in ours["word_segments"]] == [*TEXT.split(), "lorem", "1psum"]


# lhotse


@pytest.fixture
def lhotse(client):
    client("lhotse")
    return client("lhotse.workflows.forced_alignment")


@pytest.fixture
def cut(lhotse):
    """Three seconds of a recording in memory; two stretches of it carry text."""
    soundfile = pytest.importorskip("soundfile")
    from lhotse import MonoCut, Recording, SupervisionSegment

    wav = io.BytesIO()
    soundfile.write(wav, torch.zeros(5 * SAMPLE_RATE).numpy(), SAMPLE_RATE, format="WAV")
    recording = Recording.from_bytes(wav.getvalue(), "recording")
    texts = TEXT.split()[:4], TEXT.split()[4:]
    supervisions = [
        SupervisionSegment(str(i), "recording", start=0.5 + 2 * i, duration=2, text=" ".join(text), language="en")
        for i, text in enumerate(texts)
    ]
    return MonoCut("cut", start=0, duration=5, channel=0, supervisions=supervisions, recording=recording)


def alignments(cut):
    return [supervision.alignment["word"] for supervision in cut.supervisions]


@pytest.fixture
def mms_aligner(lhotse, torchaudio, noisy, monkeypatch):
    """lhotse's aligner. The bundle is torchaudio's, except for the model. The romaniser returns its input."""
    real = torchaudio.pipelines.MMS_FA
    model = Model(noisy(100, len(real.get_labels())))
    parts = {name: getattr(real, name) for name in ("get_tokenizer", "get_aligner", "get_labels")}
    bundle = SimpleNamespace(sample_rate=SAMPLE_RATE, get_model=lambda: model, **parts)
    monkeypatch.setattr(torchaudio.pipelines, "MMS_FA", bundle)
    stand_in(monkeypatch, "uroman", uroman=lambda text, language: text)
    language = SimpleNamespace(language="en")
    languages = SimpleNamespace(get=lambda name: language)
    stand_in(monkeypatch, "langcodes", Language=languages, tag_parser=SimpleNamespace(LanguageTagError=ValueError))
    return lhotse.MMSForcedAligner()


def test_lhotse_mms_aligner(mms_aligner, cut):
    theirs = alignments(mms_aligner(cut))
    with install_in_torchaudio():
        ours = alignments(mms_aligner(cut))
    for found, expected in zip(ours, theirs, strict=True):
        assert [item[:3] for item in found] == [item[:3] for item in expected]
        assert [item.score for item in found] == pytest.approx([item.score for item in expected], rel=1e-6)
    assert [item.symbol for item in [*ours[0], *ours[1]]] == TEXT.split()


def test_lhotse_catches_what_we_raise(mms_aligner, cut, caplog):
    """A supervision that does not fit is kept without alignment, and the next one is aligned.

    The emissions are not contiguous, so that torchaudio's kernel could not align the second one.
    """
    emission = mms_aligner.model.emission.transpose(1, 2).contiguous().transpose(1, 2)
    frames = iter([10, 100])
    mms_aligner.model.register_forward_pre_hook(
        lambda model, _: setattr(model, "emission", emission[:, : next(frames)])
    )
    with install_in_torchaudio():
        supervisions = mms_aligner(cut).supervisions
    assert supervisions[0].alignment is None
    assert [item.symbol for item in supervisions[1].alignment["word"]] == TEXT.split()[4:]
    assert "AlignmentError: targets length is too long for CTC" in caplog.text


def test_lhotse_asr_aligner(lhotse, torchaudio, cut, starts, monkeypatch):
    from lhotse.workflows.forced_alignment import asr_aligner

    labels = torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H.get_labels()
    for supervision in cut.supervisions:
        supervision.text = supervision.text.upper().replace(" ", "|")
    spoken = [[labels.index(c) for c in supervision.text] for supervision in cut.supervisions]
    emissions = [spiky(tokens, starts(len(tokens), 100), 100, len(labels)) for tokens in spoken]
    model = Model(None)
    bundle = SimpleNamespace(sample_rate=SAMPLE_RATE, get_model=lambda: model, get_labels=lambda: labels)
    monkeypatch.setattr(torchaudio.pipelines, "WAV2VEC2_ASR_BASE_960H", bundle)

    def align():
        queue = iter(emissions)
        hook = model.register_forward_pre_hook(lambda module, _: setattr(module, "emission", next(queue)))
        with hook:
            return alignments(lhotse.ASRForcedAligner()(cut, normalize=False))

    theirs = align()
    use_our_kernel(monkeypatch, asr_aligner, "_get_trellis", "_backtrack")
    ours = align()
    for found, expected in zip(ours, theirs, strict=True):
        assert [item[:3] for item in found] == [item[:3] for item in expected]
        assert [item.score for item in found] == pytest.approx([item.score for item in expected], rel=1e-6)
    assert [item.symbol for item in [*ours[0], *ours[1]]] == TEXT.upper().split()


# easyaligner


def test_easyaligner(client, torchaudio, noisy, tmp_path):
    """From words to the spans of words, with a wildcard at either end. It only reads the tokenizer of its processor."""
    alignment = client("easyaligner.alignment.pytorch")
    vocabulary = ["<pad>", "|", *LETTERS, "*", "<unk>", "<s>", "</s>"]  # * is the class after the model's
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    tokenizer = client("transformers").Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    processor = SimpleNamespace(tokenizer=tokenizer)
    words = TEXT.split()

    def align(emissions):
        tokens, scores = alignment.align_pytorch(words, processor, emissions, 0, "lower", True, True, "cpu")
        mapping = [{"normalized_token": word, "text": word, "start_char": 0, "end_char": 0} for word in words]
        spans, mapping = alignment.get_word_spans(tokens, scores, mapping, processor=processor, word_boundary="|")
        return tokens, scores, spans, mapping

    emissions = noisy(150, vocabulary.index("*"))
    theirs = align(emissions)
    with install_in_torchaudio():
        ours = align(emissions)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert [entry["text"] for entry in ours[3]] == ["*", *words, "*"]
    for found, expected in zip(ours[2], theirs[2], strict=True):
        assert [(s.token, s.start, s.end) for s in found] == [(s.token, s.start, s.end) for s in expected]
        assert [s.score for s in found] == pytest.approx([s.score for s in expected], rel=1e-6)
    with install_in_torchaudio(), pytest.raises(RuntimeError, match=r"^targets length is too long for CTC"):
        align(emissions[:, :40].contiguous())


# transformers


@pytest.fixture
def wav2vec2(client, tmp_path):
    """A random Wav2Vec2ForCTC, written to disk and loaded from there. A frame is 20 samples, so that it stays small."""
    transformers = client("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(LETTERS) + 2,  # <pad>, which is the blank, and |
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(5, 4),
        conv_stride=(5, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        pad_token_id=0,
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "model")
    return transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "model", local_files_only=True).eval()


def test_transformers(wav2vec2, torchaudio, generator):
    """A padded batch through the model and our aligner: every item as torchaudio aligns it alone, and its words."""
    samples = torch.tensor([6000, 4000])
    texts = [TEXT, "lorem ipsum"]
    waveforms = torch.randn(2, 6000, generator=generator)
    mask = torch.arange(6000) < samples[:, None]
    characters = ["<pad>", "|", *LETTERS]
    rows = [torch.tensor([characters.index(c) for c in text.replace(" ", "|")]) for text in texts]
    targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)  # as transformers pads labels
    target_lengths = torch.tensor([len(row) for row in rows])
    with torch.inference_mode():
        log_probs = wav2vec2(waveforms * mask, attention_mask=mask.long()).logits.log_softmax(-1)
        input_lengths = wav2vec2._get_feat_extract_output_lengths(samples)
        found = ForcedAligner()(log_probs, targets, input_lengths, target_lengths)
    assert found.aligned.all()
    for b, row in enumerate(rows):
        frames, labels = int(input_lengths[b]), len(row)
        item = log_probs[b : b + 1, :frames].contiguous()
        paths, scores = torchaudio.functional.forced_align(item, row[None])
        assert torch.equal(found.paths[b, :frames], paths[0])
        assert torch.equal(found.scores[b, :frames], scores[0])
        theirs = torchaudio.functional.merge_tokens(paths[0], scores[0])
        means = found.spans.scores[b, :labels].tolist()
        assert found.spans.starts[b, :labels].tolist() == [span.start for span in theirs]
        assert found.spans.ends[b, :labels].tolist() == [span.end for span in theirs]
        assert means == pytest.approx([span.score for span in theirs], rel=1e-6)
        ours = torch_ctc_align.merge_tokens(found.paths[b, :frames], found.scores[b, :frames])
        words = [
            merge_words(spans, texts[b].split(), separator=1, seconds_per_frame=0.00125) for spans in (ours, theirs)
        ]
        assert [(w.word, w.start, w.end) for w in words[0]] == [(w.word, w.start, w.end) for w in words[1]]
        assert [w.score for w in words[0]] == pytest.approx([w.score for w in words[1]], rel=1e-6)


def test_the_page_about_a_model_of_transformers(client, tmp_path):
    """docs/your_model.md with the lines for transformers in place of those of the stand-in: frames of 320 samples."""
    transformers = client("transformers")
    vocabulary = ["<unk>", *LETTERS.upper(), "|", "<s>", "</s>", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    transformers.Wav2Vec2Processor(
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        tokenizer=transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        pad_token_id=vocabulary.index("<pad>"),
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(tmp_path)

    page = (Path(__file__).parents[1] / "docs/your_model.md").read_text(encoding="utf-8")
    (model,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    _, *rest = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert '"facebook/wav2vec2-base-960h"' in model
    names = {}
    for source in [model.replace('"facebook/wav2vec2-base-960h"', repr(str(tmp_path))), *rest]:
        exec(source, names)
    assert (names["blank"], names["separator"]) == (31, 28)
    assert names["input_lengths"].tolist() == [199, 124, 12]
    assert names["targets"][0, :5].tolist() == [4, 15, 14, 27, 20]  # DON'T
    assert names["targets"].max() == names["star"] == 32
