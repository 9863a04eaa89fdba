"""What the tests share: one seed, random cases, the aligners, fresh processes, and what happens when a peer is missing.

CTC_ALIGN_SEED=7                  another seed for every random case (printed at the top of a run)
CTC_ALIGN_REQUIRE=avx2,asan       names, separated by commas: their absence fails a test instead of skipping it
"""

import ast
import fcntl
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_ctc_align
from torch_ctc_align import _mistakes, errors, reference
from torch_ctc_align.config import _forced

ROOT = Path(torch_ctc_align.__file__).parents[1]

SEED = int(os.environ.get("CTC_ALIGN_SEED", "0"))
CPUS = ["avx512", "avx2", "portable"]  # all instruction sets of the CPU kernel, here or not
# What CTC_ALIGN_REQUIRE may name. check_cuda_compile.py asks for nvcc; tests skip without any of the others.
REQUIRABLE = {
    *CPUS,
    *("asan", "c++", "clients", "corpora", "cuda", "docs", "history", "nvcc", "onnxscript", "setuptools", "torchaudio"),
    *(
        "speech",
        "chromium",
        "ffmpeg",
        "praat",
        "sox",
    ),  # the libraries of requirements-dev.txt; programs that users have
}
REQUIRED = set(filter(None, os.environ.get("CTC_ALIGN_REQUIRE", "").split(",")))


def pytest_configure() -> None:
    if unknown := REQUIRED - REQUIRABLE:
        raise pytest.UsageError(
            f"CTC_ALIGN_REQUIRE must name some of {', '.join(sorted(REQUIRABLE))}, found {', '.join(sorted(unknown))}"
        )


def pytest_report_header() -> str:
    required = f", required: {', '.join(sorted(REQUIRED))}" if REQUIRED else ""
    return f"CTC_ALIGN_SEED={SEED}, torch {torch.__version__}, torch_ctc_align {torch_ctc_align.__version__}{required}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what no longer holds: the docstring of a module states what it proves, and its first sentence is enough."""
    reports = [report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, [])]
    modules = sorted({report.nodeid.partition("::")[0] for report in reports})
    if modules:
        terminalreporter.section("Broken promises")
    for module in filter(re.compile(r"\.py$").search, modules):
        source = (terminalreporter.config.rootpath / module).read_text(encoding="utf-8")
        promise = re.split(r"(?<=\.)\s", ast.get_docstring(ast.parse(source)) or "(no docstring)", maxsplit=1)[0]
        terminalreporter.line(f"{module}: {' '.join(promise.split())}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Among the processes of pytest-xdist a test that is marked `alone` has the machine to itself.

    Such a test holds one file exclusively and every other test holds it together with others. Each test comes through
    a second file, the gate: while an `alone` test waits there, no other test can start ahead of it.
    """
    if not hasattr(item.config, "workerinput"):  # not one of several processes
        return (yield)
    folder = item.config.cache.mkdir("alone")
    with open(folder / "gate", "w") as gate, open(folder / "machine", "w") as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def random_case(generator):
    """make(B, T, L, C, ...) -> log_probs (B, T, C), targets (B, L).

    With ``steps=n`` every entry is 0, -1/n, -2/n or -3/n: full of ties. Thirds are not exact in binary, so that
    rounding breaks their ties, and only the same additions in the same order break them alike.
    """

    def make(B, T, L, C, *, blank=0, dtype=torch.float32, steps=None):
        if steps is None:
            log_probs = torch.randn(B, T, C, generator=generator, dtype=torch.float64).log_softmax(-1)
        else:
            log_probs = torch.randint(-3, 1, (B, T, C), generator=generator).double() / steps
        targets = torch.randint(0, max(C - 1, 1), (B, L), generator=generator)
        return log_probs.to(dtype), targets + (targets >= blank)

    return make


@pytest.fixture
def threads():
    """threads(n) sets the number of threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", *(f"operator-{cpu}" for cpu in CPUS)])
def align(request, threads, missing):
    """Tests that use this hold for the reference and for the operator: neither is trusted before it passed them."""
    kind, _, cpu = request.param.partition("-")
    if kind == "reference":
        threads(1)  # its tensors are tiny here: waking a second thread for each takes longer than the work
        yield reference.forced_align
    else:
        require_cpu(cpu, missing)
        with _forced(cpu=cpu):
            yield torch.ops.ctc_align.forced_align


@pytest.fixture(params=CPUS)
def cpu(request, missing):
    """Tests that use this run on every instruction set of the CPU kernel."""
    require_cpu(request.param, missing)
    with _forced(cpu=request.param):
        yield request.param


def require_cpu(cpu: str, missing) -> None:
    if cpu not in torch_ctc_align.config().cpus:
        missing(cpu, f"this processor has no {cpu}")


@pytest.fixture
def shown_afresh(monkeypatch):
    """Forgets what has been warned of before and how many calls there were, until the end of the test."""
    monkeypatch.setattr(errors, "_shown", set())
    monkeypatch.setattr(_mistakes, "_count", itertools.count(1).__next__)


@pytest.fixture
def fresh_python():
    """fresh_python(code, **environment) runs code in a process of its own and returns its output."""

    def run(code: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            cwd=ROOT,  # so that it imports the package that is tested here
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run


@pytest.fixture
def missing():
    """missing("torchaudio", reason): skips the test, or fails it where torchaudio is required."""

    def skip_or_fail(name: str, reason: str) -> None:
        assert name in REQUIRABLE, f"{name} is missing in REQUIRABLE"
        (pytest.fail if name in REQUIRED else pytest.skip)(reason)

    return skip_or_fail


@pytest.fixture(scope="module")
def chromium():
    """A browser, or why there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        yield str(error)
        return
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        yield "there is no chromium"
        return
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*flags, "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def library(missing):
    """library("praatio.textgrid"): a module of an extra, or a test that is skipped."""

    def find(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            return missing("speech", f"{name} cannot be imported ({error}); see requirements-dev.txt")

    return find


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, which root can mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def corpora(missing):
    """corpora("datasets"): a library that reads corpora, from the environment of `make test-corpora`."""

    def find(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            return missing("corpora", f"{name} cannot be imported ({error}); see make test-corpora")

    return find


@pytest.fixture
def ray(corpora):
    """Ray on this machine, with two cores. It starts with the first test that uses it, and ends with the process."""
    ray = corpora("ray")
    corpora("ray.data")
    if not ray.is_initialized():
        with pytest.MonkeyPatch.context() as patch:  # Ray's workers have this environment too
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "test")]))
            ray.init(
                address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False
            )
    return ray


@pytest.fixture
def torchaudio(missing):
    """The module, from the environment of `make test-clients` or any other that can import it."""
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        missing("torchaudio", f"torchaudio cannot be imported ({error}); see make test-clients")
    return torchaudio


class RecordCalls(TorchDispatchMode):
    """Which operators come down to a kernel, below autograd and all transforms."""

    def __enter__(self):
        self.calls = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(function)
        return function(*args, **(kwargs or {}))
