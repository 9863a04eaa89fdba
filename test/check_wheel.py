"""Checks a wheel as a stranger gets it: its contents, its libraries, one alignment in a clean environment.

    python test/check_wheel.py dist/*.whl [--torch 2.13.0] [--skip-alignment]

The environment holds torch (the version at hand, or the one asked for), the wheel and nothing else of ours.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "torch_ctc_align"
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}

OLDEST_GLIBC = 28  # 2.28: that of torch's own wheels
# The static CUDA runtime takes the threads of the glibc that it is linked with, which 2.34 gave new versions. Releases
# are linked in manylinux_2_28, where auditwheel refuses them.
OLDEST_GLIBC_WITH_CUDA = 34
# No library of Python, none of CUDA: the CUDA runtime is inside, and finds the driver by itself.
LIBRARIES = {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"}
LIBRARIES |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
CUDA_LIBRARIES = {"libtorch_cuda.so", "libdl.so.2", "librt.so.1", "libpthread.so.0"}
SYMBOLS = (
    r"(?:aoti_torch|torch)_\w+|\w+@(?:GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+|__gmon_start__|_ITM_\w+|__cxa_finalize@?\S*"
)

# Two ways through frame 1 tie; the advance over the blank goes before the skip.
ALIGN = """
import sys, torch, torch_ctc_align
assert torch_ctc_align.__file__.startswith(sys.prefix), torch_ctc_align.__file__
log_probs = torch.tensor([[[-2.0, -1, -1], [0, 0, -1], [-2, -1, 0]]])
paths, scores = torch_ctc_align.forced_align(log_probs, torch.tensor([[1, 2]]))
assert paths.tolist() == [[1, 0, 2]] and scores.tolist() == [[-1.0, 0, 0]], (paths, scores)
print("aligned with torch", torch.__version__, "from", torch_ctc_align.__file__)
from torch_ctc_align.speech import Aligner, SpeechError
try:
    Aligner.english()
except SpeechError as error:
    assert "pip install 'torch_ctc_align[speech]'" in str(error), error
    print("without its extra:", error)
else:
    raise AssertionError("the extra is here")
"""


def check_contents(wheel: Path) -> None:
    """The package as it is in the tree, compiled libraries, metadata, license: all of it and nothing else."""
    if not wheel.name.endswith(".whl") or "-py3-none-" not in wheel.name:
        sys.exit(f"{wheel.name}: expected one wheel for every Python, NAME-VERSION-py3-none-PLATFORM.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]  # auditwheel keeps folders
    info = re.escape("-".join(wheel.name.split("-")[:2]) + ".dist-info/")
    found = {re.sub(f"^{info}", "dist-info/", name) for name in names}
    libraries = {name for name in found if re.fullmatch(rf"{PACKAGE}/[^/]+\.so", name)}
    kinds = ("*.py", "py.typed", "*.html", "*.json")
    sources = [path for kind in kinds for path in (ROOT / PACKAGE).rglob(kind)]
    expected = {path.relative_to(ROOT).as_posix() for path in sources} | {f"dist-info/{name}" for name in METADATA}
    if not libraries or found - libraries != expected:
        sys.exit(
            f"{wheel.name}: libraries {sorted(libraries) or 'missing'}, "
            f"missing {sorted(expected - found)}, too much {sorted(found - libraries - expected)}"
        )
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size} bytes")


def check_tag(wheel: Path) -> None:
    """Every Linux that a torch of 2.10 runs on takes the wheel, and its libraries ask for no more than that."""
    names = zipfile.ZipFile(wheel).namelist()
    oldest = OLDEST_GLIBC_WITH_CUDA if any("_C_cuda" in name for name in names) else OLDEST_GLIBC
    glibc = re.search(r"-py3-none-.*\bmanylinux_2_(\d+)_(?:x86_64|aarch64)\.whl$", wheel.name)
    if not glibc or int(glibc[1]) > oldest:
        sys.exit(
            f"{wheel.name}: expected manylinux_2_{oldest} or lower. `auditwheel show` names the symbols that are "
            "too new; csrc/symbol_versions.h asks for older versions of them"
        )


def check_libraries(wheel: Path) -> None:
    """One binary for many releases: of torch it takes the stable C functions, of the system what glibc 2.28 has."""
    with tempfile.TemporaryDirectory() as scratch:
        zipfile.ZipFile(wheel).extractall(scratch)
        for library in sorted(Path(scratch, PACKAGE).glob("*.so")):
            needed = set(re.findall(r"NEEDED.*\[(.*)\]", answer("readelf", "--dynamic", library)))
            allowed = LIBRARIES | (CUDA_LIBRARIES if "cuda" in library.name else set())
            if needed - allowed:
                sys.exit(f"{library.name} needs {sorted(needed - allowed)}; allowed are {sorted(allowed)}")
            if "cuda" in library.name and "libtorch_cuda.so" not in needed:
                sys.exit(f"{library.name} does not name libtorch_cuda.so: torch cannot load it")
            symbols = re.findall(
                r"^ +[Uw] (\S+)$", answer("nm", "--dynamic", "--undefined-only", library), re.MULTILINE
            )
            others = [symbol for symbol in symbols if not re.fullmatch(SYMBOLS, symbol)]
            if others or not symbols:
                sys.exit(
                    f"{library.name} needs symbols of neither torch's stable C functions nor the system: {others[:5]}"
                )
            print(f"{library.name}: {library.stat().st_size} bytes, needs {' '.join(sorted(needed))}")


def answer(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_alignment(wheel: Path, torch_version: str) -> None:
    """Aligns from an empty directory, in an environment that has seen only the wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(Path(scratch, "env"), with_pip=True)
        python = Path(scratch, "env", "bin", "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, f"torch=={torch_version}", wheel.resolve()], check=True)
        empty = Path(scratch, "empty")
        empty.mkdir()
        subprocess.run([python, "-I", "-c", ALIGN], check=True, cwd=empty)


def main() -> None:
    """Runs the checks in order of cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default=importlib.metadata.version("torch").split("+")[0], metavar="VERSION")
    parser.add_argument("--skip-alignment", action="store_true", help="of a wheel for another processor, for example")
    arguments = parser.parse_args()
    check_contents(arguments.wheel)
    check_tag(arguments.wheel)
    check_libraries(arguments.wheel)
    if not arguments.skip_alignment:
        check_alignment(arguments.wheel, arguments.torch)


if __name__ == "__main__":
    main()
