"""Times the step from logits to their gradient: log_softmax and ctc_loss, torch's and ours. Prints three tables.

    .venv/bin/python benchmarks/ctc_loss.py [--device cuda] [--threads 1] [--rounds 11]

Beside log_softmax and ours there are two losses that take the logits themselves, which the package does not have:
"composed" is the operator on the logits, and the log-sum-exp of every frame; "one pass" keeps softmax - posteriors as
its gradient. Every function has a turn in every round; rows show medians, and the quartiles of torch / ours. Memory is
the peak during a step above what was there before it, in tensors of the size of the logits, which count. The logits
are (T, N, C), or (N, T, C) and transposed after the log_softmax. Five minutes on a CPU.
"""

import argparse
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F
from page import in_three_digits, table
from timing import take_turns

import torch_ctc_align
from torch_ctc_align import ctc_loss

SIZES = [(1500, 8, 200, 32), (1500, 8, 200, 500), (500, 8, 60, 5000)]  # T, N, S, C
CUDA_SIZES = [(500, 32, 60, 32), (1500, 64, 200, 32), (1500, 64, 200, 500), (1500, 64, 200, 5000)]
class_posteriors = torch.ops.ctc_align.class_posteriors


def after_log_softmax(loss):
    def run(logits, targets, lengths, target_lengths, time_first):
        log_probs = logits.log_softmax(-1)
        log_probs = log_probs if time_first else log_probs.transpose(0, 1)
        return loss(log_probs, targets, lengths, target_lengths, reduction="none")

    return run


def composed(logits, targets, lengths, target_lengths, time_first):
    items = logits.transpose(0, 1) if time_first else logits
    _, log_likelihoods = class_posteriors(items, targets, lengths, target_lengths)
    totals = logits.logsumexp(-1)
    totals = totals.T if time_first else totals
    in_use = frames_in_use(totals, lengths) & log_likelihoods.isfinite()[:, None]
    return torch.where(in_use, totals, 0).sum(1) - log_likelihoods


def frames_in_use(frames, lengths):
    return torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]


class OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, lengths, target_lengths, time_first):
        gradient = logits.log_softmax(-1)
        items = gradient.transpose(0, 1) if time_first else gradient
        posteriors, log_likelihoods = class_posteriors(items, targets, lengths, target_lengths)
        items.exp_().sub_(posteriors)
        ctx.save_for_backward(gradient, frames_in_use(items, lengths) & log_likelihoods.isfinite()[:, None])
        ctx.time_first = time_first
        return -log_likelihoods

    @staticmethod
    def backward(ctx, grad):
        gradient, in_use = ctx.saved_tensors
        weights = torch.where(in_use, grad[:, None], 0)
        return gradient * (weights.T if ctx.time_first else weights)[:, :, None], None, None, None, None


FUNCTIONS = {
    "torch": after_log_softmax(F.ctc_loss),
    "ours": after_log_softmax(ctc_loss),
    "composed": composed,
    "one pass": OnePass.apply,
}
COMPILED = ("ours", "composed", "one pass")


def cudnn(logits, targets, lengths, target_lengths, time_first):
    """torch takes cuDNN's loss if targets are a row of int32 on the CPU, and every input length is T."""
    row, T, S = targets.flatten().int().cpu(), lengths.max().item(), targets.shape[1]
    rest = row, [T] * len(targets), [S] * len(targets)
    log_probs = logits.log_softmax(-1)
    return F.ctc_loss(log_probs if time_first else log_probs.transpose(0, 1), *rest, reduction="none")


def make_functions(device, names=None):
    torch.compiler.reset()
    compiled = {f"compiled {name}": torch.compile(FUNCTIONS[name], dynamic=True) for name in COMPILED}
    functions = FUNCTIONS | ({"cuDNN": cudnn} if device == "cuda" else {}) | compiled
    return {name: functions[name] for name in names or functions}


