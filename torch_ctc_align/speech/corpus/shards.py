"""One shard of a job: what every engine runs, on whichever machine."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_ctc_align.speech.corpus.align import Align
from torch_ctc_align.speech.corpus.columns import COLUMNS, failed_columns
from torch_ctc_align.speech.corpus.job import Job, Summary
from torch_ctc_align.speech.corpus.journal import Journal
from torch_ctc_align.speech.errors import SpeechError

__all__ = ["ShardAligner"]

MOST_DEATHS = 3  # of a worker with the same item: then the item is left out
MOST_LOSSES = 5  # with the same shard, and no item to blame
INPUTS = ("id", "audio", "text", "offset", "duration")


class ShardAligner:
    """The number of a shard in, its summary out; the part is written on the way.

    It may be called with a shard twice, in whichever process: the second call finds the part. A worker that dies is
    replaced by its engine, which gives the shard to another. That one does it item by item, so that the item that kills
    is found: after three deaths it gets the status "crashed", and the shard goes on without it.

    Args:
        job: what to do. The model is loaded now, once for all shards.
        on_progress: called with the number of items that are done since the last call.

    Raises:
        SpeechError: the model cannot be loaded.
    """

    def __init__(self, job: Job, on_progress: Callable[[int], None] | None = None) -> None:
        self.job = job
        self.on_progress = on_progress
        self.align = Align(**job.settings)
        self.align.progress = on_progress
        self.versions = self.align.versions  # now the model is loaded

    def __call__(self, shard: int) -> Summary:
        """Does a shard.

        Raises:
            OutputError: the folder cannot be written.
            SpeechError: workers died again and again with this shard, and no item of it is to blame.
        """
        job = self.job
        if job.is_done(shard):
            return job.summary(shard)
        with Journal(job.journal(shard)) as journal:
            if job.is_done(shard):  # another process did it in the meantime
                return job.summary(shard)
            began = time.monotonic()
            if journal.lost >= MOST_LOSSES:
                raise SpeechError(
                    f"a worker died {journal.lost} times when it read shard {shard} or wrote {job.part(shard)}, and "
                    f"no item is to blame; remove {journal.path} to try again"
                )
            if journal.has_deaths:
                job.clean(shard)
            journal.begin_shard()
            try:
                rows = self._align_shard(shard, journal)
            except getattr(torch, "AcceleratorError", ()) as error:
                # The device can do nothing more in this process, which is as dead as one that was killed.
                print(f"ctc-align: {str(error).splitlines()[0]}: this worker ends", file=sys.stderr, flush=True)
                os._exit(1)
            return job.write_part(shard, rows, time.monotonic() - began)

    def _align_shard(self, shard: int, journal: Journal) -> list[dict[str, Any]]:
        manifest = self.job.manifest
        try:
            inputs = manifest.read(shard)
        except OSError as error:
            raise SpeechError(f"{manifest.path} cannot be read any more: {error}") from None
        rows: dict[int, dict[str, Any]] = {}
        careful = journal.has_deaths
        if self.job.part(shard).exists():
            old = self.job.read_part(shard)
            rows = {k: {name: row[name] for name in COLUMNS} for k, row in enumerate(old) if row["status"] == "ok"}
            careful = careful or any(row["status"] == "crashed" for row in old)
        for k, problem in enumerate(inputs["problem"]):
            if problem is not None:
                rows[k] = failed_columns("bad_row", problem, self.versions)
        # What failed before may be mended since, and is tried again.
        rows |= {k: row for k, row in journal.rows.items() if row["status"] == "ok"}
        left = [k for k in range(len(inputs["id"])) if k not in rows]
        self._count(len(inputs["id"]) - len(left))
        if not careful:
            rows |= zip(left, self._align(inputs, left), strict=True)
            left = []
        for k in left:
            if journal.deaths[k] >= MOST_DEATHS:
                message = f"the process died {journal.deaths[k]} times when it worked on this item"
                rows[k] = failed_columns("crashed", message, self.versions)
                self._count(1)
                continue
            journal.begin(k)
            (rows[k],) = self._align(inputs, [k])
            journal.end(k, rows[k])
        return [
            {
                "id": inputs["id"][k],
                "audio": inputs["path"][k],
                "offset": inputs["offset"][k],
                "duration": inputs["duration"][k],
                **rows[k],
            }
            for k in range(len(inputs["id"]))
        ]

    def _align(self, inputs: dict[str, list[Any]], items: list[int]) -> list[dict[str, Any]]:
        if not items:
            return []
        done = self.align({name: [inputs[name][k] for k in items] for name in INPUTS})
        return [self._checked({name: done[name][place] for name in COLUMNS}) for place in range(len(items))]

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """JSON has no numbers that are not finite: a model that gives them has failed."""
        numbers = [row["confidence"], row["score"], *row["starts"], *row["ends"], *row["confidences"]]
        if all(number is None or math.isfinite(number) for number in numbers):
            return row
        return failed_columns("error", "the model gives numbers that are not finite", self.versions, row["seconds"])

    def _count(self, items: int) -> None:
        if self.on_progress is not None and items:
            self.on_progress(items)
