"""For programs that cannot be edited: our functions and kernel replace torchaudio's until that is undone."""

import importlib
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_ctc_align import functional
from torch_ctc_align._library import HAS_CUDA_LIBRARY
from torch_ctc_align._refusals import BATCH_OF, PHRASES, refusal


def install_in_torchaudio() -> "TorchaudioInstallation":
    """Replaces torchaudio's ``forced_align`` and ``merge_tokens`` with ours, for programs that cannot be edited.

    From then on callers of torchaudio use this package without a change: torchaudio's own pipelines (``MMS_FA``),
    lhotse, ESPnet, easyaligner, a notebook. In a ``with`` statement the replacement lasts as long as the block.
    Otherwise it lasts until :meth:`TorchaudioInstallation.undo` or the end of the process. It replaces

    - both functions in every imported module that holds them, in torchaudio and elsewhere, under any name: a module
      that ran ``from torchaudio.functional import forced_align`` earlier is found in ``sys.modules``;
    - the kernel of ``torch.ops.torchaudio.forced_align``. This reaches calls through references that no module holds,
      such as a default argument or a closure.

    CUDA tensors go to our kernel if this package has its CUDA library, and to torchaudio's otherwise.

    ``torchaudio.functional.TokenSpan`` stays, and the installed ``merge_tokens`` returns it, so that ``isinstance``,
    equality and pickles keep their meaning.

    Installing twice is the same as installing once. Undoing restores every function and kernel, and reaches modules
    that imported our functions from torchaudio in the meantime.

    Returns:
        TorchaudioInstallation: a context manager with a method ``undo``.

    Raises:
        ImportError: torchaudio is not installed, cannot be loaded, or is older than 2.1 and has no ``forced_align``.

    Note:
        The installed functions take what ours take: batches, lengths, any strides. They raise :class:`AlignmentError`,
        a ValueError and a RuntimeError whose message begins with torchaudio's phrase. The operator keeps torchaudio's
        contract: one item, lengths equal to T and L, and ``log_probs`` itself as its second result, as in torchaudio
        2.9 to 2.11.

    Example::

        >>> import torchaudio
        >>> aligner = torchaudio.pipelines.MMS_FA.get_aligner()
        >>> emission = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]).log()
        >>> with install_in_torchaudio():
        ...     words = aligner(emission, [[1], [2]])
        >>> [(span.token, span.start, span.end) for word in words for span in word]
        [(1, 0, 1), (2, 2, 3)]
    """
    return TorchaudioInstallation()


