r"""The slow, obvious version of ``posteriors`` and its two relatives. Every fast one answers to it.

States, moves, start and end are those of reference.py. All paths are added up instead of finding the best one. With
y[t, c] the probability of class c at frame t (Graves et al. 2006, section 4.1; frames and states from 0 here):

    alpha[t, s] = (alpha[t-1, s] + alpha[t-1, s-1] + alpha[t-1, s-2]) y[t, class[s]]     eq. 6: all ways to (t, s)
    p           = alpha[T-1, S-1] + alpha[T-1, S-2]                                      eq. 8: all paths
    beta[t, s]  = sum over r = s, s+1, s+2 of beta[t+1, r] y[t+1, class[r]]              eq. 10: all ways on from (t, s)
    gamma[t, s] = alpha[t, s] beta[t, s] / p                                             eq. 14: the part through (t, s)

The terms of s-2 and s+2 are there only where a skip is allowed. This beta leaves out the emission of its own frame; the
paper's has it, and divides gamma by it. Sums are logarithms in float64, and torch.autograd can differentiate them.

STARS. ``star_scores[t]`` is one more emission of frame t. It is that of label C, the *star label*. In a *wild gap* a
path is in the blank or in the star: the state's emission is the sum of both probabilities, and its posterior is shared
out between the two as they are.

No path passes through an entry that is NaN, infinite, or of magnitude 2^18 and more. An item without any path has
posteriors 0 and log-likelihood -inf.
"""

import math

import torch
from torch import Tensor

TOO_LARGE = 2.0**18
IMPOSSIBLE = -1e30  # log of probability 0. Not -inf, of which a sum has no derivative; any path is far above it


def posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of ``torch_ctc_align.posteriors`` for valid arguments, one item at a time.

    Returns:
        posteriors (B, T, L + 1) and log_likelihoods (B,), both float64.
    """
    batch, frames, _ = log_probs.shape
    labels = targets.shape[1]
    table = torch.zeros(batch, frames, labels + 1, dtype=torch.float64)
    log_likelihoods = torch.zeros(batch, dtype=torch.float64)
    for b in range(batch):
        item = cut_item(b, log_probs, targets, input_lengths, target_lengths, star_scores, wild_gaps)
        gamma, stars, log_likelihoods[b] = sum_paths(*item, blank)
        used_frames, used_labels = len(gamma), len(item[1])
        table[b, :used_frames, :used_labels] = gamma[:, 1::2]
        table[b, :used_frames, labels] = gamma[:, 0::2].sum(1) + stars
    return table, log_likelihoods


def class_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of ``torch_ctc_align.class_posteriors``: the posteriors of states, added up by class.

    Returns:
        posteriors (B, T, C) and log_likelihoods (B,), both float64.
    """
    by_class, log_likelihoods = occupancies(
        log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps
    )
    return by_class[:, :, :-1], log_likelihoods


