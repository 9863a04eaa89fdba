"""What becomes of a recording, as columns: their names and kinds, and the statuses."""

from __future__ import annotations

from typing import Any

from torch_ctc_align.speech.errors import require

__all__ = ["COLUMNS", "STATUSES", "arrow_schema", "failed_columns"]

# Why an item has no words, or that it has them.
STATUSES: dict[str, str] = {
    "ok": "aligned",
    "bad_row": "the row of the manifest lacks something, or cannot be read",
    "unreadable": "the recording cannot be read, or is empty, too short or silent",
    "no_text": "the text has no words, or none that the model's labels spell",
    "too_long_text": "the text does not fit into the recording",
    "unspoken": "no segment of the text is in the recording",
    "error": "anything else, as a model that fails",
    "crashed": "the process died each time when it worked on this item",
}

# Kinds are written as Arrow writes types; "s" is seconds.
COLUMNS: dict[str, str] = {
    "status": "string",  # one of STATUSES
    "message": "string",  # why, as a sentence; null for "ok"
    "words": "list<string>",  # of the text, in order; empty unless "ok", as all lists here
    "starts": "list<double>",  # s from the beginning of the recording; null for a word that is not spoken
    "ends": "list<double>",
    "confidences": "list<double>",  # in [0, 1]; null unless the word is spoken and can be spelt
    "unexplained": "list<struct<start: double, end: double>>",  # sound that the text does not explain, s
    "unspoken": "list<int64>",  # the places in words of those that are not in the recording
    "confidence": "double",  # mean of confidences; null if there are none
    "score": "double",  # natural-log probability of the path, nats; null unless "ok"
    "seconds": "double",  # of sound that was aligned; null if the recording cannot be read
    "versions": "string",  # of the package, of torch, and the model's name
}


def arrow_schema() -> Any:
    """The :data:`COLUMNS` as a ``pyarrow.Schema``."""
    arrow = require("pyarrow", "an Arrow schema")
    stretch = arrow.struct([("start", arrow.float64()), ("end", arrow.float64())])
    kinds = {
        "string": arrow.string(),
        "double": arrow.float64(),
        "list<string>": arrow.list_(arrow.string()),
        "list<double>": arrow.list_(arrow.float64()),
        "list<int64>": arrow.list_(arrow.int64()),
        "list<struct<start: double, end: double>>": arrow.list_(stretch),
    }
    return arrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


def failed_columns(status: str, message: str, versions: str, seconds: float | None = None) -> dict[str, Any]:
    """The columns of an item without words."""
    empty: dict[str, Any] = {name: [] if kind.startswith("list") else None for name, kind in COLUMNS.items()}
    return empty | {"status": status, "message": message, "versions": versions, "seconds": seconds}
