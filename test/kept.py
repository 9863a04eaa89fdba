"""What compilers have made, kept for later runs and later clones, in ~/.cache/torch_ctc_align/compiled.

A result is found by the sha256 of all that decides it: the preprocessed text or every source and header, the flags, and
the compiler's own files. So another compiler, header or flag never gets an old result; a failure is never kept. What is
kept is what a compiler made. What a program does when it runs is never kept.

XDG_CACHE_HOME=folder    keep them in that folder instead of ~/.cache
CTC_ALIGN_FRESH=1        take nothing from earlier runs

Needs neither torch nor a virtual environment.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNUSED_DAYS = 30  # results that nobody has asked for since are removed
MOST_BYTES = 1 << 30  # of all results; those that were used last stay
# What GCC, Clang, their linkers and nvcc take from the environment.
VARIABLES = "CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH COMPILER_PATH GCC_EXEC_PREFIX LD_RUN_PATH"
VARIABLES += " SOURCE_DATE_EPOCH NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS NVCC_CCBIN CUDAFE_FLAGS PTXAS_FLAGS NVVM_FLAGS"
# The parts of a C++ compiler, and the libraries that become part of a program or decide how it is linked.
PROGRAMS = "cc1plus collect2 as ld"
LIBRARIES = "libasan.so libasan_preinit.o libtsan.so libtsan_preinit.o libubsan.so libstdc++.so libgcc.a libgcc_s.so"
LIBRARIES += " libc.so libc_nonshared.a libm.so Scrt1.o crt1.o crti.o crtn.o crtbegin.o crtbeginS.o crtend.o crtendS.o"


# ------------------------------------------------------------------------------------------------------- digests


def digest_of(*parts: str | bytes) -> str:
    """The sha256 of all parts, each with its length before it: "ab", "c" is not "a", "bc"."""
    whole = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode(errors="surrogateescape")
        whole.update(b"%d:" % len(content) + content)
    return whole.hexdigest()


def digest_of_file(path: str | Path) -> str:
    """Of what is in a file; of its absence, if there is none."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        return digest_of(Path(path).read_bytes())
    return "absent"


def digest_of_folder(folder: str | Path) -> str:
    """Of the names and the contents of all files below a folder, wherever it is."""
    paths = sorted(os.path.join(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return digest_of(*(part for path in paths for part in (os.path.relpath(path, folder), digest_of_file(path))))


def digest_of_environment() -> str:
    return digest_of(*(f"{name}={os.environ.get(name)}" for name in VARIABLES.split()))


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs a compiler in the clone's root."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer, for tests
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@functools.cache
def digest_of_compiler(*command: str) -> str:
    """Of a C++ compiler: of what it says of itself, its options in `command`, and the files that it is made of."""

    def say(option: str) -> str:
        done = run(*command, option)
        return done.stdout + done.stderr

    files = [shutil.which(word) or "" for word in command]
    for name in PROGRAMS.split():
        found = say(f"-print-prog-name={name}").strip()
        files.append(shutil.which(found) or found)
    files += [say(f"-print-file-name={name}").strip() for name in LIBRARIES.split()]
    return digest_of(*command, say("--version"), *(digest_of_file(path) for path in files))


# -------------------------------------------------------------------------------------------------- what is kept


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torch_ctc_align" / "compiled"


def load(key: str) -> bytes | None:
    """What has been kept under a key, if it is whole."""
    if os.environ.get("CTC_ALIGN_FRESH", "0") == "1":
        return None
    path = folder() / key
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
        os.utime(path)  # it has been used
    except OSError:
        return None
    return content if digest.decode(errors="replace") == digest_of(content) else None


def save(key: str, content: bytes) -> None:
    """Keeps a result. Where nothing can be written, nothing is kept."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder())
        try:
            with open(handle, "wb") as file:
                file.write(digest_of(content).encode() + b"\n" + content)
            os.replace(name, folder() / key)  # whole or not at all, whoever else writes it
        except OSError:
            os.unlink(name)
    remove_old()


def remove_old() -> None:
    """Removes what has not been used for long, and what exceeds the most bytes."""
    entries = []
    with contextlib.suppress(OSError):
        for path in folder().iterdir():
            with contextlib.suppress(OSError):  # another process may have removed it
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for used, size, path in sorted(entries, reverse=True):
        total += size
        if total > MOST_BYTES or used < time.time() - UNUSED_DAYS * 86_400:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------- C++ programs


def compile_program(
    compiler: list[str], flags: list[str], sources: Iterable[str | Path], output: str | Path, copy: Path | None = None
) -> subprocess.CompletedProcess:
    """Compiles and links a program or a library, or takes the one that an equal text has given before.

    Args:
        compiler: the command, with options or without.
        flags: without any -o.
        sources: paths.
        output: what is written.
        copy: a folder whose name means nothing, as it differs from run to run, though texts may be included from it.

    Returns:
        The compiler's exit status and what it said. A result is kept only if it said nothing.
    """
    # Seen from the clone's root, equal clones have equal texts: the compiler puts names of files into them.
    named = [os.path.relpath(path, ROOT) if Path(path).is_relative_to(ROOT) else str(path) for path in sources]
    flags = [flag.replace(f"-I{ROOT}{os.sep}", "-I") for flag in flags]
    compile_all = [*compiler, *flags, f"-ffile-prefix-map={ROOT}=.", *named, "-o", str(Path(output).absolute())]
    parts = [digest_of_compiler(*compiler), digest_of_environment(), digest_of_file(__file__), *flags]
    for name in named:
        text = run(*compiler, *flags, "-E", "-fno-working-directory", name)
        if text.returncode != 0:  # the compiler itself says what is wrong
            return run(*compile_all)
        parts += [name, text.stdout]
    if copy:
        parts = [part.replace(str(copy), "COPY") for part in parts]
    key = digest_of("program", *parts)
    kept = None if "-march=native" in compile_all else load(key)  # that flag does not say which processor
    if kept is not None:
        Path(output).write_bytes(kept)
        Path(output).chmod(0o755)
        return subprocess.CompletedProcess(compile_all, 0, "", "")
    done = run(*compile_all)
    if done.returncode == 0 and not done.stdout + done.stderr:
        save(key, Path(output).read_bytes())
    return done
