"""Times calls, alone or in turns, and summarises many times in a row of numbers."""

import statistics
import time

SLOW_S = 2.0  # cpu.py makes a slower call only twice, both in the first round
SAMPLE_S = 0.01  # cpu.py repeats a shorter call until the runs fill this time; their mean is one sample


def seconds(function, *arguments, calls=1):
    """The mean time of a call, over `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function(*arguments)
    return (time.perf_counter() - start) / calls


def take_turns(functions, rounds, *arguments, calls=None):
    """Calls every function once in each round, or calls[name] times. Returns [{name: seconds of a call}, ...]."""
    calls = calls or dict.fromkeys(functions, 1)
    return [
        {name: seconds(function, *arguments, calls=calls[name]) for name, function in functions.items()}
        for _ in range(rounds)
    ]


def summarise(times_ms):
    found = {"ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}
    return {name: float(f"{value:.5g}") for name, value in found.items()} | {"runs": len(times_ms)}
