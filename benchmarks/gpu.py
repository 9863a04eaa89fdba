"""Builds the CUDA library, tests it and measures it: everything that needs a GPU, in one command.

    python3 benchmarks/gpu.py [--out DIR] [--quick] [--sums] [--minutes 9.5]          (or: make gpu)

Needs a python3 with torch, setuptools, ninja, pytest and hypothesis, nvcc and a GPU; no network, no root, no virtual
environment. Writes gpu_DEVICE.json and gpu_DEVICE.md to DIR, anew after every row, so an early end keeps all rows so
far. --quick leaves out torchaudio and compute-sanitizer; --sums measures the sums over all paths alone (gpu_sums.py),
after the build and the tests. --device cpu runs all of the program on the CPU, with tiny sizes, to find its mistakes:
a dry run, in one process, and its numbers mean nothing.

Every measurement is a process of its own with a time limit: some calls of torchaudio kill their process. torchaudio
takes one item a call, so a batch is that many calls. Times are taken between CUDA events: they are the caller's times,
with the host's part of the launches. The replay of a CUDA graph shows the device's part alone.
"""

import argparse
import functools
import json
import re
import resource
import shutil
import statistics
import sys
import time
import traceback
from pathlib import Path

import gpu_sums
import page
import peers
from cases import GPU, make_inputs
from device import DEVICES
from machine import commit_and_date, describe_gpu_machine, file_name
from processes import ROOT, add_child_option, child_command, last_line, run, run_as_child, run_child
from timing import summarise

# The most seconds that a step may take.
BUILD_LIMIT_S = 300
TEST_LIMIT_S = 240
CASE_LIMIT_S = 75
SANITIZER_LIMIT_S = 90

TESTS = ["test/test_cuda.py", "test/test_cuda_posteriors.py"]


# ------------------------------------------------------------------------------------------ measurements
# They run in processes of their own and print lines of JSON. The last line counts.


