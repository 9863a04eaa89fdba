"""Types of errors: :class:`AlignmentError`, and :class:`AlignmentWarning` for mistakes that may be intended."""

import os
import sys
import threading
import warnings

import torch

__all__ = ["AlignmentError", "AlignmentWarning"]


class AlignmentError(ValueError, RuntimeError):
    """An item cannot be aligned, or the function cannot take an argument.

    It is a ValueError, and also a RuntimeError, which clients of torchaudio catch. Where torchaudio has a phrase for
    the mistake, the message begins with it.

    Attributes:
        item (int | None): the first item of the batch without a path; None where an argument is wrong.
        frames (int | None): T, the frames of that item.
        labels (int | None): L, the labels of its target.
        repeats (int | None): R, the neighbouring labels of its target that are equal. A path needs T >= L + R.
    """

    def __init__(
        self,
        message: str = "",
        *,
        item: int | None = None,
        frames: int | None = None,
        labels: int | None = None,
        repeats: int | None = None,
    ) -> None:
        super().__init__(message)
        self.item = item
        self.frames = frames
        self.labels = labels
        self.repeats = repeats


class AlignmentWarning(UserWarning):
    """Something looks like a mistake, but may be intended: logits for log-probabilities, milliseconds for seconds.

    Each kind is shown once a process, or never if it is ignored the first time.
    ``warnings.filterwarnings("ignore", category=AlignmentWarning)`` turns them off, ``"error"`` makes them exceptions.
    """


# The files between a mistake and the caller: our own, and torch's where it calls the forward of a module.
_BETWEEN = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))
_shown: set[str] = set()
_lock = threading.Lock()


def was_shown(kind: str) -> bool:
    """Returns whether :func:`warn_once` has warned of this kind."""
    return kind in _shown


def warn_once(kind: str, message: str) -> None:
    """Warns of one kind of mistake, the first time that it occurs. The warning points at the caller of the package.

    Args:
        kind: the name under which the warning is remembered as shown.
        message: begins with the name of the public function.
    """
    with _lock:
        if kind in _shown:
            return
        _shown.add(kind)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    try:
        warnings.warn(message, AlignmentWarning, stacklevel=level)
    except AlignmentWarning:  # a filter makes it an error, which is raised every time
        _shown.discard(kind)
        raise
