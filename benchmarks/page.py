"""Writes the results of cpu.py and gpu.py as JSON and as Markdown pages. The small benchmarks use its tables, too."""

import json

from cases import SIZES, Side, name_sizes
from timing import SAMPLE_S, SLOW_S

DISTURBING_CORES = 0.2  # other work on the machine; the page counts the rows that had more


def write(result, render, out):
    """Writes result["name"].json and .md to a folder. It is called after every row, so an early end loses little."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{result['name']}.md").write_text(render(result).rstrip("\n") + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- numbers and tables


def table(header, rows):
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def in_three_digits(number):
    """1234.5 -> 1,234; 12.345 -> 12.3; 0.012345 -> 0.0123"""
    if number is None:
        return ""
    if number == 0 or number >= 100:
        return f"{number:,.0f}"
    digits = 2
    while digits < 5 and number < 10 ** (2 - digits):
        digits += 1
    return f"{number:.{digits - (number >= 10)}f}"


def in_time(ms):
    """0.01234 -> 12.3 us"""
    factor, unit = (1e3, "us") if ms < 1 else (1, "ms") if ms < 1e3 else (1e-3, "s")
    return f"{in_three_digits(factor * ms)} {unit}"


def time_or_error(row):
    if "ms" in row:
        return in_time(row["ms"])
    return "died" if row.get("error", "").startswith("died") else "error" if "error" in row else ""


def ratio(theirs, ours):
    return in_three_digits(theirs["ms"] / ours["ms"]) if "ms" in theirs and "ms" in ours else ""


def with_share(number, whole):
    """12.3 (61 %), if the whole is known."""
    return in_three_digits(number) + (f" ({100 * number / whole:.0f} %)" if whole else "")


# ------------------------------------------------------------------------------------------- the CPU page


def render_cpu(result):
    machine, floors, cases = result["machine"], result["floors"], result["cases"]
    copies = " and ".join(f"{speed} GB/s with {threads}" for threads, speed in floors["copy_GBps"].items())
    tables = "\n\n".join(render_case(case, floors) for case in cases)
    rows = [row for case in cases for row in case["rows"]]
    disturbed = sum(row.get("other_cores", 0) > DISTURBING_CORES for row in rows)
    ceilings = " and ".join(f"{speed} with {cpu}" for cpu, speed in floors.get("ceiling_Gstates", {}).items())
    ceiling = f". A core that only sweeps reaches {ceilings}; in brackets the share of that" if ceilings else ""
    return f"""# CPU: {machine["processor"]}

{describe(result)}

## Time

Medians after warm-up, float32, random emissions made outside the clock. Ours is the operator,
`torch.ops.ctc_align.forced_align.default`. Peers are measured in the same run, without the checks of their Python
functions, one item a call, on one thread, since they use no more. "ratio": the peer's time over the time of ours with
one thread.

{render_overview(cases, machine)}

Disturbed, by more than {DISTURBING_CORES} cores' worth of other work on the machine: {disturbed} of {len(rows)} rows.

## All of it

A table for each case, B x T x L x C; a row is one or more processes of its own.

- "runs": samples of all rounds, {result["rounds"]}; two, of one round, where a call takes more than {SLOW_S:g} s. A
  sample is a call, or the mean of as many as fill {1e3 * SAMPLE_S:g} ms.
- "PEER / this": the peer's time over the time of this row.
- "extra MB": the largest resident memory in a call, less the memory that was resident before it, less the returned
  paths and scores, for every backend alike. Linux counts pages, and not always at once: 0.3 MB more or less mean
  nothing.
- "score": log_probs along the path, summed in float64. "below optimum": how far this is below the score of the best
  path, which our operator finds in float64. "same path": as in the first row.
- "G states/s": states of the band, B ((2L + 1)(T - L) + L), over time{ceiling}.
- "emission GB/s": bytes of log_probs over time. A large copy moves {copies} threads, read and
  written; a backend that reads only the target's classes can exceed that.
