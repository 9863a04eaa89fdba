"""All that a GPU machine is wanted for, in one command: builds the CUDA library, tests it, and measures it.

    python3 benchmarks/gpu.py [--out DIR] [--quick] [--minutes 9.5]          (or: make gpu)

Needs a python3 with torch, setuptools, ninja, pytest and hypothesis, nvcc and a GPU; no network, no root, no virtual
environment. Writes gpu_DEVICE.json and gpu_DEVICE.md to DIR, anew after every row, so whatever ends it early leaves
what is known. --quick leaves out torchaudio and compute-sanitizer.

Every measurement is a process of its own with a limit of time: some of torchaudio's kill theirs. torchaudio takes one
item a call, so a batch is that many calls. Times are taken between CUDA events and are what a caller sees, with the
host's part of the launches; the replay of a CUDA graph shows the device's part alone.
"""

import argparse
import datetime
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, in_three_digits, last_line, read_row, run, table

CASES = [  # batch, frames, labels, classes; quick ones first
    (64, 1_500, 200, 32),
    (256, 1_500, 200, 32),
    (64, 1_500, 200, 5_000),
    (1, 500, 60, 1_024),
    (1, 50_000, 25_000, 32),
    (1, 178_572, 40_931, 191),
    (1, 1_800_000, 540_000, 32),  # ten hours
]
CELLS_FOR_TORCHAUDIO = 10**10  # of frames x labels: it keeps a byte for each of two states, on the host

# Seconds that a step may take at most.
BUILD_LIMIT = 300
TEST_LIMIT = 180
CASE_LIMIT = 75
SANITIZER_LIMIT = 90


# ------------------------------------------------------------------------------------------ measurements
# They run in processes of their own, and print one line of JSON.


def event_times_ms(call, repeats):
    import torch

    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def measure_floors():
    """What any kernel pays here: a byte copied, a launch, a replay of a graph with one launch."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_ms = statistics.median(event_times_ms(lambda: target.copy_(source), 21)[1:])

    def launch():
        torch.cuda._sleep(0)  # a kernel that does nothing

    launches_ms = statistics.median(event_times_ms(lambda: [launch() for _ in range(100)], 21)[1:])
    graph_ms = statistics.median(event_times_ms(capture(launch).replay, 101)[1:])
    return {
        "copy_GBps": round(2 * source.numel() / copy_ms / 1e6),
        "launch_us": round(1e3 * launches_ms / 100, 2),
        "graph_us": round(1e3 * graph_ms, 2),
    }


def capture(call):
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def make_case(batch, frames, labels, classes):
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    log_probs = torch.randn(batch, frames, classes, device="cuda", generator=generator).log_softmax(-1)
    targets = torch.randint(1, classes, (batch, labels), device="cuda", generator=generator, dtype=torch.int32)
    return log_probs, targets


def call_ours(log_probs, targets):
    import torch

    return [torch.ops.ctc_align.forced_align(log_probs, targets)]


def call_torchaudio(log_probs, targets):
    from torchaudio.functional import forced_align

    return [forced_align(log_probs[b : b + 1], targets[b : b + 1]) for b in range(len(targets))]


def measure(who, batch, frames, labels, classes):
    import torch

    if who == "ours":
        import torch_ctc_align  # noqa: F401
    align = {"ours": call_ours, "torchaudio": call_torchaudio}[who]
    log_probs, targets = make_case(batch, frames, labels, classes)
    # Loads the kernels; their code is nobody's memory.
    align(log_probs[:1, :600].contiguous(), targets[:1, : min(labels, 300)].contiguous())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()

    def call():
        return align(log_probs, targets)

    def host_peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    host_before, device_before = host_peak(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = []
    first_ms = event_times_ms(lambda: results.extend(call()), 1)[0]
    outputs = sum(tensor.nbytes for result in results for tensor in result)
    row = {
        "device_MB": mega(torch.cuda.max_memory_allocated() - device_before - outputs),
        "host_MB": mega(host_peak() - host_before),
        "score": sum(scores.double().sum().item() for _, scores in results),
    }

    repeats = min(50, max(2 if first_ms > 3_000 else 5, round(1_000 / first_ms)))
    times = event_times_ms(call, repeats)
    row |= {"ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "runs": repeats}
    row = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    print(json.dumps(row), flush=True)  # in case the rest fails

    if batch * frames <= 50_000 or who == "ours":
        row |= count_launches(call)
    if who == "ours":
        if first_ms < 100:
            replays = event_times_ms(capture(call).replay, repeats + 1)[1:]
            row |= {"graph_ms": round(statistics.median(replays), 4), "graph_min_ms": round(min(replays), 4)}
        print(json.dumps(row), flush=True)
        (expected,) = call_ours(log_probs.cpu(), targets.cpu())
        row["equals_cpu"] = all(map(torch.equal, expected, (tensor.cpu() for tensor in results[0])))
    return row


def mega(count):
    return round(count / 1e6, 1)


def count_launches(call):
    """How many times the device was set to work, and with what: {"sweep_kernel": microseconds, ...}."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    work = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = {}
    for event in work:
        name = re.sub(r"(\w+::|\(anonymous namespace\)::|void )+|[<(].*", "", event.name).strip()
        kernels[name] = round(kernels.get(name, 0) + event.time_range.elapsed_us(), 1)
    return {"launches": len(work), "kernels_us": kernels}


