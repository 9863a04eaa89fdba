"""Finds what is in a transcript and not in the recording, by comparing the totals of paths with and without it.

The score of a block of text cannot tell: an unspoken sentence takes its frames from its neighbours, which then score as
badly as it does. Totals can: without an unspoken sentence the best path of the whole stretch is better by dozens of
nats, and without a spoken one it is worse by as much. So the search keeps a set of blocks, and changes it as long as
that gains:

    align the blocks that are kept                      one call; says where each token lies, and which are sure
    cut the recording into windows at sure tokens       a window has some doubtful blocks, in seconds of sound
    align each window with some blocks changed          a call a window; a kept block is dropped, a dropped one restored
    make the best change of each window, if it gains

The *loss* of a path in a frame is what the best class of the frame has more. A run of tokens with little loss lies
where it belongs, whatever is wrong elsewhere. So the path through a window that ends in such runs does not depend on
the rest.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_ctc_align._arguments import INTEGERS, brief, check_tensor, dtype_name, index_of
from torch_ctc_align._refusals import TOO_LONG, refusal
from torch_ctc_align._torch_seam import name_for_export
from torch_ctc_align.functional import forced_align, min_frames
from torch_ctc_align.spans import token_spans

__all__ = ["UnspokenBlocks", "find_unspoken"]

NAME = "find_unspoken"

SURE_RUN = 16  # tokens
SURE_LOSS = 1.0  # nats a token, the mean over a run; a wrong token costs some ten
CONTEXT_TOKENS = 256  # how far from its blocks a window looks for a sure run
WINDOW_TOKENS, WINDOW_BLOCKS = 2048, 64  # bound the work where a model is sure of nothing
NEIGHBOURS = 3  # on each side of a dropped block, in a window around it
ALL_CHOICES = 2 * NEIGHBOURS + 1  # blocks of which every subset is tried; of more: one, neighbours, runs
ROUNDS = 50  # in practice two to six
LEAST_GAIN = 1e-3  # nats; less may be rounding


class UnspokenBlocks(NamedTuple):
    """What :func:`find_unspoken` found, for N blocks and L tokens.

    Attributes:
        unspoken (Tensor): ``(N,)`` bool, whether the block is in the transcript and not in the recording.
        gains (Tensor): ``(N,)`` float64, nats: the total of the best path without the block, less the total with it;
            the other blocks are kept or dropped as found. ``inf`` where there is no path with the block.
        kept (Tensor): ``(L,)`` bool, the tokens of the spoken blocks, and the separators between these:
            ``targets[kept]`` is what to align.
    """

    unspoken: Tensor
    gains: Tensor
    kept: Tensor


name_for_export(UnspokenBlocks, "torch_ctc_align.UnspokenBlocks")


class _Aligned(NamedTuple):
    """Where the M kept tokens lie."""

    tokens: list[int]  # their places in the transcript
    starts: list[int]  # frames
    ends: list[int]
    is_sure: list[bool]  # whether a token is in a sure run
    left_cuts: list[int]  # (M + 1) where the last sure run before a token begins; 0 if there is none
    right_cuts: list[int]  # (M + 1) where the first sure run from a token on ends; M if there is none
    begins: list[int]  # of every block among the kept tokens, without the separators around it
    stops: list[int]


class _Window(NamedTuple):
    """Some neighbouring blocks, and the stretch of the recording and of the transcript in which they are tried."""

    blocks: range
    frames: slice
    tokens: slice  # of the transcript


class _Move(NamedTuple):
    """Which blocks of a window to keep, and by how much that improves the whole."""

    improvement: float
    window: _Window
    kept: list[bool]


@torch.no_grad()
def find_unspoken(
    log_probs: Tensor,
    targets: Tensor,
    tokens_per_block: Sequence[int] | Tensor,
    *,
    blank: int = 0,
    separator: int | None = None,
    threshold: float = 20.0,
    star_scores: Tensor | None = None,
) -> UnspokenBlocks:
    r"""Finds the blocks of a transcript that are not in the recording: sentences that the reader left out, for example.

    A block is unspoken if the best path without it is better than the best path with it, by more than ``threshold``.
    Neighbouring blocks are tried alone and together, and a block that was dropped too early is restored: at the end
    no change of a single block gains, nor of any run of blocks that was tried.

    Args:
        log_probs (Tensor): ``(T, C)`` or ``(1, T, C)``, the emissions of one recording, as for :func:`forced_align`.
        targets (Tensor): ``(L,)`` or ``(1, L)`` int32 or int64, the whole transcript. It has to fit into T frames.
        tokens_per_block (sequence of int or Tensor): how many tokens each block has, without separators; every count at
            least 1. A sentence is long enough to be found; a single word may not be.
        blank (int): the class that spells nothing. Default: 0.
        separator (int, optional): the token between words. It is not counted. Separators between two blocks come with
            the later one. Default: there is none, and all tokens are counted.
        threshold (float): nats that the path has to gain for each block that is dropped. Default: 20.
        star_scores (Tensor, optional): ``(T,)`` or ``(1, T)``, dtype of ``log_probs``. If given, anything may be said
            between two blocks and at both ends, with these scores: the gaps there are wild. Pass it where other words
            may be said in place of a block, with a larger penalty than to align: ``star_scores(log_probs, 2.0)``, since
            a star explains a sentence that the model hears badly as well. Default: none.

    Returns:
        UnspokenBlocks: whether each block is unspoken, what the path gains without it, and the tokens to align.

    Raises:
        AlignmentError: an argument does not have the shape, dtype or device above; the counts do not fit the targets;
            the recording has fewer frames than the transcript needs; and as :func:`forced_align`.
        TypeError: an argument is not of the type above.

    Time: two to five rounds, 50 at most. Each aligns what is kept with the whole recording, and in windows what has
    changed: in the first round every block with some tokens around it, then up to 128 choices of the blocks around each
    dropped one. A window has at most 64 blocks and 2,560 tokens, or one block of more. An hour takes seconds
    (``docs/measurements/stars.md``, which also says what is found). Waits for the device some three times a round. The
    result does not depend on the number of threads. Not for graphs.

    Example::

        >>> log_probs = torch.full((12, 4), -8.0)
        >>> log_probs[range(12), [1, 2, 0, 0, 0, 3, 1, 0, 0, 0, 0, 0]] = -0.01
        >>> targets = torch.tensor([1, 2, 2, 3, 2, 3, 1])
        >>> found = find_unspoken(log_probs, targets, [2, 3, 2])
        >>> found.unspoken
        tensor([False,  True, False])
        >>> targets[found.kept]
        tensor([1, 2, 3, 1])
    """
    log_probs, targets, star_scores = _take_item(log_probs, targets, star_scores)
    counts = _check_counts(tokens_per_block, targets.tolist(), separator)
    _check_fit(log_probs, targets)
    if not 0 <= threshold < math.inf:
        raise refusal(NAME, None, f"threshold must be finite and at least 0 (nats), found {threshold}")
    search = _Search(log_probs, targets, star_scores, counts, separator, blank, threshold)
    for _ in range(ROUNDS):
        aligned = search.align_kept()
        moves = search.find_moves(search.cut_at_sure_tokens(aligned))
        moves = moves or search.find_moves(search.cut_around_dropped(aligned))
        if not moves:
            break
        search.make(moves)
    return search.result()


class _Search:
    """The blocks that are kept, and what has been computed."""

    def __init__(
        self,
        log_probs: Tensor,
        targets: Tensor,
        star_scores: Tensor | None,
        counts: list[int],
        separator: int | None,
        blank: int,
        threshold: float,
    ) -> None:
        self.log_probs, self.targets, self.star_scores = log_probs, targets, star_scores
        self.blank, self.threshold = blank, threshold
        self.blocks, self.frames = len(counts), len(log_probs)
        self.labels = targets.tolist()
        self.repeated = _find_repeated_runs(self.labels)
        self.owners, self.borders = _find_owners(self.labels, counts, separator)
        self.owner = torch.tensor(self.owners, dtype=torch.int64)
        self.is_border = torch.tensor(self.borders, dtype=torch.bool)
        self.kept = torch.ones(self.blocks, dtype=torch.bool)
        self.gains = [0.0] * self.blocks
        self.known: dict[Any, list[float]] = {}  # the totals of a window's choices

    @cached_property
    def best(self) -> Tensor:
        """(T,) the best score of every frame."""
        best = self.log_probs.amax(-1)
        return best if self.star_scores is None else torch.maximum(best, self.star_scores)

    def result(self) -> UnspokenBlocks:
        places, _ = self.tokens_of(slice(0, len(self.owners)))
        kept = torch.zeros(len(self.owners), dtype=torch.bool)
        kept[places[0]] = True
        columns = ~self.kept, torch.tensor(self.gains, dtype=torch.float64), kept
        return UnspokenBlocks(*(column.to(self.log_probs.device) for column in columns))

    def tokens_of(
        self, part: slice, blocks: range = range(0), choices: Sequence[list[bool]] = ([],)
    ) -> tuple[Tensor, Tensor]:
        """Finds the tokens that are kept in a part of the transcript, once for each choice of some blocks.

        A block brings the separators before it, unless it is the first one that is kept.

        Returns:
            Their places in the transcript, (V, longest), padded with 0; and how many they are, (V,).
        """
        kept = self.kept.repeat(len(choices), 1)
        kept[:, blocks.start : blocks.stop] = torch.tensor(choices, dtype=torch.bool)
        any_kept = kept.any(1, keepdim=True)
        first = torch.nn.functional.pad(kept, (0, 1), value=True).byte().argmax(1, keepdim=True)
        owner = self.owner[part]
        mask = torch.cat([kept, any_kept], 1)[:, owner] & ~(self.is_border[part] & (owner <= first))
        lengths = mask.sum(1)
        longest = int(lengths.max())
        column = torch.where(mask, mask.cumsum(1) - 1, longest)  # tokens that are dropped go into one more column
        places = torch.zeros(len(choices), longest + 1, dtype=torch.int64)
        places.scatter_(1, column, torch.arange(part.start, part.stop).expand(len(choices), -1))
        return places[:, :longest], lengths

    # ------------------------------------------------------------------------------------------------- moves

    def find_moves(self, windows: Iterator[_Window]) -> list[_Move]:
        """Returns the best move of every window that has one, and notes the gains of its blocks."""
        tried = []
        asked: dict[Any, Tensor] = {}
        for window in windows:
            choices = list(self.list_choices(window.blocks))
            places, lengths = self.tokens_of(window.tokens, window.blocks, choices)
            key = (window.blocks, window.frames.start, window.frames.stop, *places[0, : lengths[0]].tolist())
            tried.append((window, choices, key))
            if key not in self.known:
                asked[key] = self.align(window.frames, places, lengths)[1].sum(1, dtype=torch.float64)
        if asked:
            totals = torch.cat(list(asked.values())).tolist()  # waits for the device
            for key, row in asked.items():
                self.known[key], totals = totals[: len(row)], totals[len(row) :]

        moves = []
        for window, choices, key in tried:
            present, *others = self.known[key]
            for block, total in zip(window.blocks, others, strict=False):  # the first choices change one block each
                self.gains[block] = total - present if self.kept[block] else present - total
            improvements = [
                total - present + self.threshold * (sum(kept) - sum(choices[0]))
                for kept, total in zip(choices[1:], others, strict=True)
            ]
            best = max(range(len(others)), key=improvements.__getitem__)
            if improvements[best] > LEAST_GAIN:
                moves.append(_Move(improvements[best], window, choices[1 + best]))
        return moves

    def list_choices(self, blocks: range) -> Iterator[list[bool]]:
        """Yields which blocks of a window are kept: now, with each of them changed, and with several changed."""
        present = self.kept[blocks.start : blocks.stop].tolist()
        count = len(present)

        def change(*changed: int) -> list[bool]:
            return [keep != (block in changed) for block, keep in enumerate(present)]

        yield present
        for block in range(count):
            yield change(block)
        if count <= ALL_CHOICES:
            for size in range(2, count + 1):
                for several in combinations(range(count), size):
                    yield change(*several)
            return
        spoken = [block for block in range(count) if present[block]]
        for block in spoken:  # a kept block and a dropped one change places, with no other kept one between them
            before = max((other for other in spoken if other < block), default=-1)
            after = min((other for other in spoken if other > block), default=count)
            for other in (*range(before + 1, block), *range(block + 1, after)):
                yield change(block, other)
        for length in (2**k for k in range(1, count.bit_length())):
            for start in sorted({*range(0, count - length, length // 2), count - length}):
                for keep in (False, True):
                    several = tuple(block for block in range(start, start + length) if present[block] != keep)
                    if len(several) > 1:
                        yield change(*several)

    def make(self, moves: list[_Move]) -> None:
        """Makes the moves, the best first, but none whose window overlaps with that of a better one."""
        made: list[slice] = []
        for move in sorted(moves, key=lambda move: -move.improvement):
            blocks, _, tokens = move.window
            if all(tokens.stop <= other.start or other.stop <= tokens.start for other in made):
                made.append(tokens)
                self.kept[blocks.start : blocks.stop] = torch.tensor(move.kept)

    # ------------------------------------------------------------------------------------------------- windows

    def cut_at_sure_tokens(self, aligned: _Aligned) -> Iterator[_Window]:
        """Yields windows such that every block is in one, with all blocks of the same doubtful stretch."""
        kept = self.kept.tolist()
        doubtful_begin = [
            not keep or not aligned.is_sure[place] for keep, place in zip(kept, aligned.begins, strict=True)
        ]
        doubtful_end = [
            not keep or not aligned.is_sure[place - 1] for keep, place in zip(kept, aligned.stops, strict=True)
        ]
        first = 0
        for after in range(1, self.blocks + 1):
            if (
                after < self.blocks
                and doubtful_end[after - 1]
                and doubtful_begin[after]
                and after - first < WINDOW_BLOCKS
                and aligned.stops[after] - aligned.begins[first] <= WINDOW_TOKENS
            ):
                continue  # no sure token lies between the two blocks
            yield self.surround(range(first, after), aligned)
            first = after

    def cut_around_dropped(self, aligned: _Aligned) -> Iterator[_Window]:
        """Yields a window around every dropped block, and around every run of them, with what is kept beside it."""
        kept = self.kept.tolist()
        begin = 0
        for block in range(self.blocks):
            if kept[block]:
                begin = block
                continue
            yield self.surround(range(max(0, block - NEIGHBOURS), min(block + NEIGHBOURS + 1, self.blocks)), aligned)
            after = block + 1
            if (after == self.blocks or kept[after]) and ALL_CHOICES < after + 1 - begin <= WINDOW_BLOCKS:
                yield self.surround(range(begin, min(after + 1, self.blocks)), aligned)

    def surround(self, blocks: range, aligned: _Aligned) -> _Window:
        """Returns the window of some blocks: from the sure run before them to the sure run after them."""
        tokens, count = aligned.tokens, len(aligned.tokens)
        begin, stop = aligned.begins[blocks[0]], aligned.stops[blocks[-1]]
        left = max(aligned.left_cuts[begin], begin - CONTEXT_TOKENS)
        right = min(aligned.right_cuts[stop], stop + CONTEXT_TOKENS)
        return _Window(
            blocks,
            slice(aligned.starts[left] if left > 0 else 0, aligned.ends[right - 1] if right < count else self.frames),
            slice(tokens[left] if left > 0 else 0, tokens[right - 1] + 1 if right < count else len(self.owners)),
        )

    # ------------------------------------------------------------------------------------------------- alignments

    def align_kept(self) -> _Aligned:
        """Aligns the blocks that are kept with the whole recording, and finds the runs of tokens that are sure."""
        places, lengths = self.tokens_of(slice(0, len(self.owners)))
        paths, scores = self.align(slice(0, self.frames), places, lengths, strict=True)
        starts, ends, _ = token_spans(paths, scores, self.targets[places.to(self.targets.device)], self.blank)
        loss = (self.best - scores[0]).double().nan_to_num(nan=0.0).clamp(min=0).cumsum(0)
        before = torch.nn.functional.pad(loss, (1, 0))[torch.nn.functional.pad(starts[0], (0, 1), value=self.frames)]
        losses, tokens = before.tolist(), places[0].tolist()
        count = len(tokens)

        # A run is sure if it loses little in its frames and the blanks after it, and stands nowhere else nearby.
        sure = [stop - begin <= SURE_RUN * SURE_LOSS for begin, stop in zip(losses, losses[SURE_RUN:], strict=False)]
        if self.repeated:
            labels = [self.labels[token] for token in tokens]
            sure = [yes and tuple(labels[k : k + SURE_RUN]) not in self.repeated for k, yes in enumerate(sure)]
        left_cuts, right_cuts, is_sure = [0] * (count + 1), [count] * (count + 1), [False] * count
        for k in range(SURE_RUN, count + 1):
            left_cuts[k] = k - SURE_RUN if sure[k - SURE_RUN] else left_cuts[k - 1]
        for k in reversed(range(len(sure))):
            right_cuts[k] = k + SURE_RUN if sure[k] else right_cuts[k + 1]
        for k, yes in enumerate(sure):
            if yes:
                is_sure[k : k + SURE_RUN] = [True] * SURE_RUN
        return _Aligned(
            tokens, starts[0].tolist(), ends[0].tolist(), is_sure, left_cuts, right_cuts, *self.find_places(tokens)
        )

    def find_places(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """Returns where every block begins and stops among the kept tokens. A dropped one has none, in its place."""
        begins, stops = [-1] * self.blocks, [-1] * self.blocks
        for place, token in enumerate(tokens):
            owner = self.owners[token]
            if owner < self.blocks and not self.borders[token]:
                begins[owner] = place if begins[owner] < 0 else begins[owner]
                stops[owner] = place + 1
        reached = 0
        for block in range(self.blocks):
            if begins[block] < 0:
                begins[block] = stops[block] = reached
            reached = stops[block]
        return begins, stops

    def align(self, frames: slice, places: Tensor, lengths: Tensor, strict: bool = False) -> tuple[Tensor, Tensor]:
        """Aligns a part of the recording with tokens of the transcript. The items share the memory of emissions."""
        device, batch = self.targets.device, len(lengths)
        log_probs = self.log_probs[frames].expand(batch, -1, -1)
        targets, there = self.targets[places.to(device)], lengths.to(device)
        if self.star_scores is None:
            return forced_align(log_probs, targets, None, there, self.blank, strict=strict)
        # A gap is wild if the tokens on its two sides are not of one block; those at the ends are.
        part = 2 * self.owner[places] + self.is_border[places].long()
        wild = torch.ones(batch, places.shape[1] + 1, dtype=torch.bool)
        wild[:, 1:-1] = part[:, 1:] != part[:, :-1]
        wild.scatter_(1, lengths[:, None], True)
        stars = self.star_scores[frames].expand(batch, -1)
        return forced_align(
            log_probs,
            targets,
            None,
            there,
            self.blank,
            strict=strict,
            star_scores=stars,
            wild_gaps=wild.to(device),
        )


# ------------------------------------------------------------------------------------------------------- arguments


def _take_item(log_probs: Tensor, targets: Tensor, star_scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the arguments of one item as (T, C), (L,) and (T,)."""

    def take(argument: str, value: Tensor, dims: int, shape: str) -> Tensor:
        check_tensor(NAME, argument, value, shape)
        if value.dim() == dims + 1 and value.shape[0] == 1:
            value = value[0]
        if value.dim() != dims:
            more = "; pass the items of a batch one by one" if value.dim() == dims + 1 else ""
            raise refusal(
                NAME,
                None,
                f"{argument} must have shape {shape} or that of a batch of 1, found {tuple(value.shape)}{more}",
            )
        return value

    log_probs = take("log_probs", log_probs, 2, "(T, C)")
    targets = take("targets", targets, 1, "(L,)")
    if targets.dtype not in INTEGERS:
        raise refusal(NAME, None, f"targets must be int32 or int64, found {dtype_name(targets)}")
    if targets.device != log_probs.device:
        raise refusal(
            NAME,
            None,
            f"targets must be on the device of log_probs, expected {log_probs.device}, found {targets.device}",
        )
    if star_scores is not None:
        star_scores = take("star_scores", star_scores, 1, "(T,)")
        if len(star_scores) != len(log_probs):
            raise refusal(
                NAME,
                None,
                f"star_scores must have the frames of log_probs, expected {len(log_probs)}, found {len(star_scores)}",
            )
    return log_probs, targets, star_scores


