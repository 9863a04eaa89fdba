"""Estimates from the machine code what a frame of the CUDA sweeps costs, without a GPU.

    python benchmarks/cuda_cycles.py [--nvdisasm PATH] [--page PATH]          (or: make cuda-cycles)

For sm_90 alone. Needs nvcc, and nvdisasm of the CUDA toolkit or of the package nvidia-cuda-nvdisasm.

Since Volta an instruction says in its own bits for how many cycles the next one stalls, which scoreboard it sets and
which ones it waits for (Jia et al., "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking", 2018, chapter
2). That is read here for one step of a consumer: the shortest way through the loop that runs whole stages of 16 frames.
Then the four consumers of a block of threads run it, on four schedulers with a pipe for additions and one for
comparisons and selects, and one memory port for all.

Not in it: the memory after the first cache, the barrier at the end of a step, the steps in which a frame block fills
and drains, and the producers. It says 75 cycles with whole rows of emissions and without stars ("true, false"); an H100
takes 86 with all but the filling and draining (docs/performance.md). So it tells two texts of the same loop apart where
they differ by more than some 5 %. float64 is left out.

The sums over all paths follow in cuda_sum_cycles.py; --page writes their page, with estimates of whole calls.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch.utils import cpp_extension

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))
import cuda_sum_cycles
from check_cuda_compile import SOURCES, demangle, find_nvcc, load_setup, read_usage, short_name

SCHEDULERS = 4  # each with one consumer: 256 pairs, two a thread
STAGE = 16  # frames
# Cycles until a result is there, of instructions whose latency varies; in the first cache where they go to memory.
LATENCY = {"SHFL": 24, "LDS": 30, "LDG": 30, "VOTE": 12, "REDUX": 20, "STS": 10, "STG": 10}
OTHER_LATENCY, READ_LATENCY = 20, 8
SECOND_CACHE = 250  # where a sum's warp reads what others have written
# Cycles for which an instruction holds its pipe.
HALF_RATE = "SEL FSEL FMNMX FSETP ISETP LOP3 IADD3 SHF LEA VIADD VIMNMX VIADDMNMX PRMT PLOP3 MOV IMNMX P2R R2P IABS"
PIPES = dict.fromkeys(HALF_RATE.split(), ("compare", 2))
PIPES |= dict.fromkeys(("FADD", "FMUL", "FFMA", "IMAD"), ("add", 1))
PIPES |= dict.fromkeys(("LDS", "STS", "LDG", "STG"), ("memory", 1)) | {"SHFL": ("memory", 2)}


@dataclass
class Instruction:
    address: int
    text: str
    control: int  # the upper half of its 128 bits

    @property
    def name(self):
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0].split(".")[0]

    @property
    def is_conditional(self):
        return self.text.startswith("@")

    @property
    def stall(self):
        return max(1, self.control >> 41 & 15)

    @property
    def scoreboards(self):
        """Set when the result is there, set when the operands are read (7: none); those waited for, as bits."""
        return self.control >> 46 & 7, self.control >> 49 & 7, self.control >> 52 & 63


def disassemble(nvdisasm, cubin):
    """{kernel: (its instructions, {address of a branch: its target})}"""
    listing = subprocess.run([nvdisasm, "-hex", cubin], capture_output=True, text=True, check=True).stdout
    for section in re.split(r"^\.text\.(?=\w+:$)", listing, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition(":")
        instructions, labels, waiting, branches = [], {}, [], {}
        for line in body.splitlines():
            if line.startswith("\t.section"):
                break
            if label := re.match(r"(\.L_\w+):", line):
                waiting.append(label[1])
            elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/", line):
                instructions.append(Instruction(int(found[1], 16), found[2], 0))
                labels |= dict.fromkeys(waiting, instructions[-1].address)
                waiting = []
            elif instructions and (found := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
                instructions[-1].control = int(found[1], 16)
        for instruction in instructions:
            label = re.search(r"\((\.L_\w+)\)", instruction.text)
            if instruction.name == "BRA" and label and label[1] in labels:
                branches[instruction.address] = labels[label[1]]
        yield name, instructions, branches


def count(instructions, name):
    return sum(instruction.name == name for instruction in instructions)


def one_step(instructions, branches):
    """What a consumer runs in a step of the sweep in which it does a whole stage."""

    def body(start, end):
        return [i for i in instructions if start <= i.address <= end]

    # The loop over steps has one barrier and most of the maxima.
    loops = [(start, end) for end, start in branches.items() if start < end]
    loops = [loop for loop in loops if count(body(*loop), "BAR") == 1]
    start, end = max(loops, key=lambda loop: count(body(*loop), "FMNMX"))

    blocks, begins = [], {start, *branches.values()}
    for instruction in body(start, end):
        if instruction.address in begins or (blocks and blocks[-1][-1].name in ("BRA", "EXIT")):
            blocks.append([])
        blocks[-1].append(instruction)
    place = {block[0].address: n for n, block in enumerate(blocks)}

    # The shortest way to the loop's end, but through what runs frames.
    costs, following = {}, {}
    for n in reversed(range(len(blocks))):
        block, last = blocks[n], blocks[n][-1]
        maxima = count(block, "FMNMX")
        costs[n] = len(block) - 100 * maxima * (maxima >= 10)
        if last.address == end:
            continue
        successors = [] if last.name in ("BRA", "EXIT") and not last.is_conditional else [n + 1]
        successors += [place[t] for t in [branches.get(last.address)] if t in place]
        successors = [s for s in successors if s > n and s in costs]
        if not successors:
            costs.pop(n)  # leaves the loop, or waits in a loop of its own
            continue
        following[n] = min(successors, key=costs.get)
        costs[n] += costs[following[n]]
    way, n = [], 0
    while n is not None:
        way += blocks[n]
        n = following.get(n)
    return way


def simulate(on_schedulers, latencies=LATENCY):
    """Returns the cycles until all warps are done. on_schedulers: the ways of each scheduler's warps."""
    running = [
        [{"way": way, "next": 0, "ready": 3 * s + 7 * w, "boards": [0] * 6} for w, way in enumerate(ways)]
        for s, ways in enumerate(on_schedulers)
    ]
    pipes = Counter()
    cycle, left = 0, sum(map(len, on_schedulers))
    while left:
        for scheduler, mine in enumerate(running):
            for warp in mine:
                way = warp["way"]
                if warp["next"] == len(way) or warp["ready"] > cycle:
                    continue
                instruction = way[warp["next"]]
                result, read, waits = instruction.scoreboards
                pipe, held = PIPES.get(instruction.name, (None, 0))
                key = pipe if pipe == "memory" else (pipe, scheduler)
                if any(waits >> b & 1 and ready > cycle for b, ready in enumerate(warp["boards"])):
                    continue
                if pipe and pipes[key] > cycle:
                    continue
                pipes[key] = cycle + held
                latency = latencies.get(instruction.name, OTHER_LATENCY)
                for board, until in ((result, cycle + latency), (read, cycle + READ_LATENCY)):
                    if board != 7:
                        warp["boards"][board] = max(warp["boards"][board], until)
                warp["ready"] = cycle + instruction.stall
                warp["next"] += 1
                left -= warp["next"] == len(way)
                mine.sort(key=lambda other: other is not warp)  # the same warp goes on while it can
                break
        cycle += 1
    return cycle


