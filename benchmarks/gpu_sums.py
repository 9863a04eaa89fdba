"""Measures the sums over all paths on a GPU, beside other losses there. A part of gpu.py, which calls run_sums().

Every measurement is a process of its own, as in gpu.py, and prints lines of JSON, of which the last one counts: so what
has been measured stays when the rest fails. A rival that is not here, or refuses a case, leaves its reason.

The rivals are torch's own kernels, cuDNN's behind the same function, and FlagGems' for Triton. All return the gradient
before log_softmax, exp(log_probs) less the posteriors, so their posteriors are compared with ours.
"""

import json
import math
import statistics
import sys

from cases import GPU_SUMS, make_inputs
from device import DEVICES
from timing import summarise

SUMS_LIMIT_S = 120  # of a process; an hour of speech takes the CPU's operator half a minute
RUNS = 20  # that have to have equal bits
RIVALS = ("torch", "cuDNN", "Triton")
MOST_CUDNN_LABELS = 255
SLOW_MS = 100  # a graph would gain nothing


# ---------------------------------------------------------------------------------------------- the calls


def make_sum_inputs(operator, batch, frames, labels, classes, device):
    """The arguments of an operator of torch.ops.ctc_align."""
    import torch

    log_probs, targets = make_inputs(batch, frames, labels, classes, device)
    if operator == "posteriors_backward":
        options = {"device": device, "generator": torch.Generator(device).manual_seed(1)}
        return torch.randn(batch, frames, labels + 1, **options), log_probs, targets
    if operator == "span_posteriors":  # spans side by side
        borders = (torch.arange(labels + 1, device=device) * frames // labels).expand(batch, -1)
        return log_probs, targets, borders[:, :-1], borders[:, 1:]
    return log_probs, targets


def run_operator(operator, arguments):
    """The operator's results, as a tuple."""
    import torch

    import torch_ctc_align  # noqa: F401

    results = getattr(torch.ops.ctc_align, operator)(*arguments)
    return results if isinstance(results, tuple) else (results,)


def loss_and_gradient(losses_of, log_probs):
    """Losses of all items, and the gradient of their sum with respect to log_probs."""
    import torch

    leaf = log_probs.detach().requires_grad_()
    losses = losses_of(leaf)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def our_losses(targets):
    return lambda log_probs: -run_operator("class_posteriors", (log_probs, targets))[1]


def rival_losses(rival, log_probs, targets):
    """A function of log_probs (T, B, C), torch's layout. Raises if the rival is not here, or refuses the case."""
    import torch

    frames, (batch, labels) = len(log_probs), targets.shape
    lengths = (frames,) * batch, (labels,) * batch  # on the host, where torch's kernels want them
    if rival == "Triton":
        import flag_gems

        lengths = [torch.tensor(length, device=targets.device) for length in lengths]
        return lambda log_probs: flag_gems.ctc_loss(log_probs, targets, *lengths, blank=0, reduction=0)
    with_cudnn = rival == "cuDNN"
    if with_cudnn:
        if labels > MOST_CUDNN_LABELS:
            raise ValueError(f"cuDNN takes {MOST_CUDNN_LABELS} labels at most")
        targets = targets.cpu().int().flatten()
        if log_probs.is_cuda and not torch._use_cudnn_ctc_loss(log_probs, targets, *lengths, 0):
            raise ValueError("torch does not give this case to cuDNN")
    torch.use_deterministic_algorithms(False)

    def losses_of(log_probs):
        with torch.backends.cudnn.flags(enabled=with_cudnn, deterministic=False):
            return torch.nn.functional.ctc_loss(log_probs, targets, *lengths, reduction="none")

    return losses_of


# ------------------------------------------------------------------------------------------ measurements


def workspace_MB(peak_bytes, results):
    return round(max(0, peak_bytes - sum(tensor.nbytes for tensor in results)) / 1e6, 1)


def repeats_for(first_ms):
    return min(50, max(5, round(1_000 / first_ms)))


def measure_sums(operator, sizes, is_loss, device):
    """One of our operators: time, in a graph too, workspace, launches; equal bits in every run, and with the CPU."""
    import torch

    on = DEVICES[device]
    sizes = on.fit(sizes)
    arguments = make_sum_inputs(operator, **sizes, device=device)

    def call():
        return run_operator(operator, arguments)

    # Loads the kernels, so their code is not counted as memory: of one column, and of several.
    for labels in {min(sizes["labels"], most) for most in (100, 300)}:
        small = {"batch": 1, "frames": min(sizes["frames"], 700), "labels": labels, "classes": sizes["classes"]}
        run_operator(operator, make_sum_inputs(operator, **small, device=device))
    peak_bytes, results = on.watch_memory(), []
    first_ms = on.times_ms(lambda: results.extend(call()), 1)[0]
    row = {"device_MB": workspace_MB(peak_bytes(), results)}
    repeats = repeats_for(first_ms)
    row |= summarise(on.times_ms(call, repeats))
    print_row(row)
    row |= on.count_launches(call)
    if row["ms"] < SLOW_MS:
        row |= time_graph(on, call, repeats)
    print_row(row)
    if is_loss:
        row |= measure_our_loss(on, *arguments, repeats)
        print_row(row)
    row["equal_runs"] = 1 + sum(all(map(torch.equal, results, call())) for _ in range(RUNS - 1))
    print_row(row)
    expected = run_operator(operator, [tensor.cpu() for tensor in arguments])
    row["equals_cpu"] = all(torch.equal(found, e.to(device)) for found, e in zip(results, expected, strict=True))
    return row


def measure_our_loss(on, log_probs, targets, repeats):
    """What a training step pays: forward and backward through autograd."""

    def call():
        return loss_and_gradient(our_losses(targets), log_probs)

    call()
    times = summarise(on.times_ms(call, repeats))
    return {"loss_ms": times["ms"], "loss_min_ms": times["min_ms"]}


def time_graph(on, call, repeats):
    times = on.times_ms(on.capture(call), repeats + 1)[1:]
    return {"graph_ms": float(f"{statistics.median(times):.5g}"), "graph_min_ms": float(f"{min(times):.5g}")}


def measure_rival(rival, sizes, device):
    """Another loss, forward and backward, and how far its gradient is from ours."""
    on = DEVICES[device]
    sizes = on.fit(sizes)
    log_probs, targets = make_inputs(**sizes, device=device)
    log_probs = log_probs.transpose(0, 1).contiguous()
    losses_of = rival_losses(rival, log_probs, targets)

    def call():
        return loss_and_gradient(losses_of, log_probs)

    call()  # chooses kernels, or compiles them
    peak_bytes, results = on.watch_memory(), []
    first_ms = on.times_ms(lambda: results.extend(call()), 1)[0]
    row = {"device_MB": workspace_MB(peak_bytes(), results)}
    row |= summarise(on.times_ms(call, repeats_for(first_ms)))
    print_row(row)
    row |= on.count_launches(call)
    print_row(row)
    found = log_probs.exp().sub_(results[1])
    ours, _ = run_operator("class_posteriors", (log_probs.transpose(0, 1), targets))
    row["gradient_off_by"] = greatest_distance(found.transpose(0, 1), ours)
    return row


def measure_precision(operator, sizes, is_loss, device):
    """Errors of float32, ours and torch's. Exact is torch's ctc_loss in float64; of long items ours in float64."""
    on = DEVICES[device]
    sizes = on.fit(sizes)
    arguments = make_sum_inputs(operator, **sizes, device=device)
    log_probs, targets = arguments[:2]

    def losses_and_posteriors_of_torch(log_probs):
        log_probs = log_probs.transpose(0, 1).contiguous()
        losses, gradient = loss_and_gradient(rival_losses("torch", log_probs, targets), log_probs)
        return (log_probs.double().exp() - gradient).transpose(0, 1), -losses.double()

    if is_loss:
        exact = losses_and_posteriors_of_torch(log_probs.double())
    else:
        exact = run_operator(operator, (log_probs.double(), *arguments[1:]))
    row = {"log_likelihood": exact[1].mean().item(), "exact": "torch's in float64" if is_loss else "ours in float64"}
    sides = {"ours": run_operator(operator, arguments)}
    if is_loss:
        sides["torch"] = losses_and_posteriors_of_torch(log_probs)
    for side, (posteriors, log_likelihoods) in sides.items():
        row[side] = {
            "log_likelihood_off_by": greatest_distance(log_likelihoods, exact[1]),
            "gradient_off_by": greatest_distance(posteriors, exact[0]),
        }
    return row


def greatest_distance(found, expected):
    """In float64, item by item: the difference of everything could take more memory than there is."""
    distances = [(f.double() - e.double()).abs().max().item() for f, e in zip(found, expected, strict=True)]
    return max(distances) if all(map(math.isfinite, distances)) else "not finite"


def sums_for_sanitizer(device):
    """Small cases through every kind of kernel: one launch or several, one column and more, all operators."""
    import torch

    for dtype in (torch.float32, torch.float64, torch.float16):
        for batch, frames, labels, classes in [(3, 70, 40, 5), (2, 70, 40, 40), (2, 320, 270, 32), (2, 300, 260, 40)]:
            for operator in ("class_posteriors", "posteriors", "span_posteriors", "posteriors_backward"):
                arguments = list(make_sum_inputs(operator, batch, frames, labels, classes, device))
                for i, argument in enumerate(arguments):
                    if argument.is_floating_point():
                        is_values = operator == "posteriors_backward" and i == 0
                        arguments[i] = argument.to(torch.promote_types(dtype, torch.float32) if is_values else dtype)
                lengths = torch.tensor([frames, frames - 7, 1])[:batch], torch.tensor([labels, labels // 3, 0])[:batch]
                arguments += [length.to(device) for length in lengths]
                found = run_operator(operator, arguments)
                expected = run_operator(operator, [argument.cpu() for argument in arguments])
                for f, e in zip(found, expected, strict=True):
                    assert torch.equal(f.cpu(), e), (operator, dtype, batch, frames, labels, classes)
    return {"cases": "equal to the CPU kernel's"}


def find_triton(device):
    """The versions of triton and of the package whose ctc_loss is written in it, if they are here."""
    import flag_gems
    import triton

    return {"version": f"flag_gems {flag_gems.__version__}, triton {triton.__version__}"}


def print_row(row):
    print(json.dumps(row), flush=True)  # in case the rest fails


SUM_MEASUREMENTS = [measure_sums, measure_rival, measure_precision, sums_for_sanitizer, find_triton]


# -------------------------------------------------------------------------------------------------- main


def run_sums(result, run_measurement, save):
    """Measures all cases: ours first, then errors, then the rivals. save() is called after every measurement.

    run_measurement(function, limit_s, **arguments) returns a row, with "error" if the measurement failed.
    """
    rows = result["sums"] = [
        {
            "operator": case.operator,
            **case.by_name,
            "target_ms": case.target_ms,
            "graph_target_ms": case.graph_target_ms,
        }
        for case in GPU_SUMS
    ]

    def record(case, row, name, found):
        row[name] = found
        print(f"{case}, {name}: {found}", flush=True)
        save()

    cases = list(zip(GPU_SUMS, rows, strict=True))
    for case, row in cases:
        arguments = {"operator": case.operator, "sizes": case.by_name, "is_loss": case.is_loss}
        record(case, row, "ours", run_measurement(measure_sums, SUMS_LIMIT_S, **arguments))
    for case, row in cases:
        if case.operator in ("class_posteriors", "span_posteriors"):
            arguments = {"operator": case.operator, "sizes": case.by_name, "is_loss": case.is_loss}
            record(case, row, "precision", run_measurement(measure_precision, SUMS_LIMIT_S, **arguments))
    triton = result["machine"]["triton"] = run_measurement(find_triton, SUMS_LIMIT_S)
    print(f"Triton: {triton}", flush=True)
    for case, row in cases:
        for rival in RIVALS if case.is_loss else ():
            if rival == "Triton" and "error" in triton:
                record(case, row, rival, {"error": f"not here ({triton['error']})"})
            else:
                record(case, row, rival, run_measurement(measure_rival, SUMS_LIMIT_S, rival=rival, sizes=case.by_name))


def went_wrong(row):
    """Returns whether a row of ours is wrong. A missed target, or a rival that fails, is not."""
    ours = row.get("ours", {})
    is_unequal = ours.get("equals_cpu") is False or ours.get("equal_runs", RUNS) != RUNS
    return is_unequal or ("error" in ours and "out of memory" not in ours["error"])


if __name__ == "__main__":
    sys.exit("error: a part of benchmarks/gpu.py; `make gpu ARGS=--sums` measures the sums alone")
