"""Results of compilers that are kept: whatever decides them decides whether they are taken again."""

import importlib.util
import os
import shutil
import time
from pathlib import Path

import kept
import pytest

TEST = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and an environment without what compilers read."""
    for name in (*kept.VARIABLES.split(), "CTC_ALIGN_FRESH", "CTC_ALIGN_REQUIRE", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.digest_of_compiler.cache_clear()
    yield tmp_path / "cache" / "torch_ctc_align" / "compiled"
    kept.digest_of_compiler.cache_clear()


# --------------------------------------------------------------------------------------------------- the store


def test_what_is_saved_is_loaded(cache):
    assert kept.load("a") is None
    kept.save("a", b"\0one\ntwo\n")
    kept.save("b", b"")
    assert (kept.load("a"), kept.load("b")) == (b"\0one\ntwo\n", b"")
    assert sorted(path.name for path in cache.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x + b"!", lambda x: b"", lambda x: b"\xff" + x[1:]])
def test_a_damaged_result_is_none(cache, damage):
    kept.save("a", b"one")
    (cache / "a").write_bytes(damage((cache / "a").read_bytes()))
    assert kept.load("a") is None


def test_fresh_takes_nothing(monkeypatch):
    kept.save("a", b"one")
    monkeypatch.setenv("CTC_ALIGN_FRESH", "1")
    assert kept.load("a") is None
    kept.save("a", b"two")
    monkeypatch.delenv("CTC_ALIGN_FRESH")
    assert kept.load("a") == b"two"


def test_unused_results_are_removed(cache):
    kept.save("unused", b"")
    kept.save("used", b"")
    for name in ("unused", "used"):
        os.utime(cache / name, (0, time.time() - (kept.UNUSED_DAYS + 1) * 86_400))
    assert kept.load("used") == b""
    kept.save("new", b"")
    assert sorted(path.name for path in cache.iterdir()) == ["new", "used"]


def test_results_that_were_used_last_stay(cache, monkeypatch):
    for age, name in enumerate("abc"):
        kept.save(name, b"x" * 1000)
        os.utime(cache / name, (0, time.time() - 100 - age))
    monkeypatch.setattr(kept, "MOST_BYTES", 3500)
    kept.save("d", b"x" * 1000)
    assert sorted(path.name for path in cache.iterdir()) == ["a", "b", "d"]


def test_without_a_place_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kept.save("a", b"one")
    assert kept.load("a") is None


def test_parts_do_not_run_into_each_other():
    assert kept.digest_of("ab", "c") != kept.digest_of("a", "bc") != kept.digest_of("a", "b", "c")


# ------------------------------------------------------------------------------------------------- C++ programs


@pytest.fixture
def program(tmp_path, missing):
    """program(): how the compiler ended, what it said, the output's bytes, and how often it has compiled so far."""
    real = shutil.which("c++") or missing("c++", "there is no C++ compiler c++")
    for name, text in {
        "one.cpp": '#include "one.h"\n#include <two.h>\nint main() { return ONE + TWO + THREE; }\n',
        "one.h": "#define ONE 1\n",
        "system/two.h": "#define TWO 2\n",
        "calls": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    asks = '*" -E "*|-print*|--version'  # all other calls compile
    script = f'#!/bin/sh\ncase "$*" in {asks}) ;; *) echo >> {tmp_path}/calls;; esac\nexec {real} "$@"\n'
    (tmp_path / "c++").write_text(script)
    (tmp_path / "c++").chmod(0o755)

    def make(*flags):
        kept.digest_of_compiler.cache_clear()  # it is only remembered within a process
        output = tmp_path / "output"
        output.unlink(missing_ok=True)
        flags = ["-DTHREE=3", f"-isystem{tmp_path}/system", *flags]
        done = kept.compile_program([str(tmp_path / "c++")], flags, [tmp_path / "one.cpp"], output)
        found = output.read_bytes() if output.exists() else None
        assert found is None or os.access(output, os.X_OK)
        return done.returncode, done.stderr, found, len((tmp_path / "calls").read_text())

    return make


def test_an_equal_program_is_compiled_once(program):
    status, said, first, calls = program()
    assert (status, said, calls) == (0, "", 1)
    assert first[:4] == b"\x7fELF"
    assert program() == (0, "", first, 1)


@pytest.mark.parametrize("changed", ["one.cpp", "one.h", "system/two.h", "c++", "flag", "another compiler", "CPATH"])
def test_what_changes_a_program_compiles_it_again(program, tmp_path, monkeypatch, changed):
    program()
    flags = []
    if changed == "flag":
        flags.append("-DFOUR")  # nothing reads it, but who knows
    elif changed == "another compiler":
        (tmp_path / "real").symlink_to(shutil.which("c++"))
        (tmp_path / "c++").write_text((tmp_path / "c++").read_text().replace(shutil.which("c++"), f"{tmp_path}/real"))
    elif changed == "CPATH":
        (tmp_path / "two").mkdir()
        monkeypatch.setenv("CPATH", str(tmp_path / "two"))
    else:
        comment = "# another\n" if changed == "c++" else "int another = 0;\n"
        (tmp_path / changed).write_text((tmp_path / changed).read_text() + comment)
    assert program(*flags)[3] == 2
    assert program(*flags)[3] == 2


def test_a_program_that_failed_or_warned_is_not_kept(program, tmp_path):
    (tmp_path / "one.h").write_text("#define ONE one\n")
    assert [program()[0] for _ in range(2)] == [1, 1]
    (tmp_path / "one.h").write_text("#define ONE ({ int unused; 1; })\n")
    results = [program("-Wall") for _ in range(2)]
    assert all(status == 0 and "warning" in said for status, said, _, _ in results)
    (tmp_path / "one.h").write_text('#include "gone.h"\n')
    status, said, found, calls = program()
    assert (status, found, calls) == (1, None, 5)
    assert "gone.h" in said


def test_folders_of_copies_have_no_name(tmp_path, monkeypatch, missing):
    """But their texts count."""
    compiler = [shutil.which("c++") or missing("c++", "there is no C++ compiler c++")]
    (tmp_path / "main.cpp").write_text('#include "one.h"\nint main() { return ONE; }\n')
    saved = []
    monkeypatch.setattr(kept, "save", lambda key, _: saved.append(key))
    for name, text in {"a": "#define ONE 1", "b": "#define ONE 1", "c": "#define ONE 2"}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "one.h").write_text(text)
        source = [tmp_path / "main.cpp"]
        assert kept.compile_program(compiler, [f"-I{folder}"], source, tmp_path / "out", folder).returncode == 0
    assert saved[0] == saved[1] != saved[2]


