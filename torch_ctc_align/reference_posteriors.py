r"""The slow, obvious version of ``posteriors`` and its two relatives. Every fast one answers to it.

States, moves, start and end are those of reference.py. All paths are added up instead of finding the best one. With
y[t, c] the probability of class c at frame t (Graves et al. 2006, section 4.1; frames and states from 0 here):

    alpha[t, s] = (alpha[t-1, s] + alpha[t-1, s-1] + alpha[t-1, s-2]) y[t, class[s]]     eq. 6: all ways to (t, s)
    p           = alpha[T-1, S-1] + alpha[T-1, S-2]                                      eq. 8: all paths
    beta[t, s]  = sum over r = s, s+1, s+2 of beta[t+1, r] y[t+1, class[r]]              eq. 10: all ways on from (t, s)
    gamma[t, s] = alpha[t, s] beta[t, s] / p                                             eq. 14: the part through (t, s)

The terms of s-2 and s+2 are there only where a skip is allowed. This beta leaves out the emission of its own frame; the
paper's has it, and divides gamma by it. Sums are logarithms in float64, and torch.autograd can differentiate them.

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
        used_frames = frames if input_lengths is None else int(input_lengths[b])
        used_labels = labels if target_lengths is None else int(target_lengths[b])
        gamma, log_likelihoods[b] = sum_paths(log_probs[b, :used_frames], targets[b, :used_labels], blank)
        table[b, :used_frames, :used_labels] = gamma[:, 1::2]
        table[b, :used_frames, labels] = gamma[:, 0::2].sum(1)
    return table, log_likelihoods


def class_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """The results of ``torch_ctc_align.class_posteriors``: ``posteriors``, added up by class.

    Returns:
        posteriors (B, T, C) and log_likelihoods (B,), both float64.
    """
    by_token, log_likelihoods = posteriors(log_probs, targets, input_lengths, target_lengths, blank)
    by_class = torch.zeros(log_probs.shape, dtype=torch.float64)
    for b, target in enumerate(targets):
        labels = len(target) if target_lengths is None else int(target_lengths[b])
        for k in range(labels):
            by_class[b, :, int(target[k])] += by_token[b, :, k]
        by_class[b, :, blank] += by_token[b, :, -1]
    return by_class, log_likelihoods


def span_posteriors(
    log_probs: Tensor,
    targets: Tensor,
    starts: Tensor,
    ends: Tensor,
    input_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    blank: int = 0,
) -> tuple[Tensor, Tensor]:
    """The results of ``torch_ctc_align.span_posteriors``: means of ``posteriors`` over the frames of every span.

    Returns:
        confidences (B, L) and log_likelihoods (B,), both float64.
    """
    by_token, log_likelihoods = posteriors(log_probs, targets, input_lengths, target_lengths, blank)
    confidences = torch.zeros(targets.shape, dtype=torch.float64)
    for b, (first, after) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        frames = by_token.shape[1] if input_lengths is None else int(input_lengths[b])
        for k in range(len(first)):
            span = by_token[b, max(first[k], 0) : max(min(after[k], frames), 0), k]
            confidences[b, k] = span.mean() if len(span) > 0 else 0
    return confidences, log_likelihoods


def sum_paths(log_probs: Tensor, target: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """gamma, the posterior of every state at every frame, (T, S), and log p, for one item."""
    frames, states = len(log_probs), 2 * len(target) + 1
    classes = torch.full((states,), blank)
    classes[1::2] = target
    skip_allowed = torch.zeros(states, dtype=torch.bool)  # into this state
    skip_allowed[2:] = classes[2:] != classes[:-2]  # two blanks are always equal, so only labels are skipped into
    nothing = torch.full((states,), IMPOSSIBLE, dtype=torch.float64)
    if frames == 0:
        return torch.zeros(0, states), torch.tensor(0.0 if states == 1 else -math.inf)

    emission = log_probs.double()[:, classes]
    emission = emission.masked_fill(~(emission.abs() < TOO_LARGE), IMPOSSIBLE)

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
        return torch.zeros(frames, states), torch.tensor(-math.inf)
    return (torch.stack(alpha) + torch.stack(beta[::-1]) - log_p).exp(), log_p


def shift(row: Tensor, states: int) -> Tensor:
    """Moves a row by so many states to the right, or to the left if negative; ``IMPOSSIBLE`` comes in."""
    nothing = row.new_full((abs(states),), IMPOSSIBLE)
    return torch.cat((nothing, row))[: len(row)] if states > 0 else torch.cat((row, nothing))[-len(row) :]
