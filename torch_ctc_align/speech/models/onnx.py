"""CTC models in ONNX files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from torch_ctc_align.speech.errors import SpeechError, require
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.models.callable import check_positive, from_callable
from torch_ctc_align.speech.models.measure import are_logits, first_line, measure_geometry, probe
from torch_ctc_align.speech.models.onnx_facts import Facts

__all__ = ["choose_providers", "load_onnx"]

FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
INTEGERS = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}


def load_onnx(
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | Mapping[str, int] | None = None,
    blank: int | str | None = None,
    hop: int | None = None,
    sample_rate: int | None = None,
    separator: int | str | None = "auto",
    receptive_field: int | None = None,
    frame_offset: float | None = None,
    normalize: bool | None = None,
    window: float = 30.0,
    context: float = 2.0,
    spell: Callable[[str], Sequence[int] | None] | None = None,
    language: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    device: str | torch.device = "cpu",
    providers: Sequence[Any] | None = None,
) -> AcousticModel:
    """Loads a CTC model that takes samples, from an ONNX file.

    The model has an input for samples, ``(B, N)``, ``(N,)`` or ``(B, 1, N)``, and may have one for lengths ``(B,)`` or
    for an attention mask ``(B, N)``. It returns log-probabilities or logits, ``(B, T, C)`` or ``(T, C)``, and may
    return the frames of each item, ``(B,)``. Equally long items go through it together where its batch size is free.

    A fact that is not given is taken from the model's metadata (``labels`` as JSON, ``blank``, ``sample_rate``,
    ``separator``, ``normalize``, ``language``, ``license``), else from files beside the model: vocab.json or tokens.txt
    for the labels, tokenizer_config.json and config.json for the blank, preprocessor_config.json for the sample rate
    and whether samples are normalised. ``hop`` and ``receptive_field`` are measured.

    Args:
        path: the file, or a directory with one.
        labels, blank, hop, sample_rate, separator, receptive_field, frame_offset, window, context, spell, language,
            name, licence: as in :func:`from_callable`.
        normalize: whether each item's samples are brought to mean 0 and variance 1 before the model hears them.
        device: ``"cpu"``, or what onnxruntime has a provider for.
        providers: of onnxruntime, instead of ``device``.

    Raises:
        SpeechError: the file cannot be read; the model does not take samples; facts are missing (all that are, with
            how to give them) or wrong.
    """
    path = find_file(Path(path))
    runtime = require("onnxruntime", "an ONNX model")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # onnxruntime would take all cores, also of other workers
    options.log_severity_level = 4  # errors become SpeechErrors; onnxruntime would print them too
    try:
        session = runtime.InferenceSession(
            str(path), options, providers=choose_providers(device) if providers is None else list(providers)
        )
    except SpeechError:
        raise
    except Exception as error:
        raise SpeechError(f"onnxruntime cannot read {path}: {first_line(error)}") from error

    facts = Facts(path, dict(session.get_modelmeta().custom_metadata_map))
    run = Runner(session, path.name, facts.normalize() if normalize is None else normalize)

    labels = facts.labels() if labels is None else labels
    sample_rate = facts.sample_rate() if sample_rate is None else sample_rate
    blank = facts.blank(labels or ()) if blank is None else blank
    missing = [
        what
        for what, value in [
            ("labels (the names of its classes)", labels),
            ("blank (the class that spells nothing)", blank),
            ("sample_rate (in Hz)", sample_rate),
        ]
        if value is None
    ]
    if missing or labels is None or blank is None or sample_rate is None:
        them = "it" if len(missing) == 1 else "them"
        raise SpeechError(
            f"{path.name} does not say {', '.join(missing)}: give {them} as arguments, "
            "in the metadata of the model, or in files beside it (vocab.json or tokens.txt, preprocessor_config.json)"
        )
    check_positive("sample_rate", sample_rate, "Hz")

    emissions, _ = probe(run, sample_rate, path.name)
    classes = emissions.shape[-1]
    if isinstance(labels, Mapping):
        labels = {label: index for label, index in labels.items() if not isinstance(index, int) or index < classes}
    if hop is None:
        geometry = measure_geometry(run, hop=None, sample_rate=sample_rate, name=path.name)
        hop = geometry.hop
        receptive_field = geometry.receptive_field if receptive_field is None else receptive_field
    if separator == "auto":
        separator = facts.separator(labels)
    return from_callable(
        run,
        labels=labels,
        blank=blank,
        hop=hop,
        sample_rate=sample_rate,
        receptive_field=receptive_field,
        separator=separator,
        frame_offset=frame_offset,
        window=window,
        context=context,
        spell=spell,
        language=language or facts.find("language"),
        name=name or path.stem,
        licence=licence or facts.find("license", "licence"),
        logits=are_logits(emissions, path.name),
    )


def find_file(path: Path) -> Path:
    """The file itself, or the only one of a directory."""
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if len(found) != 1:
            raise SpeechError(
                f"the directory {path} has {len(found) or 'no'} ONNX files"
                + (f" ({', '.join(file.name for file in found[:5])}): give one of them" if found else "")
            )
        return found[0]
    if not path.is_file():
        raise SpeechError(f"no such file: {path}")
    return path


def choose_providers(device: str | torch.device) -> list[str]:
    """What onnxruntime is to compute with.

    Raises:
        SpeechError: the onnxruntime that is installed has nothing for this device.
    """
    runtime = require("onnxruntime", "this model")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise SpeechError(f"no such device: {device!r} ({first_line(error)})") from None
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    available = runtime.get_available_providers()
    wanted = f"{kind.upper()}ExecutionProvider"
    if wanted not in available:
        raise SpeechError(
            f"onnxruntime cannot run a model on {kind!r}: it has {', '.join(available)}; use the CPU, or for CUDA "
            "install onnxruntime-gpu in place of onnxruntime"
        )
    return [wanted, "CPUExecutionProvider"]


# Running ------------------------------------------------------------------------------------------------------------


class Runner:
    """From samples to emissions, through the inputs and outputs that this model has."""

    def __init__(self, session: Any, name: str, normalize: bool):
        self.session, self.name, self.normalize = session, name, normalize
        self.samples: Any
        self.lengths: list[Any] = []
        self.masks: list[Any] = []
        self.read_inputs(session.get_inputs())
        self.emissions, self.frames = self.read_outputs(session.get_outputs())
        first = self.samples.shape
        self.one_by_one = len(first) == 1 or isinstance(first[0], int) or len(self.emissions.shape or (0, 0, 0)) == 2

    def read_inputs(self, nodes: Sequence[Any]) -> None:
        """Finds out which input takes what.

        Raises:
            SpeechError: none takes samples (but features), samples must have one length, or there is something else.
        """
        sounds = [node for node in nodes if node.type in FLOATS]
        others = [node for node in nodes if node.type in INTEGERS]
        listed = ", ".join(f"{node.name} {describe(node.shape)} {node.type}" for node in nodes)
        fitting = [node for node in sounds if self.takes_samples(node.shape)]
        if len(sounds) != 1 or len(sounds) + len(others) != len(nodes) or not fitting:
            features = any(len(node.shape) >= 3 for node in sounds)
            raise SpeechError(
                f"{self.name} must take samples (batch, samples)"
                + (", and takes features" if features and not fitting else "")
                + f": its inputs are {listed}; export it together with its feature extractor, "
                "and with free sizes of batch and samples"
            )
        self.samples = fitting[0]
        if isinstance(self.samples.shape[-1], int):
            raise SpeechError(
                f"{self.name} takes exactly {self.samples.shape[-1]} samples ({listed}): export it with a free number "
                "of samples (dynamic_axes or dynamic_shapes of torch.onnx.export)"
            )
        for node in others:
            if len(node.shape) == 2:
                self.masks.append(node)
            elif len(node.shape) == 1:
                self.lengths.append(node)
            else:
                raise SpeechError(
                    f"{self.name} has an input {node.name} {describe(node.shape)}, which is not known here"
                )

    def takes_samples(self, shape: Sequence[Any]) -> bool:
        return len(shape) in (1, 2) or (len(shape) == 3 and shape[1] == 1)

    def read_outputs(self, nodes: Sequence[Any]) -> tuple[Any, Any]:
        """The outputs for emissions and for frames; None for the latter if there is none."""
        floats = [node for node in nodes if node.type in FLOATS and len(node.shape or (0, 0, 0)) in (2, 3)]
        named = [node for node in floats if node.name.partition(".")[0] in ("log_probs", "logprobs", "logits")]
        if not floats:
            listed = ", ".join(f"{node.name} {describe(node.shape)} {node.type}" for node in nodes)
            raise SpeechError(
                f"{self.name} must return log-probabilities (batch, frames, classes), it returns {listed}"
            )
        counts = [node for node in nodes if node.type in ("tensor(int64)", "tensor(int32)") and len(node.shape) == 1]
        return (named or floats)[0], counts[0] if len(counts) == 1 else None

    def __call__(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        lengths = lengths.cpu()
        rows: list[Tensor] = [torch.empty(0, 0)] * len(samples)
        counts = [0] * len(samples)
        for items in self.groups(lengths):
            emissions, frames = self.listen(samples[items, : int(lengths[items[0]])].cpu().float())
            for place, item in enumerate(items):
                rows[item], counts[item] = emissions[place], int(frames[place])
        return pad_sequence(rows, batch_first=True), torch.tensor(counts)

    def groups(self, lengths: Tensor) -> Iterator[list[int]]:
        """Items that go through the model together: equally long, as padding changes what many models hear."""
        for length in lengths.unique().tolist():
            items = (lengths == length).nonzero().flatten().tolist()
            yield from [[item] for item in items] if self.one_by_one else [items]

    def listen(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Emissions ``(B, T, C)`` and frames ``(B,)`` of equally long items ``(B, N)``."""
        if self.normalize:
            variance, mean = torch.var_mean(samples, 1, correction=0, keepdim=True)
            samples = (samples - mean) / (variance + 1e-7).sqrt()
        shape = {1: samples.shape[1:], 2: samples.shape, 3: (len(samples), 1, samples.shape[1])}
        numbers = samples.reshape(shape[len(self.samples.shape)]).numpy()
        feed = {self.samples.name: numbers.astype(FLOATS[self.samples.type])}
        for node in self.lengths:
            length = torch.full((len(samples),), samples.shape[1]).numpy()
            feed[node.name] = length.astype(INTEGERS[node.type])
        for node in self.masks:
            feed[node.name] = torch.ones(samples.shape).numpy().astype(INTEGERS[node.type])
        outputs = [node.name for node in (self.emissions, self.frames) if node is not None]
        try:
            results = [torch.from_numpy(result) for result in self.session.run(outputs, feed)]
        except Exception as error:
            raise SpeechError(f"{self.name} fails on {samples.shape[1]} samples: {first_line(error)}") from error
        emissions = results[0] if results[0].dim() == 3 else results[0][None]
        frames = results[1] if len(results) > 1 else torch.full((len(samples),), emissions.shape[1])
        if emissions.dim() != 3 or len(emissions) != len(samples):
            raise SpeechError(
                f"{self.name} returns {tuple(results[0].shape)} for {len(samples)} items, "
                "(batch, frames, classes) is needed"
            )
        return emissions, frames


def describe(shape: Sequence[Any]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
