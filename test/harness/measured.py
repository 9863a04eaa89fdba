"""Numbers with their units, out of the prose, the tables and the JSON files of pages. test_claims.py has the rules."""

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache

# unit -> its kind, and its size in the unit of that kind
TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "second": 1, "seconds": 1, "minute": 60, "minutes": 60}
UNITS = {name: ("time", size) for name, size in TIMES.items()}
UNITS |= {name: ("bytes", size) for name, size in {"kB": 1e3, "MB": 1e6, "GB": 1e9}.items()}
UNITS |= dict.fromkeys(["G states/s", "G states a second"], ("states/s", 1))
UNITS |= dict.fromkeys(["times", "x"], ("times", 1)) | dict.fromkeys(["alignments", "fuzzed alignments"], ("fuzz", 1))
UNITS |= {name: (name, 1) for name in ("GB/s", "%", "nats", "cycles")}
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9}

SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
WORDS = {word: 1 + place for place, word in enumerate(SMALL)}
WORDS |= {"half a": 0.5, "twenty": 20, "thirty": 30, "a hundred": 100, "a thousand": 1000}

NUMBER = r"(?<![\w.,])-?\d[\d,]*(?:\.\d+)?(?:e-\d+)?"
UNIT = "|".join(sorted(map(re.escape, UNITS.keys() - {"x"}), key=len, reverse=True)) + r"|(?<=\d)x"
NUMBER_OR_WORD = rf"{NUMBER}|\b(?:{'|'.join(WORDS)})(?=\s)"
QUANTITY = re.compile(
    rf"(?P<about>\b(?:about|some)\s+)?(?P<first>{NUMBER_OR_WORD})(?:\s+(?:to|and|or)\s+(?P<second>{NUMBER_OR_WORD}))?"
    rf"(?:\s+(?P<scale>{'|'.join(SCALES)}))?[\s-]*(?P<unit>{UNIT})(?![\w/])"
)
UNIT_OF_HEADER = re.compile(rf"(?:^|[\s,(])({UNIT})(?=$|[\s,):])")

# Text that has numbers and units, and measures nothing.
NOTHING_MEASURED = re.compile(
    r"`make [\w-]+`[^.;]*? takes? [\w -]*?minutes?"  # on the reader's machine, about
    r"|`[^`\n]*`"  # code
    r"|(?<=\]\()[^)]*"  # where links lead
    r"|\b(?:[Rr]ecordings?|[Ss]peech|clips?) of [\d,]+ (?:seconds|minutes)"  # lengths of inputs
    r"|80GB HBM3|\bten\s+minutes\b"  # names, of a GPU and of a tutorial
)
SHORTEST = 50  # frames; a smaller number is a part of a recording


@dataclass(frozen=True)
class Quantity:
    value: float
    slack: float  # half of the last digit
    kind: str
    text: str
    start: int
    lengths: frozenset = frozenset()  # of the recordings that its row or its clause names

    def agrees(self, fact):
        near = abs(self.value - fact.value) <= self.slack * (1 + 1e-9)
        same_length = not self.lengths or not fact.lengths or self.lengths & fact.lengths
        return bool(near and self.kind == fact.kind and same_length)


def last_digit(text, digits):
    """The size of the last digit that counts. Of the zeros that end a whole number, those beyond `digits` do not."""
    if text in WORDS:
        return 10.0 ** math.floor(math.log10(WORDS[text]))
    mantissa, _, exponent = text.strip("-").replace(",", "").partition("e")
    whole, _, fraction = mantissa.partition(".")
    counted = max(len(whole.rstrip("0")), min(digits, len(whole)))
    return 10.0 ** ((-len(fraction) if fraction else len(whole) - counted) + int(exponent or 0))


def number(text):
    return WORDS[text] if text in WORDS else float(text.replace(",", ""))


def quantity(text, unit, start, digits, scale=None, lengths=frozenset()):
    kind, size = UNITS[unit] if unit else ("", 1)
    size *= SCALES.get(scale, 1)
    return Quantity(number(text) * size, last_digit(text, digits) * size / 2, kind, text, start, lengths)


def lengths_in(text):
    """The lengths of recordings that a text names: numbers of frames, or hours."""
    found = re.findall(r"(\d[\d,]*\d) frames\b|\bT = (\d[\d,]*\d)", text)
    frames = [int("".join(pair).replace(",", "")) for pair in found]
    hours = [name for name in ("an hour", "ten hours") if re.search(name.replace(" ", r"\s+"), text)]
    hours += ["an hour" for each in frames if 130_000 <= each <= 200_000]
    hours += ["ten hours" for each in frames if each >= 1_700_000]
    return frozenset(hours + [each for each in frames if SHORTEST <= each < 130_000])


def quantities_in(text):
    """Numbers with units in prose, with the lengths that their clause names."""
    text = NOTHING_MEASURED.sub(lambda match: re.sub(r"\S", "_", match[0]), text)
    for match in QUANTITY.finditer(text):
        before, after = (re.split(r"[.;:,]\s", part) for part in (text[: match.start()], text[match.start() :]))
        lengths = lengths_in(before[-1] + after[0])
        for name in ("first", "second"):
            if match[name]:
                digits = 1 if match["about"] else 2
                yield quantity(match[name], match["unit"], match.start(name), digits, match["scale"], lengths)


