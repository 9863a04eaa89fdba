"""Checks a wheel as a stranger gets it: its contents, its libraries, one alignment in a clean environment.

    python test/check_wheel.py dist/*.whl [--torch 2.13.0]

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
    names = zipfile.ZipFile(wheel).namelist()
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


def check_symbols(wheel: Path) -> None:
    """One binary for many releases: nothing of CPython, and of torch only the stable C functions."""
    with tempfile.TemporaryDirectory() as scratch:
        zipfile.ZipFile(wheel).extractall(scratch)
        for library in Path(scratch, PACKAGE).glob("*.so"):
            needed = subprocess.run(
                ["nm", "--dynamic", "--undefined-only", "--demangle", library],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            unstable = re.findall(r"\bU (_?Py\w+|(?:.* )?(?:at|c10|torch)::.*)", needed)
            if unstable:
                sys.exit(f"{library.name} needs symbols outside the stable ABI: {unstable[:5]}")


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
    arguments = parser.parse_args()
    check_contents(arguments.wheel)
    check_symbols(arguments.wheel)
    check_alignment(arguments.wheel, arguments.torch)


if __name__ == "__main__":
    main()
