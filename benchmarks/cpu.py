"""Times the CPU kernel beside its peers (make bench) and on hours of speech (make bench-long).

    .venv/bin/python benchmarks/cpu.py [--long | --quick] [--case 1,1500,200,32] [--peers torchaudio] [--out DIR]

Writes cpu_MACHINE.json and cpu_MACHINE.md to DIR, anew after every row; --long, --quick and --case add that word to the
name. The peers come from the Python in CTC_ALIGN_PEERS=DIR (DIR/bin/python), or else from this one.

Every row is a process of its own: a peer may die, memory starts clean, and the package chooses an instruction set when
it is loaded. Short cases go in rounds, and every side has a turn in each round, so a machine that slows down slows all
of them.
"""

import argparse
import ctypes
import json
import os
import re
import shlex
import statistics
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import page
import peers
from cases import LONG, QUICK, STANDARD, choose_sides, make_inputs, parse_case
from machine import configuration, describe_cpu_machine, file_name, probe
from processes import ROOT, add_child_option, run, run_as_child, run_child
from timing import SAMPLE_S, SLOW_S, seconds, summarise

ROUNDS = 3
STATES_FOR_OPTIMUM = 2 * 10**10  # the largest case that is also aligned in float64

BUDGET = "CTC_ALIGN_MEMORY_BUDGET"
CPU = "CTC_ALIGN_CPU"


# ------------------------------------------------------------------------------------------ measurements
# They run in processes of their own and print lines of JSON. The last line counts.


def measure(backend, threads, sizes):
    import torch

    torch.set_num_threads(threads)
    align = peers.load(backend)
    align(*make_inputs(1, 50, 10, 32))  # loads the code, so its memory is not counted
    log_probs, targets = make_inputs(**sizes)

    before = forget_peak_memory()
    results = []
    first_s = seconds(lambda: results.extend(align(log_probs, targets)))
    extra = memory_bytes("VmHWM") - before - sum(tensor.nbytes for pair in results for tensor in pair)
    paths = torch.cat([paths for paths, _ in results]).long()
    row = {
        "extra_MB": round(max(0, extra) / 1e6, 1),
        "score": round(total(log_probs, paths), 3),
        "paths": zlib.crc32(paths.numpy()),
        "inputs": zlib.crc32(log_probs.numpy(), zlib.crc32(targets.numpy())),
        "slow": first_s > SLOW_S,
        "times_ms": [1e3 * first_s],
    }
    results.clear()
    print(json.dumps(row), flush=True)  # in case the rest takes too long

    clocks = time.perf_counter, time.process_time, machine_seconds
    begins = [clock() for clock in clocks]
    if row["slow"]:
        row["times_ms"].append(1e3 * seconds(align, log_probs, targets))
    else:
        row["times_ms"] = sample_times_ms(align, log_probs, targets)
    wall, own, everything = (clock() - begin for clock, begin in zip(clocks, begins, strict=True))
    row |= {"busy_cores": round(own / wall, 2), "other_cores": round(max(0, everything - own) / wall, 2)}
    if backend == "ours":
        row |= configuration()
    return row


def sample_times_ms(function, *arguments):
    once_s = seconds(function, *arguments)
    calls = max(1, round(SAMPLE_S / once_s))
    samples = max(5, min(25, round(1 / (calls * once_s))))
    return [1e3 * seconds(function, *arguments, calls=calls) for _ in range(samples)]


def total(log_probs, paths):
    return log_probs.gather(2, paths[..., None]).double().sum().item()


def machine_seconds():
    """The seconds that all processors have worked so far, for any process, or that a hypervisor took from them."""
    user, nice, system, _idle, _iowait, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return sum((user, nice, system, *others)) / os.sysconf("SC_CLK_TCK")


def forget_peak_memory():
    """Sets VmHWM back, and returns its new value: the bytes in use."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would serve the call without being counted
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def memory_bytes(name):
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def find_optimum(sizes):
    """The score of the best path, found in float64."""
    log_probs, targets = make_inputs(**sizes)
    ((paths, _),) = peers.load("ours")(log_probs.double(), targets)
    return {"optimum": round(total(log_probs, paths), 3)}


def measure_copy(threads):
    """The memory's speed: a large copy, bytes read and written."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(1 << 27)
    target = torch.ones_like(source)
    times = [seconds(target.copy_, source) for _ in range(11)]
    return {"copy_GBps": round(2 * source.nbytes / statistics.median(times[1:]) / 1e9, 1)}


MEASUREMENTS = [measure, find_optimum, measure_copy, probe]


# --------------------------------------------------------------------------------- starting measurements


def run_measurement(label, limit_s, measurement, variables=None, **arguments):
    """Runs a measurement in the Python that has the backend, and shows the progress."""
    directory = os.environ.get("CTC_ALIGN_PEERS")
    python = sys.executable
    if directory and arguments.get("backend", "ours") != "ours":
        python = Path(directory).absolute() / "bin" / "python"
    progress = Progress(label)
    row = run_child(measurement.__name__, arguments, limit_s, progress.show, python, **(variables or {}))
    progress.end()
    return row


class Progress:
    """Counts the seconds on a line of stderr; adds a line a minute if stderr is a file."""

    def __init__(self, label):
        self.label = label
        self.in_place = sys.stderr.isatty()
        self.next = 0 if self.in_place else 60

    def show(self, elapsed):
        if elapsed >= self.next:
            end = "\r" if self.in_place else "\n"
            print(f"{self.label}: {elapsed:.0f} s", end=end, file=sys.stderr, flush=True)
            self.next = elapsed + (0 if self.in_place else 60)

    def end(self):
        if self.in_place:
            print("\033[2K", end="\r", file=sys.stderr, flush=True)


