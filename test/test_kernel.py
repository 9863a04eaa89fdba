"""The CPU kernel without torch: csrc/kernel_test.cpp, compiled plainly. `make sanitize` watches it with sanitizers."""

import shutil

import run_sanitizers


def test_kernel(tmp_path, missing):
    if not shutil.which(run_sanitizers.COMPILER[0]):
        missing("c++", f"there is no C++ compiler {run_sanitizers.COMPILER[0]}")
    run_sanitizers.run(run_sanitizers.build("plain", tmp_path))
