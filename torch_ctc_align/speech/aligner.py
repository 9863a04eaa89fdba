"""From a recording and its text to words with times: the whole way, for one recording at a time."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_ctc_align.speech.alignment import SpeechAlignment
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.path import Star
from torch_ctc_align.speech.stages import (
    Options,
    choose_words,
    describe,
    find_paths,
    listen,
    open_item,
    place_words,
    spell,
)
from torch_ctc_align.speech.text import Split
from torch_ctc_align.words import Pauses

__all__ = ["Aligner"]

Source = str | os.PathLike[str] | tuple[Any, int]


class Aligner:
    """Aligns recordings with their texts.

    ``Aligner.english()`` has a small model of English that needs no download; ``Aligner.from_pretrained`` takes CTC
    models of transformers, ``Aligner.from_onnx`` those of ONNX. Any other CTC model is a callable and some facts about
    it, the arguments of ``Aligner`` itself (``docs/models.md`` has NeMo, torchaudio and ESPnet).

    Args:
        run (callable): ``run(samples, lengths) -> (log_probs, frames)``: samples ``(B, N)`` float32 in [-1, 1] with
            their lengths ``(B,)`` int64; natural-log probabilities ``(B, T, C)`` and the frames of each item ``(B,)``.
        labels (sequence of str, or dict): the names of the classes.
        blank (int or str): the class that spells nothing, or its name.
        hop (int): samples a frame.
        sample_rate (int): Hz.
        facts: further facts of :class:`AcousticModel`: ``separator``, ``receptive_field``, ``frame_offset``, ``spell``,
            ``window``, ``context``, ``language``, ``name``, ``licence``; and ``logits=True`` for a model that returns
            logits. What is left out is found out, with a few calls of ``run``.

    Attributes:
        model (AcousticModel): the model and its facts.
        borders (Pauses or str): which word gets the frames between two words; see :func:`merge_words`.
        posteriors (bool): whether words get a ``posterior``. Default: True.
        batch_size (int): windows of a recording that the model gets at once. Default: 1.
        dtype (torch.dtype): of the emissions of a whole recording; ``torch.float16`` takes half the memory. Default:
            ``torch.float32``.
        notes (list of str): what the last call has to say: a resampled recording, words that cannot be spelt. Threads
            may share an aligner if the model's ``run`` and ``spell`` allow for it; only these notes are then those of
            any of them. ``Aligner.from_model(aligner.model)`` has notes of its own.

    Example::

        aligner = Aligner.english()
        alignment = aligner("talk.mp3", "What is said in it ...")
        alignment.save("talk.srt")
        alignment.words[3]  # Word(text='said', ..., start=0.61, end=0.84, ...)
    """

    def __init__(
        self,
        run: Callable[..., Any],
        *,
        labels: Sequence[str] | dict[str, int],
        blank: int | str,
        hop: int,
        sample_rate: int,
        **facts: Any,
    ) -> None:
        from torch_ctc_align.speech.models.callable import from_callable

        self._set_model(from_callable(run, labels=labels, blank=blank, hop=hop, sample_rate=sample_rate, **facts))

    def _set_model(self, model: AcousticModel) -> None:
        self.model = model
        self.borders: Any = Pauses()
        self.posteriors = True
        self.batch_size = 1
        self.dtype = torch.float32
        self.notes: list[str] = []

    @classmethod
    def from_model(cls, model: AcousticModel) -> "Aligner":
        """Returns an aligner with a model whose facts are known."""
        aligner = cls.__new__(cls)
        aligner._set_model(model)
        return aligner

    @classmethod
    def english(cls, device: str | torch.device = "cpu") -> "Aligner":
        """Returns an aligner with the model that the extra ``speech`` brings: English, phonemes, 9 MB, Apache-2.0."""
        from torch_ctc_align.speech.models.english import load_english

        return cls.from_model(load_english(device))

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        language: str | None = None,
    ) -> "Aligner":
        """Returns an aligner with a CTC model of transformers: wav2vec 2.0, HuBERT, WavLM, MMS and others.

        Args:
            name_or_dir: name on the hub, or a directory.
            device: where the model runs.
            dtype: of the model's weights. Default: as they are saved.
            language: for a model with an adapter for each language (MMS), the language, as ``"deu"``.

        Raises:
            SpeechError: the model cannot be loaded, or is not a CTC model.
        """
        from torch_ctc_align.speech.models.huggingface import load_pretrained

        return cls.from_model(load_pretrained(name_or_dir, device=device, dtype=dtype, language=language))

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str], **facts: Any) -> "Aligner":
        """Returns an aligner with an ONNX model from samples to log-probabilities or logits.

        Args:
            path: the file. What ``facts`` leave open comes from its metadata and from the files beside it.
            facts: ``labels``, ``blank``, ``hop``, ``sample_rate``, ``separator``, ``receptive_field``,
                ``frame_offset``, ``providers``.

        Raises:
            SpeechError: the file cannot be loaded, or a fact is missing.
        """
        from torch_ctc_align.speech.models.onnx import load_onnx

        return cls.from_model(load_onnx(path, **facts))

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "english",
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        language: str | None = None,
    ) -> "Aligner":
        """Returns an aligner with a model of any kind.

        Args:
            model: ``"english"``, the path of an ``.onnx`` file, or a name or a directory for :meth:`from_pretrained`.
            device: where the model runs. Default: CUDA if there is a device; for ``"english"`` the CPU.
            dtype, language: of a model of transformers.

        Raises:
            SpeechError: the model cannot be loaded.
        """
        if model == "english":
            return cls.english(device or "cpu")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if os.fspath(model).lower().endswith(".onnx"):
            return cls.from_onnx(model, providers=["CUDAExecutionProvider", "CPUExecutionProvider"][device == "cpu" :])
        return cls.from_pretrained(model, device=device, dtype=dtype, language=language)

    def __call__(
        self,
        audio: Source,
        text: str,
        *,
        star: Star | None = "ends",
        unspoken: bool = False,
        split: Split = "lines",
        language: str | None = None,
        offset: float = 0.0,
        duration: float | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> SpeechAlignment:
        """Aligns a recording with its text.

        Args:
            audio: a file, of any length; or samples and their rate in Hz, ``(samples, 16_000)``.
            text: what is said in it. Its lines are the segments.
            star: where the recording may hold more than the text: at both ``"ends"``, or between any two ``"words"``
                as well. None: nowhere; all of the recording is the text's. Default: ``"ends"``.
            unspoken: whether segments may be missing in the recording. Those are found and left out. Default: False.
            split: what a segment is: one of the ``"lines"``, ``"sentences"`` or ``"words"`` of the text.
            language: in which numbers are spelt out, as ``"en"`` or ``"eng"``. Default: that of the model.
            offset: seconds at the beginning of the recording that are left out.
            duration: seconds that are read from there on. Default: to the end.
            progress: called as ``progress(what, done, total)``.

        Returns:
            SpeechAlignment: words, segments, tokens and what does not fit. Times count from the beginning of the
            recording.

        Raises:
            SpeechError: the recording cannot be read, is silent or too short; the text has no words, cannot be spelt,
                or is too long for the recording; no segment of it is in the recording.
        """
        options = Options(star, unspoken, split, language)
        model = self.model
        item = open_item(audio, spell(text, model, options), model, offset, duration)
        self.notes = item.notes
        listen(item, model, self.batch_size, self.dtype, progress)
        self.notes = item.notes  # now with those about every sample
        choose_words(item, model, options)
        find_paths([item], model)
        placed = place_words(item, model, self.borders, self.posteriors)
        return describe(item, placed, model, language)