# ------------------------------------------------------------------------------------------------------- nvcc

SAID = """ptxas info    : Compiling entry function '_Z3onev' for 'sm_90'
ptxas info    : Function properties for _Z3onev
    {stack} bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem
"""
# The last argument but two is the source; a call compiles unless it asks something.
NVCC = """#!/bin/sh
home=$(dirname "$0")/../..
case "$*" in
  --version) echo release 13.0;;
  --list-gpu-arch) echo compute_80; echo compute_90;;
  *" -M "*) echo "one.o : $home/clone/csrc/cuda/one.cu \\\\"; echo "  $home/usr/wchar.h";;
  *) echo "$@" >> "$home/calls"; cat "$home/said" >&2; exit $(cat "$home/status");;
esac
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """check(*arguments): what it prints, and what nvcc was asked to compile. In a clone with nothing but the check."""
    for name, text in {
        "clone/csrc/cuda/one.cu": "kernels",
        "clone/csrc/lattice/lattice.h": "lattice",
        "cuda/bin/nvcc": NVCC,
        "cuda/bin/ptxas": "ptxas",
        "cuda/nvvm/bin/cicc": "cicc",
        "cuda/include/cuda_runtime.h": "",
        "torch/include/torch.h": "torch",
        "usr/wchar.h": "wide",
        "tools/g++": '#!/bin/sh\necho "g++ 12"\n',
        "tools/gcc": '#!/bin/sh\necho "gcc 12"\n',
        "said": SAID.format(stack=0, spilled=0),
        "status": "0",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "clone" / "test").mkdir()
    for name in ("test/check_cuda_compile.py", "setup.py"):
        shutil.copy(TEST.parent / name, tmp_path / "clone" / name)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CTC_ALIGN_CUDA", "1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")

    def run(*arguments, flags=(), clone="clone"):
        kept.digest_of_compiler.cache_clear()
        path = tmp_path / clone / "test" / "check_cuda_compile.py"
        spec = importlib.util.spec_from_file_location("check_of_a_clone", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        include = [str(tmp_path / "torch" / "include")]
        with monkeypatch.context() as patch:
            patch.setattr(module.cpp_extension, "include_paths", lambda: include)
            patch.setattr(module.cpp_extension, "COMMON_NVCC_FLAGS", list(flags))
            patch.setattr(os, "environ", os.environ.copy())  # --fresh ends with it
            (tmp_path / "calls").write_text("")
            try:
                module.main(list(arguments))
                ended = ""
            except (RuntimeError, SystemExit) as error:
                ended = str(error)
        asked = [call.split("arch=")[1].split(",")[0] for call in (tmp_path / "calls").read_text().splitlines()]
        return capsys.readouterr().out + ended, sorted(asked)

    return run


def test_what_nvcc_says_is_kept_for_each_architecture(check):
    printed, asked = check("80")
    assert asked == ["compute_80"]
    assert "sm_80, 0 s\n  one<>  40/1024\n" in printed
    printed, asked = check("80", "90")
    assert asked == ["compute_90"]
    assert "sm_80, kept from an earlier run: one.cu\n  one<>  40/1024\n" in printed
    assert "sm_90, 0 s\n  one<>  40/1024\n" in printed
    assert check("80", "90")[1] == []
    assert check("90")[1] == ["compute_90"]  # the first has the host code too


def test_fresh_compiles_all(check):
    check("80", "90")
    assert check("80", "90", "--fresh")[1] == ["compute_80", "compute_90"]
    assert check("80", "90")[1] == []


def test_another_clone_finds_what_is_kept(check, tmp_path):
    check("90")
    shutil.copytree(tmp_path / "clone", tmp_path / "another")
    assert check("90", clone="another")[1] == []


@pytest.mark.parametrize(
    "changed",
    [
        *("csrc/cuda/one.cu", "csrc/lattice/lattice.h", "test/check_cuda_compile.py"),
        *("cuda/bin/nvcc", "cuda/bin/ptxas", "cuda/nvvm/bin/cicc", "cuda/include/cuda_runtime.h"),
        *("torch/include/torch.h", "usr/wchar.h", "tools/g++", "tools/gcc"),
    ],
)
def test_a_changed_file_compiles_again(check, tmp_path, changed):
    check("90")
    path = tmp_path / "clone" / changed
    path = path if path.exists() else tmp_path / changed
    path.write_text(path.read_text() + "\n# another line\n")
    assert check("90")[1] == ["compute_90"]
    assert check("90")[1] == []


@pytest.mark.parametrize("folder", ["clone/csrc/cuda", "torch/include", "cuda/include", "cuda/nvvm"])
def test_a_file_that_comes_or_is_renamed_compiles_again(check, tmp_path, folder):
    """It may be found in place of another one."""
    check("90")
    (tmp_path / folder / "new.h").touch()
    assert check("90")[1] == ["compute_90"]
    (tmp_path / folder / "new.h").rename(tmp_path / folder / "renamed.h")
    assert check("90")[1] == ["compute_90"]


def test_other_flags_compile_again(check, monkeypatch):
    check("90")
    assert check("90", flags=["--fmad=true"])[1] == ["compute_90"]
    assert check("90")[1] == []
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O1")
    assert check("90")[1] == ["compute_90"]


def test_a_failure_is_not_kept(check, tmp_path):
    (tmp_path / "status").write_text("1")
    for _ in range(2):
        printed, asked = check("90")
        assert asked == ["compute_90"]
        assert "sm_90: nvcc failed" in printed
    (tmp_path / "status").write_text("0")
    assert check("90")[1] == ["compute_90"]


def test_kept_spills_fail_again(check, tmp_path):
    (tmp_path / "said").write_text(SAID.format(stack=16, spilled=8))
    for asked in (["compute_90"], []):
        printed, found = check("90")
        assert found == asked
        assert "error: these kernels spill registers" in printed
        assert "40/1024 stack 16 SPILLED 8" in printed
