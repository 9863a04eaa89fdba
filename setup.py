"""Builds the operator libraries; everything else about the package stands in pyproject.toml.

Two shared libraries without any Python symbol, made for the LibTorch stable ABI: one binary serves torch >= 2.10 and
every CPython. `_C` is always built. `_C_cuda` is built where nvcc and a torch with CUDA are found, and loaded only
where torch has CUDA. CTC_ALIGN_CUDA=0 leaves it out, CTC_ALIGN_CUDA=1 builds it beside a CPU-only torch too.
TORCH_CUDA_ARCH_LIST says for which GPUs, as for every extension of torch; by default for those that are visible, and
where none is, as in a Docker build, for ARCHITECTURES.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urljoin

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.errors import SetupError
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # those that make cuda-compile compiles
OLDEST_COMPILERS = {"GCC": 11, "Clang": 13}  # the oldest that compile the vectors of csrc/cpu
# The first driver that runs the runtime of each CUDA: docs.nvidia.com/deploy/cuda-compatibility.
OLDEST_DRIVERS = {"11": "450", "12": "525", "13": "580"}
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10

# No -march=native: wheels travel. No fused multiply-add and no fast-math: every build must round alike.
CXX_FLAGS = [
    *("-std=c++20", "-O3", "-ffp-contract=off", "-fvisibility=hidden", STABLE_ABI),
    *("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"),
]
NVCC_FLAGS = ["-std=c++20", "-O3", "--fmad=false", "--expt-relaxed-constexpr", "-DUSE_CUDA", STABLE_ABI]


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def choose_flags(platform: str) -> tuple[list[str], list[str]]:
    """What compiler and linker are told on this sys.platform. setuptools adds what every extension needs there."""
    if platform == "win32":
        raise SetupError("torch_ctc_align: expected Linux or macOS, found Windows; WSL is a Linux")
    if platform == "darwin":
        oldest = ["-mmacosx-version-min=11.0"]  # of arm64: torch has no wheels for other Macs
        return [*CXX_FLAGS, *oldest], oldest
    return CXX_FLAGS, ["-Wl,--strip-debug"]  # Python's own flags ask for debug information: 2.5 of 2.8 MB


def cpu_library() -> Extension:
    cxx_flags, link_flags = choose_flags(sys.platform)
    return cpp_extension.CppExtension(
        "torch_ctc_align._C",
        sources("csrc/*.cpp", "csrc/cpu/**/*.cpp"),
        depends=sources("csrc/**/*.h"),
        extra_compile_args={"cxx": cxx_flags},
        extra_link_args=link_flags,
        py_limited_api=True,
    )


def cuda_library(cuda_home: str) -> Extension:
    jobs = os.environ.get("MAX_JOBS", "0")  # one source, many architectures: side by side, 0 for all processors
    cxx_flags, link_flags = choose_flags(sys.platform)
    cpp_extension.CUDA_HOME = cuda_home  # a CPU-only torch has set it to None
    return cpp_extension.CppExtension(
        "torch_ctc_align._C_cuda",
        sources("csrc/cuda/*.cu"),
        depends=sources("csrc/**/*.h", "csrc/**/*.cuh"),
        extra_compile_args={"cxx": cxx_flags, "nvcc": [*NVCC_FLAGS, "-Xfatbin=-compress-all", f"--threads={jobs}"]},
        # The library names torch's CUDA library as needed, which makes its functions visible to it.
        extra_link_args=[*link_flags, "-Wl,--no-as-needed", "-ltorch_cuda"],
        include_dirs=[os.path.join(cuda_home, "include")],
        # The runtime goes in statically: the library must not ask for another CUDA than torch's own.
        library_dirs=[os.path.join(cuda_home, "lib64")],
        libraries=["cudart_static", "dl", "rt", "pthread"],
        py_limited_api=True,
    )


def find_cuda() -> str | None:
    """Where the CUDA toolkit is, if the CUDA library is to be built."""
    if os.environ.get("CTC_ALIGN_CUDA", "1" if torch.version.cuda else "0") != "1":
        return None
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    needed = "include/cuda_runtime.h", "bin/nvcc"
    return next((place for place in places if place and all(Path(place, file).exists() for file in needed)), None)


def why_no_cuda() -> str:
    """Why find_cuda() has found nothing."""
    if os.environ.get("CTC_ALIGN_CUDA", "1") != "1":
        return f"CTC_ALIGN_CUDA={os.environ['CTC_ALIGN_CUDA']}"
    if not torch.version.cuda and "CTC_ALIGN_CUDA" not in os.environ:
        return "this torch has no CUDA (CTC_ALIGN_CUDA=1 builds the CUDA library all the same)"
    return "nvcc is neither on the PATH, nor in CUDA_HOME, nor in /usr/local/cuda"


def choose_architectures(asked: str | None, gpus: int, known: Collection[str]) -> str | None:
    """What TORCH_CUDA_ARCH_LIST is to be.

    Args:
        asked: what it is now.
        gpus: how many are visible. Without any, torch fails to find an architecture, after the C++ has been compiled.
        known: what nvcc can compile for: "7.5", ...

    Returns:
        The list, or None: torch takes the architectures of the GPUs that are visible.
    """
    if asked and asked != "native":
        return asked
    if gpus > 0:
        return asked or None
    hints = 'TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX", for example, names architectures; CTC_ALIGN_CUDA=0 leaves CUDA out'
    if asked == "native":
        raise SetupError(f"torch_ctc_align: TORCH_CUDA_ARCH_LIST=native, but no GPU is visible; {hints}")
    chosen = [architecture for architecture in ARCHITECTURES if architecture in known]
    if not chosen:
        raise SetupError(f"torch_ctc_align: this nvcc compiles for none of {', '.join(ARCHITECTURES)}; {hints}")
    return ";".join(chosen) + "+PTX"  # newer GPUs compile it for themselves


def architectures_of(cuda_home: str) -> list[str]:
    """What its nvcc can compile for: ["7.5", ...]."""
    nvcc = os.path.join(cuda_home, "bin", "nvcc")
    answer = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return [f"{major}.{minor}" for major, minor in re.findall(r"compute_(\d+)(\d)\b", answer)]


def drivers_for(cuda_home: str) -> str:
    """Which drivers its CUDA runtime needs: ", for drivers from 580 on". Nothing where its version is not known."""
    header = Path(cuda_home, "include", "cuda_runtime_api.h")
    text = header.read_text(encoding="utf-8") if header.exists() else ""
    major = re.search(r"^#define CUDART_VERSION +(\d+)\d{3}$", text, re.MULTILINE)
    driver = OLDEST_DRIVERS.get(major[1]) if major else None
    return f", for drivers from {driver} on" if driver else ""


def check_compiler(command: str) -> None:
    """Fails if the C++ compiler is missing or too old. One that calls itself neither GCC nor Clang is given a try."""
    probe = "#ifdef __clang__\nClang __clang_major__\n#else\nGCC __GNUC__\n#endif\n"
    expected = " or ".join(f"{name} {version} or newer" for name, version in OLDEST_COMPILERS.items())
    try:
        preprocess = [*shlex.split(command), "-E", "-P", "-x", "c++", "-"]
        answer = subprocess.run(preprocess, input=probe, capture_output=True, text=True).stdout.split()
    except FileNotFoundError:
        raise SetupError(
            f"torch_ctc_align: no C++ compiler {command}; on Debian or Ubuntu: apt install g++ (CXX names another)"
        ) from None
    if len(answer) == 2 and answer[1].isdigit() and int(answer[1]) < OLDEST_COMPILERS.get(answer[0], 0):
        raise SetupError(
            f"torch_ctc_align: the C++ compiler must be {expected}, found {command}, which is {' '.join(answer)}; "
            "CXX names another"
        )


class BuildLibraries(cpp_extension.BuildExtension):
    """Checks, decides and says what is built, before anything is compiled."""

    def build_extensions(self) -> None:
        check_compiler(cpp_extension.get_cxx_compiler())
        if cuda_home := find_cuda():
            gpus = torch.cuda.device_count()
            chosen = choose_architectures(
                os.environ.get("TORCH_CUDA_ARCH_LIST"), gpus, [] if gpus else architectures_of(cuda_home)
            )
            if chosen:
                os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
            libraries = (
                f"the CPU library, and the CUDA library for {chosen or 'the GPUs here'} with {cuda_home}"
                f"{drivers_for(cuda_home)}: minutes "
                "(TORCH_CUDA_ARCH_LIST names the architectures, CTC_ALIGN_CUDA=0 leaves CUDA out)"
            )
        else:
            libraries = f"the CPU library alone: {why_no_cuda()}"
        print(f"torch_ctc_align: building {libraries}", flush=True)
        has_cuda = list(Path(torch.__file__).parent.glob("lib/libtorch_cuda.*"))
        for library in self.extensions:
            if "-ltorch_cuda" in library.extra_link_args and not has_cuda:
                library.library_dirs.append(self.make_stand_in("libtorch_cuda.so"))
        super().build_extensions()

    def make_stand_in(self, name: str) -> str:
        """An empty library to link with in place of one of torch's that is not here. Returns its folder."""
        folder = Path(self.build_temp, "stand_ins")
        folder.mkdir(parents=True, exist_ok=True)
        empty = ["-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([*shlex.split(cpp_extension.get_cxx_compiler()), *empty], check=True)
        return str(folder)


def read_description() -> str:
    """README.md, for pages outside the repository: its links lead to the tag of this version.

    The repository is `Repository` of [project.urls] in pyproject.toml. Without it the links stay as they are, and
    test/check_release.py refuses a release.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    repository = re.search(r'^Repository = "(.+?)/?"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    if not repository:
        return text
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "torch_ctc_align" / "__init__.py").read_text(), re.M)[1]

    def lead(link: re.Match[str]) -> str:
        kind = "raw" if link[1].startswith("!") else "blob"  # an image's bytes; a page
        return link[1] + urljoin(f"{repository[1]}/{kind}/v{version}/README.md", link[2])

    return re.sub(r"(!?\[[^]]*\]\()([^)\s]+)", lead, text)


class WheelForAnyPython(bdist_wheel):
    """The libraries have no symbol of Python, so any Python takes them, without a GIL too."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":  # test/check_cuda_compile.py reads the flags above
    try:
        extensions = [cpu_library()]
    except SetupError as error:  # setuptools says in its own way only what goes wrong inside setup()
        sys.exit(f"error: {error}")
    if cuda_home := find_cuda():
        extensions.append(cuda_library(cuda_home))

    setup(
        long_description=read_description(),
        long_description_content_type="text/markdown",
        ext_modules=extensions,
        cmdclass={"build_ext": BuildLibraries, "bdist_wheel": WheelForAnyPython},
        # One home for object files: an editable install, an in-place build and a wheel share them.
        options={"build_ext": {"build_temp": "build/objects"}},
    )
