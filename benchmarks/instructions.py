"""Counts the instructions of an alignment for each instruction set, NEON's under emulation, and writes a page.

    python benchmarks/instructions.py [--page PATH]          (after make build and make wheel-aarch64)

The kernels are the very objects of these two builds. A small program (instructions.cpp) aligns one item. QEMU counts
the instructions of two calls less those of one, through a plugin (count_instructions.cpp). It does not know AVX-512:
there a parent steps through the program (ptrace). Needs GCC, aarch64-linux-gnu-g++ and qemu-user, on an x86-64
processor.

A count is not a time: an instruction of AVX-512 does four times the work of one of NEON, and processors differ in how
many they begin in a cycle. It tells whether code for a processor that is not here is what it should be.
"""

import argparse
import collections
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cases import Case
from machine import commit_and_date, output_of

ROOT = Path(__file__).resolve().parents[1]
CASES = [Case(1, 1_500, 200, 32), Case(1, 2_000, 1_000, 32)]
REALS = ["float32", "float64"]
# What it is called on the page, the compiler's prefix, the emulator, and the dictionary of lanes.
MACHINES = [
    ("aarch64, NEON", "aarch64-linux-gnu-", "qemu-aarch64 -L /usr/aarch64-linux-gnu", "portable"),
    ("x86-64, SSE2", "", "qemu-x86_64 -cpu max", "portable"),
    ("x86-64, AVX2", "", "qemu-x86_64 -cpu max", "avx2"),
    ("x86-64, AVX-512", "", "", "avx512"),
]
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-pthread"]


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, cwd=ROOT)


def build(folder, prefix, objects):
    """The program that aligns, with the kernels of a build."""
    program = folder / f"{prefix}instructions"
    kernels = [objects / "csrc/cpu/options.o", *sorted((objects / "csrc/cpu/lanes").glob("isa_*.o"))]
    run(f"{prefix}g++", *FLAGS, ROOT / "benchmarks/instructions.cpp", *kernels, "-o", program)
    return program


def count(program, emulator, plugin, cpu, real, case):
    """Instructions of a call."""
    sizes = [case.frames, case.labels, case.classes]
    if not emulator:
        return int(run(program, cpu, real, *sizes, 1, "step").stdout)

    def executed(repeats):
        said = run(*emulator.split(), "-plugin", plugin, program, cpu, real, *sizes, repeats).stderr
        return int(re.search(r"executed (\d+)", said)[1])

    return executed(2) - executed(1)


def read_instructions(objects):
    """The kernels for aarch64: their most frequent instructions on vectors, and comparisons of single numbers."""
    listing = run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", objects / "csrc/cpu/lanes/isa_portable.o")
    vectors = re.findall(r"^\s+[0-9a-f]+:\s+(\w+)\s+\S*v\d+\.", listing.stdout, re.MULTILINE)
    return collections.Counter(vectors).most_common(16), len(re.findall(r"\tfcmpe?\s", listing.stdout))


def write_page(rows, common, scalars):
    made = commit_and_date()
    versions = ",\n".join(
        output_of(*command.split()).splitlines()[0]
        for command in ("g++ --version", "aarch64-linux-gnu-g++ --version", "qemu-aarch64 --version")
    )
    processor = re.search(r"^Model name:\s*(.+)$", output_of("lscpu"), re.MULTILINE)[1]
    lines = [
        "# Instructions of NEON beside those of x86-64",
        "",
        f"**Counted, not timed.** {made['date']}, package at {made['commit']}. {processor} ({platform.machine()});",
        f"{versions}.",
        'Made by `make instructions ARGS="--page docs/measurements/neon_instructions.md"`, without an aarch64 machine;',
        "[instructions.py](../../benchmarks/instructions.py) says how.",
        "",
        "Instructions of a call of the CPU kernel, over the states of the band: the sweep with its records, the panel,",
        "and the traceback.",
        "",
        "| T, L, C | dtype | " + " | ".join(name for name, *_ in MACHINES) + " |",
        "| --- | --- |" + " ---: |" * len(MACHINES),
    ]
    for (case, real), counts in rows.items():
        sizes = f"{case.frames:,}, {case.labels:,}, {case.classes}"
        lines.append(f"| {sizes} | {real} | " + " | ".join(f"{n / case.states:.2f}" for n in counts) + " |")
    names = ", ".join(f"`{name}` {times:,}" for name, times in common)
    lines += [
        "",
        "The most frequent instructions on vectors in the code for aarch64, counted where they stand, not as they run:",
        f"{names}.",
        "Labels are looked up by transposition (`zip1`, `zip2`), as everywhere but with AVX-512; there is no `tbl`.",
        f"Numbers that are compared one by one: {scalars:,} `fcmpe`. Vectors of four doubles are two registers, and",
        "GCC compares and selects those element by element, for NEON as for SSE2.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, default=ROOT / "build/objects", help="of make build")
    parser.add_argument("--aarch64", type=Path, default=ROOT / "build/aarch64/objects", help="of make wheel-aarch64")
    parser.add_argument("--page", type=Path, help="where the page is written")
    arguments = parser.parse_args()
    folders = {"": arguments.objects.resolve(), "aarch64-linux-gnu-": arguments.aarch64.resolve()}
    rows = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        plugin = Path(scratch, "count.so")
        source = ROOT / "benchmarks/count_instructions.cpp"
        run("g++", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", source, "-o", plugin)
        programs = {prefix: build(Path(scratch), prefix, objects) for prefix, objects in folders.items()}
        for case in CASES:
            for real in REALS:
                for name, prefix, emulator, cpu in MACHINES:
                    rows[case, real].append(count(programs[prefix], emulator, plugin, cpu, real, case))
                    print(f"{case} {real} {name}: {rows[case, real][-1]:,}", file=sys.stderr, flush=True)
    page = write_page(rows, *read_instructions(folders["aarch64-linux-gnu-"]))
    if arguments.page:
        arguments.page.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