def measure_case(case, sides, rounds):
    """Fills a row for each side, and yields all rows after every process."""
    rows = {side: asdict(side) for side in sides}
    times_ms = {side: [] for side in sides}
    for number in range(rounds):
        for side, row in rows.items():
            if "error" in row or row.get("slow"):
                continue
            found = run_measurement(
                f"{case}, {side}, round {number + 1} of {rounds}",
                case.limit_s,
                measure,
                variables=variables_of(side),
                backend=side.backend,
                threads=side.threads,
                sizes=case.by_name,
            )
            times_ms[side] += found.pop("times_ms", [])
            for name in {"extra_MB", "other_cores"} & found.keys():
                found[name] = max(found[name], row.get(name, 0))
            row |= found
            if times_ms[side]:
                row |= summarise(times_ms[side])
            if row.get("inputs") != rows[sides[0]].get("inputs", row.get("inputs")):
                row.setdefault("error", "had other inputs than ours")
            yield list(rows.values())


def variables_of(side):
    """The environment variables that give the package a side's settings."""
    budget = {BUDGET: str(side.budget)} if side.budget else {}
    return budget | ({CPU: side.cpu} if side.cpu else {})


def measure_ceiling(cpu):
    """The speed of one core that only sweeps: the best line "sweep, ... G states/s" that CTC_ALIGN_CEILING prints.

    make builds this program from ceiling.cpp, for the package's own choice of an instruction set, `cpu`, and another
    for AVX2, whose name ends in -avx2. Without the variable there is no ceiling.
    """
    program = os.environ.get("CTC_ALIGN_CEILING")
    programs = {cpu: program, "avx2": f"{program}-avx2"} if program else {}
    ceilings = {}
    for name, program in programs.items():
        if name != cpu and not Path(program).exists():
            continue
        status, output = run([Path(program).absolute(), 50_000, 25_000, 32], 300)
        speeds = re.findall(r"^sweep,.*?([\d.]+) G states/s", output, re.MULTILINE)
        if status != 0 or not speeds:
            sys.exit(f'error: {program} printed no line "sweep, ... G states/s"')
        ceilings[name] = max(map(float, speeds))
    return {"ceiling_Gstates": ceilings} if ceilings else {}


# -------------------------------------------------------------------------------------------------- main


def run_all(cases, peer_names, rounds, suffix, out):
    for variable in (BUDGET, CPU):
        os.environ.pop(variable, None)  # each side sets its own
    package = run_measurement("package", 60, probe, backend="ours")
    if "error" in package:
        sys.exit(f"error: the package cannot be measured: {package['error']}")
    found = {name: run_measurement(name, 60, probe, backend=name) for name in peer_names}
    machine = describe_cpu_machine(package, found)
    present = [name for name in peer_names if "error" not in machine["peers"][name]]
    threads = sorted({1, machine["cores"]})
    copies = {str(count): run_measurement("copy", 60, measure_copy, threads=count)["copy_GBps"] for count in threads}
    result = {
        "name": f"cpu_{file_name(machine['processor'])}{suffix}",
        "command": make_command(),
        "rounds": rounds,
        "machine": machine,
        "floors": {"copy_GBps": copies} | measure_ceiling(package["cpu_in_use"]),
        "cases": [],
    }
    print(json.dumps(machine | result["floors"]), flush=True)
    for case in cases:
        entry = case.by_name | {"scaling": case.scaling, "states": case.states, "rows": []}
        result["cases"].append(entry)
        if case.states <= STATES_FOR_OPTIMUM:
            entry |= run_measurement(f"{case}, float64", case.limit_s, find_optimum, sizes=case.by_name)
        sides = choose_sides(case, machine, present)
        for rows in measure_case(case, sides, rounds):
            entry["rows"] = rows
            page.write(result, page.render_cpu, out)
        for side, row in zip(sides, entry["rows"], strict=True):
            print(f"{case}, {side}: {page.time_or_error(row)}, {row.get('extra_MB', '?')} MB", flush=True)
    print(f"\n{page.render_cpu(result)}\n\nSaved as {out / result['name']}.json and .md")
    sys.exit(any("error" in row for case in result["cases"] for row in case["rows"] if row["backend"] == "ours"))


def make_command():
    """The command that the user typed, without the directory."""
    words = list(sys.argv[1:])
    if "--out" in words:
        index = words.index("--out")
        del words[index : index + 2]
    target = "make bench-long" if "--long" in words else "make bench"
    words = [word for word in words if word != "--long"]
    return f'{target} ARGS="{shlex.join(words)}"' if words else target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", metavar="DIR")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--long", action="store_true", help="an hour and ten hours of speech")
    which.add_argument("--quick", action="store_true", help="small cases and one round, to try it out")
    which.add_argument("--case", action="append", type=parse_case, metavar="B,T,L,C", help="may be given several times")
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, default=peers.PEERS, help="default: all")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}; 1 with --quick")
    add_child_option(parser)
    arguments = parser.parse_args()
    if arguments.child:
        return run_as_child(MEASUREMENTS, *arguments.child)
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    if arguments.case:
        cases, suffix = arguments.case, "_case"
    elif arguments.long:
        cases, suffix = LONG, "_long"
    elif arguments.quick:
        cases, suffix = QUICK, "_quick"
    else:
        cases, suffix = STANDARD, ""
    return run_all(cases, arguments.peers, rounds, suffix, arguments.out)


if __name__ == "__main__":
    main()
