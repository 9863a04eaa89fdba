"""CTC models of the library transformers, from a directory or from the Hugging Face hub."""

import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ctc_align.speech.errors import SpeechError, require
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.models.huggingface_labels import (
    find_blank,
    find_separator,
    make_spell,
    name_classes,
    only,
    read_card,
    spells_characters,
)
from torch_ctc_align.speech.models.measure import Geometry, first_line, geometry_frames, measure_geometry, probe

__all__ = ["load_pretrained"]


def load_pretrained(
    name_or_dir: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    language: str | None = None,
) -> AcousticModel:
    """Loads a CTC model that transformers knows: wav2vec 2.0, HuBERT, WavLM, MMS, Wav2Vec2-BERT, Parakeet and others.

    The items of a batch that are equally long go through the model together. Others follow one another: what stands
    behind an item's end changes what many of these models hear, with a mask too.

    Args:
        name_or_dir: a directory with config.json, weights, the files of the feature extractor
            (preprocessor_config.json) and those of the tokenizer (vocab.json, tokenizer.json ...); or a name on the
            hub, ``"facebook/wav2vec2-base-960h"``.
        device: where the model runs.
        dtype: of the weights. Default: float32. The log-probabilities are always float32.
        language: for a model with an adapter for each language (MMS), the language to load, as its files name it
            ("deu"). For other models: what language it knows; the model card's, where it names one alone, by default.

    Raises:
        SpeechError: transformers is missing; there is no such directory, the hub is not reachable; the model has no
            CTC head, no tokenizer, no blank, or no such language. The message says what to do.
    """
    transformers = require("transformers", "a model of the Hugging Face hub")
    source = Source.of(name_or_dir)
    with quiet(transformers):
        config = load_config(transformers, source)
        extractor = source.load(transformers.AutoFeatureExtractor, "a feature extractor (preprocessor_config.json)")
        tokenizer = source.load(transformers.AutoTokenizer, "a tokenizer (vocab.json or tokenizer.json)")
        saved_language = getattr(tokenizer, "target_lang", None)
        adapter = choose_adapter(config, tokenizer, language, source)
        # The adapter of the language that the tokenizer was saved with lies among the weights.
        network = load_network(transformers, source, config, adapter if adapter != saved_language else None)
    dtype = dtype or torch.float32
    try:
        network = network.to(device=device, dtype=dtype).eval()
    except (RuntimeError, AssertionError) as error:  # no such device, a torch without it, too little memory
        raise SpeechError(f"{source.name} cannot run on {str(device)!r}: {first_line(error)}") from error

    sample_rate = int(extractor.sampling_rate)
    run = Listener(network, extractor, sample_rate, torch.device(device), dtype)
    layout = find_layout(config, extractor)
    if layout is None:
        geometry = measure_geometry(run, hop=None, sample_rate=sample_rate, name=source.name)
        layout = Layout(geometry, geometry.centre_offset)
    run.geometry = layout.geometry
    emissions, frames = probe(run, max(sample_rate, 8 * layout.geometry.hop), source.name)  # so that mistakes show now
    if frames < 1:
        raise SpeechError(f"{source.name} returns no frames for a second of silence")

    labels = name_classes(tokenizer, emissions.shape[-1], source.name)
    blank = find_blank(config, tokenizer, labels, source.name)
    card = read_card(transformers, source.location)
    return AcousticModel(
        run,
        labels=labels,
        blank=blank,
        hop=layout.geometry.hop,
        sample_rate=sample_rate,
        receptive_field=layout.geometry.receptive_field,
        separator=find_separator(tokenizer, labels, blank),
        frame_offset=layout.frame_offset,
        spell=None if spells_characters(tokenizer) else make_spell(tokenizer, len(labels), blank),
        language=adapter or language or only(card.get("language")),
        name=source.name,
        licence=only(card.get("license")),
    )


