"""Times the alignment inside a training step.

    .venv/bin/python benchmarks/training_step.py [--case 32,500,60,32] [--parameters 5] [--steps 5]

Compiles a training step twice (torch.compile, fullgraph, dynamic shapes): with an alignment, whose path is the target
of the cross-entropy and whose token scores join the loss, and without one, on given targets. The two steps take turns.
Their difference is smaller than the noise of either, so the alignment is also timed alone: forced_align, token_spans,
and the gradient of both. The model is the cheapest of its size: every parameter is used once a frame.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from machine import describe_source
from page import in_three_digits, table
from timing import seconds
from torch import nn

from torch_ctc_align import ForcedAligner

CHANNELS = 80  # of a frame of features


class Model(nn.Module):
    """(B, T, CHANNELS) to log-probabilities (B, T, C)."""

    def __init__(self, parameters: int, classes: int, layers: int = 12):
        super().__init__()
        width = round((parameters / layers) ** 0.5)
        self.first = nn.Linear(CHANNELS, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.last = nn.Linear(width, classes)

    def forward(self, features):
        x = self.first(features)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x)))
        return self.last(x).log_softmax(-1)


aligner = ForcedAligner()


def align(log_probs, targets, lengths, target_lengths):
    """Cross-entropy on the path, less the mean token score: every gradient that an alignment can have."""
    alignment = aligner(log_probs, targets, lengths, target_lengths)
    classes = torch.where(alignment.paths >= 0, alignment.paths, -100)
    token_scores = torch.where(alignment.spans.starts >= 0, alignment.spans.scores, 0)
    return F.nll_loss(log_probs.mT, classes, ignore_index=-100) - token_scores.mean()


def step_with(model, features, targets, lengths, target_lengths, classes):
    return align(model(features), targets, lengths, target_lengths)


def step_without(model, features, targets, lengths, target_lengths, classes):
    return F.nll_loss(model(features).mT, classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="32,500,60,32", help="B,T,L,C (default: %(default)s)")
    parser.add_argument("--parameters", type=float, default=5, help="millions (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    B, T, L, C = map(int, arguments.case.split(","))

    torch.manual_seed(0)
    model = Model(round(1e6 * arguments.parameters), C)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = (
        torch.randn(B, T, CHANNELS),
        torch.randint(1, C, (B, L)),
        torch.randint(T * 3 // 4, T + 1, (B,)),
        torch.randint(L * 3 // 4, L + 1, (B,)),
        torch.randint(0, C, (B, T)),
    )
    log_probs = model(batch[0]).detach().requires_grad_()

    def train(step):
        optimizer.zero_grad()
        step(model, *batch).backward()
        optimizer.step()

    def align_alone(step):
        log_probs.grad = None
        step(log_probs, *batch[1:4]).backward()

    kinds = {
        "step without alignment": (train, step_without),
        "step with alignment": (train, step_with),
        "alignment alone": (align_alone, align),
    }
    compiled = {name: torch.compile(step, fullgraph=True, dynamic=True) for name, (_, step) in kinds.items()}
    times_of = {name: [] for name in kinds}
    for name, (call, _) in kinds.items():
        call(compiled[name])  # compiles
    for _ in range(arguments.steps):
        for name, (call, _) in kinds.items():
            times_of[name].append(seconds(call, compiled[name], calls=20 if call is align_alone else 1))

    whole = statistics.median(times_of["step with alignment"])
    rows = []
    for name, times in times_of.items():
        middle = statistics.median(times)
        milliseconds = [in_three_digits(1000 * value) for value in (middle, min(times), max(times))]
        rows.append([name, *milliseconds, f"{100 * middle / whole:.2f} %"])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(describe_source(".venv/bin/python benchmarks/training_step.py"))
    print(f"B = {B}, T = {T}, L = {L}, C = {C}; {size:.1f} million parameters\n")
    print(table(["", "median (ms)", "smallest", "largest", "share of the step"], rows))


if __name__ == "__main__":
    main()
