"""The cases that cpu.py and gpu.py measure, the inputs of a case, and the sides that align them.

Other Pythons import this file for their peers, so it imports torch only where it is used.
"""

from dataclasses import dataclass, field

SIZES = ("batch", "frames", "labels", "classes")


@dataclass(frozen=True)
class Case:
    batch: int
    frames: int
    labels: int
    classes: int
    scaling: bool = field(default=False, compare=False)  # a point of the picture that plot.py draws
    with_peers: bool = field(default=True, compare=False)  # False: they would take hours, or all of the memory
    every_cpu: bool = field(default=False, compare=False)  # each instruction set of the machine takes a turn
    small_budget: int | None = field(default=None, compare=False)  # bytes; measured beside the default

    def __str__(self):
        return name_sizes(self.by_name)

    @property
    def by_name(self):
        return {name: getattr(self, name) for name in SIZES}

    @property
    def states(self):
        """States in the band, those that can lie on a complete path."""
        T, L = self.frames, self.labels
        return self.batch * ((2 * L + 1) * (T - L) + L)

    @property
    def limit_s(self):
        """The seconds that one process may take."""
        return 300 if self.states < 5 * 10**9 else 3_600


def name_sizes(sizes):
    return " x ".join(f"{sizes[name]:,}" for name in SIZES)


def speech(frames, **others):
    """Four frames a label: dense speech in characters, at 50 frames a second."""
    return Case(1, frames, frames // 4, 32, scaling=True, **others)


STANDARD = [
    Case(1, 50, 10, 32),
    Case(1, 1_500, 200, 32, every_cpu=True),
    Case(32, 1_500, 200, 32, every_cpu=True),
    Case(64, 500, 60, 32, every_cpu=True),
    Case(1, 1_500, 200, 5_000, every_cpu=True),
    Case(1, 20_000, 5_000, 5_000, every_cpu=True),
    Case(1, 50_000, 25_000, 32, every_cpu=True, small_budget=2_000_000),
    *[speech(frames) for frames in (500, 1_500, 6_000, 30_000)],
]
LONG = [
    Case(1, 178_572, 40_931, 191),  # an hour
    Case(1, 1_800_000, 540_000, 32, with_peers=False, small_budget=100_000_000),  # ten hours
    speech(180_000),
    speech(1_800_000, with_peers=False),
]
QUICK = [
    Case(1, 50, 10, 32),
    Case(2, 1_500, 200, 32, every_cpu=True, small_budget=50_000),
    *[speech(frames) for frames in (500, 1_500)],
]
GPU = [  # the fast cases first
    Case(64, 1_500, 200, 32),
    Case(256, 1_500, 200, 32),
    Case(64, 1_500, 200, 5_000),
    Case(1, 500, 60, 1_024),
    Case(1, 50_000, 25_000, 32),
    Case(1, 178_572, 40_931, 191),
    # Ten hours. torchaudio keeps a byte for each frame and state in the host's memory: 1.9 TB.
    Case(1, 1_800_000, 540_000, 32, with_peers=False),
]


@dataclass(frozen=True)
class SumCase:
    """A case of the sums over all paths on a GPU, with the milliseconds that it is meant to take there."""

    operator: str
    batch: int
    frames: int
    labels: int
    classes: int
    target_ms: float | None = None
    graph_target_ms: float | None = None  # in a CUDA graph
    is_loss: bool = False  # a training step's: measured with its gradient, and beside the other losses

    def __str__(self):
        return f"{self.operator} {name_sizes(self.by_name)}"

    @property
    def by_name(self):
        return {name: getattr(self, name) for name in SIZES}


GPU_SUMS = [  # the fast cases first
    SumCase("class_posteriors", 32, 500, 60, 32, 0.08, 0.05, is_loss=True),
    SumCase("class_posteriors", 64, 1_500, 200, 32, 0.30, is_loss=True),
    SumCase("class_posteriors", 256, 1_500, 200, 32, 0.90, is_loss=True),
    SumCase("class_posteriors", 64, 1_500, 200, 5_000, 1.3, is_loss=True),
    SumCase("posteriors", 64, 1_500, 200, 32),
    SumCase("posteriors_backward", 64, 1_500, 200, 32),
    SumCase("span_posteriors", 1, 50_000, 25_000, 32, 16),
    SumCase("class_posteriors", 1, 178_572, 40_931, 191, 60),
]


def parse_case(text):
    """A case by its sizes. A case that is known keeps its other settings."""
    case = Case(*map(int, text.split(",")))
    return next((known for known in STANDARD + LONG + QUICK if known == case), case)


def make_inputs(batch, frames, labels, classes, device="cpu"):
    """Random log_probs and int64 targets, the same ones in every process."""
    import torch

    options = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    log_probs = torch.randn(batch, frames, classes, **options).log_softmax(-1)
    return log_probs, torch.randint(1, classes, (batch, labels), **options)


@dataclass(frozen=True)
class Side:
    """The backend that aligns, and its settings."""

    backend: str
    threads: int = 1
    cpu: str | None = None  # an instruction set; None: the package chooses
    budget: int | None = None  # bytes; None: the package's default

    def __str__(self):
        words = [self.backend, f"{self.threads} thread" + "s" * (self.threads > 1)]
        if self.cpu:
            words.append(self.cpu)
        if self.budget:
            words.append(f"{self.budget / 1e6:g} MB")
        return ", ".join(words)


def choose_sides(case, machine, peer_names):
    others = [cpu for cpu in machine["package"]["cpus"] if cpu != machine["package"]["cpu_in_use"]]
    ways = [{}]
    if case.small_budget:
        ways.append({"budget": case.small_budget})
    if case.every_cpu:
        ways += [{"cpu": cpu} for cpu in others]
    sides = [Side("ours", threads, **way) for way in ways for threads in sorted({1, machine["cores"]})]
    return sides + [Side(peer) for peer in peer_names if case.with_peers]
