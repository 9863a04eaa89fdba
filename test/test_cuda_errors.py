"""What a CUDA error says of a driver that is too old, of none, of an unknown GPU. Needs nvcc, but no GPU."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A driver that knows CUDA 12.4, as far as the CUDA runtime asks it before it gives up.
OLD_DRIVER = (
    "int cuDriverGetVersion(int* version) { *version = 12040; return 0; }\nint cuInit(unsigned) { return 0; }\n"
)
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "errors.cuh"

int main(int, char** arguments) {
  const int code = std::atoi(arguments[1]);
  void* memory;
  try {
    ctc_align::check_cuda("forced_align", code ? static_cast<cudaError_t>(code) : cudaMalloc(&memory, 4), "clearing");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
  }
}
"""


@pytest.fixture
def program(missing, tmp_path):
    """program(code, driver) -> what check_cuda says of an error, or, for 0, of a first call to CUDA."""
    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"))
    if not Path(nvcc).exists():
        missing("nvcc", "nvcc is neither on the PATH nor in CUDA_HOME")
    (tmp_path / "main.cu").write_text(PROGRAM)
    (tmp_path / "old").mkdir()
    build = [nvcc, "-std=c++20", "-I", ROOT / "csrc" / "cuda", tmp_path / "main.cu", "-o", tmp_path / "main"]
    subprocess.run(build, check=True)
    (tmp_path / "driver.cpp").write_text(f'extern "C" {{\n{OLD_DRIVER}}}\n')
    library = tmp_path / "old" / "libcuda.so.1"
    subprocess.run(
        [os.environ.get("CXX", "c++"), "-shared", "-fPIC", tmp_path / "driver.cpp", "-o", library], check=True
    )

    def run(code, driver):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / driver)}
        return subprocess.run(
            [tmp_path / "main", str(code)], env=environment, check=True, capture_output=True, text=True
        ).stdout

    run.version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return run


@pytest.fixture
def runtime(program):
    """The CUDA of nvcc's static runtime, and the oldest driver for it."""
    version = re.search(r"release (\d+\.\d+)", program.version)[1]
    return version, {"12": 525, "13": 580}[version.partition(".")[0]]


def test_driver_too_old(program, runtime):
    version, driver = runtime
    assert program(0, "old") == (
        "forced_align: CUDA failed in clearing: CUDA driver version is insufficient for CUDA runtime version; this "
        f"torch_ctc_align has the runtime of CUDA {version}, which needs driver {driver} or newer, and the driver here "
        "knows CUDA 12.4: update the driver, or build with an older CUDA\n"
    )


def test_no_driver(program, runtime):
    assert program(35, "none").endswith(
        f" has the runtime of CUDA {runtime[0]}, which needs driver {runtime[1]} or newer, and there is no driver: "
        "update the driver, or build with an older CUDA\n"
    )


@pytest.mark.parametrize("code", [209, 222], ids=["no kernel image", "unsupported PTX"])
def test_gpu_that_the_build_does_not_know(program, code):
    assert "; this torch_ctc_align was not built for this GPU: build it from source" in program(code, "none")


def test_other_errors_get_no_advice(program):
    assert program(700, "none") == "forced_align: CUDA failed in clearing: an illegal memory access was encountered\n"
