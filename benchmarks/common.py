"""What the benchmarks share: processes with a limit of time, and numbers in Markdown tables."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command, seconds, while_waiting=None, **variables):
    """Exit status (None: out of time) and output. Ends whatever the command has started.

    while_waiting(elapsed) is called once a second.
    """
    if seconds < 3:
        return None, "no time was left\n"
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=os.setpgrp,
    )
    start = time.monotonic()
    try:
        while True:
            elapsed = time.monotonic() - start
            try:
                output, _ = process.communicate(timeout=max(0, min(1, seconds - elapsed)))
                return process.returncode, output
            except subprocess.TimeoutExpired:
                if elapsed >= seconds:
                    break
                if while_waiting:
                    while_waiting(elapsed)
        end_group(process)
        output, _ = process.communicate()
        return None, f"{output}\nnot done after {seconds:.0f} s\n"
    finally:
        if process.poll() is None:
            end_group(process)


def end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(output):
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:200] if lines else ""


def read_row(status, output):
    """The last line of JSON that a measurement has printed, as a dictionary; with "error" if it did not end well."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")][-1:]
    row = found[0] if found else {}
    if status is not None and status < 0:
        row["error"] = f"died (signal {signal.Signals(-status).name})"
    elif status != 0:
        errors = [line for line in output.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
        row["error"] = (f"exit status {status}: " if status else "") + last_line((errors or [output])[-1])
    return row


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


def table(header, rows):
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
