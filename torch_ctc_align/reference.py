r"""The slow, obvious version of ``forced_align``. Every fast one answers to it.

A target of L labels is spelled along S = 2L + 1 states, a blank around and between its labels:

    state     0     1     2     3     4     5     6
    class     -     c     -     a     -     t     -          L = 3, S = 7, "-" is the blank

A path starts in state 0 or 1, ends in state S-1 or S-2, and makes one of three moves a frame:

    stay      s   -> s
    advance   s-1 -> s
    skip      s-2 -> s       only past a blank between two different labels

Recurrence (Graves et al. 2006, section 4.1, eqs. 6-7, with max for the sum; frames and states from 0 here):

    alpha[0, s] = emission[0, class[s]]                                                for s = 0, 1; else -inf
    alpha[t, s] = max(alpha[t-1, s], alpha[t-1, s-1], alpha[t-1, s-2]) + emission[t, class[s]]

Ties: stay wins over advance, advance over skip; at the end the last label wins over the last blank.

STARS. ``star_scores[t]`` is one more emission of frame t. It is the emission of label C, the *star label*, and it may
take the blank's place in a *wild gap*: there a blank's emission is the larger of the two, and the blank wins a tie.

No path passes through an emission that is not a log-probability: NaN, infinite, or 2^100 and more. An item without any
path is marked: path -1, scores -inf.

Sums are float32 for half, bfloat16 and float32 emissions and float64 for float64. A float32 sum of many frames would
round away what tells two paths apart, so float32 alphas are kept small by a *rebase* every 512 frames. The grid decides
the last bit of every sum and therefore belongs to the contract; ``rebase`` and ``move_right`` below are its definition.
The path is the best one of these sums; ``docs/semantics.md``, section 6, has how far below the best total it can lie.
"""

import math

import torch
from torch import Tensor

BLOCK_FRAMES = 512
COLUMN_PAIRS = 256  # a pair is a blank and the label after it
COLUMN_STATES = 2 * COLUMN_PAIRS
LARGEST_DROP = 1024.0  # nats, from a column's base to the next one's
TOO_LARGE = 2.0**100  # keeps every sum below the float32 infinity
GAP_STAR = -2  # in paths: the star of a wild gap