# Files --------------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where a model comes from: a directory, or the hub."""

    location: str
    name: str
    is_directory: bool

    @classmethod
    def of(cls, name_or_dir: str | os.PathLike[str]) -> "Source":
        """Tells the two apart.

        Raises:
            SpeechError: it is the path of a file, of nothing, or of a directory that holds no model.
        """
        location = os.fspath(name_or_dir)
        path = Path(location).expanduser()
        if path.is_dir():
            location = str(path)
            if not (path / "config.json").is_file():
                raise SpeechError(
                    f"the directory {location} has no config.json, so it is not a model of transformers; "
                    "save one there with save_pretrained"
                )
            return cls(location, path.resolve().name, True)
        if path.exists():
            raise SpeechError(f"{location} is a file; give the directory of the model (or Aligner.from_onnx for ONNX)")
        if not isinstance(name_or_dir, str) or location.startswith((".", "/", "~")) or location.count("/") > 1:
            raise SpeechError(f"no such directory: {location}")
        return cls(location, location, False)

    def load(self, loader: Any, what: str, **options: Any) -> Any:
        """Calls ``loader.from_pretrained``.

        Raises:
            SpeechError: what it needs is not there, or cannot be reached.
        """
        try:
            return loader.from_pretrained(self.location, **options)
        except Exception as error:  # OSError, ValueError, KeyError, ImportError ... as the files are wrong
            raise SpeechError(self.explain(what, error)) from error

    def explain(self, what: str, error: BaseException) -> str:
        reason = f"{type(error).__name__}: {first_line(error)}"
        if self.is_directory:
            return f"cannot load {what} from the directory {self.location} ({reason})"
        return (
            f"cannot load {what} of {self.location!r}: it is neither a directory here nor a model that the Hugging "
            f"Face hub gives ({reason}); check the name and the network, or download the model's files elsewhere and "
            "give their directory"
        )


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keeps reports about loading off the terminal; what matters in them becomes an error here."""
    logger = transformers.utils.logging
    before = logger.get_verbosity()
    bars = getattr(logger, "is_progress_bar_enabled", lambda: False)()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(before)
        if bars:
            logger.enable_progress_bar()


def load_config(transformers: Any, source: Source) -> Any:
    config = source.load(transformers.AutoConfig, "config.json")
    known = transformers.MODEL_FOR_CTC_MAPPING
    if type(config) not in known:
        raise SpeechError(
            f"{source.name} is no CTC model: its kind is {config.model_type!r}; those that can be are "
            f"{', '.join(sorted(kind.model_type for kind in known))}"
        )
    return config


def load_network(transformers: Any, source: Source, config: Any, adapter: str | None) -> Any:
    """The model with its weights.

    Raises:
        SpeechError: the weights lack the CTC head, as those of a model that has not been fine-tuned do, or more.
    """
    options = {"target_lang": adapter, "ignore_mismatched_sizes": True} if adapter else {}
    network, report = source.load(
        transformers.AutoModelForCTC, "the weights", config=config, output_loading_info=True, **options
    )
    # The embedding that hides frames in training may be missing; it is not used here.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("masked_spec_embed"))
    heads = [key for key in missing if key.partition(".")[0] in ("lm_head", "ctc_head")]
    if heads:
        raise SpeechError(
            f"{source.name} has no CTC head: its weights lack {', '.join(heads)}, so it has not been fine-tuned to "
            "recognise speech; take a model that has been"
        )
    if missing:
        raise SpeechError(f"the weights of {source.name} lack {len(missing)} tensors, {', '.join(missing[:3])} ...")
    return network


# Languages ----------------------------------------------------------------------------------------------------------


def choose_adapter(config: Any, tokenizer: Any, language: str | None, source: Source) -> str | None:
    """Sets the tokenizer of a model with adapters to the language, and returns the language as the files name it.

    None if the model has no adapters. Without ``language``: the one that the tokenizer is set to.
    """
    if getattr(config, "adapter_attn_dim", None) is None:
        return None
    vocabulary = getattr(tokenizer, "vocab", {})
    languages = [name for name, entry in vocabulary.items() if isinstance(entry, Mapping)]
    if not languages:  # fine-tuned for one language; its adapter lies among the weights
        return None
    wanted = language or getattr(tokenizer, "target_lang", None)
    if wanted is None:
        raise SpeechError(f"{source.name} has {len(languages)} languages, {some(languages)}: give language=")
    candidates = [name for name in (wanted, three_letters(wanted)) if name in languages]
    if not candidates:
        raise SpeechError(
            f"{source.name} has no language {wanted!r}; it has {some(languages)}: give language= as it is written there"
        )
    tokenizer.set_target_lang(candidates[0])
    return candidates[0]


def three_letters(language: str) -> str | None:
    """ISO 639-3 of an IETF tag ("de" -> "deu"), where langcodes is installed."""
    try:
        tag: str = importlib.import_module("langcodes").Language.get(language).to_alpha3()
    except (ImportError, LookupError, ValueError):
        return None
    return tag


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# Sound to log-probabilities -----------------------------------------------------------------------------------------


class Listener:
    """``run`` of an acoustic model: features, network, log_softmax."""

    def __init__(self, network: Any, extractor: Any, sample_rate: int, device: torch.device, dtype: torch.dtype):
        self.network, self.extractor, self.sample_rate = network, extractor, sample_rate
        self.device, self.dtype = device, dtype
        self.geometry: Geometry | None = None  # None while it is measured

    def __call__(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        lengths = lengths.cpu()
        frames = None if self.geometry is None else geometry_frames(lengths, self.geometry)
        rows: list[Tensor] = [torch.empty(0, 0)] * len(samples)
        for length in lengths.unique().tolist():
            items = (lengths == length).nonzero().flatten().tolist()
            count = None if frames is None else int(frames[items[0]])
            if count == 0:
                continue
            try:
                heard = self.listen(samples[items, :length], count)
            except RuntimeError as error:  # too few samples for a layer, or too many for the memory
                raise SpeechError(f"the model fails on {length} samples: {first_line(error)}") from error
            for item, row in zip(items, heard, strict=True):
                rows[item] = row
        if frames is None:
            frames = torch.tensor([len(row) for row in rows])
        classes = max(row.shape[1] for row in rows)
        rows = [row if len(row) else torch.empty(0, classes, device=self.device) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), frames

    def listen(self, samples: Tensor, count: int | None) -> Tensor:
        """``(B, T, C)`` float32 of items ``(B, N)`` without padding; the extractor's own padding is cut off."""
        heard = list(samples.float().cpu().numpy())
        features = self.extractor(heard, sampling_rate=self.sample_rate, padding=True, return_tensors="pt")
        inputs = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in features.items()
        }
        with torch.inference_mode():
            logits: Tensor = self.network(**inputs).logits
            if count is not None and logits.shape[1] < count:
                raise SpeechError(
                    f"the model gives {logits.shape[1]} frames for {samples.shape[1]} samples, {count} were expected"
                )
            return logits[:, :count].float().log_softmax(-1)


