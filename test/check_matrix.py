"""Checks one wheel beside every torch on every Python, each in an environment of its own (matrix_cell.py).

    python test/check_matrix.py dist/*.whl                               # all, and the table of docs/compatibility.md
    python test/check_matrix.py dist/*.whl --torch 2.10 2.15 --python 3.13 3.14t
    python test/check_matrix.py dist/*.whl --cells 2.10-3.10 2.15-3.13 --keep

uv makes the environments, in --folder, and links what is common to them. They are removed when they have been checked,
and what was downloaded goes with them; --keep leaves them for the next run (4 GB for each torch, 2 GB for each Python
beside it). Interpreters are python3.10, ... on the PATH, and those of --interpreters or MATRIX_PYTHONS
(separated by colons). A cell that fails does not stop the others; the exit status is 1 then.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
CELL = ROOT / "test" / "matrix_cell.py"
SAVED = ROOT / "test" / "data" / "saved"
BEGIN, END = "<!-- The table: make test-matrix writes it. -->\n", "<!-- End of the table. -->\n"
TORCHES = ("2.10", "2.11", "2.12", "2.13", "2.14", "2.15")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t")
TODAY = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
LONGEST_CELL = 1800  # seconds; on a machine of its own a cell takes one minute


def promised() -> tuple[str, str]:
    """The oldest torch and the oldest Python, as pyproject.toml has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib comes with Python 3.11
    torch = re.search(r'^dependencies = \["torch>=([\d.]+)"\]$', text, re.MULTILINE)[1]
    return torch, re.search(r'^requires-python = ">=([\d.]+)"$', text, re.MULTILINE)[1]


def find_interpreters(extra: list[str]) -> dict[str, str]:
    """{"3.14t": path}, the extra ones first. One that does not start is none: shims of version managers do that."""
    found: dict[str, str] = {}
    ask = (
        "import sys, sysconfig; no_gil = sysconfig.get_config_var('Py_GIL_DISABLED');"
        "print('%d.%d' % sys.version_info[:2] + 't' * bool(no_gil))"
    )
    on_path = [os.path.join(place, f"python{version}") for version in PYTHONS for place in os.get_exec_path()]
    for path in [*extra, *filter(os.path.exists, on_path)]:
        done = subprocess.run([path, "-I", "-c", ask], capture_output=True, text=True)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), path)
        elif path in extra:
            sys.exit(f"--interpreters: {path} does not start: {done.stderr.strip()}")
    return found


