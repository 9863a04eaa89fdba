"""Draws time and memory against the length of a recording, from the measurements of cpu.py.

    .venv/bin/python benchmarks/plot.py [--out PNG] [DIR or cpu_*.json ...]          (or: make bench-plot)

A directory stands for its cpu_MACHINE.json and cpu_MACHINE_long.json. Needs matplotlib.
"""

import argparse
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

from processes import ROOT

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
except ImportError as error:
    sys.exit(f"plot: {error}; run: pip install -r {ROOT / 'examples' / 'requirements.txt'}")

FRAMES_PER_SECOND = 50
LENGTHS = {10: "10 s", 30: "30 s", 120: "2 min", 600: "10 min", 3_600: "1 h", 36_000: "10 h"}
LEAST_MB = 0.1  # less cannot be told from other pages of the process

INK, GRID = "#1f2933", "#e4e7eb"
STYLES = {  # the colours of Okabe and Ito, which the colour-blind can tell apart, and shapes
    "ours": ("#0072b2", "o"),
    "torchaudio": ("#d55e00", "s"),
    "ctc-forced-aligner": ("#b0578d", "^"),
    "hirschberg-viterbi": ("#009e73", "D"),
}


def read_measurements(paths):
    """All results. They must come from one machine."""
    files = []
    for path in paths:
        found = sorted(path.glob("cpu_*.json")) if path.is_dir() else [path]
        files += [file for file in found if file == path or not file.stem.endswith(("_quick", "_case"))]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    processors = {result["machine"]["processor"] for result in results}
    if len(processors) != 1:
        sys.exit(f"plot: needs the files of one machine, found {', '.join(sorted(processors)) or 'none'}; name them")
    return results


def collect_curves(results):
    """{(backend, threads): {seconds of audio: row}}, in the order of STYLES, fewer threads first."""
    curves = {}
    for result in results:
        for case in result["cases"]:
            for row in case["rows"] if case["scaling"] else []:
                if not row["cpu"] and not row["budget"]:  # the package's defaults
                    curve = curves.setdefault((row["backend"], row["threads"]), {})
                    curve[case["frames"] / FRAMES_PER_SECOND] = row
    order = list(STYLES)
    return {
        key: dict(sorted(curves[key].items())) for key in sorted(curves, key=lambda key: (order.index(key[0]), key))
    }


def draw_panel(axes, curves, quantity, least=0.0):
    """Draws lines with their names, and a cross where a backend failed."""
    lines = []
    for (backend, threads), curve in curves.items():
        colour, marker = STYLES[backend]
        points = [(x, max(row[quantity], least)) for x, row in curve.items() if quantity in row]
        if len(points) < 2:
            continue
        many = backend == "ours" and threads > 1
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=(0, (4, 1.5)) if many else "-",
            linewidth=2.2 if backend == "ours" else 1.6,
            marker=marker,
            markersize=5.5,
            markerfacecolor="white" if many else colour,
            zorder=4 if many else 3,
        )
        failed = [x for x, row in curve.items() if quantity not in row and x > points[-1][0]]
        if failed:
            cross = failed[0], extend(*points[-2:], failed[0])
            axes.plot(*zip(points[-1], cross, strict=True), color=colour, linestyle=":", linewidth=1.4, zorder=2)
            axes.plot(*cross, color=colour, marker="x", markersize=8, markeredgewidth=2.2, zorder=4)
            points.append(cross)
        name = f"{backend}, {threads} thread{'s' * (threads > 1)}" if backend == "ours" else backend
        lines.append((name, colour, points))
    write_names(axes, lines)


def extend(before, last, x):
    """Extends the line through two points to x, in logarithms."""
    slope = math.log(last[1] / before[1]) / math.log(last[0] / before[0])
    return last[1] * (x / last[0]) ** slope


def write_names(axes, lines):
    """Writes each name at the end of its line or along it, where it hides as little as possible."""
    figure = axes.figure
    figure.canvas.draw()  # from here on the transformation from data to pixels is fixed
    occupied = np.concatenate([trace(axes, points) for _, _, points in lines])
    for name, colour, points in lines:
        weight = "bold" if name.startswith("ours") else "normal"
        text = axes.text(0, 0, name, color=colour, weight=weight, ha="center", va="center", rotation_mode="anchor")
        text.set_transform(None)  # positions in pixels
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2
        place = min(
            possible_places(axes.transData.transform(points), half),
            key=lambda place: count_inside(occupied, half + 3, *place),
        )
        text.set_position(place[0])
        text.set_rotation(place[1])
        grid = np.stack(np.meshgrid(*np.linspace(-half, half, 24).T), -1).reshape(-1, 2)
        occupied = np.concatenate([occupied, place[0] + grid @ rotation(place[1])])