def forced_align(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
    *,
    accumulate: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The operator's results for valid arguments, one item at a time.

    Args:
        log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps: as for
            ``torch_ctc_align.forced_align``.
        accumulate: dtype of the sums, ``torch.float32`` (rebased) or ``torch.float64`` (plain: the truth to
            compare with). Default: what the operator uses for the dtype of ``log_probs``.

    Returns:
        paths (B, T) and scores (B, T), as the operator.
    """
    if accumulate is None:
        accumulate = torch.promote_types(log_probs.dtype, torch.float32)
    batch, frames, _ = log_probs.shape
    paths = targets.new_full((batch, frames), blank)
    scores = log_probs.new_zeros(batch, frames)
    for b in range(batch):
        length = frames if input_lengths is None else int(input_lengths[b])
        labels = targets.shape[1] if target_lengths is None else int(target_lengths[b])
        emission = log_probs[b, :length].detach()
        if star_scores is not None:
            emission = torch.cat((emission, star_scores[b, :length, None].detach()), 1)  # class C is the star
        wild = torch.zeros(labels + 1, dtype=torch.bool) if wild_gaps is None else wild_gaps[b, : labels + 1]
        path = best_path(emission.to(accumulate), targets[b, :labels], blank, wild)
        if path is None:
            paths[b], scores[b] = -1, -math.inf
        else:
            paths[b, :length] = path
            entry = torch.where(path == GAP_STAR, emission.shape[1] - 1, path.long())
            scores[b, :length] = emission.gather(1, entry[:, None])[:, 0]
    return paths, scores


def best_path(emission: Tensor, target: Tensor, blank: int, wild: Tensor) -> Tensor | None:
    """The class of every frame on the best path of one item, or None if the item has no path.

    Args:
        emission: (T, C), or (T, C + 1) with the star scores as the last class.
        target: (L,), where the star is a class as well.
        blank: the class that spells nothing.
        wild: (L + 1,) bool, which gaps are wild.
    """
    frames = len(emission)
    classes = target.new_full((2 * len(target) + 1,), blank)
    classes[1::2] = target
    if frames == 0:
        return classes[:0] if len(target) == 0 else None

    emission = emission.masked_fill(~(emission < TOO_LARGE), -math.inf)
    is_gap_star = wild & (emission[:, -1:] > emission[:, blank, None])  # (T, L + 1)
    star = emission[:, -1:].expand_as(is_gap_star)
    emission = emission[:, classes.long()]  # (T, S)
    emission[:, ::2] = torch.where(is_gap_star, star, emission[:, ::2])
    skip_allowed = torch.zeros_like(classes, dtype=torch.bool)
    skip_allowed[2:] = classes[2:] != classes[:-2]  # two blanks are always equal, so only labels are skipped into

    moves = torch.zeros(emission.shape, dtype=torch.int8)  # how the best path came into (t, s): that many states
    alpha = torch.full_like(emission[0], -math.inf)
    alpha[:2] = emission[0, :2]
    base = torch.zeros(math.ceil(len(alpha) / COLUMN_STATES), dtype=torch.float64)
    for t in range(1, frames):
        if alpha.dtype == torch.float32 and t > 1 and t % BLOCK_FRAMES == 1:
            pairs_too_late = max(0, len(target) - (frames - (t - 1)))  # those that cannot reach the end any more
            rebase(alpha, base, 2 * pairs_too_late)
        advance = move_right(alpha, base)
        skip = move_right(advance).masked_fill(~skip_allowed, -math.inf)
        best, moves[t] = torch.stack((alpha, advance, skip)).max(dim=0)  # of equals, the first
        alpha = best + emission[t]

    last_blank, last_label = alpha[-1], move_right(alpha, base)[-1]
    if not torch.maximum(last_blank, last_label).isfinite():
        return None

    states = torch.empty(frames, dtype=torch.int64)
    states[-1] = len(alpha) - (1 if last_blank > last_label else 2)
    for t in range(frames - 1, 0, -1):
        states[t - 1] = states[t] - moves[t, states[t]]
    path = classes[states]
    is_star = (states % 2 == 0) & is_gap_star[torch.arange(frames), states // 2]
    return torch.where(is_star, GAP_STAR, path)


def move_right(alpha: Tensor, base: Tensor | None = None) -> Tensor:
    """Every state's left neighbour, as seen from the state's own column: only a column border changes the value.

    Without ``base`` nothing is converted. That is right for the second step of a skip: it ends in a label, and a label
    and the blank before it are one pair and lie in one column.
    """
    left = alpha.roll(1)
    left[0] = -math.inf
    if base is not None:
        left[COLUMN_STATES::COLUMN_STATES] += (base[:-1] - base[1:]).to(alpha.dtype)
    return left


def rebase(alpha: Tensor, base: Tensor, first_state: int) -> None:
    """Moves the best alpha of every column of 256 pairs into the column's base, in place.

    Only states from ``first_state`` on are looked at; the others are too late to reach the end. No base is more than
    ``LARGEST_DROP`` below the one at its left, in the scale of which better values may come in; not even that of a
    column in which nothing is reached yet.
    """
    first_column = first_state // COLUMN_STATES
    for j, column in list(enumerate(alpha.split(COLUMN_STATES)))[first_column:]:
        in_time = column[max(0, first_state - j * COLUMN_STATES) :]
        new = base[j] + in_time.max().double()
        if j > first_column:
            new = torch.maximum(new, base[j - 1] - LARGEST_DROP)
        if new.isfinite():
            # Clamped, for -inf less -inf is NaN: so far down a base moves only where nothing is reached.
            column -= (new - base[j]).clamp(min=torch.finfo(torch.float32).min).float()
            base[j] = new