- "busy cores": processor time over time. "other cores": the same for everything except this row.

{tables}
"""


def describe(result):
    """The machine, the versions and the command, in a few lines."""
    machine, name = result["machine"], result["name"]
    package = machine["package"]
    versions = ["no peers"] * (not machine["peers"])
    for peer, found in machine["peers"].items():
        versions.append(f"{peer} {found['version']}" if "error" not in found else f"{peer} absent")
    caches = [f"{level} {size}" for level, size in machine["caches"].items() if size]
    commit = machine["commit"] or "an unknown commit"
    return f"""\
{machine["date"]}, package {package["version"]} at {commit}, torch {package["torch"]}; {"; ".join(versions)}. \
Made by `{result["command"]}`; [{name}.json]({name}.json) has all of it.

{machine["cores"]} cores, family {machine["family"]}, model {machine["model"]}\
{f", under {machine['hypervisor']}" if machine["hypervisor"] else ""}; {", ".join(caches)}; {machine["memory_GB"]} GB; \
Linux {machine["kernel"]}; Python {machine["python"]}. The package chooses {package["cpu_in_use"]} of \
{", ".join(package["cpus"])}."""


def render_overview(cases, machine):
    """A row for each case: ours with one thread and with all, and every peer."""
    peer_names = [name for name, found in machine["peers"].items() if "error" not in found]
    many = machine["cores"]
    header = ["B", "T", "L", "C", "ours, 1 thread"] + [f"ours, {many} threads"] * (many > 1)
    for peer in peer_names:
        header += [peer, "ratio"]
    lines = []
    for case in cases:
        plain = {(row["backend"], row["threads"]): row for row in case["rows"] if not row["cpu"] and not row["budget"]}
        ours = plain["ours", 1]
        line = [f"{case[name]:,}" for name in SIZES]
        line += [time_or_error(plain["ours", threads]) for threads in sorted({1, many})]
        for peer in peer_names:
            theirs = plain.get((peer, 1))
            line += [time_or_error(theirs) if theirs else "", ratio(theirs, ours) if theirs else ""]
        lines.append(line)
    return table(header, lines)


def render_case(case, floors):
    """A table of one case, a row for each side."""
    lines = [columns_of(row, case, floors) for row in case["rows"]]
    header = list(max(lines, key=len))
    errors = [
        f"- {Side(row['backend'], row['threads'], row['cpu'], row['budget'])}: {row['error']}"
        for row in case["rows"]
        if "error" in row
    ]
    rows = [[line.get(name, "") for name in header] for line in lines]
    return "\n\n".join([f"### {name_sizes(case)}", table(header, rows), *errors])


def columns_of(row, case, floors):
    ours, threads = row["backend"] == "ours", row["threads"]
    columns = {
        "": row["backend"],
        "threads": threads,
        "CPU": row.get("cpu_in_use", ""),
        "budget": f"{row['budget'] / 1e6:g} MB" if row["budget"] else "default" if ours else "",
        "median": time_or_error(row),
    }
    if "ms" not in row:
        return columns
    columns |= {"smallest": in_time(row["min_ms"]), "largest": in_time(row["max_ms"]), "runs": row["runs"]}
    for theirs in case["rows"]:
        if theirs["backend"] != "ours":
            columns[f"{theirs['backend']} / this"] = ratio(theirs, row) if ours else ""
    ceiling = floors.get("ceiling_Gstates", {}).get(row.get("cpu_in_use"))
    emission_bytes = 4 * case["batch"] * case["frames"] * case["classes"]
    return columns | {
        "extra MB": f"{row['extra_MB']:,.1f}",
        "score": f"{row['score']:,.3f}",
        "below optimum": f"{case['optimum'] - row['score']:.3f}" if "optimum" in case else "",
        "same path": "yes" if row["paths"] == case["rows"][0].get("paths") else "no",
        "G states/s": with_share(case["states"] / row["ms"] / 1e6, ceiling and ceiling * threads),
        "emission GB/s": with_share(emission_bytes / row["ms"] / 1e6, floors["copy_GBps"][str(threads)]),
        "busy cores": row.get("busy_cores", ""),
        "other cores": row.get("other_cores", ""),
    }


# ------------------------------------------------------------------------------------------- the GPU page


def render_gpu(result):
    machine, floors, steps = result["machine"], result.get("floors", {}), result["steps"]
    times, costs, errors = [], [], []
    for row in result["rows"]:
        sizes = [f"{row[name]:,}" for name in SIZES]
        ours, theirs = row.get("ours", {}), row.get("torchaudio", {})
        times.append(
            [
                *sizes,
                in_three_digits(ours.get("ms")) or ("error" if "error" in ours else ""),
                in_three_digits(ours.get("min_ms")),
                in_three_digits(ours.get("graph_ms")),
                in_three_digits(theirs.get("ms")) or ("error" if "error" in theirs else ""),
                in_three_digits(row.get("ratio")),
            ]
        )
        total = [f"{side['score']:.3f}" if "score" in side else "" for side in (ours, theirs)]
        same = {True: "yes", False: "NO", None: ""}[ours.get("equals_cpu")]
        memory = [in_three_digits(side.get(f"{where}_MB")) for where in ("device", "host") for side in (ours, theirs)]
        costs.append([*sizes, ours.get("launches", ""), theirs.get("launches", ""), *memory, *total, same])
        for name, side in (("ours", ours), ("torchaudio", theirs)):
            if "error" in side:
                errors.append(f"- {name_sizes(row)}, {name}: {side['error']}")
    sizes = ["B", "T", "L", "C"]
    times_header = [*sizes, "ours", "min", "graph", "torchaudio", "torchaudio / ours"]
    costs_header = [*sizes, "launches", "torchaudio", "device MB", "torchaudio", "host MB", "torchaudio"]
    costs_header += ["total", "torchaudio", "equals CPU"]
    checks = [
        f"- {name}: {'passed' if step['passed'] else 'FAILED'}, {step['outcome']}" for name, step in steps.items()
    ]
    errors += sum_errors(result.get("sums", []))
    notes = "\n".join([*checks, "", *errors])
    return f"""# CUDA: {machine["device"]}

