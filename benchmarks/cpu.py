"""Times the CPU kernel beside its peers (make bench) and on hours of speech (make bench-long).

    .venv/bin/python benchmarks/cpu.py [--long | --quick] [--case 1,1500,200,32] [--peers torchaudio] [--out DIR]

Writes cpu_MACHINE.json and cpu_MACHINE.md to DIR, anew after every row; --long, --quick and --case add that word to the
name. Peers are those that the interpreter in CTC_ALIGN_PEERS=DIR can load (DIR/bin/python), or else this one.

Every row is a process of its own: a peer may die, memory starts clean, and an instruction set is chosen when the
package is loaded. Short cases go in rounds, everybody's turn in each, so that a machine that gets slower meanwhile is
slower for all.
"""

import argparse
import ctypes
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import peers
from common import ROOT, in_three_digits, read_row, run, table

SIZES = ("batch", "frames", "labels", "classes")


@dataclass(frozen=True)
class Case:
    batch: int
    frames: int
    labels: int
    classes: int
    scaling: bool = field(default=False, compare=False)  # a point of the picture that plot.py draws
    with_peers: bool = field(default=True, compare=False)  # False: they would take hours
    every_cpu: bool = field(default=False, compare=False)  # by force, each instruction set that the machine has
    small_budget: int | None = field(default=None, compare=False)  # bytes; measured beside the default

    def __str__(self):
        return " x ".join(f"{size:,}" for size in self.sizes)

    @property
    def sizes(self):
        return tuple(getattr(self, name) for name in SIZES)

    @property
    def states(self):
        """States in the band, those that can lie on a complete path."""
        T, L = self.frames, self.labels
        return self.batch * ((2 * L + 1) * (T - L) + L)

    @property
    def limit_s(self):
        """Seconds that one process may take."""
        return 300 if self.states < 5 * 10**9 else 3_600