@cache
def quantities_of_cell(header, cell, start=0):
    """All numbers of a cell. Their unit is beside them, in the header, or beside the next one; else they have none."""
    if not re.match(r"[*+-]*\d", cell):
        return []
    named = UNIT_OF_HEADER.search(header)
    of_header = named[1] if named else "times" if "ratio" in header or " / " in header else None
    found, beside = [], None
    for match in reversed(list(re.finditer(rf"({NUMBER})(?: ({UNIT})(?![\w/]))?", cell))):
        beside = match[2] or beside
        found.append(quantity(match[1], match[2] or of_header or beside, start + match.start(1), digits=99))
    return found[::-1]


# ---------------------------------------------------------------------------------------------------- pages


def anchor_of(heading):
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def blocks_of(page):
    """(heading, text) of every paragraph, list item and table; code in fences is left out."""
    heading = ""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for text in re.split(r"\n\s*\n|\n(?=- )", prose):
        if text.startswith("#"):
            heading = text.lstrip("# ")
        elif text.strip():
            yield heading, text.strip("\n")


def rows_of(table):
    """[(header, cell, place in the text)] of every row of a table."""

    def cells(line):
        return [(match[1], match.start(1)) for match in re.finditer(r"\|\s*([^|\n]*?)\s*(?=\|)", line)]

    header, rule, *lines = table.splitlines(keepends=True)
    place = len(header + rule)
    for line in lines:
        yield [(name, cell, place + at) for (name, _), (cell, at) in zip(cells(header), cells(line), strict=True)]
        place += len(line)


def section_of(page, anchor):
    """The text under a heading; all of the page if it has no such heading of the second level."""
    text = page.read_text(encoding="utf-8")
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return next((section for section in sections if anchor_of(section.partition("\n")[0]) == anchor), text)


# --------------------------------------------------------------------------------------------- measurements


def rows_of_cpu(result):
    """{header: cell} of every measurement of ours with one thread, under the names of docs/performance.md."""
    sets = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}
    for case in result["cases"]:
        sides = {(row["backend"], row["threads"], row["cpu"], row["budget"]): row for row in case["rows"]}

        def columns(name, row, case=case):
            below = case["optimum"] - row["score"] if "optimum" in case and "score" in row else None
            found = {name: (row.get("ms"), "ms"), f"{name}, memory": (row.get("extra_MB"), "MB")}
            found[f"{name}, below the best"] = below, "nats"
            missing = "crash" if "error" in row else ""
            return {key: missing if value is None else f"{value:.6g} {unit}" for key, (value, unit) in found.items()}

        for (backend, threads, cpu, budget), row in sides.items():
            if (backend, threads) == ("ours", 1):
                cells = {"B": case["batch"], "T": case["frames"], "L": case["labels"], "C": case["classes"]}
                cells["instruction set"] = sets[row["cpu_in_use"]]
                cells["budget"] = f"{budget / 1e6:g} MB" if budget else ""
                cells |= (
                    columns("ours", row)
                    | {"smallest": f"{row['min_ms']} ms"}
                    | {"2 threads": f"{sides['ours', 2, cpu, budget]['ms']} ms"}
                )
                cells["G states/s"] = case["states"] / row["ms"] / 1e6
                ratios = {}
                for peer in result["machine"]["peers"]:
                    theirs = sides.get((peer, 1, None, None), {})
                    cells |= columns(peer, theirs)
                    ratios |= {f"{peer} / ours": theirs["ms"] / row["ms"]} if "ms" in theirs else {}
                yield cells | ratios | {"ratio": min(ratios.values(), default="")}


def rows_of_gpu(result):
    for row in result["rows"]:
        ours, theirs = row["ours"], row.get("torchaudio", {})
        cells = {"B": row["batch"], "T": row["frames"], "L": row["labels"], "C": row["classes"]}
        cells |= {"ours, ms": ours["ms"], "in a CUDA graph, ms": ours.get("graph_ms", "")}
        cells |= {"torchaudio, ms": theirs.get("ms", ""), "ratio": row.get("ratio", "")}
        cells |= {"ours, MB on the device": ours["device_MB"], "torchaudio, MB on the host": theirs.get("host_MB", "")}
        yield cells


@cache
def read_rows(page):
    """[{header: cell}] of every row of a page in docs/measurements, and of the JSON that the page shows."""
    rows, data = [], page.with_suffix(".json")
    if data.exists():
        result = json.loads(data.read_text())
        read = rows_of_cpu if "cases" in result else rows_of_gpu
        rows += [{header: str(cell) for header, cell in row.items()} for row in read(result)]
    for heading, text in blocks_of(page):
        sizes = re.match(r"\S+ x (\S+) x", heading)
        for row in rows_of(text) if text.startswith("|") else []:
            cells = {"T": sizes[1]} if sizes else {}
            for header, cell, _ in row:  # a page may use a header twice
                cells[header + " " * len(cells) if header in cells else header] = cell
            rows.append(cells)
    return rows


@cache
def read_facts(page):
    """Every number with a unit in a page of docs/measurements."""
    facts = [fact for _, text in blocks_of(page) if not text.startswith("|") for fact in quantities_in(text)]
    for row in read_rows(page):
        frames = row.get("T", row.get("frames", ""))
        lengths = lengths_in(f"{frames} frames; " + " ".join(row.values()))
        for header, cell in row.items():
            found = [*quantities_of_cell(header, cell), *quantities_in(cell)]
            facts += [replace(fact, lengths=lengths) for fact in found]
    return facts