class Matrix:
    """The cells, what they need, and where it lies."""

    def __init__(self, wheel: Path, folder: Path, interpreters: dict[str, str], keep: bool) -> None:
        self.wheel, self.folder, self.interpreters, self.keep = wheel.resolve(), folder.resolve(), interpreters, keep
        self.digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        for name in ("results", "empty"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def uv(self, *arguments: object) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "uv",
            "--no-config",
            "--system-certs",  # as pip: a company's own, for example
            "--cache-dir",
            self.folder / "cache",
            *map(str, arguments),
        ]
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(command, capture_output=True, text=True, env=environment | {"UV_LINK_MODE": "hardlink"})

    def install(self, torch: str, python: str) -> dict | None:
        """Makes the environment of a cell. Returns why there is none, as the result of the cell."""
        if python not in self.interpreters:
            return {"status": "untried", "why": f"no interpreter python{python} here"}
        environment = self.folder / f"{torch}-{python}"
        if not (environment / "bin" / "python").exists():
            # As python -m venv makes it: up to Python 3.11 with setuptools, which torch 2.10 needs to compile.
            done = self.uv("venv", "--clear", "--seed", "--python", self.interpreters[python], environment)
            if done.returncode:
                shutil.rmtree(environment, ignore_errors=True)  # or the next run would take half of one for whole
                return {"status": "failed", "failed": {"environment": last_words(done.stderr)}}
        install = ["pip", "install", "--python", environment / "bin" / "python", f"torch=={torch}.*"]
        done = self.uv(*install, "--reinstall-package", "torch_ctc_align", self.wheel)
        if done.returncode == 0:
            return None
        if "No solution found" in done.stderr and self.uv(*install, "--dry-run").returncode:  # without us neither
            return {"status": "missing", "why": f"no package of torch {torch} for Python {python}"}
        return {"status": "failed", "failed": {"install": last_words(done.stderr)}}

    def check(self, torch: str, python: str) -> dict:
        """The result of a cell: status, failed and refused promises, versions, seconds of each promise."""
        environment = self.folder / f"{torch}-{python}"
        try:
            result = self.install(torch, python) or self.probe(environment)
        finally:
            if not self.keep:
                shutil.rmtree(environment, ignore_errors=True)
        result |= {"torch": torch, "python": python, "wheel": self.digest, "date": TODAY}
        self.result_of(torch, python).write_text(json.dumps(result, indent=1))
        return result

    def result_of(self, torch: str, python: str) -> Path:
        return self.folder / "results" / f"{torch}-{python}.json"

    def checked_before(self, torch: str, python: str) -> dict | None:
        """The result of an earlier run with the same wheel, if it was good."""
        path = self.result_of(torch, python)
        result = json.loads(path.read_text()) if path.exists() else {}
        good = result.get("wheel") == self.digest and result["status"] in ("passed", "missing")
        return result if good else None

    def not_checked(self, torch: str, python: str) -> dict:
        return {"torch": torch, "python": python, "status": "untried", "why": "not tried", "date": TODAY}

    def probe(self, environment: Path) -> dict:
        command = [environment / "bin" / "python", "-I", "-W", "ignore", CELL, SAVED]
        quick = {
            "TORCHINDUCTOR_CACHE_DIR": str(environment / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes for a handful of kernels
            "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0",
        }
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=self.folder / "empty",
                env=os.environ | quick,
                timeout=LONGEST_CELL,
            )
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            return read_lines(output, f"took more than {LONGEST_CELL} s")
        status = f"exit status {done.returncode}: {last_words(done.stderr)}" if done.returncode else ""
        return read_lines(done.stdout, status)


def read_lines(output: str, ended: str) -> dict:
    """What a cell has printed, as its result; `ended` says how it ended, if not well."""
    result: dict = {"failed": {}, "refused": {}, "seconds": {}, "versions": {}}
    open_promise = None
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        result["versions"] |= said.get("versions", {})
        open_promise = said.get("begin", open_promise)
        if "end" in said:
            open_promise = None
            result["seconds"][said["end"]] = said["seconds"]
            for kind in ("failed", "refused"):
                if kind in said:
                    result[kind][said["end"]] = said[kind]
    if ended or open_promise or not result["seconds"]:
        result["failed"][open_promise or "import"] = ended or "ended without a word"
    result["status"] = "failed" if result["failed"] else "passed"
    return result


def last_words(text: str) -> str:
    return " ".join(text.split())[-400:]


# ------------------------------------------------------------------------------ the table


