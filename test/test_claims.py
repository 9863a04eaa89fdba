"""Every number that README.md, docs/index.md and docs/performance.md claim is in docs/measurements, with its source.

**A claim** is a number with a unit of time, memory, speed, ratio or accuracy (harness/measured.py has the units, and
what only looks like a claim), and every number of a table of docs/performance.md outside of its columns B, T, L, C.

**Where it must be.** A row of a table of docs/performance.md is, column by column, a row of a measurement that its
section links to. Any other claim is a number with the same unit in the measurement whose link it stands in, like [36
seconds](docs/measurements/speech_speed.md), or else in one that its paragraph, list item or row links to, directly or
by way of one page or section. Without such links a paragraph of docs/performance.md has those of its section, and a
paragraph elsewhere those of docs/performance.md. If a clause names frames or hours, rows of other lengths do not count.

**Rounding.** A number is quoted to the digits that it has: 36 seconds are 35.5 to 36.5. In prose the zeros that end a
whole number do not count beyond its second digit: 12,000 is 11,500 to 12,500. After "about" or "some", one digit is
enough. Number words have one digit: half a minute is 27 to 33 seconds.

To show that this finds mistakes, a test changes the last digit of every claim by two, up and down.
"""

import json
import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.measured import (
    anchor_of,
    blocks_of,
    last_digit,
    number,
    quantities_in,
    quantities_of_cell,
    read_facts,
    read_rows,
    rows_of,
    section_of,
)

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "docs" / "measurements"
PERFORMANCE = ROOT / "docs" / "performance.md"
KEYS = {"B", "T", "L", "C"}


def measurements_of(page, text, hops=1):
    """The pages of docs/measurements to which a text leads, directly or by way of a page or a section."""
    found = []
    for path, anchor in re.findall(r"\]\(([^)#\s:]*\.md)?(?:#([^)\s]*))?\)", text):
        target = (page.parent / path).resolve() if path else page
        if target.parent == MEASUREMENTS:
            found.append(target)
        elif hops and target.parent == PERFORMANCE.parent and target.exists():
            found += measurements_of(target, section_of(target, anchor), hops - 1)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Block:
    """A paragraph, a list item, a table or a row of it, and the measurements that it answers to."""

    page: Path
    text: str
    sources: tuple

    @property
    def is_rows(self):
        return self.page == PERFORMANCE and self.text.startswith("|")

    def claims(self, text):
        if not self.is_rows:
            return list(quantities_in(text))
        cells = [cell for row in rows_of(text) for cell in row if cell[0] not in KEYS]
        return [claim for cell in cells for claim in quantities_of_cell(*cell)]

    def faults(self, text):
        """The claims, or the rows, of a text in the place of this block that no measurement has."""
        if self.is_rows:
            known = [row for source in self.sources for row in read_rows(source)]
            rows = [{header: cell for header, cell, _ in row} for row in rows_of(text)]
            return [row for row in rows if not any(is_part_of(row, other) for other in known)]
        return [claim.text for claim in self.claims(text) if not any(map(claim.agrees, self.facts_for(claim, text)))]

    def facts_for(self, claim, text):
        links = [link for link in re.finditer(r"\[[^\]]*\]\([^)]*\)", text) if link.start() < claim.start < link.end()]
        sources = measurements_of(self.page, links[0][0]) if links else self.sources
        return [fact for source in sources for fact in read_facts(source)]


def is_part_of(row, other):
    """Whether every cell has the numbers of the other row's cell under the same header; without numbers, its words."""
    for header, cell in row.items():
        theirs = other.get(header, "")
        pair = [quantities_of_cell(header, text) for text in (cell, theirs)]
        if len(pair[0]) != len(pair[1]) or not all(ours.agrees(fact) for ours, fact in zip(*pair, strict=True)):
            return False
        if not pair[0] and cell != theirs:
            return False
    return True


def read_blocks(page):
    everything = measurements_of(PERFORMANCE, PERFORMANCE.read_text(encoding="utf-8"), hops=0)
    for heading, block in blocks_of(page):
        of_section = measurements_of(page, section_of(page, anchor_of(heading)), hops=0) if page == PERFORMANCE else []
        is_text = page != PERFORMANCE and block.startswith("|")  # each row of such a table has links of its own
        for text in block.splitlines() if is_text else [block]:
            yield Block(page, text, tuple(measurements_of(page, text) or of_section or everything))


def name_of(block):
    return f"{block.page.name}-" + re.sub(r"[^a-z]+", "-", block.text.lower()).strip("-")[:40]


PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", PERFORMANCE]
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
BLOCKS = [pytest.param(block, id=name_of(block)) for block in BLOCKS if block.claims(block.text)]