def make_case(sizes, device, time_first):
    T, N, S, C = sizes
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*((T, N) if time_first else (N, T)), C, generator=generator).to(device)
    targets = torch.randint(1, C, (N, S), generator=generator).to(device)
    lengths = torch.full((N,), T, device=device), torch.full((N,), S, device=device)
    return logits.requires_grad_(), targets, *lengths, time_first


def step(function, arguments):
    arguments[0].grad = None
    function(*arguments).sum().backward()
    if arguments[0].is_cuda:
        torch.cuda.synchronize()


def row_of_times(sizes, time_first, device, rounds):
    arguments = make_case(sizes, device, time_first)
    functions = make_functions(device)
    calls = {name: lambda function=function: step(function, arguments) for name, function in functions.items()}
    take_turns(calls, 2)  # compiles
    times = take_turns(calls, rounds)
    medians = [in_three_digits(1e3 * statistics.median(each[name] for each in times)) for name in calls]
    low, middle, high = statistics.quantiles([each["torch"] / each["ours"] for each in times], n=4)
    return *sizes, "T, N, C" if time_first else "N, T, C", *medians, f"{middle:.1f}", f"{low:.1f} to {high:.1f}"


def peak_in_tensors(name, sizes, time_first, device):
    """Run in a process of its own: what earlier steps left in the allocator would be used again."""
    torch.set_num_threads(1)
    T, N, _, C = sizes
    (function,) = make_functions(device, [name]).values()
    for small in ((50, N, 9, C), (60, N, 10, C)):  # code, graphs
        step(function, make_case(small, device, time_first))
    arguments = make_case(sizes, device, time_first)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS:")
    step(lambda x, *rest: function(x * 1, *rest), arguments)  # the model's output: it may go when it is not needed
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM:")
    return (peak - before) / (4 * T * N * C)


def resident(name):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(name)).split()[1])


def row_of_memory(sizes, time_first, device):
    row = [*sizes, "T, N, C" if time_first else "N, T, C"]
    for name in make_functions(device):
        case = f"{name!r}, {sizes}, {time_first}, {device!r}"
        code = f"import sys; sys.path[:0] = {sys.path[:1]}; import ctc_loss as c; print(c.peak_in_tensors({case}))"
        row.append(f"{float(subprocess.check_output([sys.executable, '-c', code], text=True)):.1f}")
    return row


def row_of_precision(sizes, device):
    """The greatest errors of a loss (nats) and of a gradient, against float64."""
    arguments = make_case(sizes, device, True)
    results = {}
    for name, function in {"exact": FUNCTIONS["ours"], **FUNCTIONS}.items():
        logits = arguments[0].detach().to(torch.float64 if name == "exact" else torch.float32).requires_grad_()
        losses = function(logits, *arguments[1:])
        losses.sum().backward()
        results[name] = losses.detach().double(), logits.grad.double()
    exact = results.pop("exact")
    errors = [f"{(x - y).abs().max():.1e}" for each in results.values() for x, y in zip(each, exact, strict=True)]
    return *sizes, f"{exact[0].mean():.0f}", *errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, sizes = arguments.device, CUDA_SIZES if arguments.device == "cuda" else SIZES
    cases = [(each, time_first) for each in sizes for time_first in (True, False)]
    names = [*make_functions(device)]
    times = [row_of_times(*case, device, arguments.rounds) for case in cases]
    print(table(["T", "N", "S", "C", "logits", *(f"{name}, ms" for name in names), "torch / ours", "quartiles"], times))
    print("\n" + table(["T", "N", "S", "C", "logits", *names], [row_of_memory(*case, device) for case in cases[2:]]))
    errors = [text for name in FUNCTIONS for text in (f"{name} is off by", "its gradient by")]
    print("\n" + table(["T", "N", "S", "C", "mean loss", *errors], [row_of_precision(each, device) for each in sizes]))
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch_ctc_align.config().cpu}"
    print(f"\n{where}, threads: {arguments.threads}, torch {torch.__version__}, {torch_ctc_align.__version__}")


if __name__ == "__main__":
    main()