def speech(frames, **others):
    """Four frames a label: dense speech in characters, at 50 frames a second."""
    return Case(1, frames, frames // 4, 32, scaling=True, **others)


STANDARD = [
    Case(1, 50, 10, 32),
    Case(1, 1_500, 200, 32),
    Case(32, 1_500, 200, 32),
    Case(1, 1_500, 200, 5_000),
    Case(1, 20_000, 5_000, 5_000),
    Case(1, 50_000, 25_000, 32, every_cpu=True, small_budget=2_000_000),
    *[speech(frames) for frames in (500, 1_500, 6_000, 30_000)],
]
LONG = [
    Case(1, 178_572, 40_931, 191),  # an hour
    Case(1, 1_800_000, 540_000, 32, with_peers=False, small_budget=100_000_000),  # ten
    speech(180_000),
    speech(1_800_000, with_peers=False),
]
QUICK = [
    Case(1, 50, 10, 32),
    Case(2, 1_500, 200, 32, every_cpu=True, small_budget=50_000),
    *[speech(frames) for frames in (500, 1_500)],
]

ROUNDS = 3
SLOW_S = 2.0  # a call that takes longer is made twice, and in the first round only
SAMPLE_S = 0.01  # shorter calls are repeated until they fill this; the mean is one sample
DISTURBING_CORES = 0.2  # what else may go on in the machine; the page tells of rows that had more
STATES_FOR_OPTIMUM = 2 * 10**10  # the largest case that is also aligned in float64

BUDGET = "CTC_ALIGN_MEMORY_BUDGET"
CPU = "CTC_ALIGN_CPU"


# ------------------------------------------------------------------------------------------ measurements
# They run in processes of their own, and print lines of JSON, of which the last one counts.


def make_case(batch, frames, labels, classes):
    import torch

    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(batch, frames, classes, generator=generator).log_softmax(-1)
    return log_probs, torch.randint(1, classes, (batch, labels), generator=generator)


def measure(backend, threads, sizes):
    import torch

    torch.set_num_threads(threads)
    align = peers.load(backend)
    align(*make_case(1, 50, 10, 32))  # loads the code, which is nobody's memory
    log_probs, targets = make_case(*sizes)

    before = forget_peak_memory()
    results = []
    first_s = timed(lambda: results.extend(align(log_probs, targets)))
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
    start = [clock() for clock in clocks]
    if row["slow"]:
        row["times_ms"].append(1e3 * timed(lambda: align(log_probs, targets)))
    else:
        row["times_ms"] = sample_times_ms(lambda: align(log_probs, targets))
    wall, ours, everybody = (clock() - begin for clock, begin in zip(clocks, start, strict=True))
    row |= {"busy_cores": round(ours / wall, 2), "other_cores": round(max(0, everybody - ours) / wall, 2)}
    if backend == "ours":
        row |= configuration()
    return row


def sample_times_ms(call):
    once_s = timed(call)
    calls = max(1, round(SAMPLE_S / once_s))
    samples = max(5, min(25, round(1 / (calls * once_s))))
    return [1e3 * timed(call, calls) / calls for _ in range(samples)]


def timed(call, calls=1):
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def total(log_probs, paths):
    return log_probs.gather(2, paths[..., None]).double().sum().item()


def machine_seconds():
    """What all processors have worked so far, for whomever, or were kept from by a hypervisor."""
    user, nice, system, _idle, _iowait, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return sum((user, nice, system, *others)) / os.sysconf("SC_CLK_TCK")


def forget_peak_memory():
    """Lets VmHWM begin anew, and returns where it stands: bytes in use."""
    ctypes.CDLL(None).malloc_trim(0)  # or what others have freed would serve the call, unseen
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def memory_bytes(name):
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def configuration():
    """What the package says of itself."""
    import torch_ctc_align

    config = torch_ctc_align.config()
    return {"cpu_in_use": config.cpu, "cpus": config.cpus}


def find_optimum(sizes):
    """The score of the best path, found in float64."""
    import torch

    log_probs, targets = make_case(*sizes)
    ((paths, _),) = peers.load("ours")(log_probs.double(), targets.to(torch.int64))
    return {"optimum": round(total(log_probs, paths), 3)}


def measure_copy(threads):
    """What the memory gives: a large copy, bytes read and written."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(1 << 27)
    target = torch.ones_like(source)
    times = [timed(lambda: target.copy_(source)) for _ in range(11)]
    return {"copy_GBps": round(2 * source.nbytes / statistics.median(times[1:]) / 1e9, 1)}


def probe(backend):
    """Whether it is here, and in which version."""
    import torch

    peers.load(backend)(*make_case(1, 50, 10, 32))
    if backend != "ours":
        return {"version": peers.version(backend), "torch": torch.__version__}
    import torch_ctc_align

    return {"version": torch_ctc_align.__version__, "torch": torch.__version__} | configuration()


MEASUREMENTS = {function.__name__: function for function in (measure, find_optimum, measure_copy, probe)}


def run_as_child(name, arguments):
    # Should memory run out, this process is the one to go.
    Path("/proc/self/oom_score_adj").write_text("1000")
    print(json.dumps(MEASUREMENTS[name](**json.loads(arguments))))


# ------------------------------------------------------------------------------------------------ sides


@dataclass(frozen=True)
class Side:
    """Who aligns, and how."""

    backend: str
    threads: int = 1
    cpu: str | None = None  # None: what the package chooses
    budget: int | None = None  # bytes; None: the package's default

    def __str__(self):
        words = [self.backend, f"{self.threads} thread" + "s" * (self.threads > 1)]
        if self.cpu:
            words.append(self.cpu)
        if self.budget:
            words.append(f"{self.budget / 1e6:g} MB")
        return ", ".join(words)

    @property
    def variables(self):
        budget = {BUDGET: str(self.budget)} if self.budget else {}
        return budget | ({CPU: self.cpu} if self.cpu else {})


def choose_sides(case, machine, peer_names):
    others = [cpu for cpu in machine["package"]["cpus"] if cpu != machine["package"]["cpu_in_use"]]
    ways = [{}]
    if case.small_budget:
        ways.append({"budget": case.small_budget})
    if case.every_cpu:
        ways += [{"cpu": cpu} for cpu in others]
    sides = [Side("ours", threads, **way) for way in ways for threads in sorted({1, machine["cores"]})]
    return sides + [Side(peer) for peer in peer_names if case.with_peers]


def interpreter(backend):
    directory = os.environ.get("CTC_ALIGN_PEERS")
    return Path(directory).absolute() / "bin" / "python" if directory and backend != "ours" else sys.executable


def run_child(label, limit_s, name, variables=None, **arguments):
    """One of the measurements above, as a dictionary; with "error" if it did not come to its end."""
    command = [
        interpreter(arguments.get("backend", "ours")),
        "-W",
        "ignore",
        __file__,
        "--child",
        name,
        json.dumps(arguments),
    ]
    progress = Progress(label)
    status, output = run(command, limit_s, progress.show, **(variables or {}))
    progress.end()
    return read_row(status, output)


class Progress:
    """A line on stderr that counts the seconds; where stderr is a file, a line a minute."""

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
    """Fills a row for each side, and yields them after every process, as far as they are known."""
    rows = {side: asdict(side) for side in sides}
    times_ms = {side: [] for side in sides}
    for turn in range(rounds):
        for side, row in rows.items():
            if "error" in row or row.get("slow"):
                continue
            found = run_child(
                f"{case}, {side}, round {turn + 1} of {rounds}",
                case.limit_s,
                "measure",
                variables=side.variables,
                backend=side.backend,
                threads=side.threads,
                sizes=case.sizes,
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


def summarise(times_ms):
    found = {"ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}
    return {name: float(f"{value:.5g}") for name, value in found.items()} | {"runs": len(times_ms)}


# ----------------------------------------------------------------------------------------------- machine


def describe_machine(peer_names):
    processor = dict(re.findall(r"^\s*([^:\n]+):\s*(.+)$", output_of("lscpu"), re.MULTILINE))
    machine = {
        "processor": processor.get("Model name", os.uname().machine),
        "family": processor.get("CPU family"),
        "model": processor.get("Model"),
        "hypervisor": processor.get("Hypervisor vendor"),
        "cores": len(os.sched_getaffinity(0)),
        "caches": {level: processor.get(f"{level} cache") for level in ("L1d", "L2", "L3")},
        "flags": re.findall(r"\b(?:sse4|avx|fma|f16c|asimd|sve)\w*", processor.get("Flags", "")),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "package": run_child("package", 60, "probe", backend="ours"),
        "peers": {name: run_child(name, 60, "probe", backend=name) for name in peer_names},
        "commit": output_of("git", "describe", "--always", "--dirty").strip() or None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    if "error" in machine["package"]:
        sys.exit(f"error: the package cannot be measured: {machine['package']['error']}")
    return machine


def output_of(*command):
    """What a command prints; nothing where it is missing."""
    try:
        environment = os.environ | {"LC_ALL": "C"}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    except OSError:
        return ""


def measure_ceiling():
    """What one core can do: the best line "sweep, ... G states/s" of the program in CTC_ALIGN_CEILING, if there is one.

    make builds it from ceiling.cpp.
    """
    program = os.environ.get("CTC_ALIGN_CEILING")
    if not program:
        return {}
    status, output = run([Path(program).absolute(), 50_000, 25_000, 32], 300)
    speeds = re.findall(r"^sweep,.*?([\d.]+) G states/s", output, re.MULTILINE)
    if status != 0 or not speeds:
        sys.exit(f'error: CTC_ALIGN_CEILING={program} printed no line "sweep, ... G states/s"')
    return {"ceiling_Gstates": max(map(float, speeds))}


# ------------------------------------------------------------------------------------------------ report


def in_time(ms):
    """0.01234 -> 12.3 us"""
    factor, unit = (1e3, "us") if ms < 1 else (1, "ms") if ms < 1e3 else (1e-3, "s")
    return f"{in_three_digits(factor * ms)} {unit}"


def time_or_fate(row):
    if "ms" in row:
        return in_time(row["ms"])
    return "died" if row.get("error", "").startswith("died") else "error" if "error" in row else ""


def describe(result):
    """The machine, the versions and the command, in a few lines."""
    machine, name = result["machine"], result["name"]
    package = machine["package"]
    versions = ["no peers"] * (not machine["peers"])
    for peer, found in machine["peers"].items():
        versions.append(f"{peer} {found['version']}" if "error" not in found else f"{peer} absent")
    caches = [f"{level} {size}" for level, size in machine["caches"].items() if size]
    commit = machine["commit"] or "an unknown commit"
    return f"""\
{machine["date"]}, package {package["version"]} at {commit}, torch {package["torch"]}; {"; ".join(versions)}. \
Made by `{result["command"]}`; [{name}.json]({name}.json) has all of it.

{machine["cores"]} cores, family {machine["family"]}, model {machine["model"]}\
{f", under {machine['hypervisor']}" if machine["hypervisor"] else ""}; {", ".join(caches)}; {machine["memory_GB"]} GB; \
Linux {machine["kernel"]}; Python {machine["python"]}. The package chooses {package["cpu_in_use"]} of \
{", ".join(package["cpus"])}."""


def render_overview(cases, machine):
    """A row for each case: ours with one thread and with all, and every peer."""
    peer_names = [name for name, found in machine["peers"].items() if "error" not in found]
    many = machine["cores"]
    header = ["B", "T", "L", "C", "ours, 1 thread"] + [f"ours, {many} threads"] * (many > 1)
    for peer in peer_names:
        header += [peer, "ratio"]
    lines = []
    for case in cases:
        plain = {(row["backend"], row["threads"]): row for row in case["rows"] if not row["cpu"] and not row["budget"]}
        ours = plain["ours", 1]
        line = [f"{case[name]:,}" for name in SIZES]
        line += [time_or_fate(plain["ours", threads]) for threads in sorted({1, many})]
        for peer in peer_names:
            theirs = plain.get((peer, 1))
            line += [time_or_fate(theirs) if theirs else "", ratio(theirs, ours) if theirs else ""]
        lines.append(line)
    return table(header, lines)


def ratio(theirs, ours):
    return in_three_digits(theirs["ms"] / ours["ms"]) if "ms" in theirs and "ms" in ours else ""


def render_case(case, floors):
    """Everything about one case, a row for each side."""
    lines = [columns_of(row, case, floors) for row in case["rows"]]
    header = list(max(lines, key=len))
    errors = [
        f"- {Side(row['backend'], row['threads'], row['cpu'], row['budget'])}: {row['error']}"
        for row in case["rows"]
        if "error" in row
    ]
    title = " x ".join(f"{case[name]:,}" for name in SIZES)
    return "\n\n".join(
        [f"### {title}", table(header, [[line.get(name, "") for name in header] for line in lines]), *errors]
    )


def columns_of(row, case, floors):
    ours, threads = row["backend"] == "ours", row["threads"]
    columns = {
        "": row["backend"],
        "threads": threads,
        "CPU": row.get("cpu_in_use", ""),
        "budget": f"{row['budget'] / 1e6:g} MB" if row["budget"] else "default" if ours else "",
        "median": time_or_fate(row),
    }
    if "ms" not in row:
        return columns
    columns |= {"smallest": in_time(row["min_ms"]), "largest": in_time(row["max_ms"]), "runs": row["runs"]}
    for theirs in case["rows"]:
        if theirs["backend"] != "ours":
            columns[f"{theirs['backend']} / this"] = ratio(theirs, row) if ours else ""
    ceiling = floors.get("ceiling_Gstates")
    emission_bytes = 4 * case["batch"] * case["frames"] * case["classes"]
    return columns | {
        "extra MB": f"{row['extra_MB']:,.1f}",
        "score": f"{row['score']:,.3f}",
        "below optimum": f"{case['optimum'] - row['score']:.3f}" if "optimum" in case else "",
        "same path": "yes" if row["paths"] == case["rows"][0].get("paths") else "no",
        "G states/s": with_share(case["states"] / row["ms"] / 1e6, ceiling and ceiling * threads),
        "emission GB/s": with_share(emission_bytes / row["ms"] / 1e6, floors["copy_GBps"][str(threads)]),
        "busy cores": row.get("busy_cores", ""),
        "other cores": row.get("other_cores", ""),
    }


def with_share(number, whole):
    """12.3 (61 %), if it is known of what."""
    return in_three_digits(number) + (f" ({100 * number / whole:.0f} %)" if whole else "")


def render(result):
    """The Markdown page of a result."""
    machine, floors, cases = result["machine"], result["floors"], result["cases"]
    copies = " and ".join(f"{speed} GB/s with {threads}" for threads, speed in floors["copy_GBps"].items())
    ceiling = "The program in CTC_ALIGN_CEILING sweeps {} G states/s on one core. "
    tables = "\n\n".join(render_case(case, floors) for case in cases)
    rows = [row for case in cases for row in case["rows"]]
    disturbed = sum(row.get("other_cores", 0) > DISTURBING_CORES for row in rows)
    ceiling = floors.get("ceiling_Gstates")
    ceiling = (
        f". A core that does nothing but sweep reaches {ceiling}; in brackets the share of that" if ceiling else ""
    )
    return f"""# {machine["processor"]}

{describe(result)}

## Time

Medians after warm-up, float32, random emissions made outside the clock. Ours is the operator,
`torch.ops.ctc_align.forced_align.default`; peers in the same run, without the checks of their Python functions, one
item a call, on one thread, as they do not use more. "ratio": how many times ours with one thread the peer takes.

{render_overview(cases, machine)}

Disturbed, by more than {DISTURBING_CORES} cores' worth of other work on the machine: {disturbed} of {len(rows)} rows.

## All of it

A table for each case, B x T x L x C; a row is one or more processes of its own.

- "runs": samples of all rounds, {result["rounds"]}; two, of one round, where a call takes more than {SLOW_S:g} s. A
  sample is a call, or the mean of as many as fill {1e3 * SAMPLE_S:g} ms.
- "PEER / this": how many times this row's time the peer takes.
- "extra MB": the largest resident memory in a call, less what was resident before it, less the returned paths and
  scores, for everybody alike. Linux counts pages, and not always at once: 0.3 MB more or less mean nothing.
- "score": log_probs along the path, summed in float64. "below optimum": what it lacks to the score of the best path,
  which our operator finds in float64. "same path": as in the first row.
- "G states/s": states of the band, B ((2L + 1)(T - L) + L), by time{ceiling}.
- "emission GB/s": bytes of log_probs by time. A large copy moves {copies} threads, read and
  written; who reads the classes of the target alone can pass that.
- "busy cores": processor time by time. "other cores": the same for all that is not this row.

{tables}
"""


def write(result, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{result['name']}.md").write_text(render(result), encoding="utf-8")


# -------------------------------------------------------------------------------------------------- main


def run_all(cases, peer_names, rounds, suffix, out):
    for variable in (BUDGET, CPU):
        os.environ.pop(variable, None)  # the rows decide
    machine = describe_machine(peer_names)
    present = [name for name in peer_names if "error" not in machine["peers"][name]]
    threads = sorted({1, machine["cores"]})
    copies = {str(count): run_child("copy", 60, "measure_copy", threads=count)["copy_GBps"] for count in threads}
    result = {
        "name": f"cpu_{file_name(machine['processor'])}{suffix}",
        "command": make_command(),
        "rounds": rounds,
        "machine": machine,
        "floors": {"copy_GBps": copies} | measure_ceiling(),
        "cases": [],
    }
    print(json.dumps(machine | result["floors"]), flush=True)
    for case in cases:
        entry = dict(zip(SIZES, case.sizes, strict=True)) | {"scaling": case.scaling, "states": case.states, "rows": []}
        result["cases"].append(entry)
        if case.states <= STATES_FOR_OPTIMUM:
            entry |= run_child(f"{case}, float64", case.limit_s, "find_optimum", sizes=case.sizes)
        sides = choose_sides(case, machine, present)
        for rows in measure_case(case, sides, rounds):
            entry["rows"] = rows
            write(result, out)
        for side, row in zip(sides, entry["rows"], strict=True):
            print(f"{case}, {side}: {time_or_fate(row)}, {row.get('extra_MB', '?')} MB", flush=True)
    print(f"\n{render(result)}\n\nSaved as {out / result['name']}.json and .md")
    sys.exit(any("error" in row for case in result["cases"] for row in case["rows"] if row["backend"] == "ours"))


def file_name(processor):
    """Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz -> intel_xeon_platinum_8488c"""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", "", processor.lower())
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def make_command():
    """What was typed, but for the directory."""
    words = list(sys.argv[1:])
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    target = "make bench-long" if "--long" in words else "make bench"
    words = [word for word in words if word != "--long"]
    return f'{target} ARGS="{shlex.join(words)}"' if words else target


def parse_case(text):
    """A case by its sizes; one of the standard cases with all that belongs to it."""
    case = Case(*map(int, text.split(",")))
    return next((known for known in STANDARD + LONG + QUICK if known == case), case)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements", metavar="DIR")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--long", action="store_true", help="an hour and ten of them")
    which.add_argument("--quick", action="store_true", help="small cases and one round, to try it out")
    which.add_argument("--case", action="append", type=parse_case, metavar="B,T,L,C", help="may be given several times")
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, default=peers.PEERS, help="default: all")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}; 1 with --quick")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_as_child(*arguments.child)
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