class TorchaudioInstallation:
    """Keeps our functions in torchaudio until it is undone. :func:`install_in_torchaudio` returns it.

    The end of a ``with`` block restores torchaudio, unless another installation is still in force: one made by a plain
    call, by an outer block, or by a block of another thread.
    """

    def __init__(self) -> None:
        _install(self)

    def undo(self) -> None:
        """Restores torchaudio, no matter how often and from where our functions were installed."""
        _uninstall(everything=True)

    def __enter__(self) -> "TorchaudioInstallation":
        """Installs again if :meth:`undo` was called in between."""
        _install(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Restores torchaudio if no other installation is in force."""
        _uninstall(self)


_lock = threading.RLock()
_in_force: set[TorchaudioInstallation] = set()
_replacement: "_Replacement | None" = None  # None only while _in_force is empty


def _install(installation: TorchaudioInstallation) -> None:
    global _replacement
    with _lock:
        if _replacement is None:
            _replacement = _Replacement()
        _in_force.add(installation)


def _uninstall(installation: TorchaudioInstallation | None = None, *, everything: bool = False) -> None:
    global _replacement
    with _lock:
        if everything:
            _in_force.clear()
        elif installation is not None:
            _in_force.discard(installation)
        if _replacement is not None and not _in_force:
            _replacement.undo()
            _replacement = None


class _Replacement:
    """Replaces functions and kernels when it is constructed, and can undo that."""

    def __init__(self) -> None:
        torchaudio_functional = _import_torchaudio()
        theirs = [torchaudio_functional.forced_align, torchaudio_functional.merge_tokens]
        # These functions are made for this installation alone: a module that holds one at the end has it from
        # torchaudio. Our public functions a module may have imported itself.
        ours = [_make_forced_align(theirs[0]), _make_merge_tokens(torchaudio_functional.TokenSpan)]
        for original, replacement in zip(theirs, ours, strict=True):
            for attribute in ("__module__", "__name__", "__qualname__"):  # pickle finds a function by these
                setattr(replacement, attribute, getattr(original, attribute))
        self.library: torch.library.Library | None = _replace_kernels()
        self.pairs = list(zip(theirs, ours, strict=True))
        for original, replacement in self.pairs:
            _replace_everywhere(original, replacement)

    def undo(self) -> None:
        for original, replacement in self.pairs:
            _replace_everywhere(replacement, original)
        self.library = None  # a registration lasts as long as its library


def _import_torchaudio() -> ModuleType:
    """Imports torchaudio.functional, or raises ImportError with one sentence."""
    try:
        importlib.import_module("torchaudio")
        found = importlib.import_module("torchaudio.functional")
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            raise ImportError(f"install_in_torchaudio: torchaudio cannot be loaded: {error}") from error
        raise ImportError("install_in_torchaudio: torchaudio is not installed, there is nothing to replace") from None
    except (ImportError, OSError, RuntimeError) as error:  # a library is missing or was built for another torch
        raise ImportError(f"install_in_torchaudio: torchaudio cannot be loaded: {error}") from error
    if not hasattr(found, "forced_align") or not hasattr(found, "merge_tokens"):
        version = getattr(sys.modules["torchaudio"], "__version__", "of unknown version")
        raise ImportError(
            f"install_in_torchaudio: torchaudio must have forced_align and merge_tokens, expected 2.1 or newer, "
            f"found {version}"
        )
    return found


def _replace_everywhere(old: object, new: object) -> None:
    """Replaces an object in the namespaces of all imported modules. Takes some milliseconds."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None)
        if not isinstance(namespace, dict):  # sys.modules may hold any object
            continue
        for name, value in list(namespace.items()):
            if value is old:
                namespace[name] = new


def _make_forced_align(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def forced_align(
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
        blank: int = 0,
    ) -> tuple[Tensor, Tensor]:
        if getattr(log_probs, "is_cuda", False) and not HAS_CUDA_LIBRARY:
            return theirs(log_probs, targets, input_lengths, target_lengths, blank)  # type: ignore[no-any-return]
        return functional.forced_align(log_probs, targets, input_lengths, target_lengths, blank)

    forced_align.__doc__ = functional.forced_align.__doc__
    return forced_align


def _make_merge_tokens(token_span: type) -> Callable[..., list[Any]]:
    def merge_tokens(tokens: Tensor, scores: Tensor, blank: int = 0) -> list[Any]:
        spans = functional.merge_tokens(tokens, scores, blank)
        return [token_span(span.token, span.start, span.end, span.score) for span in spans]

    merge_tokens.__doc__ = functional.merge_tokens.__doc__
    return merge_tokens


def _replace_kernels() -> torch.library.Library | None:
    """Registers our kernel for torch.ops.torchaudio.forced_align, as long as the returned library exists."""
    if not hasattr(torch.ops.torchaudio, "forced_align"):  # torchaudio was built without its extension
        return None
    library = torch.library.Library("torchaudio", "IMPL")
    with warnings.catch_warnings():  # PyTorch warns of every kernel that is replaced
        warnings.filterwarnings("ignore", message=r"[\s\S]*Overriding a previously registered kernel")
        for device in ("CPU", "CUDA") if HAS_CUDA_LIBRARY else ("CPU",):
            library.impl("forced_align", _kernel, device, allow_override=True)
    return library


def _kernel(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Keeps the contract of torchaudio's operator, which its Python function relies on: one item, of full length."""
    for argument, tensor, dims in (("log_probs", log_probs, 3), ("targets", targets, 2)):
        if tensor.dim() == dims and tensor.shape[0] != 1:
            raise refusal(
                "torchaudio::forced_align",
                BATCH_OF.format(argument),
                f"{argument} must hold one item, found shape {tuple(tensor.shape)}; torch_ctc_align.forced_align takes "
                "batches",
            )
    paths, _ = functional.forced_align(log_probs, targets, input_lengths, target_lengths, blank)
    for argument, lengths, extent in (
        ("input_lengths", input_lengths, log_probs.shape[1]),
        ("target_lengths", target_lengths, targets.shape[1]),
    ):
        if int(lengths) != extent:
            raise refusal(
                "torchaudio::forced_align",
                PHRASES[f"{argument}["],
                f"{argument} must be the length of the tensor, expected {extent}, found {int(lengths)}; "
                "torch_ctc_align.forced_align takes shorter ones",
            )
    return paths, log_probs  # torchaudio's operator returns its argument, and the function gathers from it