def trace(axes, points):
    """Points along a line, a pixel or two apart."""
    corners = axes.transData.transform(points)
    return np.concatenate([np.linspace(start, end, 200) for start, end in pairwise(corners)])


def possible_places(corners, half):
    """(centre, degrees) of a name, the best first: at the right end, then along each part of the line."""
    for up in (0, 8, -8, 16, -16, 24, -24):
        yield corners[-1] + (half[0] + 14, up), 0.0
    for start, end in reversed(list(pairwise(corners))):
        angle = math.degrees(math.atan2(*(end - start)[::-1]))
        for side in (1, -1):
            yield (start + end) / 2 + np.array([0, side * (half[1] + 5)]) @ rotation(angle), angle


def count_inside(points, half, centre, angle):
    """Counts the points in a rotated rectangle."""
    return int((abs((points - centre) @ rotation(-angle)) < half).all(1).sum())


def rotation(angle):
    """The matrix that rotates row vectors by degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, s], [-s, c]])


def set_scales(axes, lengths, format_value):
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(lengths) / 1.35, max(lengths) * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: LENGTHS.get(round(x), f"{x:g} s")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_value(y)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def format_time(ms):
    for factor, unit in ((1e3, "us"), (1, "ms")):
        if ms * factor < 999:
            return f"{ms * factor:g} {unit}"
    return f"{ms / 1e3:g} s"


def format_memory(mb):
    if mb <= LEAST_MB:
        return f"\N{LESS-THAN OR EQUAL TO} {LEAST_MB:g} MB"
    return f"{mb:g} MB" if mb < 999 else f"{mb / 1e3:g} GB"


def describe(results, curves):
    """The caption: inputs, machine, peers, and the points that are missing."""
    machine = results[0]["machine"]
    peers = [f"{name} {found['version']}" for name, found in machine["peers"].items() if "error" not in found]
    lines = [
        "Medians. Random emissions, 50 frames a second, a label every 4 frames, 32 classes, float32.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['date']}; {', '.join(peers) or 'no peers'}.",
    ]
    failures = [
        f"{backend} at {LENGTHS.get(round(x), x)} {row['error']}"
        for (backend, _), curve in curves.items()
        for x, row in curve.items()
        if "error" in row
    ]
    if failures:
        lines.append(f"\N{MULTIPLICATION SIGN} {'; '.join(failures)}; dotted: extrapolated.")
    longest = max(x for curve in curves.values() for x in curve)
    if {backend for (backend, _), curve in curves.items() if longest in curve} == {"ours"} and peers:
        lines.append(f"{LENGTHS.get(round(longest), longest)}: only ours was measured.")
    return "\n".join(lines)


def draw(results, out):
    curves = collect_curves(results)
    if not curves:
        sys.exit("plot: nothing to draw; run make bench and make bench-long first")
    lengths = sorted({x for curve in curves.values() for x in curve})
    plt.rcParams.update({"font.size": 10, "axes.edgecolor": INK, "text.color": INK, "axes.titlesize": 11.5})
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.4), dpi=150)
    figure.subplots_adjust(left=0.07, right=0.87, bottom=0.22, top=0.93, wspace=0.62)
    for axes, title, quantity, format_value, least in (
        (panels[0], "Time of a call", "ms", format_time, 0.0),
        (panels[1], "Memory beside inputs and outputs", "extra_MB", format_memory, LEAST_MB),
    ):
        set_scales(axes, lengths, format_value)
        draw_panel(axes, curves, quantity, least)
        axes.set_title(title, loc="left", weight="bold")
        axes.set_xlabel("length of the recording")
    figure.text(0.005, 0.015, describe(results, curves), color="#52606d", fontsize=8.5, va="bottom")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"Saved as {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="*", type=Path, default=[ROOT / "docs" / "measurements"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "cpu_scaling.png", metavar="PNG")
    arguments = parser.parse_args()
    draw(read_measurements(arguments.measurements), arguments.out)


if __name__ == "__main__":
    main()