{machine["date"]}, package at {machine["commit"] or "an unknown commit"}; torch {machine["torch"]}, \
torchaudio {machine.get("torchaudio") or "absent"}, {machine["nvcc"]}, driver {machine["driver"]}, \
{machine["multiprocessors"]} multiprocessors. Made by `{result["command"]}`; \
[{result["name"]}.json]({result["name"]}.json) has all of it.

Floors: a device copy moves {floors.get("copy_GBps", "?")} GB/s (read and written), a launch takes \
{floors.get("launch_us", "?")} us, the replay of a CUDA graph with one empty kernel {floors.get("graph_us", "?")} us.

## Time

Milliseconds between CUDA events, median after warm-up: random emissions in float32, made outside the clock. "graph" is
the replay of a captured call. torchaudio takes one item a call, so a batch is B calls, and waits for the host in each.

{table(times_header, times)}

## Launches, memory, totals

Kernels and memsets of one call; peak megabytes beyond inputs and outputs; the sum of the scores in float64; whether
paths and scores equal the CPU kernel's, bit for bit.

{table(costs_header, costs)}

{render_sums(result)}## Checks

{notes}
"""


# ------------------------------------------------------------------------------------- the sums on the GPU


def render_sums(result):
    rows = result.get("sums", [])
    losses = [row for row in rows if any(rival in row for rival in RIVALS)]
    errors = [row for row in rows if "log_likelihood" in row.get("precision", {})]
    if not rows:
        return ""
    times_header = ["", *"BTLC", "ours", "min", "graph", "target", "met", "MB", "launches", "equals CPU", "equal runs"]
    losses_header = [*"BTLC", "ours", *RIVALS, "torch / ours", "ours, MB", "torch, MB"]
    losses_header += [f"{rival} off by" for rival in RIVALS]
    errors_header = ["", *"BTLC", "log-likelihood", "ours off by", "torch off by", "posteriors: ours", "torch", "exact"]
    triton = result["machine"].get("triton") or {}
    return f"""## Sums over all paths

