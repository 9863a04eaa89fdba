"""Every private name of torch that this package uses; no other module touches one. Its C++ twin is csrc/torch_seam.h.

Each entry says why it is used, and the oldest torch that is known to have it. All are in 2.10, the oldest torch
that the package supports, and in 2.15 (``make test-torches``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# 2.0. torch.func refuses autograd nodes of another kind than its own, unless this context manager is active.
from torch._functorch.utils import enable_single_level_autograd_function as single_level_nodes
from torch.autograd import forward_ad
from torch.utils import _pytree

__all__ = [
    "SingleLevelNode",
    "below_autograd",
    "call_below_autograd",
    "check_value",
    "forward_mode",
    "is_in_forward_mode",
    "is_plain",
    "kernel_of",
    "name_for_export",
    "refuse_to_script",
    "schema_of",
    "single_level_nodes",
]

# 2.0. The node of one level of torch.func: an operator's autograd kernel is called at a single level.
SingleLevelNode = torch.autograd.function._SingleLevelFunction

# 2.4, as torch.library.register_autograd uses it. Inside, calls pass over autograd, to the kernels below it.
below_autograd = torch._C._AutoDispatchBelowAutograd

# 2.10. Raises ValueError, in a traced graph too, where the condition may depend on symbolic sizes.
check_value: Callable[[Any, Callable[[], str]], None] = torch._check_value

# 2.10. In the forward of a node forward-mode derivatives are off; the outer levels of torch.func need them.
forward_mode = forward_ad._set_fwd_grad_enabled

# 2.0, 2.10, 2.10 and 1.0. Whether a transform of torch.func, a mode or a tracer is at work: see `is_plain`.
_transform = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_tracer = torch._C._get_tracing_state


def is_plain(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor | None = None, target_lengths: Tensor | None = None
) -> bool:
    """Returns whether the tensors are of no subclass, and no transform of torch.func, mode or tracer is at work."""
    return (
        type(log_probs) is Tensor
        and type(targets) is Tensor
        and (input_lengths is None or type(input_lengths) is Tensor)
        and (target_lengths is None or type(target_lengths) is Tensor)
        and _transform() is None
        and not _dispatch_modes()
        and not _function_modes()
        and _tracer() is None
    )


def is_in_forward_mode() -> bool:
    """Returns whether a level of forward-mode differentiation is open. ``_current_level``: 1.8."""
    return forward_ad._current_level >= 0


def kernel_of(operator: Any) -> Callable[..., Any]:
    """The call of an operator without Python's checks around it, for small calls. ``_op``: 2.10."""
    return operator._op  # type: ignore[no-any-return]


def schema_of(operator: Any) -> Any:
    """The schema of an operator: its arguments with their defaults, and its returns. ``_schema``: 2.10."""
    return operator._schema


def call_below_autograd(operator: Any, keyset: Any, arguments: tuple[Any, ...]) -> Any:
    """Calls an operator from its own autograd kernel, with the keys that come after autograd's.

    ``_after_autograd_keyset``: 2.4, as torch.library.register_autograd uses it.
    """
    with below_autograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def name_for_export(named_tuple: type, name: str) -> None:
    """Names a NamedTuple, so that an exported program that returns it can be saved.

    torch.export names dataclasses itself; for named tuples its own error message points to this function.
    ``_register_namedtuple``: 2.10.
    """
    _pytree._register_namedtuple(named_tuple, serialized_type_name=name)


def refuse_to_script(function: Callable[..., Any], why: str) -> None:
    """Makes torch.jit.script raise a RuntimeError with this text, where it would compile the function.

    It looks for this attribute first. ``__script_unsupported``: 2.10. (For a module torch.jit.script calls the method
    ``__prepare_scriptable__``, which only the class itself can have: see aligner.py.)
    """
    function.__script_unsupported = why  # type: ignore[attr-defined]
