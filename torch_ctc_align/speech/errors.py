"""What the speech layer says when something is wrong, and how it finds the libraries of its extras."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["SpeechError", "blame", "require"]

# Which extra of the package brings a module. The name that pip knows, where it differs, is in the sentence.
EXTRAS = {
    "av": "media",
    "hama": "speech",
    "langcodes": "text",
    "matplotlib": "picture",
    "num2words": "text",
    "numpy": "speech",
    "onnxruntime": "speech",
    "praatio": "speech",
    "pyarrow": "corpora",
    "pysubs2": "speech",
    "ray": "ray",
    "soundfile": "speech",
    "soxr": "speech",
    "tqdm": "speech",
    "transformers": "hf",
    "uroman": "text",
}


class SpeechError(ValueError):
    """A recording, a text, a model or a file that cannot be used. The message is a sentence that says what to do.

    Attributes:
        status: what a corpus calls it, one of ``torch_ctc_align.speech.corpus.STATUSES``.
    """

    status = "error"


@contextmanager
def blame(status: str) -> Iterator[None]:
    """Gives the errors of a piece of work their status, unless they have one."""
    try:
        yield
    except SpeechError as error:
        if error.status == SpeechError.status:
            error.status = status
        raise


def require(module: str, what_for: str) -> ModuleType:
    """Imports a module of an extra.

    Args:
        module: its name, ``"soundfile"``.
        what_for: what needs it, as the subject of a sentence: ``"reading audio"``.

    Raises:
        SpeechError: it is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            reason = f"{package}, which cannot be imported ({error})"
        else:
            reason = f"the package {package}, which is not installed"
        raise SpeechError(f"{what_for} needs {reason}; run: pip install 'torch_ctc_align[{EXTRAS[package]}]'") from None
