"""Compiles the CUDA kernels for every architecture we support and shows what each one takes. Needs nvcc, but no GPU.

    python test/check_cuda_compile.py [--fresh] [90 120 ...]

A line for each kernel, and kernels that differ in a number only share one:

    sm_90, 10 s
      sweep<float, half, true, false>   86/18208

that is, sums in float of half emissions, whole rows of them (up to 32 classes), without stars; 86 registers and 18,208
bytes of shared memory. sum_backward<float, false, true, false> is a sweep of the sums over all paths, without path
values, with whole rows, without stars; its shared memory is asked for at the launch, and not in the list. Spilled
registers and a stack are shown where there are any. A spill fails the check; with float64, which keeps twice as much,
it is only reported.

What nvcc says is kept (see kept.py), found by all sources and headers, the flags and the compilers: while none of these
changes, no later run compiles. It says so in place of the seconds, and checks what was said as if it were new; --fresh
compiles all. Without nvcc the check passes and says so; CTC_ALIGN_REQUIRE=nvcc makes that a failure.
"""

import argparse
import concurrent.futures
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import kept
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def load_setup():
    """The build's own flags, and its own way to find CUDA."""
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc(setup):
    os.environ["CTC_ALIGN_CUDA"] = "1"  # beside a CPU-only torch too
    home = setup.find_cuda()
    return home and shutil.which("nvcc", path=os.path.join(home, "bin"))


class Compiler:
    """nvcc with the flags of the build."""

    def __init__(self, setup, nvcc):
        self.nvcc = nvcc
        self.flags = [*cpp_extension.COMMON_NVCC_FLAGS, *setup.NVCC_FLAGS]
        self.includes = cpp_extension.include_paths()
        self.command = [nvcc, *self.flags, *(f"-I{path}" for path in self.includes)]
        self.surroundings = self.digest_of_surroundings()
        self.texts = {source: self.digest_of_texts(source) for source in SOURCES}

    def digest_of_surroundings(self):
        """Of all that decides what nvcc says, but for the source and what is asked of it. Names of folders do not."""
        toolkit = Path(self.nvcc).parent.parent
        hosts = [os.environ["NVCC_CCBIN"]] if "NVCC_CCBIN" in os.environ else ["gcc", "g++"]
        folders = [ROOT / "csrc", *self.includes, *(toolkit / name for name in ("bin", "nvvm", "include"))]
        return kept.digest_of(
            *(kept.digest_of_file(file) for file in (__file__, kept.__file__)),
            *self.flags,
            *(kept.digest_of_folder(path) for path in folders),
            kept.run(self.nvcc, "--version").stdout,
            *map(kept.digest_of_compiler, hosts),
            kept.digest_of_environment(),
        )

    def digest_of_texts(self, source):
        """Of every file that is read when a source is compiled, the system's headers too."""
        done = kept.run(*self.command, "-M", str(source))
        if done.returncode != 0:
            raise RuntimeError(f"nvcc -M failed\n{done.stdout}{done.stderr}")
        files = shlex.split(done.stdout.replace("\\\n", " "))[1:]
        return kept.digest_of(*map(kept.digest_of_file, files))

    def compile(self, source, architecture, whole):
        """Returns seconds, and what nvcc says; no seconds if it was said in an earlier run.

        `whole`: the host code too; it is the same for all architectures.
        """
        start = time.monotonic()
        name = source.name
        options = ["--compile" if whole else "--cubin", "--resource-usage"]
        options += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
        key = kept.digest_of("nvcc", self.surroundings, self.texts[source], name, *options)
        said = kept.load(key)
        if said is not None:
            return None, said.decode()
        with tempfile.TemporaryDirectory() as scratch:
            done = kept.run(*self.command, *options, str(source), "-o", os.path.join(scratch, "out"))
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise RuntimeError(f"sm_{architecture}: nvcc failed\n{said[-4000:]}")
        kept.save(key, said.encode())
        return time.monotonic() - start, said


class Usage(NamedTuple):
    """What one kernel takes: a thread's registers; the rest in bytes."""

    name: str  # as in the source: sweep<float, half, RowInWarp>
    number: str  # its numeric template arguments
    registers: int
    shared: int
    stack: int
    spilled: int

    def __str__(self):
        text = f"{self.number}: " * bool(self.number) + f"{self.registers}/{self.shared}"
        return text + f" stack {self.stack}" * bool(self.stack) + f" SPILLED {self.spilled}" * bool(self.spilled)


