"""Builds the operator libraries; everything else about the package stands in pyproject.toml.

Two shared libraries without any Python symbol, made for the LibTorch stable ABI: one binary serves torch >= 2.10 and
every CPython. `_C` is always built. `_C_cuda` is built where nvcc and a torch with CUDA are found, and loaded only
where torch has CUDA. CTC_ALIGN_CUDA=0 leaves it out, CTC_ALIGN_CUDA=1 builds it beside a CPU-only torch too.
TORCH_CUDA_ARCH_LIST says for which GPUs, as for every extension of torch; by default for those at hand.
"""

import os
import shutil
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10

# No -march=native: wheels travel. No fused multiply-add and no fast-math: every build must round alike.
CXX_FLAGS = [
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", STABLE_ABI),
    *("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"),
]
LINK_FLAGS = ["-Wl,--strip-debug"]  # Python's own flags ask for debug information: 2.5 of 2.8 MB
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr", "-DUSE_CUDA", STABLE_ABI]


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def cpu_library() -> Extension:
    return cpp_extension.CppExtension(
        "torch_ctc_align._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        depends=sources("csrc/**/*.h"),
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )


def cuda_library(cuda_home: str) -> Extension:
    cpp_extension.CUDA_HOME = cuda_home  # a CPU-only torch has set it to None
    torch_cuda = ["torch_cuda"] if list(Path(torch.__file__).parent.glob("lib/libtorch_cuda.*")) else []
    return cpp_extension.CppExtension(
        "torch_ctc_align._C_cuda",
        sources("csrc/cuda/*.cu"),
        depends=sources("csrc/**/*.h", "csrc/**/*.cuh"),
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        extra_link_args=LINK_FLAGS,
        include_dirs=[os.path.join(cuda_home, "include")],
        # The runtime goes in statically: the library must not ask for another CUDA than torch's own.
        library_dirs=[os.path.join(cuda_home, "lib64")],
        libraries=["cudart_static", "dl", "rt", "pthread", *torch_cuda],
        py_limited_api=True,
    )


def find_cuda() -> str | None:
    """Where the CUDA toolkit is, if the CUDA library is to be built."""
    if os.environ.get("CTC_ALIGN_CUDA", "1" if torch.version.cuda else "0") != "1":
        return None
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    return next((place for place in places if place and Path(place, "include", "cuda_runtime.h").exists()), None)


if __name__ == "__main__":  # test/check_cuda_compile.py reads the flags above
    extensions = [cpu_library()]
    if cuda_home := find_cuda():
        extensions.append(cuda_library(cuda_home))

    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        # One home for object files: an editable install, an in-place build and a wheel share them.
        options={"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"build_temp": "build/objects"}},
    )