def find_nvdisasm(wanted, nvcc):
    beside = shutil.which("nvdisasm", path=f"{Path(nvcc).parent}{os.pathsep}{os.environ['PATH']}")
    packages = [*Path(cpp_extension.__file__).parents[2].glob("nvidia/*/bin/nvdisasm")]
    found = wanted or beside or next(iter(packages), None)
    return found or sys.exit("error: nvdisasm is not here: pip install nvidia-cuda-nvdisasm, or --nvdisasm PATH")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvdisasm", metavar="PATH")
    parser.add_argument("--page", metavar="PATH", type=Path, help="writes the estimates of the sums there")
    arguments = parser.parse_args()
    setup = load_setup()
    nvcc = find_nvcc(setup) or sys.exit("error: nvcc is not here")
    nvdisasm = find_nvdisasm(arguments.nvdisasm, nvcc)
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *setup.NVCC_FLAGS, *(f"-I{x}" for x in cpp_extension.include_paths())]
    kernels, usage = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for source in SOURCES:
            cubin = Path(scratch) / "out.cubin"
            command = [nvcc, "--cubin", source, "-o", cubin, *flags, "-arch=sm_90", "--resource-usage"]
            log = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ).stdout
            usage |= {kernel.name: kernel.registers for kernel in read_usage(log)}
            for name, instructions, branches in disassemble(nvdisasm, cubin):
                kernels[short_name(demangle(name))[0]] = instructions, branches
    sweeps = []
    for name, (instructions, branches) in kernels.items():
        if not name.startswith("sweep<") or not count(instructions, "FMNMX"):
            continue  # float64 has other instructions, and other rates
        way = one_step(instructions, branches)
        cycles = simulate([[way]] * SCHEDULERS) / STAGE
        sweeps.append([f"`{name}`", f"{cycles:.0f}", f"{len(way) / STAGE:.1f}"])
    sums = cuda_sum_cycles.sums_of(kernels, usage, lambda ways: simulate(ways, LATENCY | {"LDG": SECOND_CACHE}))
    print(cuda_sum_cycles.render_sweeps(sweeps))
    print(cuda_sum_cycles.render_loops(sums))
    if arguments.page:
        arguments.page.write_text(cuda_sum_cycles.render_page(sums, sweeps, nvcc), encoding="utf-8")


if __name__ == "__main__":
    main()