def _check_counts(tokens_per_block: Any, labels: list[int], separator: int | None) -> list[int]:
    """Returns the counts as a list, and checks that they fit the targets."""
    values = tokens_per_block.tolist() if isinstance(tokens_per_block, Tensor) else tokens_per_block
    try:
        counts = [index_of(value) for value in values]
    except TypeError:
        counts = [None]
    if None in counts:
        raise TypeError(
            f"{NAME}: tokens_per_block must be a sequence of int, the number of tokens of each block, found "
            f"{brief(tokens_per_block)}"
        )
    known: list[int] = [count for count in counts if count is not None]
    for block, count in enumerate(known):
        if count < 1:
            raise refusal(
                NAME,
                None,
                f"tokens_per_block[{block}] must be a number of tokens, expected at least 1, found {count}",
            )
    if separator is not None and index_of(separator) is None:
        raise TypeError(f"{NAME}: separator must be an int, the class between words, found {brief(separator)}")
    counted = len(labels) if separator is None else sum(label != separator for label in labels)
    if sum(known) != counted:
        what, advice = (
            ("targets", "; if the target has separators that are not counted, pass separator")
            if separator is None
            else ("targets without separators", f"; separators ({separator}) are not counted")
        )
        raise refusal(
            NAME,
            None,
            f"tokens_per_block must sum to the tokens of {what}, expected {counted}, found {sum(known)}{advice}",
        )
    return known


