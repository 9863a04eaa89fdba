"""The last step after an acoustic model as a module: paths, spans and durations in one graph of fixed shapes."""

from typing import NamedTuple

import torch
from torch import Tensor

from torch_ctc_align._arguments import Lengths, as_lengths, check_blank
from torch_ctc_align._forced_align import MARKED
from torch_ctc_align._torch_seam import name_for_export
from torch_ctc_align.functional import forced_align
from torch_ctc_align.spans import Blanks, TokenSpans, check_blanks, find_tokens, spans_of, token_durations
from torch_ctc_align.stars import TokensPerWord, Where, check_where, stars_of

__all__ = ["Alignment", "ForcedAligner", "token_durations"]


class Alignment(NamedTuple):
    """The results of :class:`ForcedAligner`.

    Attributes:
        paths (Tensor): ``(B, T)``, dtype of ``targets``; the class of every frame, as from :func:`forced_align`; -1
            for marked items.
        scores (Tensor): ``(B, T)``, dtype of ``log_probs``; the log-probability of every path entry (nats); -inf for
            marked items.
        spans (TokenSpans): ``(B, L)`` each; start, end (exclusive) and mean score of every token, as from
            :func:`token_spans`.
        durations (Tensor): ``(B, L)`` int64; frames of every token, as from :func:`token_durations`.
        path_scores (Tensor): ``(B,)``, dtype of ``log_probs``, but float32 for half types; log-probability of the path,
            the sum of its scores (nats); -inf for marked items.
        aligned (Tensor): ``(B,)`` bool; whether the item has a path; false for marked items.
        token_indices (Tensor): ``(B, T)`` int64; the token of every frame, as from :func:`token_indices`; -1 in
            blanks, in padding and for marked items.
        stars (TokenSpans): ``(B, L + 1)`` each; the stars of every gap, as from :func:`star_spans`. The empty tuple
            where there are no stars, which adds no leaf to the tree (None would).
    """

    paths: Tensor
    scores: Tensor
    spans: TokenSpans
    durations: Tensor
    path_scores: Tensor
    aligned: Tensor
    token_indices: Tensor
    stars: TokenSpans | tuple[()] = ()


name_for_export(Alignment, "torch_ctc_align.Alignment")


