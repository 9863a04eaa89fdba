"""Runs commands and measurements in processes of their own, each with a time limit.

A measurement is a function of a benchmark script. The script starts itself again as `script --child NAME ARGUMENTS`,
and the child prints lines of JSON. The last line is the result.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command, limit_s, while_waiting=None, **variables):
    """Returns the exit status (None: out of time) and the output. Ends everything that the command has started.

    while_waiting(elapsed_s) is called once a second.
    """
    if limit_s < 3:
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
                output, _ = process.communicate(timeout=max(0, min(1, limit_s - elapsed)))
                return process.returncode, output
            except subprocess.TimeoutExpired:
                if elapsed >= limit_s:
                    break
                if while_waiting:
                    while_waiting(elapsed)
        end_group(process)
        output, _ = process.communicate()
        return None, f"{output}\nnot done after {limit_s:.0f} s\n"
    finally:
        if process.poll() is None:
            end_group(process)


def end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(output):
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:200] if lines else ""


def child_command(name, arguments, python=sys.executable):
    """The command that runs a measurement of the current script."""
    return [python, "-W", "ignore", Path(sys.argv[0]).absolute(), "--child", name, json.dumps(arguments)]


def run_child(name, arguments, limit_s, while_waiting=None, python=sys.executable, **variables):
    """Runs a measurement and returns its dictionary, with "error" if it failed."""
    return read_row(*run(child_command(name, arguments, python), limit_s, while_waiting, **variables))


def add_child_option(parser):
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)


def run_as_child(measurements, name, arguments):
    """The child's side of run_child."""
    with contextlib.suppress(OSError):  # if memory runs out, Linux ends this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    print(json.dumps({function.__name__: function for function in measurements}[name](**json.loads(arguments))))


def read_row(status, output):
    """The last line of JSON that a measurement has printed, as a dictionary; with "error" if the measurement failed."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")][-1:]
    row = found[0] if found else {}
    if status is not None and status < 0:
        row["error"] = f"died (signal {signal.Signals(-status).name})"
    elif status != 0:
        errors = [line for line in output.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
        row["error"] = (f"exit status {status}: " if status else "") + last_line((errors or [output])[-1])
    return row
