"""A job: the folder OUT, and what is finished in it.

    OUT/job.json                  what the rows depend on; who finds other facts there refuses to work
    OUT/part-00003.jsonl          the rows of shard 3, in the manifest's order: it is there whole, or not at all
    OUT/failures.jsonl            of all parts, the items without words: {"id", "status", "message"} a line
    OUT/low_confidence.jsonl      of all parts, aligned items whose text is doubtful: {"id", "confidence"} a line
    OUT/summary.json              counts
    OUT/.summaries/part-00003.json  counts and failures of one part
    OUT/.journal/part-00003       there while a shard is worked on, and after its worker died: see journal.py

Nothing here depends on who does a shard, or how often: no clock, host or process is in a part. So an engine may do a
shard twice, and processes of many machines may share OUT.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch_ctc_align
from torch_ctc_align.speech.corpus.files import (
    decode_rows,
    encode_rows,
    growing,
    locked,
    refusing_to_write,
    write_whole,
)
from torch_ctc_align.speech.corpus.manifest_rows import Names
from torch_ctc_align.speech.errors import SpeechError

if TYPE_CHECKING:
    from torch_ctc_align.speech.corpus.manifests import Manifest

__all__ = ["LOW_CONFIDENCE", "Job", "Summary", "Totals"]

LAYOUT = 1  # of the folder
LOW_CONFIDENCE = 0.3  # as in command/report.py: below it the text is probably that of another recording

LISTS = ("failures.jsonl", "low_confidence.jsonl")

# Settings of Align that the rows do not depend on.
FREE_SETTINGS = ("batch_seconds", "device", "threads")


@dataclass(frozen=True)
class Summary:
    """What became of a shard.

    Attributes:
        shard: its number.
        rows: how many items it has.
        seconds: of sound that was aligned.
        took: seconds of work, in the run that wrote the part.
        statuses: how many rows have which.
        low_confidence: id and confidence of aligned items below :data:`LOW_CONFIDENCE`.
        failures: id, status and message of the rows that are not "ok".
    """

    shard: int
    rows: int
    seconds: float
    took: float
    statuses: dict[str, int]
    low_confidence: list[dict[str, Any]]
    failures: list[dict[str, str]]

    @classmethod
    def of_rows(cls, shard: int, rows: Sequence[Mapping[str, Any]], took: float) -> Summary:
        """The summary of a part's rows."""
        aligned = [row for row in rows if row["status"] == "ok"]
        low = _only([row for row in aligned if (row["confidence"] or 0) < LOW_CONFIDENCE], "id", "confidence")
        failures = _only([row for row in rows if row["status"] != "ok"], "id", "status", "message")
        statuses = dict(sorted(Counter(row["status"] for row in rows).items()))
        seconds = sum(row["seconds"] or 0.0 for row in aligned)
        return cls(shard, len(rows), seconds, took, statuses, low, failures)

    @classmethod
    def from_json(cls, written: str | bytes) -> Summary:
        """The summary that :meth:`to_json` has written."""
        return cls(**json.loads(written))

    def to_json(self) -> str:
        """The summary as a line of JSON."""
        return json.dumps(asdict(self))


def _only(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in keys} for row in rows]


@dataclass
class Totals:
    """The sum of summaries: counts alone, as there may be millions of items."""

    shards: int = 0
    rows: int = 0
    seconds: float = 0.0
    took: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    low_confidence: int = 0

    @property
    def failed(self) -> int:
        """Items without words."""
        return self.rows - self.statuses["ok"]

    def add(self, summary: Summary) -> None:
        self.shards += 1
        self.rows += summary.rows
        self.seconds += summary.seconds
        self.took += summary.took
        self.statuses.update(summary.statuses)
        self.low_confidence += len(summary.low_confidence)