def measure_floors(device):
    """The costs of any kernel here: a byte copied, a launch, a replay of a graph with one launch."""
    import torch

    on = DEVICES[device]
    source = torch.empty(on.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = statistics.median(on.times_ms(lambda: target.copy_(source), 21)[1:])
    launches_ms = statistics.median(on.times_ms(lambda: [on.launch_nothing() for _ in range(100)], 21)[1:])
    graph_ms = statistics.median(on.times_ms(on.capture(on.launch_nothing), 101)[1:])
    return {
        "copy_GBps": round(2 * source.numel() / copy_ms / 1e6),
        "launch_us": round(1e3 * launches_ms / 100, 2),
        "graph_us": round(1e3 * graph_ms, 2),
    }


def measure(backend, sizes, device):
    import torch

    on = DEVICES[device]
    sizes = on.fit(sizes)
    align = peers.load(backend)
    log_probs, targets = make_inputs(**sizes, device=device)
    targets = targets.int()
    # Loads the kernels, so their code is not counted as memory.
    align(log_probs[:1, :600].contiguous(), targets[:1, :300].contiguous())

    def call():
        return align(log_probs, targets)

    def host_peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    host_before, peak_bytes, results = host_peak(), on.watch_memory(), []
    first_ms = on.times_ms(lambda: results.extend(call()), 1)[0]
    outputs = sum(tensor.nbytes for result in results for tensor in result)
    row = {
        "device_MB": round(max(0, peak_bytes() - outputs) / 1e6, 1),
        "host_MB": round((host_peak() - host_before) / 1e6, 1),
        "score": round(sum(scores.double().sum().item() for _, scores in results), 4),
    }

    repeats = min(50, max(2 if first_ms > 3_000 else 5, round(1_000 / first_ms)))
    row |= summarise(on.times_ms(call, repeats))
    print(json.dumps(row), flush=True)  # in case the rest fails

    if sizes["batch"] * sizes["frames"] <= 50_000 or backend == "ours":
        row |= on.count_launches(call)
    if backend == "ours":
        if first_ms < 100:
            replays = on.times_ms(on.capture(call), repeats + 1)[1:]
            row |= {"graph_ms": round(statistics.median(replays), 4), "graph_min_ms": round(min(replays), 4)}
        print(json.dumps(row), flush=True)
        (expected,) = align(log_probs.cpu(), targets.cpu())
        row["equals_cpu"] = all(map(torch.equal, expected, (tensor.cpu() for tensor in results[0])))
    return row


def align_for_sanitizer(device):
    """Small cases through every kind of kernel: one column and several, one frame block and several."""
    import torch

    import torch_ctc_align  # noqa: F401

    for dtype in (torch.float32, torch.float64, torch.float16):
        for batch, frames, labels, classes in [(3, 150, 40, 5), (2, 150, 40, 40), (2, 700, 300, 32), (2, 600, 270, 40)]:
            log_probs, targets = make_inputs(batch, frames, labels, classes)
            log_probs = log_probs.to(dtype)
            lengths = torch.tensor([frames, frames - 7, 1])[:batch], torch.tensor([labels, labels // 3, 0])[:batch]
            targets[1, labels // 3 :] = -1
            on_device = [tensor.to(device) for tensor in (log_probs, targets, *lengths)]
            for found, expected in zip(
                torch.ops.ctc_align.forced_align(*on_device),
                torch.ops.ctc_align.forced_align(log_probs, targets, *lengths),
                strict=True,
            ):
                assert torch.equal(found.cpu(), expected), (dtype, batch, frames, labels, classes)
    return {"cases": "equal to the CPU kernel's"}


def find_torchaudio(device):
    """torchaudio's version, if its function for CUDA tensors can be loaded."""
    peers.load("torchaudio.functional")
    import torchaudio

    return {"version": torchaudio.__version__}


MEASUREMENTS = [measure_floors, measure, align_for_sanitizer, find_torchaudio, *gpu_sums.SUM_MEASUREMENTS]


# ------------------------------------------------------------------------------------------------- steps


class Budget:
    """The seconds that are left. A slow step takes time from later steps; the results are written in any case."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def seconds(self, limit_s):
        return max(0.0, min(limit_s, self.end - time.monotonic()))

    def run_measurement(self, measurement, limit_s=CASE_LIMIT_S, **arguments):
        return run_child(measurement.__name__, arguments | {"device": "cuda"}, self.seconds(limit_s))


class DryBudget(Budget):
    """Runs the measurements on the CPU, here and now."""

    def run_measurement(self, measurement, limit_s=CASE_LIMIT_S, **arguments):
        try:
            row = measurement(**json.loads(json.dumps(arguments)), device="cpu")
        except Exception as error:
            traceback.print_exc()
            row = {"error": f"{type(error).__name__}: {error}"[:200]}
        return json.loads(json.dumps(row))


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
    missing = [test for test in TESTS if not (ROOT / test).exists()]
    if missing:
        return {"passed": False, "outcome": f"{' and '.join(missing)} missing"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    status, output = run(command, budget.seconds(TEST_LIMIT_S), CTC_ALIGN_REQUIRE="cuda")
    if status != 0:
        print(output[-6_000:])
    return {"passed": status == 0, "outcome": last_line(output)}


def run_sanitizer(budget, tool, measurement):
    if not shutil.which("compute-sanitizer"):
        return {"passed": True, "outcome": "compute-sanitizer is not here"}
    if budget.seconds(SANITIZER_LIMIT_S) < SANITIZER_LIMIT_S / 2:
        return {"passed": True, "outcome": "not run, for want of time"}
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9]
    status, output = run(
        [*command, *child_command(measurement.__name__, {"device": "cuda"})],
        budget.seconds(SANITIZER_LIMIT_S),
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # so that every tensor has borders of its own
    )
    if status not in (0, None):
        print(output[-4_000:])
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    return {"passed": status == 0, "outcome": summary[-1] if summary else last_line(output)}


# -------------------------------------------------------------------------------------------------- main


def run_all(out, quick, only_sums, minutes):
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: this needs a GPU that torch can use; `make test` and `make cuda-compile` need none")
    budget, machine = Budget(minutes), describe_gpu_machine()
    command = "make gpu" + (" ARGS=--sums" if only_sums else " ARGS=--quick" if quick else "")
    result = {"name": f"gpu_{file_name(machine['device'])}" + "_sums" * only_sums, "machine": machine}
    result |= {"command": command, "steps": {}, "rows": []}
    record = functools.partial(record_step, result, out)

    print(json.dumps(machine), flush=True)
    record("build", build(budget))
    if not result["steps"]["build"]["passed"]:
        sys.exit(1)
    record("tests", run_tests(budget))
    measure_everything(result, budget, out, quick or only_sums, only_sums)
    if not quick:
        for tool in ("memcheck", "racecheck"):
            if not only_sums:
                record(tool, run_sanitizer(budget, tool, align_for_sanitizer))
            record(f"{tool} of the sums", run_sanitizer(budget, tool, gpu_sums.sums_for_sanitizer))
    if not quick and not only_sums:
        measure_torchaudio(result, budget, out)
    end(result)


def run_dry(out):
    """All of the program but build, tests and sanitizer, on the CPU."""
    machine = {"device": "A dry run on the CPU: no number means anything", "multiprocessors": 0, **commit_and_date()}
    machine |= dict.fromkeys(("torch", "nvcc", "driver"))
    result = {"name": "gpu_dry_run", "machine": machine, "command": "benchmarks/gpu.py --device cpu"}
    result |= {"steps": {}, "rows": []}
    budget = DryBudget(minutes=10)
    measure_everything(result, budget, out, quick=False, only_sums=False)
    for measurement in (align_for_sanitizer, gpu_sums.sums_for_sanitizer):
        row = budget.run_measurement(measurement)
        record_step(result, out, measurement.__name__, {"passed": "error" not in row, "outcome": str(row)})
    measure_torchaudio(result, budget, out)
    end(result)


def record_step(result, out, name, step):
    result["steps"][name] = step
    print(f"{name}: {'passed' if step['passed'] else 'FAILED'}, {step['outcome']}", flush=True)
    page.write(result, page.render_gpu, out)


def measure_everything(result, budget, out, quick, only_sums):
    """Ours: everything but torchaudio, which is slow, and so comes last."""

    def save():
        page.write(result, page.render_gpu, out)

    result["floors"] = budget.run_measurement(measure_floors)
    print("floors:", result["floors"], flush=True)
    result["machine"]["torchaudio"] = None if quick else budget.run_measurement(find_torchaudio).get("version")
    for case in () if only_sums else GPU:
        row = case.by_name
        result["rows"].append(row)
        row["ours"] = budget.run_measurement(measure, backend="ours", sizes=case.by_name)
        print(f"{case}, ours: {row['ours']}", flush=True)
        save()
    gpu_sums.run_sums(result, budget.run_measurement, save)


def measure_torchaudio(result, budget, out):
    for case, row in zip(GPU, result["rows"], strict=True):
        if result["machine"]["torchaudio"] and case.with_peers:
            row["torchaudio"] = budget.run_measurement(measure, backend="torchaudio.functional", sizes=case.by_name)
            if "ms" in row["ours"] and "ms" in row["torchaudio"]:
                row["ratio"] = round(row["torchaudio"]["ms"] / row["ours"]["ms"], 1)
            print(f"{case}, torchaudio: {row['torchaudio']}, ratio: {row.get('ratio')}", flush=True)
            page.write(result, page.render_gpu, out)


def end(result):
    print(page.render_gpu(result))

    def went_wrong(ours):
        return ours.get("equals_cpu") is False or ("error" in ours and "out of memory" not in ours["error"])

    is_wrong = any(went_wrong(row["ours"]) for row in result["rows"]) or any(map(gpu_sums.went_wrong, result["sums"]))
    sys.exit(is_wrong or not all(step["passed"] for step in result["steps"].values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="no torchaudio, no compute-sanitizer")
    parser.add_argument("--sums", action="store_true", help="the sums over all paths alone, after build and tests")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for all of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    add_child_option(parser)
    arguments = parser.parse_args()
    if arguments.child:
        run_as_child(MEASUREMENTS, *arguments.child)
    elif arguments.device == "cpu":
        run_dry(arguments.out)
    else:
        run_all(arguments.out, arguments.quick, arguments.sums, arguments.minutes)


if __name__ == "__main__":
    main()