class ForcedAligner(torch.nn.Module):
    """Aligns a batch and finds spans, durations and scores, in one graph after an acoustic model.

    An item without any path is marked instead of raising, because a graph cannot look at values. The shapes of the
    results depend on shapes alone, and nothing waits for the device, so ``torch.compile(fullgraph=True)``,
    ``torch.export`` and AOTInductor take the module as it is. ``scores``, ``spans.scores`` and ``path_scores`` are
    differentiable with respect to ``log_probs``; through the star scores, too. The module has neither parameters nor
    buffers.

    Args:
        blank (int): the class that spells nothing. Default: 0.
        blanks (str): which token gets the frames between two tokens: ``"split"``, ``"before"``, ``"after"`` or
            ``"drop"``; see :func:`token_durations`. Default: ``"split"``.
        star (str, optional): ``"ends"``, ``"words"`` or ``"all"``: the gaps that may hold something that is not in the
            target; see :func:`forced_align`. Their stars belong to no token. Default: None.
        star_penalty (float): nats; see :func:`star_scores`. Default: 0.5.
        separator (int, optional): the label between words, for ``star="words"``.

    Raises:
        ValueError: ``blanks`` is not one of the four, ``blank`` is negative, ``star`` is not one of the three,
            ``star_penalty`` is negative, or ``separator`` is the blank or given without ``star="words"``.
        TypeError: ``blank`` or ``separator`` is not an int.

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

    # Modules pickled earlier have no attributes for stars.
    star: Where | None = None
    star_penalty: float = 0.5
    separator: int | None = None

    def __init__(
        self,
        blank: int = 0,
        blanks: Blanks = "split",
        *,
        star: Where | None = None,
        star_penalty: float = 0.5,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        check_blanks("ForcedAligner", "blanks", blanks)
        check_blank("ForcedAligner", blank)
        if blank < 0:
            raise ValueError(f"ForcedAligner: blank must be a class, expected 0 <= blank, found {blank}")
        check_where("ForcedAligner", "star", star, separator, None, optional=True)
        if separator is not None and separator == blank:
            raise ValueError(
                f"ForcedAligner: separator must not be the blank, expected a label of targets, found {separator}"
            )
        if not star_penalty >= 0:
            raise ValueError(f"ForcedAligner: star_penalty must be at least 0, found {star_penalty}")
        self.blank = blank
        self.blanks: Blanks = blanks
        if star is not None:
            self.star = star
            self.star_penalty = star_penalty
            self.separator = separator

    def extra_repr(self) -> str:
        """Returns the text that ``print`` shows between the brackets."""
        text = f"blank={self.blank}, blanks={self.blanks!r}"
        if self.star is not None:
            text += f", star={self.star!r}, star_penalty={self.star_penalty}"
        return text if self.separator is None else f"{text}, separator={self.separator}"

    def __prepare_scriptable__(self) -> None:
        """Called by torch.jit.script, for this module and for modules that contain it."""
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
        tokens_per_word: TokensPerWord | None = None,
        star_scores: Tensor | None = None,
        wild_gaps: Tensor | None = None,
    ) -> Alignment:
        """Aligns a batch.

        Args:
            log_probs (Tensor): ``(B, T, C)`` floating point, natural-log probabilities.
            targets (Tensor): ``(B, L)`` int32 or int64, classes other than the blank.
            input_lengths (Tensor or sequence of int, optional): ``(B,)`` frames in use. Default: all ``T``.
            target_lengths (Tensor or sequence of int, optional): ``(B,)`` labels in use. Default: all ``L``.
            tokens_per_word (optional): how many labels spell each word, for ``star="words"``; see :func:`wild_gaps`.
            star_scores, wild_gaps (Tensor, optional): as for :func:`forced_align`, in place of those that are made.

        Returns:
            Alignment: paths, scores, spans and durations of the batch; with stars, where they are.

        Raises:
            As :func:`forced_align` with ``strict=False``.
        """
        if isinstance(log_probs, torch.fx.Proxy) and log_probs.tracer.root is not self:
            # torch.fx.symbolic_trace sees a leaf, like the modules of torch.nn.
            arguments = log_probs, targets, input_lengths, target_lengths
            named = {"tokens_per_word": tokens_per_word, "star_scores": star_scores, "wild_gaps": wild_gaps}
            given = {name: value for name, value in named.items() if value is not None}
            return log_probs.tracer.create_proxy("call_module", log_probs.tracer.path_of_module(self), arguments, given)
        if input_lengths is not None:
            input_lengths = as_lengths("forced_align", "input_lengths", input_lengths, log_probs)
        if target_lengths is not None:
            target_lengths = as_lengths("forced_align", "target_lengths", target_lengths, log_probs)
        paths, scores = forced_align(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            strict=False,
            star_scores=star_scores,
            wild_gaps=wild_gaps,
            star=self.star,
            star_penalty=self.star_penalty,
            separator=self.separator,
            tokens_per_word=tokens_per_word,
        )
        batch, frames = paths.shape
        if input_lengths is None:
            input_lengths = targets.new_full((batch,), frames, dtype=torch.int64)
        if target_lengths is None:
            target_lengths = targets.new_full((batch,), targets.shape[1], dtype=torch.int64)
        indices, marked = find_tokens("ForcedAligner", paths, targets, self.blank)
        spans = spans_of(indices, marked, scores, targets.shape[1])
        stars: TokenSpans | tuple[()] = ()
        if self.star is not None or star_scores is not None:
            stars = stars_of(paths, indices, marked, scores, targets.shape[1])
        durations = token_durations(spans, input_lengths, blanks=self.blanks, stars=stars)
        # The marks say it, except where there are no frames to mark. Bad lengths come this far only on CUDA.
        fits = (target_lengths >= 0) & (target_lengths <= input_lengths) & (input_lengths <= frames)
        aligned = fits & (paths != MARKED).all(1)
        half = scores.dtype in (torch.float16, torch.bfloat16)
        sums = scores.sum(1, dtype=torch.float32 if half else scores.dtype)
        path_scores = torch.where(aligned, sums, -torch.inf)
        return Alignment(paths, scores, spans, durations, path_scores, aligned, indices, stars)
