"""setuptools' build backend. Before it is imported, one sentence says what the environment lacks.

`pip install --no-build-isolation` uses what is installed and does not look whether it suffices. Without this file the
answer is a traceback out of pip, setuptools or setup.py. Ninja may be missing: torch then compiles without it.
"""

import re
from importlib.metadata import PackageNotFoundError, version

NEEDED = {"setuptools": "77", "torch": "2.10"}  # as in pyproject.toml


def find_lacking(needed: dict[str, str]) -> list[str]:
    """["setuptools>=77 (found none)", ...], one entry for each that is missing or too old."""
    lacking = []
    for name, least in needed.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if [int(number) for number in re.findall(r"\d+", found)[:2]] < [int(number) for number in least.split(".")]:
            lacking.append(f"{name}>={least} (found {found})")
    return lacking


if lacking := find_lacking(NEEDED):
    requirements = " ".join(f'"{entry.split()[0]}"' for entry in lacking)
    raise SystemExit(  # pip prints the text of this exception, and no traceback
        f"torch_ctc_align: to build without isolation, this environment needs {' and '.join(lacking)}: "
        f"pip install {requirements}, or leave out --no-build-isolation"
    )

from setuptools.build_meta import *  # noqa: E402, F403