def table(results: list[dict], wheel: str, machine: str) -> str:
    """What the page holds between BEGIN and END."""
    cells = {(result["torch"], result["python"]): result for result in results}
    torches = list(dict.fromkeys(torch for torch, _ in cells))
    pythons = list(dict.fromkeys(python for _, python in cells))
    notes: list[str] = []

    def number(note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"[{notes.index(note) + 1}]"

    def words(result: dict) -> str:
        if result["status"] in ("missing", "untried"):
            return f"- {number(result['why'])}"
        if result["failed"]:
            return "**no** " + " ".join(number(f"{name}: {why}") for name, why in result["failed"].items())
        refused = [number(f"torch refuses {name} without us, too: {why}") for name, why in result["refused"].items()]
        if result["python"].endswith("t") and result["versions"].get("gil"):
            refused.append(number("torch itself switches the GIL on"))
        return " ".join(["yes", *refused])

    def exact(key: str, chosen: list[dict], otherwise: str) -> str:
        return ", ".join(sorted({r["versions"][key] for r in chosen if r.get("versions", {}).get(key)})) or otherwise

    head = [exact("python", [cells[t, p] for t in torches if (t, p) in cells], p) for p in pythons]
    head = [
        f"{version} free-threaded" if p.endswith("t") else version for version, p in zip(head, pythons, strict=True)
    ]
    lines = [f"| torch | its CUDA | Python {' | '.join(head)} |", "| --- | --- |" + " --- |" * len(pythons)]
    for t in torches:
        row = [cells[t, p] for p in pythons if (t, p) in cells]
        cuda = exact("cuda", row, "none" if any(r.get("versions") for r in row) else "-")
        majors = "".join(
            f" (cu{major})" for major in sorted({c.split(".")[0] for c in cuda.split(", ")} - {"none", "-"})
        )
        said = [words(cells[t, p]) if (t, p) in cells else "" for p in pythons]
        lines.append(f"| {exact('torch', row, t)} | {cuda}{majors} | {' | '.join(said)} |")
    dates = sorted({result["date"] for result in results})
    lines += ["", f"The wheel: `{wheel}`. {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine}."]
    lines += (
        ["", *(f"{i}. {note.replace('|', '/').replace('<', '&lt;')}" for i, note in enumerate(notes, 1))]
        if notes
        else []
    )
    return "\n".join(lines) + "\n"


def write_table(text: str, page: Path = PAGE) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def describe_machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    gpu = "a GPU" if Path("/dev/nvidiactl").exists() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {names[0] if names else 'unknown processor'}, {gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(".matrix"))
    parser.add_argument("--torch", nargs="+", choices=TORCHES, default=TORCHES, metavar="2.12")
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=PYTHONS, metavar="3.13")
    parser.add_argument("--cells", nargs="+", metavar="2.12-3.13", help="these, instead of each torch on each Python")
    extra = os.environ.get("MATRIX_PYTHONS", "")
    parser.add_argument("--interpreters", default=extra, metavar="PATH:PATH", help="besides those on the PATH")
    parser.add_argument("--keep", action="store_true", help="the environments, for the next run")
    parser.add_argument("--resume", action="store_true", help="take what an earlier run of this wheel has found good")
    parser.add_argument("--table", action="store_true", help="write the page from earlier results, check nothing")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side")
    arguments = parser.parse_args()

    every = [(torch, python) for torch in TORCHES for python in PYTHONS]
    asked = arguments.cells or [f"{t}-{p}" for t, p in every if t in arguments.torch and p in arguments.python]
    chosen = [(t, p) for t, p in every if f"{t}-{p}" in asked]
    if len(chosen) != len(set(asked)):
        parser.error(f"--cells must name some of 2.10-3.10, ..., found {' '.join(asked)}")

    interpreters = find_interpreters(list(filter(None, arguments.interpreters.split(":"))))
    matrix = Matrix(arguments.wheel, arguments.folder, interpreters, arguments.keep)

    def run(cell: tuple[str, str]) -> dict:
        result = matrix.checked_before(*cell) if arguments.resume or arguments.table else None
        if result is None:
            result = matrix.not_checked(*cell) if arguments.table else matrix.check(*cell)
        seconds = sum(result.get("seconds", {}).values())
        said = result.get("why") or ", ".join(
            f"{n}: {why}" for n, why in (result.get("failed", {}) | result.get("refused", {})).items()
        )
        print(f"torch {cell[0]}, Python {cell[1]}: {result['status']} ({seconds:.0f} s) {said}", flush=True)
        return result

    results = []
    for _, cells in itertools.groupby(chosen, lambda cell: cell[0]):
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results += pool.map(run, cells)
        if not arguments.keep:  # torch and its CUDA libraries are of no use to the next one
            shutil.rmtree(matrix.folder / "cache", ignore_errors=True)
    # Environments that are kept hold links of all that they need.
    shutil.rmtree(matrix.folder / "cache", ignore_errors=True)

    text = table(results, arguments.wheel.name, describe_machine())
    print(text)
    if chosen == every:
        write_table(text)
    sys.exit(any(result["status"] == "failed" for result in results))


if __name__ == "__main__":
    main()
