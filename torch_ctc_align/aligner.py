"""The end of an acoustic model as a module: paths, spans and durations in one graph of fixed shapes."""

from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils import _pytree

from torch_ctc_align._operator import dtype_name
from torch_ctc_align._refusals import check_blank
from torch_ctc_align.functional import Lengths, TokenSpans, _find_tokens, _spans_of, as_lengths, forced_align

Blanks = Literal["split", "before", "after", "drop"]
Frames = TypeVar("Frames", float, Tensor)


def check_blanks(name: str, argument: str, blanks: object, *others: str) -> None:
    """Raises if the argument of a function is none of ``Blanks``; ``others`` are further choices of that function."""
    if not isinstance(blanks, str) or blanks not in get_args(Blanks):
        raise ValueError(
            f"{name}: {argument} must be one of {', '.join((*get_args(Blanks), *others))}, found {blanks!r}"
        )


def borders_between(ends: Frames, next_starts: Frames, blanks: Blanks) -> Frames:
    """The frame at which two neighbours meet, tokens or words, for all of ``Blanks`` but ``"drop"``.

    Args:
        ends: the frame behind the one before.
        next_starts: the first frame of the one behind.
        blanks: which of them gets the frames between them.
    """
    if blanks == "split":
        return (ends + next_starts) // 2
    return next_starts if blanks == "before" else ends


def token_durations(spans: TokenSpans, input_lengths: Lengths | int, *, blanks: Blanks = "split") -> Tensor:
    """Counts the frames of every target token of a batch; the blanks between two tokens go to one of them, or both.

    With ``"split"``, ``"before"`` and ``"after"`` the durations of an item add up to its input length, as the length
    regulator of a speech synthesiser needs it: the first token begins at frame 0, and the last one ends with the
    input. No loop over tokens and no synchronisation.

    Args:
        spans (TokenSpans): from :func:`token_spans`; ``(B, L)`` each.
        input_lengths (Tensor, sequence of int, or int): ``(B,)`` frames in use, those that were aligned; one number if
            it is that of all items, ``log_probs.shape[1]`` where all frames were. The values are not checked.
        blanks (str): whose are the frames between tokens k and k + 1? ``"split"``: half of them to each, the border
            being ``(ends[k] + starts[k + 1]) // 2``. ``"before"``: to the token before them, border ``starts[k + 1]``.
            ``"after"``: to the token behind them, border ``ends[k]``. ``"drop"``: to none, and neither are those before
            the first token and behind the last: a duration is ``ends - starts``. Default: ``"split"``.

    Returns:
        Tensor: ``(B, L)`` int64, frames of each token; 0 for padding and for marked items.

        An item of 0 labels has nobody to give its frames to: all its durations are 0.

    Raises:
        ValueError: ``blanks`` is none of the four; ``input_lengths`` has another shape or dtype than above.

    Example::

        >>> spans = TokenSpans(torch.tensor([[2, 5]]), torch.tensor([[3, 7]]), torch.zeros(1, 2))
        >>> token_durations(spans, 9)  # frames 0 to 3, and 4 to 8
        tensor([[4, 5]])
        >>> token_durations(spans, 9, blanks="before"), token_durations(spans, 9, blanks="after")
        (tensor([[5, 4]]), tensor([[3, 6]]))
        >>> token_durations(spans, 9, blanks="drop")
        tensor([[1, 2]])
    """
    check_blanks("token_durations", "blanks", blanks)
    starts, ends, _ = spans
    batch = starts.shape[0]
    if input_lengths is None:
        raise ValueError("token_durations: input_lengths must be given, log_probs.shape[1] for all frames, found None")
    if isinstance(input_lengths, int | torch.SymInt):
        lengths = starts.new_full((batch,), input_lengths)
    else:
        lengths = as_lengths("token_durations", "input_lengths", input_lengths, starts)
    if lengths.dim() != 1 or lengths.shape[0] != batch:
        raise ValueError(
            f"token_durations: input_lengths must be a number or have shape (B,) = ({batch},) as in spans, "
            f"found {tuple(lengths.shape)}"
        )
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token_durations: input_lengths must be int32 or int64, found {dtype_name(lengths)}")
    if blanks == "drop":
        return ends - starts  # -1 - -1 for padding and for marked items

    def shift(tensor: Tensor, by: int) -> Tensor:
        """Column k moves to k + by, and 0 comes in."""
        padded = torch.nn.functional.pad(tensor, (1, 1))
        return padded[:, 1 - by : padded.shape[1] - 1 - by]

    borders = borders_between(ends, shift(starts, -1), blanks)
    spoken = starts >= 0
    borders = torch.where(shift(spoken, -1), borders, lengths.long()[:, None])
    return torch.where(spoken, borders - shift(borders, 1), 0)


class Alignment(NamedTuple):
    """What :class:`ForcedAligner` finds.

    Attributes:
        paths (Tensor): ``(B, T)``, dtype of ``targets``; the class of every frame, as of :func:`forced_align`; -1 for
            marked items.
        scores (Tensor): ``(B, T)``, dtype of ``log_probs``; the log-probability of every path entry (nats); -inf for
            marked items.
        spans (TokenSpans): ``(B, L)`` each; start, end (exclusive) and mean score of every token, as of
            :func:`token_spans`.
        durations (Tensor): ``(B, L)`` int64; frames of every token, as of :func:`token_durations`.
        path_scores (Tensor): ``(B,)``, dtype of ``log_probs``, but float32 for half types; the log-probability of the
            path, the sum of its scores (nats); -inf for marked items.
        aligned (Tensor): ``(B,)`` bool; has the item a path? False for marked items.
        token_indices (Tensor): ``(B, T)`` int64; the token of every frame, as of :func:`token_indices`; -1 in blanks,
            in padding and for marked items.
    """

    paths: Tensor
    scores: Tensor
    spans: TokenSpans
    durations: Tensor
    path_scores: Tensor
    aligned: Tensor
    token_indices: Tensor


