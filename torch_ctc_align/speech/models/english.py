"""The default model: English, in phonemes, out of the package ``hama``."""

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align.speech.errors import SpeechError, require
from torch_ctc_align.speech.models import AcousticModel
from torch_ctc_align.speech.models.onnx import choose_providers

__all__ = ["load_english"]

SAMPLE_RATE = 16_000  # Hz
HOP = 320  # samples a frame

# The model reads the first 30 s and ignores the rest; it scales its input by statistics of all that it is given.
WINDOW_SECONDS = 30.0
LEAST_SAMPLES = HOP - 1  # the model fails on less than what gives one frame for certain; it gets zeros behind that
CONTEXT_SECONDS = 2.0

LONGEST_PART = 60  # letters; the text-to-phoneme model gives up on longer ones
MOST_KNOWN = 1 << 17  # distinct words whose phonemes are remembered
UNSAID = {"m": ["ɛ", "m"]}  # what the phonemizer goes round and round over: "m ə m ə m ə ..."
MOST_PHONEMES = 128  # of a part; its default, 32, cuts long words off


def load_english(device: str | torch.device = "cpu") -> AcousticModel:
    """Loads the model of the package hama: 9 MB, Apache-2.0, 16 kHz, 20 ms a frame; its labels are phonemes.

    Args:
        device: ``"cpu"``, or ``"cuda"`` where the package onnxruntime-gpu is installed in place of onnxruntime. The
            model is small: the CPU hears an hour in some minutes. It takes as many threads as torch has now
            (``torch.set_num_threads``); another number may change the last bits of what it returns.

    Raises:
        SpeechError: hama is missing or is another version than this works with; onnxruntime has nothing for the device.
    """
    hama = require("hama", "the English model")
    numpy = require("numpy", "the English model")
    try:
        listener = hama.ASRModel(providers=choose_providers(device))
        set_threads(hama, listener, {"session": "asr_waveform_fp16.onnx"}, torch.get_num_threads())
        tokens = list(listener.decoder_tokens)
        blank, separator = tokens.index("<blank>"), tokens.index("<wb>")
    except SpeechError:  # about the device; another version of hama would not help
        raise
    except (AttributeError, TypeError, ValueError, OSError, KeyError, RuntimeError) as error:
        raise SpeechError(
            f"the package hama cannot load its model ({type(error).__name__}: {error}); this works with versions 1.3: "
            "pip install 'hama>=1.3.10,<1.4'"
        ) from error
    inputs = [node.name for node in listener.session.get_inputs()]
    outputs = [node.name for node in listener.session.get_outputs()]
    waveform, waveform_lengths = (find_name(inputs, name) for name in ("waveform", "waveform_lengths"))
    log_probs = find_name(outputs, "log_probs")

    def run(samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # One item at a time: what stands behind an item's length would change its statistics.
        frames = lengths.cpu() // HOP + 1
        rows = []
        for item, length in zip(samples.cpu().float(), lengths.tolist(), strict=True):
            heard = torch.nn.functional.pad(item[:length], (0, max(0, LEAST_SAMPLES - length)))
            feed = {waveform: heard[None].numpy(), waveform_lengths: numpy.array([len(heard)])}
            rows.append(torch.from_numpy(listener.session.run([log_probs], feed)[0][0]))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), frames

    return AcousticModel(
        run,
        labels=tokens,
        blank=blank,
        hop=HOP,
        sample_rate=SAMPLE_RATE,
        receptive_field=0,
        separator=separator,
        frame_offset=-0.5,  # frame t is centred on sample HOP * t
        window=WINDOW_SECONDS,
        context=CONTEXT_SECONDS,
        spell=make_spell(hama, tokens),
        language="en",
        name="hama (English)",
        licence="Apache-2.0",
    )


def find_name(names: Sequence[str], wanted: str) -> str:
    """The name of an input or output; exporters add numbers to them, as in ``waveform.1``."""
    found = [name for name in names if name.partition(".")[0] == wanted]
    if not found:
        raise SpeechError(f"the model of hama has {', '.join(names)}, not {wanted}: pip install 'hama>=1.3.10,<1.4'")
    return found[0]


def make_spell(hama: Any, tokens: Sequence[str]) -> Callable[[str], list[int] | None]:
    """Returns ``spell(part)``: the phoneme classes of a part of a word, or None if it is not English letters."""
    phonemizer = hama.G2PModel(max_output_len=MOST_PHONEMES)
    # Its steps are so small that two threads take twice the time.
    set_threads(hama, phonemizer, {"encoder_session": "encoder.onnx", "decoder_step_session": "decoder_step.onnx"}, 1)
    keep_tables(phonemizer.vocab)
    class_of = {token: index for index, token in enumerate(tokens)}

    @functools.lru_cache(maxsize=MOST_KNOWN)
    def pronounce(letters: str) -> list[int] | None:
        # The phonemizer guesses at anything: digits come out as Chinese.
        if not re.fullmatch("[a-z']+", letters) or not re.search("[a-z]", letters) or len(letters) > LONGEST_PART:
            return None
        # For a few words it separates phonemes by spaces. The acoustic model has neither of these two.
        phonemes = UNSAID.get(letters) or [found.phoneme for found in phonemizer.predict(letters).alignments]
        if len(phonemes) >= MOST_PHONEMES:  # it goes round and round
            return None
        phonemes = [phoneme for phoneme in phonemes if phoneme not in (" ", "<unk>")]
        return [class_of[phoneme] for phoneme in phonemes] if phonemes and class_of.keys() >= set(phonemes) else None

    def spell(part: str) -> list[int] | None:
        decomposed = unicodedata.normalize("NFKD", part.lower().replace("’", "'"))
        letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
        return pronounce(letters)

    return spell


def keep_tables(vocabulary: Any) -> None:
    """Makes the tables of the phonemizer's tokens once. hama 1.3.10 makes one anew for every letter, and spends nine
    tenths of its time there. The tables are properties of a class whose lists do not change.
    """
    kind = type(vocabulary)
    tables = {name: table.fget for name, table in vars(kind).items() if isinstance(table, property)}
    kept = {name: functools.cached_property(make) for name, make in tables.items() if make is not None}
    vocabulary.__class__ = type(kind.__name__, (kind,), kept)


def set_threads(hama: Any, owner: Any, files: Mapping[str, str], threads: int) -> None:
    """Replaces sessions of onnxruntime by some of so many threads; it takes all cores where it is not told."""
    options = require("onnxruntime", "the English model").SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    assets = Path(hama.__file__).parent / "assets"
    for name, file in files.items():
        session = getattr(owner, name, None)
        if session is not None and (assets / file).is_file():
            setattr(owner, name, type(session)(str(assets / file), options, providers=session.get_providers()))