def _check_fit(log_probs: Tensor, targets: Tensor) -> None:
    needed = int(min_frames(targets[None]))
    if needed > len(log_probs):
        raise refusal(
            NAME,
            TOO_LONG,
            f"log_probs must have the frames that the whole transcript needs, expected T >= L + R = {needed}, found "
            f"T = {len(log_probs)}; pass the part of the transcript that belongs to the recording",
        )


def _find_repeated_runs(labels: list[int]) -> set[tuple[int, ...]]:
    """Returns the runs of tokens that stand in the transcript twice, near each other: either may be the spoken one."""
    latest: dict[tuple[int, ...], int] = {}
    repeated = set()
    for k in range(len(labels) - SURE_RUN + 1):
        run = tuple(labels[k : k + SURE_RUN])
        if k - latest.get(run, -WINDOW_TOKENS) < WINDOW_TOKENS:
            repeated.add(run)
        latest[run] = k
    return repeated


def _find_owners(labels: list[int], counts: list[int], separator: int | None) -> tuple[list[int], list[bool]]:
    """Returns the block of every token, and whether the token is a separator between two blocks.

    Such a separator belongs to the block after it. Those before the first block and after the last one belong to one
    more block, which is kept as long as any other is.
    """
    owner, border = [len(counts)] * len(labels), [False] * len(labels)
    previous = owner.copy()
    ends = list(accumulate(counts))
    block, seen = -1, 0
    for k, label in enumerate(labels):
        if label == separator:
            continue
        if block < 0 or seen == ends[block]:
            block += 1
        seen += 1
        owner[k] = block
    nearest = len(counts)  # the block before a separator, and then the block after it
    for k, label in enumerate(labels):
        nearest = owner[k] if label != separator else nearest
        previous[k] = nearest
    nearest = len(counts)
    for k, label in reversed(list(enumerate(labels))):
        nearest = owner[k] if label != separator else nearest
        if previous[k] < len(counts) and nearest < len(counts):
            owner[k], border[k] = nearest, previous[k] != nearest
    return owner, border