class Layout(NamedTuple):
    """How samples become frames, and where frame 0 lies."""

    geometry: Geometry
    frame_offset: float


def find_layout(config: Any, extractor: Any) -> Layout | None:
    """What follows from the numbers in the configuration; None for a kind of model that is not known here."""
    kind = config.model_type
    if kind == "parakeet_ctc":
        # Frames are centred on multiples of the hop, the last is hidden; convolutions of odd size keep centres.
        encoder = config.encoder_config
        return centred(extractor.hop_length * encoder.subsampling_factor, extractor.hop_length)
    if kind == "lasr_ctc":
        encoder = config.encoder_config
        layer = (encoder.subsampling_conv_kernel_size, encoder.subsampling_conv_stride, 0)
        return stack([(extractor.win_length, extractor.hop_length, 0), layer, layer])
    if kind == "wav2vec2-bert":
        return stack([(400, 160, 0), (extractor.stride, extractor.stride, 0), *adapter_layers(config)])
    encoder = getattr(config, "audio_config", config)
    if hasattr(encoder, "conv_kernel") and hasattr(encoder, "conv_stride"):
        layers = [(size, step, 0) for size, step in zip(encoder.conv_kernel, encoder.conv_stride, strict=True)]
        return stack([*layers, *adapter_layers(config)])
    return None


def adapter_layers(config: Any) -> list[tuple[int, int, int]]:
    """Convolutions behind the encoder that make frames longer."""
    if not getattr(config, "add_adapter", False):
        return []
    return [(config.adapter_kernel_size, config.adapter_stride, 1)] * config.num_adapter_layers


def stack(layers: Iterable[tuple[int, int, int]]) -> Layout:
    """The layout of convolutions of size, stride and padding (on each side), one after the other.

    Rounding down after every layer and once at the end is the same.
    """
    hop = field = 1
    for size, step, padding in layers:
        field += (size - 1 - 2 * padding) * hop
        hop *= step
    geometry = Geometry(hop, field)
    return Layout(geometry, geometry.centre_offset)


def centred(hop: int, receptive_field: int) -> Layout:
    """The layout of a model whose frame t is centred on sample ``hop * t``."""
    return Layout(Geometry(hop, receptive_field), -0.5)
