"""What a source install decides and says before anything is compiled: for which GPUs, with which compiler, what the
environment lacks, where the links of its description lead. Compiles nothing."""

import email
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import setuptools
from markdown_it import MarkdownIt
from setuptools import Distribution
from setuptools.errors import SetupError
from torch.utils import cpp_extension

import torch_ctc_align

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module, in an environment without its variables."""
    for name in ("CTC_ALIGN_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(tmp_path):
    """tool(name, shell code) -> path of a program."""

    def make(name, code):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def toolkit(tool, tmp_path):
    """toolkit("75 90 103") -> a CUDA_HOME whose nvcc knows these architectures."""

    def make(known):
        tool("cuda/bin/nvcc", f'[ "$1" = --list-gpu-arch ] && for a in {known}; do echo compute_$a; done')
        (tmp_path / "cuda" / "include").mkdir(exist_ok=True)
        (tmp_path / "cuda" / "include" / "cuda_runtime.h").touch()
        return str(tmp_path / "cuda")

    return make


ALL = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"]


@pytest.mark.parametrize(
    "asked, gpus, known, chosen",
    [
        (None, 0, ALL, "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        ("", 0, ALL, "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        (None, 0, ["5.2", "6.0", "7.0", "7.5", "8.0", "8.6"], "7.5;8.0;8.6+PTX"),  # nvcc 11.5
        (None, 2, ALL, None),  # torch takes those of the GPUs
        ("native", 2, ALL, "native"),
        ("9.0", 0, ALL, "9.0"),
        ("Hopper 8.6+PTX", 1, [], "Hopper 8.6+PTX"),
    ],
)
def test_architectures(setup, asked, gpus, known, chosen):
    assert setup.choose_architectures(asked, gpus, known) == chosen


def test_architectures_that_cannot_be_chosen(setup):
    with pytest.raises(SetupError, match=r"TORCH_CUDA_ARCH_LIST=native, but no GPU is visible; .*CTC_ALIGN_CUDA=0"):
        setup.choose_architectures("native", 0, ALL)
    with pytest.raises(SetupError, match=r"compiles for none of 7\.5, .*; TORCH_CUDA_ARCH_LIST="):
        setup.choose_architectures(None, 0, ["3.5", "7.0"])


def test_what_nvcc_can_compile_for(setup, toolkit):
    assert setup.architectures_of(toolkit("75 90 103 120")) == ["7.5", "9.0", "10.3", "12.0"]


def test_torch_takes_the_choice(setup, monkeypatch):
    """Without it torch fails where no GPU is visible, and that only when the C++ has been compiled."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(IndexError):
        cpp_extension._get_cuda_arch_flags()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", setup.choose_architectures(None, 0, ALL))
    flags = cpp_extension._get_cuda_arch_flags()
    assert len(flags) == len(setup.ARCHITECTURES) + 1
    assert "-gencode=arch=compute_120,code=compute_120" in flags


@pytest.fixture
def build(setup, monkeypatch, capfd):
    """build(**environment) -> the line that is printed before compiling, and TORCH_CUDA_ARCH_LIST at that time."""
    compiled = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(
        cpp_extension.BuildExtension,
        "build_extensions",
        lambda self: compiled.append(os.environ.get("TORCH_CUDA_ARCH_LIST")),
    )

    def run(**environment):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # so that the build's value does not outlive the test
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command = setup.BuildLibraries(Distribution())
        command.extensions = []
        command.build_extensions()
        return capfd.readouterr().out, compiled.pop()

    return run


def test_it_says_what_is_built(build, toolkit):
    home = toolkit("75 90 103")
    said, architectures = build(CTC_ALIGN_CUDA="1", CUDA_HOME=home)
    assert architectures == "7.5;9.0+PTX"
    assert said == (
        "torch_ctc_align: building the CPU library, and the CUDA library for 7.5;9.0+PTX with "
        f"{home}: minutes (TORCH_CUDA_ARCH_LIST names the architectures, CTC_ALIGN_CUDA=0 leaves CUDA out)\n"
    )
    said, architectures = build(CTC_ALIGN_CUDA="1", CUDA_HOME=home, TORCH_CUDA_ARCH_LIST="8.6")
    assert "the CUDA library for 8.6 with" in said
    assert architectures == "8.6"
    Path(home, "include", "cuda_runtime_api.h").write_text("#define CUDART_VERSION  12090\n")
    said, _ = build(CTC_ALIGN_CUDA="1", CUDA_HOME=home)
    assert f"with {home}, for drivers from 525 on: minutes" in said
    said, architectures = build(CTC_ALIGN_CUDA="0", CUDA_HOME=home)
    assert said == "torch_ctc_align: building the CPU library alone: CTC_ALIGN_CUDA=0\n"


