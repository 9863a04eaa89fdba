"""The CPU kernel without torch: the programs of csrc/, compiled plainly. `make sanitize` runs them with sanitizers."""

import shutil

import pytest
import run_sanitizers


@pytest.mark.parametrize("test", run_sanitizers.TESTS)
def test_kernel(test, tmp_path, missing):
    if not shutil.which(run_sanitizers.COMPILER[0]):
        missing("c++", f"there is no C++ compiler {run_sanitizers.COMPILER[0]}")
    run_sanitizers.run(run_sanitizers.build("plain", test, tmp_path))
