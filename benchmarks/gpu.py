"""Builds the CUDA library, tests it and measures it: everything that needs a GPU, in one command.

    python3 benchmarks/gpu.py [--out DIR] [--quick] [--minutes 9.5]          (or: make gpu)

Needs a python3 with torch, setuptools, ninja, pytest and hypothesis, nvcc and a GPU; no network, no root, no virtual
environment. Writes gpu_DEVICE.json and gpu_DEVICE.md to DIR, anew after every row, so an early end keeps all rows so
far. --quick leaves out torchaudio and compute-sanitizer.

Every measurement is a process of its own with a time limit: some calls of torchaudio kill their process. torchaudio
takes one item a call, so a batch is that many calls. Times are taken between CUDA events: they are the caller's times,
with the host's part of the launches. The replay of a CUDA graph shows the device's part alone.
"""

import argparse
import json
import re
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path

import page
import peers
from cases import GPU, make_inputs
from machine import describe_gpu_machine, file_name
from processes import ROOT, add_child_option, child_command, last_line, run, run_as_child, run_child
from timing import summarise

# The most seconds that a step may take.
BUILD_LIMIT_S = 300
TEST_LIMIT_S = 180
CASE_LIMIT_S = 75
SANITIZER_LIMIT_S = 90


# ------------------------------------------------------------------------------------------ measurements
# They run in processes of their own and print lines of JSON. The last line counts.


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
    """The costs of any kernel here: a byte copied, a launch, a replay of a graph with one launch."""
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


def measure(backend, sizes):
    import torch

    align = peers.load(backend)
    log_probs, targets = make_inputs(**sizes, device="cuda")
    targets = targets.int()
    # Loads the kernels, so their code is not counted as memory.
    align(log_probs[:1, :600].contiguous(), targets[:1, :300].contiguous())
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
        "device_MB": round((torch.cuda.max_memory_allocated() - device_before - outputs) / 1e6, 1),
        "host_MB": round((host_peak() - host_before) / 1e6, 1),
        "score": round(sum(scores.double().sum().item() for _, scores in results), 4),
    }

    repeats = min(50, max(2 if first_ms > 3_000 else 5, round(1_000 / first_ms)))
    row |= summarise(event_times_ms(call, repeats))
    print(json.dumps(row), flush=True)  # in case the rest fails

    if sizes["batch"] * sizes["frames"] <= 50_000 or backend == "ours":
        row |= count_launches(call)
    if backend == "ours":
        if first_ms < 100:
            replays = event_times_ms(capture(call).replay, repeats + 1)[1:]
            row |= {"graph_ms": round(statistics.median(replays), 4), "graph_min_ms": round(min(replays), 4)}
        print(json.dumps(row), flush=True)
        (expected,) = align(log_probs.cpu(), targets.cpu())
        row["equals_cpu"] = all(map(torch.equal, expected, (tensor.cpu() for tensor in results[0])))
    return row


def count_launches(call):
    """Counts the device's kernels and memsets, and times them by name: {"sweep_kernel": microseconds, ...}."""
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


def align_for_sanitizer():
    """Small cases through every kind of kernel: one column and several, one frame block and several."""
    import torch

    import torch_ctc_align  # noqa: F401

    for dtype in (torch.float32, torch.float64, torch.float16):
        for batch, frames, labels, classes in [(3, 150, 40, 5), (2, 150, 40, 40), (2, 700, 300, 32), (2, 600, 270, 40)]:
            log_probs, targets = make_inputs(batch, frames, labels, classes)
            log_probs = log_probs.to(dtype)
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


def find_torchaudio():
    """torchaudio's version, if its function for CUDA tensors can be loaded."""
    peers.load("torchaudio.functional")
    import torchaudio

    return {"version": torchaudio.__version__}


MEASUREMENTS = [measure_floors, measure, align_for_sanitizer, find_torchaudio]


# ------------------------------------------------------------------------------------------------- steps


