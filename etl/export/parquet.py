"""Rows as Parquet, typed: the only importer of pyarrow, which the extra ``flowtrail[parquet]`` brings."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO, Final

from etl.errors import UsageError
from etl.report import Column

ROW_GROUP: Final = 32_768
"""Rows per row group: the unit that is held in memory and that a reader can skip."""


class ParquetFile:
    """A Parquet file that is written to ``file``, page by page; complete after the ``with`` block.

    Texts are dictionary-encoded, times are ``timestamp[us, UTC]``. Raises UsageError if pyarrow is missing.
    """

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._arrow = _import("pyarrow")
        self._schema = self._arrow.schema([(name, self._type(kind)) for name, kind in columns])
        options = {"compression": "zstd", "write_statistics": True}
        self._sink = _Sink(file)
        self._writer = _import("pyarrow.parquet").ParquetWriter(self._sink, self._schema, **options)
        self._rows: list[Sequence[Any]] = []

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        else:
            self._sink.cut = True
        self._writer.close()

    def write(self, page: Sequence[Sequence[Any]]) -> None:
        self._rows += page
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            values = zip(*self._rows, strict=True)
            arrays = [self._arrow.array(column, field.type) for column, field in zip(values, self._schema, strict=True)]
            self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
            self._rows = []

    def _type(self, kind: str) -> Any:
        arrow = self._arrow
        return {
            "string": arrow.dictionary(arrow.int32(), arrow.string()),
            "integer": arrow.int64(),
            "boolean": arrow.bool_(),
            "time": arrow.timestamp("us", "UTC"),
        }[kind]


class _Sink:
    """Where pyarrow writes to. It writes a footer even after an error, so that a broken file would look complete."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.cut = False

    def write(self, data: bytes) -> int:
        return len(data) if self.cut else self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def require_pyarrow() -> None:
    """Raise UsageError, which says what to install, if pyarrow is missing."""
    _import("pyarrow")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'flowtrail[parquet]'") from error
