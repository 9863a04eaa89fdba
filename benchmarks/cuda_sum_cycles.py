"""What the sums over all paths cost on CUDA, estimated from their machine code: a part of cuda_cycles.py.

A step of a block of threads runs a stage of some frames. In it consumers run frames, and producers bring the next stage
and keep what came of an earlier one; a barrier ends it. `walk` finds the instructions of each of them in the loop over
steps, `step_cycles` runs both on the four schedulers, and `estimate` adds up the steps of all launches of a call, which
it takes from csrc/cuda/forward_backward/plan.h. Columns that wait for one another start as late as they have to.

Which way a warp takes through its loop follows from what lies in a branch: a wait that is over, a type that is not
float32, other outputs, and the stages at a sweep's ends are left out. Lanes that part run one after the other, so both
sides count.
"""

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cases import GPU_SUMS, SIZES
from machine import commit_and_date, output_of
from page import in_three_digits, table

ROOT = Path(__file__).resolve().parents[1]
CLOCK_HZ, MULTIPROCESSORS, COPY_BYTES_PER_S = 1.755e9, 132, 3e12  # H100 SXM: docs/measurements/gpu_h100_80gb_hbm3.md
LAUNCH_US = 6.3  # of a kernel or memset that waits for the one before: the same page
RESIDENT_THREADS, THREAD_REGISTERS = 2048, 65536
PAIRS_OF_WARP, WARPS, COLUMN = 64, 4, 256
STAGE = 4  # frames
# In a step of 16 frames: the Viterbi sweep takes 86 cycles a frame where the estimate says 75 (docs/performance.md).
MISSING_CYCLES = 176


# ------------------------------------------------------------------------------------ 1 the way of a warp


@dataclass
class Work:
    """What a stage's producers do: it decides which branches they take, and how often."""

    several: bool  # columns
    keeps_classes: bool = True  # or the sums of frames alone: spans
    words: int = 16  # of 16 pairs each, that a frame's sums go through
    groups: int = 1  # classes that a lane adds up
    fours: int = 1  # labels of the largest of them, in fours


def names_of(instructions):
    return Counter(i.name for i in instructions)


def uses(instructions, text):
    return any(text in i.text for i in instructions)


class Body:
    """The body of a loop over steps, and what each of its branches jumps over."""

    def __init__(self, instructions, branches, start, end):
        self.code = [i for i in instructions if start <= i.address <= end]
        at = {i.address: n for n, i in enumerate(self.code)}
        self.targets = {at[b]: at[t] for b, t in branches.items() if b in at and t in at}
        self.skips = {b: t for b, t in self.targets.items() if t > b and self.code[b].is_conditional}
        self.jumps = {b: t for b, t in self.targets.items() if t > b and not self.code[b].is_conditional}

    def jumped_over(self, branch):
        return self._follow(branch, lambda _: False)

    def own(self, branch):
        """The same without what branches in it jump over in turn."""
        return self._follow(branch, lambda n: self.skips[n] <= self.skips[branch])

    def _follow(self, branch, is_skipped):
        found, n = [], branch + 1
        while n < self.skips[branch]:
            found.append(self.code[n])
            n = self.skips[n] if n in self.skips and is_skipped(n) else self.jumps.get(n, n + 1)
        return found

    def versions(self, branch):
        """What a branch chooses between: from the next instruction on, and from its target on."""
        target = self.skips[branch]
        join = self.jumps.get(target - 1, target)
        return self.code[branch + 1 : target], self.code[target:join]


def consumer_way(body, normalizes):
    """All frames of a stage inside its sweep. `normalizes`: its last frame does so, which is one of 16."""
    keeps_frames = sum("STG" in i.text for i in body.code) > 2  # else it stores a row before a segment alone

    def is_left_out(branch):
        versions = body.versions(branch)
        if all(uses(version, "SHFL") for version in versions):  # of a stage; the one inside asks less often
            inside, other = (names_of(version)["BRA"] for version in versions)
            return inside > other
        own = names_of(body.own(branch))
        is_span = own["MUFU"] and own["LDS"]  # a frame of a label's own
        return (
            (own["FSETP"] and not normalizes)
            or is_span
            or own["CALL"]
            or (own["STG"] and not keeps_frames and not own["SHFL"])
        )

    way, n = [], 0
    while n < len(body.code):
        way.append(body.code[n])
        if n in body.skips and is_left_out(n):
            n = body.skips[n]
        else:
            n = body.jumps.get(n, n + 1)
    return way


