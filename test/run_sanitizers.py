"""Compiles the CPU kernel with each test program of csrc/ and runs it: plainly, with ASan and UBSan, and with TSan.

    python test/run_sanitizers.py [--fresh] [plain] [asan+ubsan] [tsan]

Prints a line for each, or the failure. Programs run each time; their objects are kept (see kept.py) until a source, a
flag or the compiler changes, and --fresh compiles all. Needs a C++ compiler (CXX, or c++), but neither torch nor a
virtual environment. With a compiler for another processor (CXX=aarch64-linux-gnu-g++, "plain") the programs run under
QEMU (qemu-user).
CTC_ALIGN_SEED=7 draws other cases.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import kept

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["viterbi_test", "forward_backward_test"]
SOURCES = [ROOT / "csrc" / "cpu" / "options.cpp", *sorted(ROOT.glob("csrc/cpu/lanes/isa_*.cpp"))]
COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-std=c++20", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Wno-psabi"]
WATCHED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
BUILDS = {
    "plain": ["-O2"],
    "asan+ubsan": [*WATCHED, "-fsanitize=address,undefined"],
    "tsan": [*WATCHED, "-fsanitize=thread"],
}


class Failure(Exception):
    """The output of a build or a run that failed."""


def sources_of(*tests: str) -> list[Path]:
    return [*SOURCES, *(ROOT / "test" / "csrc" / f"{test}.cpp" for test in tests)]


def check_compiler(name: str, folder: Path) -> None:
    if not shutil.which(COMPILER[0]):
        raise Failure(f"no C++ compiler {COMPILER[0]}; on Debian or Ubuntu: apt install g++")
    nothing = [*COMPILER, *BUILDS[name], "-x", "c++", "-", "-o", folder / "nothing"]
    probe = subprocess.run(nothing, input="int main() {}", capture_output=True, text=True)
    if probe.returncode != 0:
        raise Failure(f"{' '.join(COMPILER)} cannot link {' '.join(BUILDS[name])}:\n{probe.stderr}")


def compile_object(name: str, source: Path, folder: Path) -> Path:
    """The object of a source, compiled without a warning."""
    output = folder / f"{source.stem}.o"
    result = kept.compile_program(COMPILER, [*FLAGS, *BUILDS[name], "-c"], [source], output)
    if result.returncode != 0 or "warning" in result.stderr:
        raise Failure(result.stderr)
    return output


def link(name: str, test: str, objects: Iterable[Path], folder: Path) -> Path:
    program = folder / test
    command = [*COMPILER, *FLAGS, *BUILDS[name], *objects, "-o", program]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise Failure(result.stderr)
    return program


def build(name: str, test: str, folder: Path) -> Path:
    """The program of a test."""
    check_compiler(name, folder)
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = pool.map(lambda source: compile_object(name, source, folder), sources_of(test))
        return link(name, test, list(objects), folder)


def run(program: Path) -> None:
    command = [*emulator(), *at_fixed_addresses(), program, os.environ.get("CTC_ALIGN_SEED", "0")]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode < 0:
        raise Failure(f"{result.stdout}\nended by {signal.Signals(-result.returncode).name}")
    if result.returncode > 0:
        raise Failure(result.stdout)


def emulator() -> list[str]:
    """A prefix, if the compiler is one for another processor: QEMU, with the libraries where Debian has them."""
    target = subprocess.run([*COMPILER, "-dumpmachine"], capture_output=True, text=True).stdout.strip()
    processor = target.partition("-")[0]
    if processor in ("", platform.machine(), "arm64"):  # Apple's word
        return []
    return [f"qemu-{processor}", "-L", f"/usr/{target}"]


def at_fixed_addresses() -> list[str]:
    """A prefix: some kernels put programs where older sanitizers keep their shadow ("unexpected memory mapping")."""
    if emulator():
        return []
    prefix = ["setarch", platform.machine(), "--addr-no-randomize"]
    try:
        return prefix if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def link_and_run(name: str, test: str, objects: dict[Path, Future[Path]], folder: Path) -> str:
    """Returns a line about a test that passed."""
    program = link(name, test, [objects[source].result() for source in sources_of(test)], folder)
    start = time.monotonic()
    run(program)
    return f"{name:10} {test:21} passed; ran for {time.monotonic() - start:.0f} s"


def main() -> None:
    wanted = [argument for argument in sys.argv[1:] if argument != "--fresh"] or BUILDS
    if "--fresh" in sys.argv:
        os.environ["CTC_ALIGN_FRESH"] = "1"
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(max_workers=2) as pool:
        runs = {}
        for name in wanted:
            folder = Path(top) / name
            folder.mkdir()
            try:
                check_compiler(name, folder)
            except Failure as failure:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"{name:10} FAILED\n{failure}")
            # Every object once, for all tests. A run waits for objects that were begun before it: none waits for ever.
            objects = {source: pool.submit(compile_object, name, source, folder) for source in sources_of(*TESTS)}
            runs |= {(name, test): pool.submit(link_and_run, name, test, objects, folder) for test in TESTS}
        for (name, test), result in runs.items():
            try:
                print(result.result(), flush=True)
            except Failure as failure:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"{name:10} {test:21} FAILED\n{failure}")


if __name__ == "__main__":
    main()
