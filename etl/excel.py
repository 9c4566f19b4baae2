"""Rows to an Excel workbook, in constant memory. The only importer of xlsxwriter (the extra ``flowtrail[excel]``)."""

from __future__ import annotations

import datetime as dt
import importlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Final

from etl.errors import UsageError
from etl.report.rows import Column
from etl.system import disk

_MOST_ROWS: Final = 1_048_575
"""Of a sheet, below its heading."""
_EXACT: Final = 10**15
"""Excel's numbers have no more digits."""
_FORMATS: Final = {"string": "@", "time": 'yyyy-mm-dd hh:mm:ss "UTC"', "integer": "0", "boolean": "General"}
_WIDTHS: Final = {"string": 24, "time": 24, "integer": 12, "boolean": 12}


def require() -> Any:
    """The library. Raises UsageError, which says what to install, if it is missing."""
    try:
        return importlib.import_module("xlsxwriter")
    except ImportError as error:
        raise UsageError("Excel needs xlsxwriter: pip install 'flowtrail[excel]'") from error


def write(
    file: BinaryIO, columns: Sequence[Column], rows: Iterable[Sequence[Any]], shown_text: Callable[[str], str]
) -> None:
    """One sheet with a heading.

    A text is a cell of text, as ``shown_text`` has it, which nothing takes for a number, a date, a link or a formula,
    also after somebody has edited it; a time is a time of Excel, in UTC. Raises UsageError for what does not fit in.
    """
    library = require()
    with disk.temporary_files():
        folder = tempfile.TemporaryDirectory(prefix="flowtrail-")
    with folder as name:
        book = library.Workbook(file, {"constant_memory": True, "tmpdir": name})
        book.use_zip64()
        try:
            with disk.temporary_files():
                _fill(book, columns, rows, shown_text)
            book.close()
        except library.exceptions.FileCreateError as error:
            raise error.args[0] from error  # the OSError
        except BaseException:
            for sheet in book.worksheets():  # to close the book would write it first
                sheet.row_data_fh.close()
            raise


def _fill(
    book: Any, columns: Sequence[Column], rows: Iterable[Sequence[Any]], shown_text: Callable[[str], str]
) -> None:
    formats = {kind: book.add_format({"num_format": each}) for kind, each in _FORMATS.items()}
    heading = book.add_format({"bold": True, "num_format": "@"})
    sheet = book.add_worksheet()
    sheet.freeze_panes(1, 0)
    for at, column in enumerate(columns):
        sheet.set_column(at, at, _WIDTHS[column.kind], formats[column.kind])
        sheet.write_string(0, at, column.name, heading)
    number = 0
    for number, row in enumerate(rows, 1):
        if number > _MOST_ROWS:
            raise UsageError(
                f"A sheet of Excel has room for {_MOST_ROWS:,} rows, and there are more: write .csv instead."
            )
        for at, value in enumerate(row):
            if isinstance(value, dt.datetime):
                sheet.write_datetime(number, at, value.astimezone(dt.UTC).replace(tzinfo=None), formats["time"])
            elif isinstance(value, bool):
                sheet.write_boolean(number, at, value)
            elif isinstance(value, int) and abs(value) < _EXACT:
                sheet.write_number(number, at, value, formats["integer"])
            elif value is not None and sheet.write_string(number, at, shown_text(str(value)), formats["string"]):
                raise UsageError(
                    "A cell of Excel has room for 32,767 characters, and a text is longer: write .csv instead."
                )
    sheet.autofilter(0, 0, number, len(columns) - 1)
