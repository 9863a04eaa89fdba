"""Builds the documentation site: a folder for each version, a list of them, and a first page: ``make docs``.

    build/site/index.html      leads to the newest release
    build/site/versions.json   {"newest": "0.2.0", "versions": ["dev", "0.2.0", "0.1.0"]}
    build/site/0.2.0/          the tree of that release
    build/site/dev/            a tree with changes since the last release

Only the folder of this tree's version is made anew. The pages in the others read versions.json when they are opened, so
its form must stay.
"""

import html
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from packaging.version import InvalidVersion, Version

DOCS = Path(__file__).parent
DEV = "dev"


def name_of_tree(changelog: str) -> str:
    """The last release, or "dev" where the changelog has changes that are not released."""
    found = re.search(r"^## \[Unreleased\]\n(.*?)^## \[(.+?)\]", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(
            "CHANGELOG.md must have the heading [Unreleased] and below it that of a release, found neither"
        )
    unreleased, release = found.groups()
    return DEV if unreleased.strip() else release


def list_versions(names: list[str]) -> dict[str, str | list[str]]:
    """The names that are versions, the latest first, and which one a reader without wishes should get."""
    versions = {}
    for name in names:
        try:
            versions[Version(name)] = name
        except InvalidVersion:
            continue
    releases = [versions[version] for version in sorted(versions, reverse=True)]
    finished = [versions[version] for version in sorted(versions, reverse=True) if not version.is_prerelease]
    return {"newest": (finished or releases or [DEV])[0], "versions": [DEV] * (DEV in names) + releases}


def first_page(site: dict) -> str:
    """Leads to the newest release. With #versions, or without JavaScript, it is the list of all versions."""
    title = "torch_ctc_align: documentation"
    style = "body { font: 1rem/1.5 system-ui; margin: 2rem } h1 { font-size: 1.5rem }"
    links = "".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in map(html.escape, site["versions"]))
    lead = f'if (location.hash !== "#versions") location.replace({json.dumps(site["newest"] + "/index.html")});'
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<link rel="canonical" href="{html.escape(site["newest"])}/index.html">
<title>{title}</title>
<style>{style}</style>
<script>{lead}</script>
<h1>{title}</h1>
<ul>{links}</ul>
"""


def write_lists(out: Path) -> None:
    """Writes versions.json and index.html for the folders that are there."""
    site = list_versions([page.parent.name for page in out.glob("*/index.html")])
    (out / "versions.json").write_text(json.dumps(site) + "\n", encoding="utf-8")
    (out / "index.html").write_text(first_page(site), encoding="utf-8")


def main(out: Path) -> int:
    """Builds this tree's folder in ``out``, always from the beginning: no page of an earlier build stays."""
    from sphinx.cmd.build import main as sphinx_build

    name = name_of_tree((DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as doctrees:
        shutil.rmtree(out / name, ignore_errors=True)
        strict = ["--fail-on-warning", "--keep-going", "--quiet"]
        if status := sphinx_build([*strict, "-d", doctrees, str(DOCS), str(out / name)]):
            return status
    write_lists(out)
    print(f"Built {out / name / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