def run_for_sanitizer():
    """Small cases through every kind of kernel: one column and several, one block of frames and several."""
    import torch

    import torch_ctc_align  # noqa: F401

    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.float16):
        for batch, frames, labels, classes in [(3, 150, 40, 5), (2, 150, 40, 40), (2, 700, 300, 32), (2, 600, 270, 40)]:
            log_probs = torch.randn(batch, frames, classes, generator=generator).log_softmax(-1).to(dtype)
            targets = torch.randint(1, classes, (batch, labels), generator=generator)
            lengths = torch.tensor([frames, frames - 7, 1])[:batch], torch.tensor([labels, labels // 3, 0])[:batch]
            targets[1, labels // 3 :] = -1
            on_device = [tensor.cuda() for tensor in (log_probs, targets, *lengths)]
            for found, expected in zip(
                torch.ops.ctc_align.forced_align(*on_device),
                torch.ops.ctc_align.forced_align(log_probs, targets, *lengths),
                strict=True,
            ):
                assert torch.equal(found.cpu(), expected), (dtype, batch, frames, labels, classes)
    return {"cases": "equal to the CPU kernel's"}


# ------------------------------------------------------------------------------------------------- steps


class Budget:
    """The seconds that are left, so that a slow step costs later ones, and never the results."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def seconds(self, limit):
        return max(0.0, min(limit, self.end - time.monotonic()))


def run_here(budget, limit, *arguments):
    """One of the measurements above, as a dictionary; with "error" if it did not come to its end."""
    status, output = run([sys.executable, "-W", "ignore", __file__, *arguments], budget.seconds(limit))
    return read_row(status, output)


def build(budget):
    import torch

    architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    start = time.monotonic()
    status, output = run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        budget.seconds(BUILD_LIMIT),
        CTC_ALIGN_CUDA="1",
        TORCH_CUDA_ARCH_LIST=architecture,
    )
    if status != 0:
        errors = [line for line in output.splitlines() if re.search(r"\berror\b|FAILED", line)]
        print("\n".join(errors[:20] or output.splitlines()[-20:]))
    outcome = f"for {architecture} in {time.monotonic() - start:.0f} s"
    return {"passed": status == 0, "outcome": outcome if status == 0 else f"failed {outcome}"}


def run_tests(budget):
    if not (ROOT / "test" / "test_cuda.py").exists():
        return {"passed": False, "outcome": "test/test_cuda.py is missing"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test/test_cuda.py"]
    status, output = run(command, budget.seconds(TEST_LIMIT), CTC_ALIGN_REQUIRE="cuda")
    if status != 0:
        print(output[-6_000:])
    return {"passed": status == 0, "outcome": last_line(output)}


def run_sanitizer(budget, tool):
    if not shutil.which("compute-sanitizer"):
        return {"passed": True, "outcome": "compute-sanitizer is not here"}
    status, output = run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9, sys.executable, __file__, "--sanitize"],
        budget.seconds(SANITIZER_LIMIT),
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # so that every tensor has borders of its own
    )
    if status not in (0, None):
        print(output[-4_000:])
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    return {"passed": status == 0, "outcome": summary[-1] if summary else last_line(output)}


def describe_machine():
    import torch

    def first_line(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().splitlines()[-1]
        except (OSError, IndexError):
            return None

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GB": round(properties.total_memory / 1e9),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "nvcc": first_line("nvcc", "--version"),
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def version_of_torchaudio():
    code = "import torchaudio, torchaudio.functional as F; F.forced_align; print(torchaudio.__version__)"
    status, output = run([sys.executable, "-W", "ignore", "-c", code], 60)
    return last_line(output) if status == 0 else None


# ------------------------------------------------------------------------------------------------ report


def render(result):
    """The Markdown page of a result."""
    machine, floors, steps = result["machine"], result.get("floors", {}), result["steps"]
    times, costs, errors = [], [], []
    for row in result["rows"]:
        sizes = [f"{row[name]:,}" for name in ("batch", "frames", "labels", "classes")]
        ours, theirs = row.get("ours", {}), row.get("torchaudio", {})
        times.append(
            [
                *sizes,
                in_three_digits(ours.get("ms")) or ("error" if "error" in ours else ""),
                in_three_digits(ours.get("min_ms")),
                in_three_digits(ours.get("graph_ms")),
                in_three_digits(theirs.get("ms")) or ("error" if "error" in theirs else ""),
                in_three_digits(row.get("ratio")),
            ]
        )
        total = [f"{side['score']:.3f}" if "score" in side else "" for side in (ours, theirs)]
        same = {True: "yes", False: "NO", None: ""}[ours.get("equals_cpu")]
        memory = [in_three_digits(side.get(f"{where}_MB")) for where in ("device", "host") for side in (ours, theirs)]
        costs.append([*sizes, ours.get("launches", ""), theirs.get("launches", ""), *memory, *total, same])
        for name, side in (("ours", ours), ("torchaudio", theirs)):
            if "error" in side:
                errors.append(f"- {' x '.join(sizes)}, {name}: {side['error']}")
    sizes = ["B", "T", "L", "C"]
    times_header = [*sizes, "ours", "min", "graph", "torchaudio", "torchaudio / ours"]
    costs_header = [*sizes, "launches", "torchaudio", "device MB", "torchaudio", "host MB", "torchaudio"]
    costs_header += ["total", "torchaudio", "equals CPU"]
    checks = [
        f"- {name}: {'passed' if step['passed'] else 'FAILED'}, {step['outcome']}" for name, step in steps.items()
    ]
    notes = "\n".join([*checks, "", *errors])
    return f"""# {machine["device"]}

{machine["date"]}, package at {machine["commit"] or "an unknown commit"}; torch {machine["torch"]}, \
torchaudio {machine.get("torchaudio") or "absent"}, {machine["nvcc"]}, driver {machine["driver"]}, \
{machine["multiprocessors"]} multiprocessors. Made by `{result["command"]}`; \
[{result["name"]}.json]({result["name"]}.json) has all of it.

Floors: a device copy moves {floors.get("copy_GBps", "?")} GB/s (read and written), a launch takes \
{floors.get("launch_us", "?")} us, the replay of a CUDA graph with one empty kernel {floors.get("graph_us", "?")} us.

## Time

Milliseconds between CUDA events, median after warm-up: random emissions in float32, made outside the clock. "graph" is
the replay of a captured call. torchaudio takes one item a call, so a batch is B calls, and waits for the host in each.

{table(times_header, times)}

## Launches, memory, totals

Kernels and memsets of one call; peak megabytes beyond inputs and outputs; the sum of the scores in float64; whether
paths and scores equal the CPU kernel's, bit for bit.

{table(costs_header, costs)}

## Checks

{notes}
"""


def write(result, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{result['name']}.md").write_text(render(result).rstrip("\n") + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------- main


def run_all(out, quick, minutes):
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this needs a GPU that torch can use; `make test` and `make cuda-compile` do without")
    budget = Budget(minutes)
    machine = describe_machine()
    device = re.sub(r"[^a-z0-9]+", "_", machine["device"].lower().replace("nvidia", "")).strip("_")
    result = {"name": f"gpu_{device}", "machine": machine, "command": "make gpu", "steps": {}, "rows": []}
    result["command"] += " ARGS=--quick" * quick
    steps = result["steps"]

    def record(name, step):
        steps[name] = step
        print(f"{name}: {'passed' if step['passed'] else 'FAILED'}, {step['outcome']}", flush=True)
        write(result, out)

    print(json.dumps(machine), flush=True)
    record("build", build(budget))
    if not steps["build"]["passed"]:
        sys.exit(1)
    record("tests", run_tests(budget))

    result["floors"] = run_here(budget, CASE_LIMIT, "--floors")
    print("floors:", result["floors"], flush=True)
    machine["torchaudio"] = None if quick else version_of_torchaudio()
    for case in CASES:
        row = dict(zip(("batch", "frames", "labels", "classes"), case, strict=True))
        result["rows"].append(row)
        row["ours"] = run_here(budget, CASE_LIMIT, "--measure", "ours", *case)
        print(case, "ours:", row["ours"], flush=True)
        write(result, out)
    if not quick:
        for tool in ("memcheck", "racecheck"):
            record(tool, run_sanitizer(budget, tool))
    for case, row in zip(CASES, result["rows"], strict=True):
        if machine["torchaudio"] and case[1] * case[2] <= CELLS_FOR_TORCHAUDIO:
            row["torchaudio"] = run_here(budget, CASE_LIMIT, "--measure", "torchaudio", *case)
            if "ms" in row["ours"] and "ms" in row["torchaudio"]:
                row["ratio"] = round(row["torchaudio"]["ms"] / row["ours"]["ms"], 1)
            print(case, "torchaudio:", row["torchaudio"], "ratio:", row.get("ratio"), flush=True)
            write(result, out)
    print(render(result))

    def went_wrong(ours):
        return ours.get("equals_cpu") is False or ("error" in ours and "out of memory" not in ours["error"])

    sys.exit(not all(step["passed"] for step in steps.values()) or any(went_wrong(r["ours"]) for r in result["rows"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="no torchaudio, no compute-sanitizer")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for all of it")
    parser.add_argument("--floors", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sanitize", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floors:
        print(json.dumps(measure_floors()))
    elif arguments.sanitize:
        print(json.dumps(run_for_sanitizer()))
    elif arguments.measure:
        print(json.dumps(measure(arguments.measure[0], *map(int, arguments.measure[1:]))))
    else:
        run_all(arguments.out, arguments.quick, arguments.minutes)


if __name__ == "__main__":
    main()
