"""Prints a digest of every result on fixed inputs, so that builds, compilers and processors can be compared by `diff`.

    python test/digests.py > here        and there:        python test/digests.py | diff here -

Digests are of all bits: paths, scores, posteriors, log-likelihoods and gradients, in four dtypes, on every instruction
set that the processor has, which is not named: it must not matter. Needs torch and the package alone.
"""

import hashlib

import torch

import torch_ctc_align
from torch_ctc_align.config import _forced

# B, T, L, C: one tile, several, several frame blocks; 32 classes and more; an item without a path.
CASES = [(2, 1, 1, 2), (3, 50, 10, 32), (2, 700, 90, 33), (1, 1300, 300, 32), (1, 20, 30, 5)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def digest_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def results(case: tuple[int, ...], dtype: torch.dtype, stars: bool) -> dict[str, torch.Tensor]:
    """Inputs are exact multiples of 1/256, for log_softmax differs between processors."""
    B, T, L, C = case
    random = torch.Generator().manual_seed(0)
    log_probs = (torch.randint(-4096, 1, (B, T, C), generator=random) / 256).to(dtype).requires_grad_()
    targets = torch.randint(1, C, (B, L), generator=random)
    options = {}
    if stars:
        options["star_scores"] = (torch.randint(-1024, 1, (B, T), generator=random) / 256).to(dtype)
        options["wild_gaps"] = torch.randint(0, 2, (B, L + 1), generator=random).bool()
    paths, scores = torch_ctc_align.forced_align(log_probs, targets, strict=False, **options)
    posteriors, totals = torch_ctc_align.posteriors(log_probs, targets, **options)
    found = {"paths": paths, "scores": scores, "posteriors": posteriors, "log-likelihoods": totals}
    for name, output in [("scores", scores), ("log-likelihoods", totals)]:
        (gradient,) = torch.autograd.grad(output.sum(), log_probs)
        found[f"gradient of {name}"] = gradient
    # The operator itself: autograd gives it sums over labels that torch adds up, in an order of each processor's own.
    weights = torch.randint(-64, 65, (B, T, L + 1 + stars), generator=random).to(posteriors.dtype) / 64
    given = weights, log_probs.detach(), targets, None, None, 0, options.get("star_scores"), options.get("wild_gaps")
    found["gradient of posteriors"] = torch.ops.ctc_align.posteriors_backward(*given)
    return found


def main() -> None:
    for case in CASES:
        for dtype in DTYPES:
            for stars in (False, True):
                lines = set()
                for cpu in torch_ctc_align.config().cpus:
                    with _forced(cpu=cpu):
                        found = results(case, dtype, stars)
                    lines.add(" ".join(f"{name}={digest_of(tensor)}" for name, tensor in found.items()))
                print(case, dtype, "stars" if stars else "plain", *sorted(lines), flush=True)


if __name__ == "__main__":
    main()
