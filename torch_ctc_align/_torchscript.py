"""The message of ``torch.jit.script`` about functions that it cannot compile: which operator to call instead."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from torch_ctc_align._torch_seam import refuse_to_script


def explain_to_torchscript(functions: Iterable[Callable[..., Any]]) -> None:
    """Makes scripting one of these functions, or code that calls it, fail with a sentence that says what to do.

    Without it the message would be about the first line of ours that TorchScript does not know.
    """
    for function in functions:
        name = function.__name__
        operator = {"ctc_loss": "class_posteriors"}.get(name, name)
        if hasattr(torch.ops.ctc_align, operator):
            instead = f"call torch.ops.ctc_align.{operator}, which takes lengths as tensors or None"
        else:
            instead = "call it outside of the scripted code"
        refuse_to_script(
            function, f"torch_ctc_align.{name}: TorchScript cannot compile this function; {instead} (docs/exporting.md)"
        )