Milliseconds as above. `class_posteriors` gives the loss and its gradient in one call. "target": what the row is meant
to take; the second one is for the graph. "MB": beyond inputs and outputs, at the peak. "equal runs": those with the
bits of the first, of {EQUAL_RUNS} with the same inputs.

{table(times_header, [sum_times(row) for row in rows])}

## Losses, forward and backward

Milliseconds of a loss and its gradient through autograd, all in one run. "torch" is `ctc_loss` without cuDNN, not
deterministic, in its own layout (T, B, C), with lengths on the host. "cuDNN" is the same function where cuDNN accepts
the case. "Triton" is the `ctc_loss` of {triton.get("version") or "FlagGems, which is not here"}. "off by": the
greatest difference between the posteriors in a rival's gradient and ours.

{table(losses_header, [sum_losses(row) for row in losses])}

## Precision of the sums

Greatest errors of float32: of a log-likelihood, and of a posterior, which is the gradient. "log-likelihood" is the
mean of the items.

{table(errors_header, [sum_precision(row) for row in errors])}

"""


EQUAL_RUNS = 20
RIVALS = ("torch", "cuDNN", "Triton")


def name_and_sizes(row):
    return [row["operator"], *(f"{row[name]:,}" for name in SIZES)]


def time_or_reason(side):
    return in_three_digits(side["ms"]) if "ms" in side else "error" if "error" in side else ""


def sum_times(row):
    ours, targets = row.get("ours", {}), [row["target_ms"], row["graph_target_ms"]]
    met = [target_met(ours.get(name), target) for name, target in zip(("ms", "graph_ms"), targets, strict=True)]
    return [
        *name_and_sizes(row),
        time_or_reason(ours),
        in_three_digits(ours.get("min_ms")),
        in_three_digits(ours.get("graph_ms")),
        ", ".join(f"{target:g}" for target in targets if target),
        ", ".join(filter(None, met)),
        in_three_digits(ours.get("device_MB")),
        ours.get("launches", ""),
        {True: "yes", False: "NO", None: ""}[ours.get("equals_cpu")],
        f"{ours['equal_runs']} of {EQUAL_RUNS}" if "equal_runs" in ours else "",
    ]


def target_met(ms, target):
    if target is None:
        return ""
    return "not measured" if ms is None else "yes" if ms <= target else f"MISSED, {ms / target:.2g} times"


def sum_losses(row):
    ours, rivals = row.get("ours", {}), [row.get(rival, {}) for rival in RIVALS]
    torch_ms = rivals[0].get("ms")
    return [
        *name_and_sizes(row)[1:],
        in_three_digits(ours.get("loss_ms")),
        *map(time_or_reason, rivals),
        in_three_digits(torch_ms / ours["loss_ms"]) if torch_ms and "loss_ms" in ours else "",
        in_three_digits(ours.get("device_MB")),
        in_three_digits(rivals[0].get("device_MB")),
        *(in_digits_of_error(rival.get("gradient_off_by")) for rival in rivals),
    ]


def sum_precision(row):
    found = row["precision"]
    sides = [found.get(side, {}) for side in ("ours", "torch")]
    off_by = [in_digits_of_error(side.get(f"{of}_off_by")) for of in ("log_likelihood", "gradient") for side in sides]
    return [*name_and_sizes(row), f"{found['log_likelihood']:,.0f}", *off_by, found["exact"]]


def in_digits_of_error(number):
    """6e-8, or the word that stands for no number."""
    return "" if number is None else number if isinstance(number, str) else f"{number:.1e}"


def sum_errors(rows):
    return [
        f"- {row['operator']} {name_sizes(row)}, {side}: {found['error']}"
        for row in rows
        for side, found in row.items()
        if isinstance(found, dict) and "error" in found
    ]
