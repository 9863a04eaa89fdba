"""What ``ctc-align corpus`` prints: how far the work is, and what became of it."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from torch_ctc_align.speech.command.report import DONE, FAILED, INTERRUPTED, LOW_CONFIDENCE, Printer, count, warn
from torch_ctc_align.speech.corpus.job import Job, Summary, Totals
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["Report"]

BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} items {elapsed}<{remaining}{postfix}"


class Report:
    """Shows how far the work is, and what became of it.

    Args:
        job: the job.
        mine: the shards of this call, finished before or not.
        shards: those that are done now.
        quiet: print warnings and failures alone.
    """

    def __init__(self, job: Job, mine: Sequence[int], shards: Sequence[int], quiet: bool) -> None:
        self.job, self.mine, self.shards = job, mine, shards
        self.printer = Printer(quiet)
        self.run = Totals()
        self.began = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty() and not quiet and shards:
            with contextlib.suppress(ImportError):
                tqdm = importlib.import_module("tqdm").tqdm
                rows, last = job.manifest.shard_rows, job.manifest.num_shards - 1
                total = sum(job.manifest.num_rows - last * rows if shard == last else rows for shard in shards)
                self.bar = tqdm(total=total, leave=False, dynamic_ncols=True, bar_format=BAR)

    def progress(self, items: int) -> None:
        """So many more items are done."""
        if self.bar is not None:
            self.bar.update(items)

    def add(self, summary: Summary) -> None:
        """A shard is done."""
        self.run.add(summary)
        if self.bar is not None and self.run.failed:
            self.bar.set_postfix_str(f"{self.run.failed} failed")

    def warn(self, line: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            self.bar.clear()
        warn(line)

    def close(self) -> None:
        """Removes the bar."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def interrupt(self) -> int:
        """Says how to go on, and returns the exit status."""
        self.close()
        with contextlib.suppress(SpeechError):  # what cannot be written now, the next run writes
            self.job.finish()
        warn(
            f"interrupted after {self.run.shards} of {count(len(self.shards), 'shard')}; the same command with "
            "--resume goes on from here"
        )
        return INTERRUPTED

    def end(self) -> int:
        """Prints what became of the items, lists failures, and returns the exit status."""
        self.job.finish()
        totals = Totals()
        for summary in self.job.summaries(self.mine):
            totals.add(summary)
        sound = f"{totals.seconds:.0f} s" if totals.seconds < 3600 else f"{totals.seconds / 3600:.1f} hours"
        statuses = ", ".join(f"{items} {status}" for status, items in sorted(totals.statuses.items()))
        self.printer.say(
            f"{count(totals.rows, 'item')} in {count(totals.shards, 'shard')}, {sound} of sound: {statuses or 'none'}"
        )
        if self.run.shards:
            took = time.monotonic() - self.began
            speed = self.run.seconds / max(took, 1e-3)
            self.printer.say(f"{count(self.run.rows, 'item')} now, in {took:.1f} s: {speed:.3g} times real time")
        self.printer.say(f"wrote {self.job.out}")
        if totals.low_confidence:
            warn(
                f"{count(totals.low_confidence, 'item')} with a mean confidence below {LOW_CONFIDENCE}, listed in "
                f"{self.job.out / 'low_confidence.jsonl'}"
            )
        left = len(self.mine) - totals.shards
        if left:
            warn(f"{count(left, 'part')} missing; --resume does them")
        if totals.failed:
            warn(f"{count(totals.failed, 'item')} failed, listed in {self.job.out / 'failures.jsonl'}")
        return FAILED if totals.failed or left else DONE