@dataclass(frozen=True)
class Job:
    """What is to be done, and the folder for it; small, and picklable, so that every worker has a copy.

    Args:
        manifest: the items.
        out: the folder.
        format: of the parts, ``"jsonl"`` or ``"parquet"``.
        settings: keyword arguments of :class:`Align`.
        retry_failed: whether parts with failures are to be done again, the failed items of them.
    """

    manifest: Manifest
    out: Path
    format: str = "jsonl"
    settings: Mapping[str, Any] = field(default_factory=dict)
    retry_failed: bool = False

    # Places -----------------------------------------------------------------------------------------------------------

    def part(self, shard: int) -> Path:
        """The file of a shard's rows."""
        return self.out / f"part-{shard:05d}.{self.format}"

    def journal(self, shard: int) -> Path:
        """The file of a shard that is worked on."""
        return self._scratch / f"part-{shard:05d}"

    def _summary(self, shard: int) -> Path:
        return self.out / ".summaries" / f"part-{shard:05d}.json"

    @property
    def _scratch(self) -> Path:
        return self.out / ".journal"

    # Beginning --------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the rows depend on, as JSON has it. A model that is a file or a folder counts by its content."""
        settings = {name: value for name, value in self.settings.items() if name not in FREE_SETTINGS}
        settings["model"] = _describe_model(settings.get("model", "english"))
        names = getattr(self.manifest.source, "names", None)
        facts = {
            "layout": LAYOUT,
            "torch_ctc_align": torch_ctc_align.__version__,
            "manifest": str(self.manifest.path),
            "kind": self.manifest.kind,
            "digest": self.manifest.digest(),
            "num_rows": self.manifest.num_rows,
            "shard_rows": self.manifest.shard_rows,
            "columns": asdict(names) if isinstance(names, Names) else None,
            "format": self.format,
            "settings": settings,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(facts, default=str).encode("utf-8", "backslashreplace"))
        return as_json

    def begin(self) -> None:
        """Makes the folder and its job.json, or checks that the one there is this job's.

        Raises:
            SpeechError: the folder is another job's, or has files that no job of ours made.
            OutputError: it cannot be written.
        """
        facts = self.facts()
        path = self.out / "job.json"
        if not path.exists():
            self._refuse_foreign()
        for folder in (self.out, self._scratch, self._summary(0).parent):
            with refusing_to_write(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, (json.dumps(facts, indent=1) + "\n").encode(), self._scratch, only_new=True)
        try:  # of several processes that begin at once, one has written it
            found = json.loads(path.read_bytes())
            found_facts = {**found, **{f"settings of {name}": x for name, x in found.pop("settings").items()}}
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise SpeechError(f"{path} cannot be read ({error}): give another folder") from None
        facts |= {f"settings of {name}": value for name, value in facts.pop("settings").items()}
        for name in facts | found_facts:
            if name not in ("manifest", "settings") and facts.get(name) != found_facts.get(name):
                raise SpeechError(
                    f"{self.out} is the folder of another job: its {_spell(name)} is {found_facts.get(name)!r}, and "
                    f"now it is {facts.get(name)!r}; give another folder, or repeat that job as it was"
                )

    def _refuse_foreign(self) -> None:
        try:
            names = sorted(os.listdir(self.out))
        except FileNotFoundError:
            return
        except OSError as error:
            raise SpeechError(f"cannot write to {self.out}: {error.strerror}; give another folder") from None
        ours = [name for name in names if name.startswith("part-") or name in (*LISTS, "summary.json")]
        if ours:
            raise SpeechError(f"{self.out} has no job.json, but a file {ours[0]}: give another folder, or remove that")

    # What is finished -------------------------------------------------------------------------------------------------

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those of the shards that have no part."""
        names = set(os.listdir(self.out)) if self.out.is_dir() else set()
        return [shard for shard in shards if self.part(shard).name not in names]

    def failed(self, shards: Iterable[int]) -> list[int]:
        """Those of the shards whose part has failures."""
        shards = list(shards)
        missing = set(self.missing(shards))
        return [shard for shard in shards if shard not in missing and self.summary(shard).failures]

    def is_done(self, shard: int) -> bool:
        """Whether nothing is left to do for a shard."""
        return self.part(shard).exists() and not (self.retry_failed and self.summary(shard).failures)

    def summary(self, shard: int) -> Summary:
        """The summary of a part. If it is lost, it is made from the part.

        Raises:
            SpeechError: there is no such part, or it cannot be read.
        """
        try:
            return Summary.from_json(self._summary(shard).read_bytes())
        except (OSError, ValueError, TypeError):
            return Summary.of_rows(shard, self.read_part(shard), 0.0)

    def read_part(self, shard: int) -> list[dict[str, Any]]:
        """The rows of a part.

        Raises:
            SpeechError: it is not there, or cannot be read.
        """
        path = self.part(shard)
        try:
            return decode_rows(path.read_bytes(), self.format)
        except SpeechError:
            raise
        except Exception as error:
            raise SpeechError(f"{path} cannot be read ({error}): remove it, and it is made again") from None

    # Writing ----------------------------------------------------------------------------------------------------------

    def write_part(self, shard: int, rows: Sequence[Mapping[str, Any]], took: float) -> Summary:
        """Writes the rows of a shard, and their summary.

        Raises:
            OutputError: the disk is full, for example. What was there before is there still.
        """
        content = encode_rows(rows, self.format)
        summary = Summary.of_rows(shard, rows, took)
        files = [(self._summary(shard), (summary.to_json() + "\n").encode()), (self.part(shard), content)]
        # Who sees a part finds its summary. Where a part is replaced, the summary must not forget failures before the
        # part does.
        for path, written in reversed(files) if self.part(shard).exists() else files:
            write_whole(path, written, self._scratch)
        return summary

    def clean(self, shard: int) -> None:
        """Removes what workers that died have left of a shard. The caller has the journal's lock."""
        for name in os.listdir(self._scratch):
            if name.startswith(f"{self.journal(shard).name}."):
                with contextlib.suppress(OSError):
                    (self._scratch / name).unlink()

    def summaries(self, shards: Iterable[int]) -> Iterator[Summary]:
        """The summaries of those of the shards that have a part."""
        shards = list(shards)
        missing = set(self.missing(shards))
        return (self.summary(shard) for shard in shards if shard not in missing)

    def finish(self) -> Totals:
        """Writes failures.jsonl, low_confidence.jsonl and summary.json, of all parts that are there.

        Raises:
            OutputError: they cannot be written.
        """
        totals = Totals()
        lists = [self.out / name for name in LISTS]
        with locked(self._scratch / "lock"):  # of processes that end at once, the last one sees all parts
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(growing(path, self._scratch)) for path in lists]
                for summary in self.summaries(range(self.manifest.num_shards)):
                    totals.add(summary)
                    for file, items in zip(files, (summary.failures, summary.low_confidence), strict=True):
                        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
                        file.writelines(line.encode("utf-8", "backslashreplace") for line in lines)
            for path, length in zip(lists, (totals.failed, totals.low_confidence), strict=True):
                if not length:
                    with refusing_to_write(path):
                        path.unlink(missing_ok=True)
            written = {"num_shards": self.manifest.num_shards, **asdict(totals)}
            written["statuses"] = dict(sorted(totals.statuses.items()))
            write_whole(
                self.out / "summary.json",
                (json.dumps(written, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"),
                self._scratch,
            )
        return totals


def _spell(fact: str) -> str:
    return {"layout": "layout", "torch_ctc_align": "version of torch_ctc_align"}.get(
        fact, fact.replace("settings of ", "")
    )


def _describe_model(model: Any) -> Any:
    """A name; of a file or a folder, its own name and a digest of the content."""
    if callable(model):
        return f"{getattr(model, '__module__', '?')}.{getattr(model, '__qualname__', type(model).__qualname__)}"
    path = Path(model)
    if not path.exists():
        return str(model)
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in files:
        digest.update(f"{each.relative_to(path)} {each.stat().st_size}\n".encode("utf-8", "backslashreplace"))
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"{path.name}, sha256 {digest.hexdigest()}"