# An exported program that returns named tuples can be saved only if they have a name in the file. torch.export names
# dataclasses; for named tuples this is the way that its own error message points to.
_pytree._register_namedtuple(TokenSpans, serialized_type_name="torch_ctc_align.TokenSpans")
_pytree._register_namedtuple(Alignment, serialized_type_name="torch_ctc_align.Alignment")


class ForcedAligner(torch.nn.Module):
    """Aligns a batch and finds spans, durations and scores: what follows an acoustic model, in one graph.

    An item without any path does not raise, it is marked, for a graph cannot look at values. Shapes follow from shapes
    alone and nothing waits for the device, so ``torch.compile(fullgraph=True)``, ``torch.export`` and AOTInductor take
    the module as it is. ``scores``, ``spans.scores`` and ``path_scores`` are differentiable with respect to
    ``log_probs``. No parameters, no buffers.

    Args:
        blank (int): the class that spells nothing. Default: 0.
        blanks (str): whose are the frames between two tokens: ``"split"``, ``"before"``, ``"after"`` or ``"drop"``; see
            :func:`token_durations`. Default: ``"split"``.

    Raises:
        ValueError: ``blanks`` is none of the four; ``blank`` is negative.
        TypeError: ``blank`` is not an int.

    Example::

        >>> log_probs = torch.tensor([[[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.1, 0.7]]]).log()
        >>> aligner = ForcedAligner()
        >>> alignment = aligner(log_probs.expand(2, -1, -1), torch.tensor([[1, 2], [1, 1]]), [3, 2])
        >>> alignment.durations, alignment.aligned  # 1 and 1 do not fit into two frames
        (tensor([[1, 2],
                [0, 0]]), tensor([ True, False]))
        >>> torch.where(alignment.aligned, alignment.path_scores, 0)
        tensor([-0.9365,  0.0000])
    """

    def __init__(self, blank: int = 0, blanks: Blanks = "split") -> None:
        super().__init__()
        check_blanks("ForcedAligner", "blanks", blanks)
        check_blank("ForcedAligner", blank)
        if blank < 0:
            raise ValueError(f"ForcedAligner: blank must be a class, expected 0 <= blank, found {blank}")
        self.blank = blank
        self.blanks: Blanks = blanks

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"blank={self.blank}, blanks={self.blanks!r}"

    def __prepare_scriptable__(self) -> None:
        """Called by torch.jit.script, of this module and of all that contain it."""
        raise NotImplementedError(
            "ForcedAligner: TorchScript cannot compile this module; call torch.ops.ctc_align.forced_align in the "
            "scripted code, or use torch.jit.trace or torch.export (docs/exporting.md)"
        )

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Lengths | None = None,
        target_lengths: Lengths | None = None,
    ) -> Alignment:
        """Aligns a batch. The arguments are those of :func:`forced_align`, and so are the errors of ``strict=False``.

        Args:
            log_probs (Tensor): ``(B, T, C)`` floating point, natural-log probabilities.
            targets (Tensor): ``(B, L)`` int32 or int64, classes other than the blank.
            input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
            target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
        """
        if isinstance(log_probs, torch.fx.Proxy) and log_probs.tracer.root is not self:
            # torch.fx.symbolic_trace: a leaf, as the modules of torch.nn are.
            arguments = log_probs, targets, input_lengths, target_lengths
            return log_probs.tracer.create_proxy("call_module", log_probs.tracer.path_of_module(self), arguments, {})
        if input_lengths is not None:
            input_lengths = as_lengths("forced_align", "input_lengths", input_lengths, log_probs)
        if target_lengths is not None:
            target_lengths = as_lengths("forced_align", "target_lengths", target_lengths, log_probs)
        paths, scores = forced_align(log_probs, targets, input_lengths, target_lengths, self.blank, strict=False)
        batch, frames = paths.shape
        if input_lengths is None:
            input_lengths = targets.new_full((batch,), frames, dtype=torch.int64)
        if target_lengths is None:
            target_lengths = targets.new_full((batch,), targets.shape[1], dtype=torch.int64)
        indices, marked = _find_tokens("ForcedAligner", paths, targets, self.blank)
        spans = _spans_of(indices, marked, scores, targets.shape[1])
        durations = token_durations(spans, input_lengths, blanks=self.blanks)
        # The marks tell it, except where there are no frames to mark. Lengths out of range come this far on CUDA only.
        fits = (target_lengths >= 0) & (target_lengths <= input_lengths) & (input_lengths <= frames)
        aligned = fits & (paths >= 0).all(1)
        half = scores.dtype in (torch.float16, torch.bfloat16)
        sums = scores.sum(1, dtype=torch.float32 if half else scores.dtype)
        path_scores = torch.where(aligned, sums, -torch.inf)
        return Alignment(paths, scores, spans, durations, path_scores, aligned, indices)