def producer_way(body, work):
    """Bringing a stage, by the producer that also brings gaps; in a sweep that meets, keeping a frame, too."""
    # Loads, loads, rounds. Lanes have groups of several sizes: together they go through each rest of a division by 4.
    left = {"words": 2 * work.words, "groups": work.groups, "blanks": 1}
    fours_of_group = {"single": min(work.fours, 3), "several": work.fours // 4 * 4, "rounds": work.fours}
    left |= fours_of_group

    def fours(instructions):
        return 0 if uses(instructions, "STRONG") else sum("LDS.64" in i.text for i in instructions)  # edges

    def has_left(loads):
        return loads <= left["single" if loads == 1 else "several"]

    def is_sum(names):
        return names["LDS"] >= 2 and names["FADD"] >= names["LDS"] and not names["STS"]

    def is_blank(names):
        return names["STG"] == names["FMUL"] == 1 and not names["FADD"]

    def is_left_out(branch):
        over, own = body.jumped_over(branch), body.own(branch)
        names, own_names = names_of(over), names_of(own)
        is_output, is_strong = uses(over, "LDS.U16"), uses(over, "STRONG")
        if {"NANOSLEEP", "CALL", "I2F"} & own_names.keys():
            return True  # waits, rare values, other types
        if not work.several and uses(own, "STRONG"):
            return True  # edges
        if work.several and is_output and names["MUFU"] and not is_strong:
            return True  # dividing at once
        if not work.keeps_classes and is_output and not names["MUFU"] and not is_strong:
            return True
        if names["STG"] >= 8 and not is_output:
            return True  # outputs of other operators
        versions = [names_of(version) for version in body.versions(branch)]
        if all(version["STG"] == 1 for version in versions) and not is_output:
            return versions[0]["FADD"] > 0  # the star's class adds up more than another one
        if is_blank(own_names) and not is_output:
            return not left["blanks"]  # the next one is the star's column
        if fours(over) and not is_output:
            within = [b for b in body.skips if branch <= b < body.skips[branch]]
            return not any(has_left(loads) for b in within if (loads := fours(body.own(b))))
        return is_sum(own_names) and own_names["LDS"] > left["words"]

    way, n = [], 0
    while n < len(body.code):
        instruction = body.code[n]
        way.append(instruction)
        left["words"] -= instruction.text.startswith("LDS R")
        target = body.targets.get(n)
        if target is None:
            n += 1
        elif n in body.skips:
            loads = fours(body.own(n))
            if is_left_out(n):
                n = target
            else:
                if loads and not uses(body.jumped_over(n), "LDS.U16"):
                    left["single" if loads == 1 else "several"] -= loads
                left["blanks"] -= is_blank(names_of(body.own(n))) and not uses(body.jumped_over(n), "LDS.U16")
                n += 1
        elif target > n:
            n = target
        else:  # a loop
            round_ = body.code[target:n]
            names = names_of(round_)
            again = False
            if uses(round_, "LDS.U16"):
                left["groups"] -= 1
                again = left["groups"] > 0
                left |= fours_of_group
            elif fours(round_) == 1 and not names["BAR"]:
                left["rounds"] -= 1
                again = left["rounds"] > 0
            elif is_sum(names):
                again = names["LDS"] <= left["words"]
            n = target if again else n + 1
    return way


def loops_over_steps(instructions, branches):
    """{(is_forward, meets): (consumers' body, producers' body)}. Each has one barrier; the producers' comes first."""
    loops = [(start, end) for end, start in branches.items() if start < end]
    bodies = [Body(instructions, branches, *loop) for loop in sorted(loops)]
    bodies = [body for body in bodies if names_of(body.code)["BAR"] == 1]
    found = {}
    for producer, consumer in zip(bodies[::2], bodies[1::2], strict=True):
        names = names_of(consumer.code)
        assert names["SHFL"] > names_of(producer.code)["SHFL"] == 0
        is_forward = (
            names["SHFL"] == 2 * 2 * STAGE
        )  # two versions of a stage, two planes of the one weight that crosses
        found[is_forward, names["LDG"] > 0] = consumer, producer
    return found


# ----------------------------------------------------------------------------------------- 2 cycles of a step


class Kernel:
    """One kernel's loops. `simulate` is that of cuda_cycles.py."""

    def __init__(self, instructions, branches, registers, simulate):
        self.loops = loops_over_steps(instructions, branches)
        self.registers = registers
        self.simulate = simulate

    def ways(self, loop, work):
        """Instructions of a step: of a consumer, of a consumer that normalizes, of a producer."""
        consumer, producer = self.loops[loop]
        return consumer_way(consumer, False), consumer_way(consumer, True), producer_way(producer, work)

    def step_cycles(self, loop, work, blocks=1, consumers=WARPS, with_producers=True):
        """Cycles of a step of blocks that share a multiprocessor. One stage of 16 frames normalizes once."""
        plain, normalizing, producer = self.ways(loop, work)
        often = 16 // STAGE

        def run(way):
            return self.simulate(
                [([way] * blocks if s < consumers else []) + [producer] * blocks * with_producers for s in range(WARPS)]
            )

        return ((often - 1) * run(plain) + run(normalizing)) / often


# -------------------------------------------------------------------------------------------- 3 launches

PLAN = r"""
#include <cstdio>
#include "csrc/cuda/forward_backward/keep.cuh"
using namespace ctc_align;
int main() {
  SumPlan plan = plan_sums(BATCH, FRAMES, LABELS, 2, 4, !SPANS);
  const auto launches = plan_sum_launches(plan, BATCH, SPANS, plan.columns() > 1);
  std::printf("{\"columns\": %ld, \"kept_pairs\": %ld, \"single\": %d, \"segment\": %ld, \"stage\": %d, ",
              long(plan.columns()), long(plan.kept_pairs()), plan.is_single(), long(plan.segment_frames),
              kSumStage<float, false>);
  std::printf("\"shared_bytes\": %ld, \"launches\": [", long(sizeof(SumShared<float, false, WHOLE_ROWS>)));
  for (size_t i = 0; i < launches.size(); ++i) {
    const SumLaunch& launch = launches[i];
    std::printf("%s{\"kernel\": %d, \"blocks\": %ld, \"begin\": %ld, \"end\": %ld, \"unset\": %d}",
                i > 0 ? ", " : "", int(launch.kernel), long(launch.blocks), long(launch.begin), long(launch.end),
                launch.unset != Unset::kNothing);
  }
  std::printf("]}\n");
}
"""
FORWARD, BACKWARD, SPANS, MEETING, FINISH = range(5)

# The sweeps of each block of threads, one after the other: (is_forward, meets). A meeting has two blocks, which wait
# for each other after the first sweep.
SWEEPS = {
    FORWARD: [[(True, False)]],
    BACKWARD: [[(True, False), (False, True)]],
    SPANS: [[(True, False), (False, True)]],
    MEETING: [[(True, False), (True, True)], [(False, False), (False, True)]],
}


def read_plan(batch, frames, labels, spans, whole_rows):
    """The launches of a call, as the library plans them, and the shared memory of a block."""
    sizes = {"BATCH": batch, "FRAMES": frames, "LABELS": labels, "SPANS": int(spans), "WHOLE_ROWS": int(whole_rows)}
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "plan"
        command = [
            *os.environ.get("CXX", "c++").split(),
            "-std=c++20",
            f"-I{ROOT}",
            *(f"-D{name}={n}" for name, n in sizes.items()),
            "-xc++",
            "-",
        ]
        subprocess.run([*command, "-o", program], input=PLAN, text=True, check=True)
        plan = json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    assert plan["stage"] == STAGE
    return plan


def sweep_columns(ranges, rate, lag, slots):
    """Seconds until all columns are through: `rate` a frame, `lag` after the neighbour, `slots` at a time."""
    ends, last_start, last_begin = [], None, None
    for begin, end in ranges:
        if end <= begin:
            continue
        start = 0.0 if len(ends) < slots else sorted(ends)[len(ends) - slots]
        if last_start is not None:
            start = max(start, last_start + lag + max(0, begin - last_begin) * rate)
        ends.append(start + (end - begin) * rate)
        last_start, last_begin = start, begin
    return max(ends, default=0.0)


@dataclass
class Estimate:
    chain_ms: tuple  # at least, at most
    moved_bytes: float
    cleared_bytes: float
    launches: int

    @property
    def moved_ms(self):
        return 1e3 * self.moved_bytes / COPY_BYTES_PER_S

    @property
    def cleared_ms(self):
        return 1e3 * self.cleared_bytes / COPY_BYTES_PER_S

    def in_all_ms(self):
        """Outputs are cleared before anything else; the rest moves while frames wait for one another."""
        return tuple(max(chain, self.moved_ms) + self.cleared_ms for chain in self.chain_ms)


def estimate(case, sums):
    """What a call takes; `sums` is what sums_of() returns."""
    B, T, L, C = (case[name] for name in SIZES)
    spans, in_column = case["operator"] == "span_posteriors", min(L, COLUMN)
    plan = read_plan(B, T, L, spans, whole_rows=C <= 32)
    J, consumers = plan["columns"], min(WARPS, L // PAIRS_OF_WARP + 1)
    distinct = 1 if spans else distinct_classes(in_column, C)
    work = Work(J > 1, not spans, 4 * consumers, -(-distinct // 32), -(-largest_group(in_column, C) // 4))
    band = [(max(0, j * COLUMN - 1), T - max(L - (j + 1) * COLUMN - 1, 0)) for j in range(J)]
    chain_ms = tuple(
        1e3
        * sum(launch_seconds(launch, plan, sums[C <= 32], work, consumers, band, extra) for launch in plan["launches"])
        for extra in (0, MISSING_CYCLES)
    )
    launches = 1 + sum(1 + launch["unset"] for launch in plan["launches"])  # memsets too, of which one is the outputs'
    return Estimate(chain_ms, *count_bytes(case, plan, band, distinct), launches)


def launch_seconds(launch, plan, kernels, work, consumers, band, extra):
    """Seconds in which frames wait for one another. `extra` cycles in each step. The finish is counted by its bytes."""
    if launch["kernel"] == FINISH:
        return 0.0
    kernel, blocks, begin, end = kernels[launch["kernel"]], SWEEPS[launch["kernel"]], launch["begin"], launch["end"]
    fitting = blocks_that_fit(kernel.registers, plan["shared_bytes"])
    sharing = min(fitting, -(-launch["blocks"] // MULTIPROCESSORS))
    steps_s = [
        (max(kernel.step_cycles(loop, work, sharing, consumers) for loop in loops) + extra) / CLOCK_HZ
        for loops in zip(*blocks, strict=True)
    ]
    stages = -(-(end - begin) // (len(blocks) * STAGE))  # of two blocks each takes a half, and then the other half
    segments = 1 if launch["kernel"] == FORWARD or plan["single"] else -(-(end - begin) // plan["segment"])
    steps = stages + segments * (consumers + 1)  # each segment fills and drains
    if plan["columns"] == 1:
        return -(-launch["blocks"] // (MULTIPROCESSORS * sharing)) * steps * sum(steps_s)
    ranges = [(max(begin, first), min(end, last)) for first, last in band]
    if launch["kernel"] != FORWARD:
        ranges = [(-last, -first) for first, last in reversed(ranges)]
    rate = steps * sum(steps_s) / (end - begin)
    return sweep_columns(ranges, rate, (consumers + 2) * steps_s[-1], MULTIPROCESSORS * fitting)


def count_bytes(case, plan, band, distinct):
    """Bytes between the device's memory and its second cache: rows of alphas, emissions, edges, outputs."""
    B, T, L, C = (case[name] for name in SIZES)
    spans = case["operator"] == "span_posteriors"
    frames = B * T if plan["columns"] == 1 else B * sum(end - begin for begin, end in band)
    passes = 2 if spans else 1
    rows = 2 * 16 * plan["kept_pairs"] * frames * passes  # written, and read
    own = min(C, min(L, COLUMN) + 1)
    emissions = B * T * C * 4 if C <= 32 else frames * min(own * 32, 4 * C) * 2  # read both ways
    sector = min(4 * C, 32 * (distinct + 1))
    out = 0 if spans else frames * sector * (2 if C > 32 else 1)  # a sector in part is read first
    edges = 0 if plan["columns"] == 1 else frames * (8 + 16) * 3 * passes  # set, written, read
    finish = 0 if spans or plan["columns"] == 1 else 2 * B * T * C * 4
    return rows + emissions + out + edges + finish, (4 * B * L if spans else 4.0 * B * T * C)


def largest_group(labels, classes):
    """Labels of the most frequent class, on average over random targets."""
    import torch

    torch.manual_seed(0)
    targets = torch.randint(1, classes, (64, labels))
    return round(sum(item.bincount().max().item() for item in targets) / len(targets))


def distinct_classes(labels, classes):
    return round((classes - 1) * (1 - (1 - 1 / (classes - 1)) ** labels))


def blocks_that_fit(registers, shared_bytes, threads=2 * WARPS * 32):
    of_multiprocessor = 227 << 10
    rounded = -(-registers // 8) * 8
    by_memory = of_multiprocessor // (shared_bytes + 1024)
    return min(THREAD_REGISTERS // (rounded * threads), by_memory, RESIDENT_THREADS // threads)


# ---------------------------------------------------------------------------------------------- 4 the page


def sums_of(kernels, registers, simulate):
    """{whole rows or own labels: {kernel: its Kernel}}, float32, without stars and path values."""
    names = {FORWARD: "forward", BACKWARD: "backward", SPANS: "spans", MEETING: "meeting"}
    found = {}
    for whole_rows in (True, False):
        choice = f"<float, false, {str(whole_rows).lower()}, false>"
        found[whole_rows] = {
            kernel: Kernel(*kernels[f"sum_{name}{choice}"], registers[f"sum_{name}{choice}"], simulate)
            for kernel, name in names.items()
        }
    return found


def loop_rows(sums):
    """A column of 200 labels and 32 or 5,000 classes, of several but in a meeting."""
    names = {(True, False): "forward, keeping", (True, True): "forward, meeting"}
    names |= {(False, False): "back, keeping", (False, True): "back, meeting"}
    for whole_rows, kernels in sums.items():
        classes = 32 if whole_rows else 5_000
        groups, fours = -(-distinct_classes(200, classes) // 32), -(-largest_group(200, classes) // 4)
        for number, kernel in kernels.items():
            work = Work(number != MEETING, groups=groups, fours=fours)
            for loop in (loop for loops in SWEEPS[number] for loop in loops):
                plain, normalizing, producer = kernel.ways(loop, work)
                extra = (len(normalizing) - len(plain)) / 16
                of_producers = kernel.simulate([[producer]] * WARPS)
                yield [
                    "whole rows" if whole_rows else "own labels",
                    ("forward", "backward", "spans", "meeting")[number],
                    "forward" if number == FORWARD else names[loop],
                    f"{len(plain) / STAGE + extra:.0f}",
                    f"{len(producer) / STAGE:.0f}",
                    f"{kernel.step_cycles(loop, work, with_producers=False) / STAGE:.0f}",
                    f"{of_producers / STAGE:.0f}",
                    f"{kernel.step_cycles(loop, work) / STAGE:.0f}",
                    f"{kernel.step_cycles(loop, work, blocks=2) / STAGE:.0f}",
                    kernel.registers,
                ]


def render_loops(sums):
    header = ["", "kernel", "sweep", "instructions: consumer", "producer", "cycles: consumers alone"]
    return table([*header, "producers alone", "together", "two blocks together", "registers"], loop_rows(sums))


def in_range(least, most):
    return f"{in_three_digits(least)} to {in_three_digits(most)}"


def estimate_row(case, sums):
    found = estimate({"operator": case.operator, **case.by_name}, sums)
    least, most = found.in_all_ms()
    target = case.target_ms
    verdict = "met" if most <= target else "missed" if least > target else "unclear"
    if least > target:
        verdict += f", {least / target:.2g} to {most / target:.2g} times"
    return [
        case.operator,
        *(f"{case.by_name[name]:,}" for name in SIZES),
        in_range(*found.chain_ms),
        in_three_digits(found.moved_bytes / 1e6),
        in_three_digits(found.moved_ms),
        in_three_digits(found.cleared_ms),
        found.launches,
        in_range(least, most),
        f"{target:g}",
        verdict,
    ]


def render_sweeps(sweeps):
    return table(["kernel", "cycles", "instructions"], sweeps)


def render_page(sums, sweeps, nvcc):
    header = ["", *"BTLC", "chain, ms", "MB moved", "ms at 3 TB/s", "clearing, ms", "launches", "in all, ms"]
    rows = [estimate_row(case, sums) for case in GPU_SUMS if case.target_ms]
    made = commit_and_date()
    release = re.search(r"release ([\d.]+)", output_of(nvcc, "--version"))[1]
    return f"""# The sums over all paths on CUDA: estimates

**Estimated from the machine code, not measured.** The kernels have not been timed on a GPU. {made["date"]}, package at
{made["commit"] or "an unknown commit"}, nvcc {release}, for sm_90 and the clock of an H100
({CLOCK_HZ / 1e9:g} GHz). Made by
`make cuda-cycles ARGS="--page docs/measurements/cuda_sums_estimates.md"`, which needs nvcc and nvdisasm, but no GPU;
[cuda_sum_cycles.py](../../benchmarks/cuda_sum_cycles.py) says how. `make gpu` will measure the same rows.

## The loops

A frame of a column, float32, without stars: the instructions of a warp, and cycles of a multiprocessor. Consumers hold
the pairs; producers bring emissions and, in a sweep that meets, add up the posteriors of a frame and write its classes.
Both run at the same time, and a barrier after every {STAGE} frames waits for the slower ones. 200 labels, and 32
classes ("whole rows") or 5,000 ("own labels"). Utterances of one column take the kernel "meeting": one block of threads
goes forward and one back, each keeps half of the frames and then meets what the other one has kept. Longer items take
"forward", which keeps a row every 128 frames, and "backward", which sweeps a segment forward again and then back;
posteriors of spans take "spans" after it, which does the same once more. All frames are inside their sweep.

{render_loops(sums)}

## The sweep of alignments

Cycles of a frame of a column, one block of threads on a multiprocessor, and instructions of a warp, of the best path
instead of the sums. Template arguments: the type of alphas, of emissions; whether rows are whole; stars.

{render_sweeps(sweeps)}

## The rows

"chain": what frames take that wait for one another, with the barriers' steps that fill and drain, and columns that wait
for a multiprocessor. The first number is the estimate. The second one adds {MISSING_CYCLES} cycles to every step: the
Viterbi sweep takes that much longer than its own estimate in a step of 16 frames, and here steps have {STAGE}.
"MB moved": 16 bytes for a pair and frame, written and read; emissions, edges and outputs. Outputs are cleared first, so
"in all" is the greater one of chain and memory, and the clearing. The host's part of the launches is not in it.

{table([*header, "target", "by the estimate"], rows)}

Not in it: memory that answers later than the second cache, edges that come late, contention for memory. With several
columns, a segment's alphas are read soon after they are written (0.5 MB for each column), and the second cache of an
H100 (50 MB) may have many of them; the bytes assume that it has none.
"""