@pytest.mark.parametrize("block", BLOCKS)
def test_claims_are_measured(block):
    faults = block.faults(block.text)
    names = [source.name for source in block.sources]
    assert not faults, (
        f"{block.page.name} claims {faults}, which is not in {names} with that unit, to the digits that it has. "
        f"Correct it, link to the measurement that has it, measure it, or leave it out. It is in:\n{block.text}"
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_a_changed_number_is_found(block):
    for claim in block.claims(block.text):
        digit = last_digit(claim.text, digits=99 if block.is_rows else 2)
        decimals = max(0, -round(math.log10(digit)))
        for step in (-2, 2):
            changed = f"{number(claim.text) + step * digit:.{decimals}f}"
            text = block.text[: claim.start] + changed + block.text[claim.start + len(claim.text) :]
            assert block.faults(text), (
                f"{block.page.name} could say {changed} for {claim.text}, and nothing would be found: another "
                f"measurement is near. Quote more digits, or put the number into its link. It is in:\n{block.text}"
            )


def test_claims_are_found():
    """Guards the search. Below are claims, each with what it means, and numbers that claim nothing."""
    text = "T = 50 frames in half a second, 10 to 27 times, 2.3 million fuzzed alignments, 83 %, -0.1 us, 1,200-MB, 7x."
    assert [f"{claim.value:g} {claim.kind}" for claim in quantities_in(text)] == [
        "0.5 time", "10 times", "27 times", "2.3e+06 fuzz", "83 %", "-1e-07 time", "1.2e+09 bytes", "7 times",
    ]  # fmt: skip
    assert not list(
        quantities_in("recordings of 30 seconds, 1 x 50 x 10, `5 ms`, [a](5 ms.md), torch 2.13.0, 64-bit, 2 s2")
    )
    assert {claim.kind for block in read_blocks(PERFORMANCE) for claim in block.claims(block.text)} >= {
        "time", "bytes", "times", "states/s", "GB/s", "%", "nats", "cycles",
    }  # fmt: skip


# ----------------------------------------------------------------------------------- where measurements come from


def test_what_follows_from_measurements_follows():
    """In docs/measurements/derived.md every calculation, with the values of the JSON files, gives its result."""

    def value(match):
        found = json.loads((MEASUREMENTS / match[1]).read_text())
        for step in match[2].split("/"):
            found = found[int(step) if isinstance(found, list) else step]
        return repr(found)

    rows = read_rows(MEASUREMENTS / "derived.md")
    assert len(rows) > 15
    for row in rows:
        calculation = re.sub(r"\{([\w.]+)#/([\w/]+)\}", value, row["calculation"])
        assert re.fullmatch(r"[\d.e+*/() -]+", calculation), calculation
        (result,) = quantities_in(row["result"])
        found = eval(calculation)
        assert abs(found - number(result.text)) <= last_digit(result.text, 2) / 2, f"{row['what']}: {found}"


HEAD = {
    "a date": r"\b20\d\d-\d\d-\d\d\b",
    "a commit": r"(?:at|recorded in)\s+([0-9a-f]{7})\b",
    "the version of torch, or of the compiler": r"\b(?:torch|nvcc)\s+\d+\.\d+|\bg\+\+ \([^)]*\) \d+\.\d+",
    "a machine": r"AMD EPYC|Intel|NVIDIA|\bsm_90\b|machine\s+was\s+not\s+recorded",
    "a command": r"`[^`]*(?:make\s[\w-]+|python\sbenchmarks/\w+\.py)[^`]*`",
}
MEASURED = sorted(page for page in MEASUREMENTS.iterdir() if page.name != "derived.md")
assert len(MEASURED) > 15


def head_of(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return re.split(r"^(?=## |\|)", text, maxsplit=1, flags=re.MULTILINE)[0]
    result = json.loads(text)
    machine, torch = result["machine"], result["machine"].get("package", result["machine"])["torch"]
    name = machine.get("processor", machine.get("device"))
    return f"{name}, {machine['date']}, at {machine['commit']}, torch {torch}, `{result['command']}`"


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.name)
def test_a_measurement_says_where_it_comes_from(page):
    head = head_of(page)
    missing = [what for what, pattern in HEAD.items() if not re.search(pattern, head)]
    assert not missing, f"{page.name} must name {missing} before its first table:\n{head}"


def git(*command):
    return subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True)


def test_measured_commits_are_in_the_history(missing):
    """A shallow clone has the last commits alone, and an sdist has none."""
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        missing("history", "the history is not here, or not whole")
    for page in MEASURED:
        for commit in re.findall(HEAD["a commit"], page.read_text(encoding="utf-8")):
            assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, f"{page.name}: {commit}"


def test_pages_show_their_json(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from page import render_cpu, render_gpu

    for data in MEASUREMENTS.glob("*.json"):
        render = render_cpu if data.name.startswith("cpu") else render_gpu
        assert render(json.loads(data.read_text())).rstrip("\n") + "\n" == data.with_suffix(".md").read_text(), data
