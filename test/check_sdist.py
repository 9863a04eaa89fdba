"""Checks that a source distribution builds alone: unpacked outside of any repository, it gives the wheel of the tree.

python test/check_sdist.py dist/*.tar.gz dist/*.whl
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def read_wheel(wheel: Path) -> dict[str, bytes]:
    """The bytes of every file; of libraries, their hashes and tags only the names."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: b"" if re.search(r"\.so$|/(RECORD|WHEEL)$", name) else archive.read(name)
            for name in archive.namelist()
            if not name.endswith("/")  # auditwheel keeps folders
        }


def build_alone(sdist: Path, folder: Path) -> Path:
    """The wheel that the distribution gives, with the torch, setuptools and ninja at hand."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "dist", source]
    done = subprocess.run(
        build, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{sdist.name} does not build alone")
    return next((folder / "dist").glob("*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("wheel", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_alone(arguments.sdist.resolve(), Path(folder))
        alone, tree = read_wheel(wheel), read_wheel(arguments.wheel)
    if alone != tree:
        sys.exit(
            f"{arguments.sdist.name} gives another wheel than the tree: missing {sorted(tree.keys() - alone.keys())}, "
            f"too much {sorted(alone.keys() - tree.keys())}, "
            f"different {sorted(name for name in alone.keys() & tree.keys() if alone[name] != tree[name])}"
        )
    print(f"{arguments.sdist.name}: builds alone, and gives the {len(tree)} files of {arguments.wheel.name}")


if __name__ == "__main__":
    main()
