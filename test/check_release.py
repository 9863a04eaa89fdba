"""Says what is missing before a version can be published, all of it at once: `make release-check VERSION=0.2.0`.

docs/releasing.md has the steps. The same runs in the release workflow, before anything is built.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read_releases(root: Path) -> list[tuple[str, str]]:
    """(version, date) of every section of CHANGELOG.md, the newest first; that of Unreleased is ""."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.findall(r"^## \[(.*)\](?: - (.*))?$", text, re.MULTILINE)


def read_versions(root: Path) -> dict[str, str]:
    """What each file says the version is."""
    package = (root / "torch_ctc_align" / "__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    return {
        "__version__ in torch_ctc_align/__init__.py": re.search(r'^__version__ = "(.*)"', package, re.MULTILINE)[1],
        "version in CITATION.cff": re.search(r"^version: (.*)$", citation, re.MULTILINE)[1],
        "the newest release in CHANGELOG.md": [*read_releases(root), ("none", ""), ("none", "")][1][0],
    }


def find_gaps(root: Path, version: str) -> list[str]:
    """One sentence for each thing that is missing."""

    def git(*arguments: str) -> list[str]:
        return subprocess.run(
            ["git", *arguments], cwd=root, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split("\n")

    if not re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", version):
        return [f"VERSION must be like 0.2.0 or 0.2.0rc1, found {version!r}"]
    gaps = []
    for place, found in read_versions(root).items():
        if found != version:
            gaps.append(f"{place} must be {version}, found {found}")

    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if "\n- " in changes.partition("## [Unreleased]")[2].partition("\n## [")[0]:
        gaps.append(f"[Unreleased] in CHANGELOG.md must be empty: its entries belong under [{version}]")
    date = dict(read_releases(root)).get(version)
    if date and f"\ndate-released: {date}\n" not in (root / "CITATION.cff").read_text(encoding="utf-8"):
        gaps.append(f"date-released in CITATION.cff must be {date}, as in CHANGELOG.md")

    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    if not re.search(r'^\[project\.urls\]\n(?:.+\n)*?Repository = "https://.+"', project, re.MULTILINE):
        gaps.append(
            '[project.urls] in pyproject.toml must have Repository = "https://...", where README.md\'s links lead'
        )
    if changed := [line for line in git("status", "--porcelain") if line]:
        gaps.append(f"the tree must be clean, found {len(changed)} changed or new files, as {changed[0][3:]}")
    if f"v{version}" not in git("tag", "--points-at", "HEAD"):
        gaps.append(f"this commit must have the tag v{version}")
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    version = parser.parse_args().version
    if gaps := find_gaps(ROOT, version):
        sys.exit("\n".join([f"{version or 'Nothing'} cannot be released:", *(f"- {gap}" for gap in gaps)]))
    print(f"{version} can be released")


if __name__ == "__main__":
    main()
