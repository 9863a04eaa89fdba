"""The cells of a batch: what stands for a recording in a table, and tables of several kinds."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch_ctc_align.speech.corpus.columns import COLUMNS, arrow_schema
from torch_ctc_align.speech.errors import SpeechError, blame

__all__ = ["Request", "read_requests", "write_columns"]


@dataclass(frozen=True)
class Request:
    """A row: a recording, or a part of it, and its text; as the table has them."""

    audio: Any
    text: Any
    offset: float
    duration: float | None
    rate: Any

    def source(self) -> Any:
        """The recording as ``open_audio`` takes it.

        Raises:
            SpeechError: it is nothing that stands for a recording.
        """
        with blame("unreadable"):
            return _source(self.audio, self.rate)


def _source(cell: Any, rate: Any) -> Any:
    if _is_empty(cell):
        raise SpeechError("there is no recording: the cell is empty")
    if isinstance(cell, (str, os.PathLike)):
        return cell
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return io.BytesIO(cell)
    if hasattr(cell, "get_all_samples"):  # torchcodec's AudioDecoder, which the library datasets hands over
        samples = cell.get_all_samples()
        return samples.data, int(samples.sample_rate)
    if isinstance(cell, Mapping):
        if cell.get("array") is not None:
            return _samples(cell["array"]), cell.get("sampling_rate", rate)
        if cell.get("bytes") is not None:
            return io.BytesIO(cell["bytes"])
        if cell.get("path") is not None:
            return cell["path"]
        raise SpeechError(f"a recording needs array and sampling_rate, bytes or path, found {sorted(cell)}")
    if isinstance(cell, (tuple, list)) and len(cell) == 2 and not isinstance(cell[0], (int, float)):
        return _samples(cell[0]), int(cell[1])
    if hasattr(cell, "__array__") or isinstance(cell, list):
        if rate is None:
            raise SpeechError("the rate of an array is not known: give a column sampling_rate, in Hz")
        return _samples(cell), int(rate)
    raise SpeechError(f"a recording is a path, bytes or samples with their rate, found {type(cell).__name__}")


def _samples(values: Any) -> Any:
    """Lists come out of Arrow; an array of them is checked faster."""
    return values if hasattr(values, "__array__") else importlib.import_module("numpy").asarray(values, "float32")


# Tables --------------------------------------------------------------------------------------------------------------


def _is(batch: Any, module: str, *kinds: str) -> bool:
    """Whether a batch is of a kind of a library; one that has not been imported has made none."""
    library = sys.modules.get(module)
    return library is not None and isinstance(batch, tuple(getattr(library, kind) for kind in kinds))


def read_requests(batch: Any, columns: Mapping[str, str]) -> list[Request]:
    """Reads the rows of a batch.

    Args:
        batch: a mapping, a Table or RecordBatch of pyarrow, a DataFrame of pandas.
        columns: names of the columns ``audio``, ``text``, ``offset``, ``duration``, ``sampling_rate``.

    Raises:
        SpeechError: it is none of these; a column is missing or would be replaced; columns differ in length.
    """
    if _is(batch, "pyarrow", "Table", "RecordBatch"):
        names = list(batch.schema.names)
    elif _is(batch, "pandas", "DataFrame") or isinstance(batch, Mapping):
        names = list(batch.keys())
    else:
        raise SpeechError(
            f"a batch is a mapping of columns, a pyarrow.Table or a pandas.DataFrame, found {type(batch).__name__}"
        )
    for what in ("audio", "text"):
        if columns[what] not in names:
            raise SpeechError(
                f"the batch has no column {columns[what]!r}, it has {', '.join(map(str, names)) or 'none'}; name the "
                f"column with {what}="
            )
    taken = [name for name in names if name in COLUMNS]
    if taken:
        raise SpeechError(f"the batch has a column {taken[0]!r} already, which the result would replace; rename it")
    cells = {what: _cells(batch, name) if name in names else None for what, name in columns.items()}
    count = len(cells["audio"])  # type: ignore[arg-type]
    for what, column in cells.items():
        if column is not None and len(column) != count:
            raise SpeechError(
                f"the columns of a batch must be equally long, found {count} in {columns['audio']!r} and "
                f"{len(column)} in {columns[what]!r}"
            )
    empty = [None] * count
    rows = zip(*(column if column is not None else empty for column in cells.values()), strict=True)
    return [
        Request(audio, _text(text), _number(offset) or 0.0, _number(duration), rate)
        for audio, text, offset, duration, rate in rows
    ]


def _is_empty(value: Any) -> bool:
    """None, or what NumPy and pandas have for it."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, Real) and value != value)


def _number(value: Any) -> Any:
    """A float, or None; what is no number is left for ``open_audio`` to refuse."""
    if _is_empty(value):
        return None
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def _text(value: Any) -> Any:
    """UTF-8 text; samples of tar files have bytes. What is no text is left for ``read_transcript`` to refuse."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cells(batch: Any, name: str) -> Sequence[Any]:
    if _is(batch, "pyarrow", "Table", "RecordBatch"):
        return [_python(cell) for cell in batch.column(name)]
    column = batch[name]
    return column.tolist() if _is(column, "pandas", "Series") else column  # type: ignore[no-any-return]


def _python(cell: Any) -> Any:
    """A scalar of Arrow; the samples of a recording as an array, not as a list of numbers."""
    arrow = sys.modules["pyarrow"]
    if isinstance(cell, arrow.StructScalar) and cell.is_valid:
        return {name: _python(cell[name]) for name in cell}
    if isinstance(cell, (arrow.ListScalar, arrow.LargeListScalar)) and cell.is_valid:
        kind = cell.type.value_type
        if arrow.types.is_floating(kind) or arrow.types.is_integer(kind):
            return cell.values.to_numpy(zero_copy_only=False)
    return cell.as_py()


def write_columns(batch: Any, results: Mapping[str, list[Any]]) -> Any:
    """Adds columns to a batch, which stays as it is; returns the same kind of table.

    Where a library would guess types from the values, the columns are Arrow's: of a batch in which all items have
    failed it would guess others than of the next one.
    """
    if _is(batch, "pyarrow", "Table", "RecordBatch"):
        arrow = sys.modules["pyarrow"]
        table = arrow.Table.from_batches([batch]) if isinstance(batch, arrow.RecordBatch) else batch
        for name, column in _arrow_columns(results).items():
            table = table.append_column(name, column)
        return table
    if _is(batch, "pandas", "DataFrame"):
        pandas = sys.modules["pandas"]
        columns = _arrow_columns(results)
        if columns is None:
            return batch.assign(**{name: pandas.Series(column, batch.index) for name, column in results.items()})
        kinds = {name: pandas.ArrowDtype(column.type) for name, column in columns.items()}
        return batch.assign(**{name: pandas.Series(results[name], batch.index, kind) for name, kind in kinds.items()})
    if any(_is(column, "numpy", "ndarray") for column in batch.values()):
        return {**batch, **(_arrow_columns(results) or results)}
    return {**batch, **results}


def _arrow_columns(results: Mapping[str, list[Any]]) -> Any:
    """The columns as arrays of Arrow; None where pyarrow is missing."""
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        return None
    return {field.name: arrow.array(results[field.name], field.type) for field in arrow_schema()}