def read_usage(log):
    """Reads the usage of each kernel from what ptxas says."""
    kernels = re.split(r"Compiling entry function '", demangle(log))[1:]

    def count(kernel, pattern):
        return sum(map(int, re.findall(pattern, kernel)))

    for kernel in kernels:
        yield Usage(
            *short_name(kernel.split("'")[0]),
            registers=count(kernel, r"Used (\d+) registers"),
            shared=count(kernel, r"(\d+) bytes smem"),
            stack=count(kernel, r"(\d+) bytes stack frame"),
            spilled=count(kernel, r"(\d+) bytes spill (?:stores|loads)"),
        )


def demangle(text):
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def short_name(name):
    """'void a::(anonymous namespace)::sweep_kernel<float, c10::Half, 2>(...)' -> 'sweep<float, half>', '2'."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = name.replace("c10::BFloat16", "bfloat16").replace("c10::Half", "half")
    name = re.sub(r"ctc_align::SumChoice<(.*?)> ?", r"\1", name)
    base, _, arguments = re.sub(r"\b(\w+::)+|\(.*", "", name).partition("<")
    arguments = arguments.removesuffix(">").split(", ")
    kinds = [argument for argument in arguments if not argument.isdigit()]
    numbers = [argument for argument in arguments if argument.isdigit()]
    return f"{base.removesuffix('_kernel')}<{', '.join(kinds)}>", ", ".join(numbers)


def describe(usage):
    """Lines of kernels that differ in a number only."""
    groups = {}
    for kernel in sorted(usage, key=lambda kernel: (kernel.name, len(kernel.number), kernel.number)):
        groups.setdefault(kernel.name, []).append(str(kernel))
    width = max(map(len, groups))
    return [f"  {name:{width}}  {'   '.join(texts)}" for name, texts in groups.items()]


def describe_time(sources, seconds):
    """How long the compilation of the sources took, and which of them were compiled in earlier runs."""
    earlier = [source.name for source, s in zip(sources, seconds, strict=True) if s is None]
    new = [s for s in seconds if s is not None]
    texts = [f"{sum(new):.0f} s"] * bool(new)
    texts += [f"kept from an earlier run: {', '.join(earlier)}"] * bool(earlier)
    return ", ".join(texts)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compiles the CUDA kernels for every architecture we support.")
    parser.add_argument("architectures", nargs="*", metavar="90")
    parser.add_argument("--fresh", action="store_true", help="take nothing from earlier runs")
    options = parser.parse_args(arguments)
    if options.fresh:
        os.environ["CTC_ALIGN_FRESH"] = "1"
    setup = load_setup()
    nvcc = find_nvcc(setup)
    if not nvcc:
        message = "nvcc is not here: the CUDA kernels were not compiled"
        if "nvcc" in os.environ.get("CTC_ALIGN_REQUIRE", "").split(","):
            sys.exit(f"error: {message}")
        print(message)
        return
    known = [name.replace(".", "") for name in setup.architectures_of(os.path.dirname(os.path.dirname(nvcc)))]
    wanted = options.architectures or [name.replace(".", "") for name in setup.ARCHITECTURES]
    for architecture in wanted:
        if architecture not in known:
            print(f"sm_{architecture}: not known to this nvcc, left out")
    wanted = [architecture for architecture in wanted if architecture in known]

    spilling = []
    compiler = Compiler(setup, nvcc)
    print("registers / bytes of shared memory of each kernel", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [[pool.submit(compiler.compile, source, a, whole=a == wanted[0]) for source in SOURCES] for a in wanted]
        for architecture, of_sources in zip(wanted, jobs, strict=True):
            seconds, said = zip(*(job.result() for job in of_sources), strict=True)
            usage = [kernel for text in said for kernel in read_usage(text)]
            lines = [f"sm_{architecture}, {describe_time(SOURCES, seconds)}", *describe(usage)]
            print(*lines, sep="\n", flush=True)
            spilling += [f"  sm_{architecture}: {k.name} {k}" for k in usage if k.spilled and "double" not in k.name]
    if spilling:
        sys.exit("\n".join(["error: these kernels spill registers", *spilling]))


if __name__ == "__main__":
    main()