class Budget:
    """The seconds that are left. A slow step takes time from later steps; the results are written in any case."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def seconds(self, limit_s):
        return max(0.0, min(limit_s, self.end - time.monotonic()))

    def run_measurement(self, measurement, **arguments):
        return run_child(measurement.__name__, arguments, self.seconds(CASE_LIMIT_S))


def build(budget):
    import torch

    architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    start = time.monotonic()
    status, output = run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        budget.seconds(BUILD_LIMIT_S),
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
    status, output = run(command, budget.seconds(TEST_LIMIT_S), CTC_ALIGN_REQUIRE="cuda")
    if status != 0:
        print(output[-6_000:])
    return {"passed": status == 0, "outcome": last_line(output)}


def run_sanitizer(budget, tool):
    if not shutil.which("compute-sanitizer"):
        return {"passed": True, "outcome": "compute-sanitizer is not here"}
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9]
    status, output = run(
        [*command, *child_command(align_for_sanitizer.__name__, {})],
        budget.seconds(SANITIZER_LIMIT_S),
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # so that every tensor has borders of its own
    )
    if status not in (0, None):
        print(output[-4_000:])
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    return {"passed": status == 0, "outcome": summary[-1] if summary else last_line(output)}


# -------------------------------------------------------------------------------------------------- main


def run_all(out, quick, minutes):
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this needs a GPU that torch can use; `make test` and `make cuda-compile` need none")
    budget = Budget(minutes)
    machine = describe_gpu_machine()
    name = f"gpu_{file_name(machine['device'])}"
    result = {"name": name, "machine": machine, "command": "make gpu", "steps": {}, "rows": []}
    result["command"] += " ARGS=--quick" * quick
    steps = result["steps"]

    def record(name, step):
        steps[name] = step
        print(f"{name}: {'passed' if step['passed'] else 'FAILED'}, {step['outcome']}", flush=True)
        page.write(result, page.render_gpu, out)

    print(json.dumps(machine), flush=True)
    record("build", build(budget))
    if not steps["build"]["passed"]:
        sys.exit(1)
    record("tests", run_tests(budget))

    result["floors"] = budget.run_measurement(measure_floors)
    print("floors:", result["floors"], flush=True)
    machine["torchaudio"] = None if quick else budget.run_measurement(find_torchaudio).get("version")
    for case in GPU:
        row = case.by_name
        result["rows"].append(row)
        row["ours"] = budget.run_measurement(measure, backend="ours", sizes=case.by_name)
        print(f"{case}, ours: {row['ours']}", flush=True)
        page.write(result, page.render_gpu, out)
    if not quick:
        for tool in ("memcheck", "racecheck"):
            record(tool, run_sanitizer(budget, tool))
    for case, row in zip(GPU, result["rows"], strict=True):
        if machine["torchaudio"] and case.with_peers:
            row["torchaudio"] = budget.run_measurement(measure, backend="torchaudio.functional", sizes=case.by_name)
            if "ms" in row["ours"] and "ms" in row["torchaudio"]:
                row["ratio"] = round(row["torchaudio"]["ms"] / row["ours"]["ms"], 1)
            print(f"{case}, torchaudio: {row['torchaudio']}, ratio: {row.get('ratio')}", flush=True)
            page.write(result, page.render_gpu, out)
    print(page.render_gpu(result))

    def went_wrong(ours):
        return ours.get("equals_cpu") is False or ("error" in ours and "out of memory" not in ours["error"])

    sys.exit(not all(step["passed"] for step in steps.values()) or any(went_wrong(r["ours"]) for r in result["rows"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="no torchaudio, no compute-sanitizer")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for all of it")
    add_child_option(parser)
    arguments = parser.parse_args()
    if arguments.child:
        run_as_child(MEASUREMENTS, *arguments.child)
    else:
        run_all(arguments.out, arguments.quick, arguments.minutes)


if __name__ == "__main__":
    main()