def test_a_torch_without_cuda_has_a_stand_in_to_link_with(setup, build, monkeypatch, tmp_path):
    """Without the name of torch's CUDA library in ours, torch with CUDA cannot load it."""
    command = setup.BuildLibraries(Distribution())
    command.build_temp = str(tmp_path / "objects")
    command.extensions = [setup.cuda_library(str(tmp_path))]
    monkeypatch.setattr("torch.__file__", str(tmp_path / "__init__.py"))
    command.build_extensions()
    compiler = [*shlex.split(cpp_extension.get_cxx_compiler()), "-shared", "-x", "c++", os.devnull, "-x", "none"]
    folders = [f"-L{folder}" for folder in command.extensions[0].library_dirs]
    library = tmp_path / "ours.so"
    subprocess.run([*compiler, *folders, *command.extensions[0].extra_link_args, "-o", library], check=True)
    needed = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout
    assert "[libtorch_cuda.so]" in needed


def test_it_says_why_cuda_is_left_out(build, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    said, _ = build()
    assert said.startswith("torch_ctc_align: building the CPU library alone: this torch has no CUDA (CTC_ALIGN_CUDA=1")


def test_a_toolkit_without_nvcc_is_none(setup, toolkit, monkeypatch):
    home = Path(toolkit("90"))
    monkeypatch.setenv("CTC_ALIGN_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert setup.find_cuda() == str(home)
    (home / "bin" / "nvcc").unlink()
    assert setup.find_cuda() != str(home)


@pytest.mark.parametrize(
    "says, fits",
    [
        ("GCC 10", False),
        ("GCC 11", True),
        ("GCC 14", True),
        ("Clang 12", False),
        ("Clang 13", True),
        ("Borland 3", True),  # not known: let it try
        ("", True),
    ],
)
def test_compilers(setup, tool, says, fits):
    compiler = tool("old g++", f"echo {says}")
    command = f"env '{compiler}'"  # CXX may hold several words
    if fits:
        setup.check_compiler(command)
    else:
        expected = (
            "the C++ compiler must be GCC 11 or newer or Clang 13 or newer, "
            f"found {command}, which is {says}; CXX names another"
        )
        with pytest.raises(SetupError, match=re.escape(expected)):
            setup.check_compiler(command)


def test_flags_of_platforms(setup):
    assert setup.choose_flags("linux") == (setup.CXX_FLAGS, ["-Wl,--strip-debug"])
    compiler, linker = setup.choose_flags("darwin")  # Apple's linker does not know --strip-debug
    assert linker == ["-mmacosx-version-min=11.0"]
    assert compiler == setup.CXX_FLAGS + linker


def test_windows_is_refused_in_one_line():
    """The whole way: setup.py as pip calls it, on a Python that takes itself for one on Windows."""
    code = (
        "import runpy, sys, sysconfig, setuptools, torch.utils.cpp_extension; sysconfig.get_config_vars(); "
        "sys.platform = 'win32'; runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: torch_ctc_align: expected Linux or macOS, found Windows; WSL is a Linux\n"


def test_a_real_compiler(setup, monkeypatch, missing):
    """Guards the probe: it recognises the compiler that is here."""
    command = os.environ.get("CXX", "c++")
    if not shutil.which(command.split()[0]):
        missing("c++", "no C++ compiler")
    setup.check_compiler(command)
    monkeypatch.setattr(setup, "OLDEST_COMPILERS", {"GCC": 1000, "Clang": 1000})
    with pytest.raises(SetupError, match=r"which is (GCC|Clang) \d+;"):
        setup.check_compiler(command)


def test_no_compiler(setup):
    with pytest.raises(SetupError, match=re.escape("no C++ compiler no-such-compiler; on Debian")):
        setup.check_compiler("no-such-compiler")


def test_an_old_compiler_ends_the_build_at_once(tool, tmp_path, missing):
    """The whole way: setup.py as pip calls it. The compiler is asked for its version, and for nothing else."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        missing("setuptools", "setuptools is older than pyproject.toml asks for")
    compiler = tool("c++", f'echo "$@" >> "{tmp_path}/calls"; echo GCC 9')
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"CXX": compiler, "CTC_ALIGN_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "error: torch_ctc_align: the C++ compiler must be GCC 11 or newer" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "calls").read_text() == "-E -P -x c++ -\n"


# ---------------------------------------------------------------------------- without build isolation


@pytest.fixture
def import_backend(tmp_path):
    """import_backend(torch="2.9.1") imports the build backend where this is all that is installed: what it says."""

    def run(**installed):
        for name, version in installed.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        code = f"import sys; sys.path += [{str(ROOT)!r}, {str(tmp_path)!r}]; import build_backend"
        command = [sys.executable, "-I", "-S", "-c", code]  # neither setuptools nor torch can be imported
        return subprocess.run(command, capture_output=True, text=True).stderr

    return run


SENTENCE = "torch_ctc_align: to build without isolation, this environment needs {}, or leave out --no-build-isolation\n"
SETUPTOOLS = 'setuptools>=77 (found {}): pip install "setuptools>=77"'
TORCH = 'torch>=2.10 (found {}): pip install "torch>=2.10"'
BOTH = 'setuptools>=77 (found none) and torch>=2.10 (found none): pip install "setuptools>=77" "torch>=2.10"'


@pytest.mark.parametrize(
    "installed, lacks",
    [
        ({"setuptools": "65.5.0", "torch": "2.13.0+cpu"}, SETUPTOOLS.format("65.5.0")),
        ({"setuptools": "76.1.0", "torch": "2.10.0a0"}, SETUPTOOLS.format("76.1.0")),
        ({"torch": "2.10.0"}, SETUPTOOLS.format("none")),
        ({"setuptools": "77.0.3", "torch": "2.9.1"}, TORCH.format("2.9.1")),
        ({"setuptools": "84.2.1"}, TORCH.format("none")),
        ({}, BOTH),
    ],
)
def test_what_an_environment_lacks(import_backend, installed, lacks):
    assert import_backend(**installed) == SENTENCE.format(lacks)


def test_an_environment_that_lacks_nothing(import_backend):
    """The next step is setuptools itself, which is not really there."""
    said = import_backend(setuptools="77", torch="2.10.0+cpu").splitlines()
    assert said[-1] == "ModuleNotFoundError: No module named 'setuptools'"


def test_the_backend_needs_what_pyproject_says():
    requires = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    needed = re.search(r"^NEEDED = \{(.*)\}", (ROOT / "build_backend.py").read_text(), re.MULTILINE)[1]
    assert set(re.findall(r'"(\w+)>=([\d.]+)"', requires)) == set(re.findall(r'"(\w+)": "([\d.]+)"', needed))


@pytest.mark.slow
def test_pip_prints_that_sentence_and_no_traceback(tmp_path):
    venv.create(tmp_path, with_pip=True)
    pip = [tmp_path / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "setuptools"], check=True)
    done = subprocess.run([*pip, "install", "--no-build-isolation", ROOT], capture_output=True, text=True)
    assert done.returncode != 0
    assert SENTENCE.format(BOTH) in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# ------------------------------------------------------------------------------- the page on the index


@pytest.fixture
def describe(tmp_path, missing):
    """describe(urls) -> the description in a wheel's metadata, where pyproject.toml has these [project.urls]."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        missing("setuptools", "setuptools is older than pyproject.toml asks for")

    def run(urls):
        for name in ("build_backend.py", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tmp_path)
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "torch_ctc_align", tmp_path / "torch_ctc_align", ignore=ignored)
        text = (ROOT / "pyproject.toml").read_text()
        text = re.sub(r"^\[project\.urls\]\n(.+\n)*", urls, text + "\n[project.urls]\n", count=1, flags=re.MULTILINE)
        (tmp_path / "pyproject.toml").write_text(text.removesuffix("\n[project.urls]\n"))
        (tmp_path / "metadata").mkdir()
        code = "import build_backend; build_backend.prepare_metadata_for_build_wheel('metadata')"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        metadata = next(tmp_path.glob("metadata/*.dist-info/METADATA")).read_text(encoding="utf-8")
        message = email.message_from_string(metadata)
        assert message["Description-Content-Type"] == "text/markdown"
        return message.get_payload()

    return run


def tokens(markdown):
    blocks = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [token for block in blocks for token in [block, *(block.children or [])]]


def links(markdown):
    """(kind, target) of every link and image."""
    found = [token for token in tokens(markdown) if token.type in ("link_open", "image")]
    return [(token.type, token.attrs.get("href") or token.attrs["src"]) for token in found]


def code(markdown):
    return [token.content for token in tokens(markdown) if token.type in ("fence", "code_inline")]


def test_links_of_the_description_lead_to_the_tag(describe):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = describe('[project.urls]\nRepository = "https://example.org/owner/name"\n')
    before, after = links(readme), links(text)
    assert {kind for kind, _ in before} == {"link_open", "image"}
    assert len(after) == len(before) > 10
    tag = f"v{torch_ctc_align.__version__}"
    for (_, relative), (kind, absolute) in zip(before, after, strict=True):
        if relative.startswith("https://"):
            assert absolute == relative
        else:
            form = "raw" if kind == "image" else "blob"
            path, hash_sign, anchor = relative.partition("#")
            assert (ROOT / path).exists()
            page = f"https://example.org/owner/name/{form}/{tag}/{path or 'README.md'}"
            assert absolute == page + hash_sign + anchor
    assert code(text) == code(readme)


def test_links_stay_where_no_address_is_known(describe):
    assert describe("").strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_release_builds_one_wheel_for_each_architecture():
    """One serves every Python, so a second one would have the same name."""
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux"]
    done = subprocess.run([*command, "--archs", "x86_64,aarch64", ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = re.findall(r"^\w+-(\w+)$", done.stdout, re.MULTILINE)
    assert sorted(built) == ["manylinux_aarch64", "manylinux_x86_64"], done.stdout
