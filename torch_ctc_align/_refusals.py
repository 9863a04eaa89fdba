"""Explains why a call was refused: turns the error of an operator into that of a function, with advice.

A call that succeeds runs nothing of it.
"""

from typing import Any

import torch
from torch import Tensor

from torch_ctc_align._arguments import check_blank, check_tensor
from torch_ctc_align._library import as_raised
from torch_ctc_align.errors import AlignmentError

# The beginning of an operator's text, and torchaudio's phrase for the same mistake. Clients of torchaudio look for the
# phrase at the beginning of the message.
PHRASES = {
    "log_probs must be float16": "log_probs must be float64, float32 or float16 (half) type",
    "targets must be int32": "targets must be int32 or int64 type",
    "log_probs must have shape": "log_probs must be 3-D (batch_size, input length, num classes)",
    "targets must have shape": "targets must be 2-D (batch_size, target length,)",
    "input_lengths must have shape": "input_lengths must be 1-D (batch_size,)",
    "target_lengths must have shape": "target_lengths must be 1-D (batch_size,)",
    "targets must be on": "log_probs and targets need to be on the same device",
    "blank must be": "blank must be within [0, num classes)",
    "input_lengths[": "input length mismatch",
    "target_lengths[": "target length mismatch",
}
IS_BLANK = "targets Tensor shouldn't contain blank index"
IS_NO_CLASS = "targets values must be less than the CTC dimension"
TOO_LONG = "targets length is too long for CTC"
BATCH_OF = "The batch dimension for {} must be 1 at the current version"


def refusal(name: str, phrase: str | None, text: str, **sizes: int) -> AlignmentError:
    """Returns the error of a function: torchaudio's phrase for the mistake, if it has one, and then our own words."""
    return AlignmentError(f"{phrase}. {name}: {text}" if phrase else f"{name}: {text}", **sizes)


def explain(
    name: str,
    error: Exception,
    log_probs: Any,
    targets: Any,
    target_lengths: Tensor | None,
    blank: Any,
    star_scores: Tensor | None = None,
    operator: str | None = None,
) -> BaseException:
    """Returns the exception of a function whose operator raised ``error``: of the right type, and with advice.

    It checks labels first, as torchaudio does, whatever else is wrong. Not so where ``operator``, the operator's name,
    is given, because it differs from that of the function: then labels are only blamed if the operator blames them.
    """
    raised = as_raised(error) if isinstance(error, RuntimeError) else error
    if type(raised) not in (ValueError, RuntimeError, TypeError):
        return raised
    try:
        check_tensor(name, "log_probs", log_probs, "(B, T, C)")
        check_tensor(name, "targets", targets, "(B, L)")
        check_blank(name, blank)
    except TypeError as mistake:
        return mistake
    ours, _, text = str(raised).partition(": ")
    if ours != (operator or name) or type(raised) is RuntimeError:  # torch's own words; or not a refusal: CUDA failed
        return raised
    blame_labels = operator is None or text.startswith("targets[")
    bad_label = find_bad_label(log_probs, targets, target_lengths, blank, star_scores) if blame_labels else None
    phrase, text = bad_label or (
        _phrase_for(text, log_probs, targets),
        text + _hint(text, log_probs, targets),
    )
    return refusal(name, phrase if name == "forced_align" else None, text)


def _phrase_for(text: str, log_probs: Tensor, targets: Tensor) -> str | None:
    if text.startswith("targets must have shape") and log_probs.dim() == 3 and targets.dim() == 2:
        return BATCH_OF.format("log_probs" if log_probs.shape[0] != 1 else "targets")
    return next((phrase for start, phrase in PHRASES.items() if text.startswith(start)), None)


def _hint(text: str, log_probs: Tensor, targets: Tensor) -> str:
    """Returns advice, where the shapes show what the caller intended."""
    if text.startswith("log_probs must have shape") and log_probs.dim() == 2:
        one = "log_probs[None] and targets[None]" if targets.dim() == 1 else "log_probs[None]"
        return f"; for a single item pass {one}"
    if text.startswith("targets must have shape"):
        if targets.dim() == 1 and log_probs.shape[0] == 1:
            return "; for a single item pass targets[None]"
        if targets.dim() == 2 and targets.shape[0] == log_probs.shape[1]:
            return "; if log_probs are (T, B, C), pass log_probs.transpose(0, 1)"
    return ""


def find_bad_label(
    log_probs: Tensor, targets: Tensor, target_lengths: Tensor | None, blank: int, star_scores: Tensor | None = None
) -> tuple[str | None, str] | None:
    """Returns torchaudio's phrase and our text for the first label that is the blank or not a class, or None.

    Checks the labels within the target lengths, and whole rows where these are out of range. With ``star_scores`` the
    label C is the star.
    """
    try:
        batch, labels = targets.shape
        classes = log_probs.shape[-1]
        most = classes - (star_scores is None)
        used = known = torch.ones_like(targets, dtype=torch.bool)  # known: the target length is in range
        if target_lengths is not None:
            lengths = target_lengths.to(targets.device).expand(batch)[:, None]
            known = known & (lengths >= 0) & (lengths <= labels)
            used = ~known | (torch.arange(labels, device=targets.device) < lengths)
        is_blank = used & (targets == blank)
        is_no_class = used & ((targets > most) | (known & (targets < 0)))  # -1 is a common padding
        bad = is_blank if bool(is_blank.any()) else is_no_class
        if not bool(bad.any()):
            return None
        b, k = bad.nonzero()[0].tolist()
    except (RuntimeError, ValueError, TypeError, IndexError):  # shapes that do not fit; tensors without values
        return None
    label = targets[b, k].item()
    if bad is is_blank:
        phrase: str | None = IS_BLANK
        text = f"targets[{b}, {k}] must not be the blank, expected a label other than {label}, found {label}"
    else:
        phrase = IS_NO_CLASS if label > most else None
        expected = f"of log_probs, expected 0 <= label < C = {classes}"
        if star_scores is not None:
            expected = f"of log_probs or the star, expected 0 <= label <= C = {classes}"
        text = f"targets[{b}, {k}] must be a class {expected}, found {label}"
    if k > 0 and label <= most and bool((targets[b, k:] == label).all()):  # from here to the end of the row
        text += "; if this is padding, pass target_lengths"
    return phrase, text