def occupancies(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``class_posteriors`` with one more column: the share of the star, which is the derivative by ``star_scores``.

    Returns:
        occupancies (B, T, C + 1) and log_likelihoods (B,), both float64.
    """
    batch, frames, classes = log_probs.shape
    table = torch.zeros(batch, frames, classes + 1, dtype=torch.float64)
    log_likelihoods = torch.zeros(batch, dtype=torch.float64)
    for b in range(batch):
        item = cut_item(b, log_probs, targets, input_lengths, target_lengths, star_scores, wild_gaps)
        gamma, stars, log_likelihoods[b] = sum_paths(*item, blank)
        used_frames, target = len(gamma), item[1]
        for k in range(len(target)):
            table[b, :used_frames, int(target[k])] += gamma[:, 2 * k + 1]
        table[b, :used_frames, blank] += gamma[:, 0::2].sum(1)
        table[b, :used_frames, classes] += stars
    return table, log_likelihoods


def span_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
    star_scores: Tensor | None = None,
    wild_gaps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of ``torch_ctc_align.span_posteriors``: means of ``posteriors`` over the frames of every span.

    Returns:
        confidences (B, L) and log_likelihoods (B,), both float64.
    """
    by_token, log_likelihoods = posteriors(
        log_probs, targets, input_lengths, target_lengths, blank, star_scores, wild_gaps
    )
    confidences = torch.zeros(targets.shape, dtype=torch.float64)
    for b, (first, after) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        frames = by_token.shape[1] if input_lengths is None else int(input_lengths[b])
        for k in range(len(first)):
            span = by_token[b, max(first[k], 0) : max(min(after[k], frames), 0), k]
            confidences[b, k] = span.mean() if len(span) > 0 else 0
    return confidences, log_likelihoods


def cut_item(
    b: int,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None,
    target_lengths: Tensor | None,
    star_scores: Tensor | None,
    wild_gaps: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What item b uses: its emissions (T, C + 1), the last of which is the star, its target, its wild gaps (L + 1,)."""
    frames = log_probs.shape[1] if input_lengths is None else int(input_lengths[b])
    labels = targets.shape[1] if target_lengths is None else int(target_lengths[b])
    stars = log_probs.new_full((frames,), -math.inf) if star_scores is None else star_scores[b, :frames]
    wild = torch.zeros(labels + 1, dtype=torch.bool) if wild_gaps is None else wild_gaps[b, : labels + 1]
    return torch.cat((log_probs[b, :frames], stars[:, None]), 1), targets[b, :labels], wild


def sum_paths(emissions: Tensor, target: Tensor, wild: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """For one item: gamma, the posteriors of states without the stars of wild gaps, (T, S); theirs, (T,); log p."""
    frames, states = len(emissions), 2 * len(target) + 1
    classes = torch.full((states,), blank)
    classes[1::2] = target
    is_wild = torch.zeros(states, dtype=torch.bool)
    is_wild[0::2] = wild
    skip_allowed = torch.zeros(states, dtype=torch.bool)  # into this state
    skip_allowed[2:] = classes[2:] != classes[:-2]  # two blanks are always equal, so only labels are skipped into
    nothing = torch.full((states,), IMPOSSIBLE, dtype=torch.float64)
    if frames == 0:
        return torch.zeros(0, states), torch.zeros(0), torch.tensor(0.0 if states == 1 else -math.inf)

    emissions = emissions.double()
    emissions = emissions.masked_fill(~(emissions.abs() < TOO_LARGE), IMPOSSIBLE)
    own = emissions[:, classes]
    star = torch.where(is_wild, emissions[:, -1:], IMPOSSIBLE)
    emission = torch.stack((own, star)).logsumexp(0)

    alpha = [torch.cat((emission[0, :2], nothing[2:]))]
    for t in range(1, frames):
        stay, advance, skip = alpha[-1], shift(alpha[-1], 1), shift(alpha[-1], 2)
        moves = torch.stack((stay, advance, torch.where(skip_allowed, skip, IMPOSSIBLE)))
        alpha.append(moves.logsumexp(0) + emission[t])

    beta = [torch.cat((nothing[2:], torch.zeros_like(emission[0, :2])))]
    for t in range(frames - 1, 0, -1):
        there = beta[-1] + emission[t]
        stay, advance, skip = there, shift(there, -1), shift(torch.where(skip_allowed, there, IMPOSSIBLE), -2)
        beta.append(torch.stack((stay, advance, skip)).logsumexp(0))

    log_p = alpha[-1][-2:].logsumexp(0)
    if log_p < IMPOSSIBLE / 2:
        return torch.zeros(frames, states), torch.zeros(frames), torch.tensor(-math.inf)
    log_gamma = torch.stack(alpha) + torch.stack(beta[::-1]) - log_p
    return (log_gamma + (own - emission)).exp(), (log_gamma + (star - emission)).exp().sum(1), log_p


def shift(row: Tensor, states: int) -> Tensor:
    """Moves a row by so many states to the right, or to the left if negative; ``IMPOSSIBLE`` comes in."""
    nothing = row.new_full((abs(states),), IMPOSSIBLE)
    return torch.cat((nothing, row))[: len(row)] if states > 0 else torch.cat((row, nothing))[-len(row) :]
