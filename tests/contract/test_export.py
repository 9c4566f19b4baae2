"""Exports: other programs read the same rows back; files appear complete or not at all."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import duckdb
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import dataset, parquet
from sqlalchemy import Engine

from etl.errors import FlowtrailError, UsageError
from etl.export import Origin, disarm, export
from etl.report.asof import flows_as_of
from etl.report.listings import CHANGES, FLOWS, HISTORY
from etl.report.rows import Column, ListChange, ListWorkflowAsOf, columns_of
from tests.support.histories import START, World

COLUMNS = columns_of(ListChange)
NASTY = [
    "", " ", "'", '"', "''=1", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", '"=1"', "'=1", "' =1",
    "＝1", "a,b", 'a "b" c', "a\nb", "a\r\nb", "a;b", "x ", " x", "null", "NULL", "\\N", "true", "描述", "\u202eabc",
    "é", "e\u0301", "\x01", "\x7f", "\ufeff=1", "'\t", "%", "a\u2028b", "0012", "1e5",
]  # fmt: skip
"""Names that break what writes or reads carelessly."""


def event(number: int, name: str | None, at: dt.datetime = START) -> ListChange:
    flag = (True, False, None)[number % 3]
    before = None if number % 2 else at - dt.timedelta(microseconds=1)
    return ListChange(
        *(number, 2**53 + 1, "o1", "u1", "", f"-{number}", "renamed", None, name, "D", None, None, flag, before, at),
        *(name, name, before),
    )


EVENTS = [event(n, name, START + dt.timedelta(microseconds=n)) for n, name in enumerate([*NASTY, None])]


def origin(**changes: Any) -> Origin:
    facts = {"what": "changes", "filter": {"org": "o1"}, "taken_at": START, "flowtrail": "0.1.0"} | changes
    return Origin(**facts)


def breaks() -> Iterator[ListChange]:
    yield from EVENTS
    raise RuntimeError("the database went away")


# --------------------------------------------------------------------------------------------------------- csv


def rearm(text: str) -> str:
    """Undo ``disarm`` by its documented rule."""
    bare = text.removeprefix("'")
    return bare if bare != text and disarm(bare) == text else text


def cells_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))[1:]


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Unless texts are to be kept, which the manifest says, and how pandas reads the kinds of the columns."""
    columns = (Column("text", "string"), Column("number", "integer"), Column("at", "time"), Column("yes", "boolean"))
    rows = [(name, -5, START, True) for name in NASTY]
    file = tmp_path / "f.csv"
    export(rows, columns, "csv", file)
    assert [cells[:2] for cells in cells_of(file)] == [[disarm(name), "-5"] for name in NASTY]
    assert sum(disarm(name) != name for name in NASTY) >= 14
    assert export(rows, columns, "csv", file, origin=origin(), keep_texts=True) == len(NASTY)
    assert [cells[0] for cells in cells_of(file)] == NASTY
    manifest = json.loads((tmp_path / "f.csv.manifest.json").read_text())
    assert (manifest["texts"], manifest["chain_heads"]) == ("as they are", [])
    assert manifest["pandas"] == {
        "dtype": {"text": "string", "number": "Int64", "yes": "boolean"},
        "parse_dates": ["at"],
        "keep_default_na": False,
        "na_values": {"number": [""], "at": [""], "yes": [""]},
    }


@given(st.text(max_size=8) | st.text("'\" =+-@\t\r\na＝", max_size=6))
def test_what_was_disarmed_can_be_rearmed(text: str) -> None:
    """For every text there is, and no two texts look alike."""
    assert rearm(disarm(text)) == text
    assert disarm(text) == text or disarm(text)[0] == "'"
    assert disarm(text)[:1] not in {"=", "+", "-", "@", "\t", "\r", "\n"}
    assert disarm(text)[:1] == "'" or text.lstrip(" '\"\t\r\n\ufeff")[:1] not in tuple("=+-@＝")


# ------------------------------------------------------------------------------------------------ jsonl, parquet


def test_parquet_is_typed(tmp_path: Path) -> None:
    """Microseconds in UTC, booleans, dictionary-encoded texts."""
    file = tmp_path / "trail.parquet"
    export(EVENTS, COLUMNS, "parquet", file)
    table = parquet.read_table(file)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["observed_at"] == types["last_unchanged_at"] == "timestamp[us, tz=UTC]"
    assert (types["new_editable"], types["change_set_id"]) == ("bool", "int64")
    assert types["new_name"] == "dictionary<values=string, indices=int32, ordered=0>"
    chunk = parquet.ParquetFile(file).metadata.row_group(0).column(COLUMNS.index(Column("new_name", "string")))
    assert any("DICTIONARY" in encoding for encoding in chunk.encodings)


def test_parquet_in_row_groups_is_complete(tmp_path: Path) -> None:
    """More rows than a row group, and none at all."""
    columns = (Column("n", "integer"), Column("text", "string"))
    export(((n, str(n % 7)) for n in range(70_000)), columns, "parquet", tmp_path / "many")
    assert parquet.read_table(tmp_path / "many").column("n").to_pylist() == list(range(70_000))
    assert parquet.ParquetFile(tmp_path / "many").metadata.num_row_groups == 3
    export([], COLUMNS, "parquet", tmp_path / "none")
    assert parquet.read_table(tmp_path / "none").num_rows == 0


def test_a_stream_of_parquet_that_breaks_does_not_look_whole() -> None:
    """It has no footer, so readers refuse it."""

    stream = io.BytesIO()
    with pytest.raises(RuntimeError, match="went away"):
        export(breaks(), COLUMNS, "parquet", stream)
    with pytest.raises(pyarrow.ArrowInvalid):
        parquet.read_table(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_an_export_is_read_back_by_duckdb(engine: Engine, tmp_path: Path, fmt: str) -> None:
    """The trail, the list of now and the history, row by row and value by value; and every nasty name."""
    world = World(engine, 11, targets=5)
    world.live(20)
    for number, (rows, row_type) in enumerate(
        [
            (EVENTS, ListChange),
            *((list(listing.rows(engine)), listing.row_type) for listing in (CHANGES, FLOWS, HISTORY)),
            (list(flows_as_of(engine, world.now)), ListWorkflowAsOf),
        ]
    ):
        columns, file = columns_of(row_type), tmp_path / f"{number}.{fmt}"
        assert export(rows, columns, fmt, file) > 0
        assert _by_duckdb(fmt, file, columns) == [tuple(row) for row in rows]


def _by_duckdb(fmt: str, file: Path, columns: tuple[Column, ...]) -> list[tuple[Any, ...]]:
    names = {"string": "VARCHAR", "integer": "BIGINT", "boolean": "BOOLEAN", "time": "TIMESTAMPTZ"}
    types = "{" + ", ".join(f"'{column.name}': '{names[column.kind]}'" for column in columns) + "}"
    source = {
        "csv": f"read_csv('{file}', header = true, allow_quoted_nulls = false, columns = {types})",
        "jsonl": f"read_json('{file}', format = 'newline_delimited', columns = {types})",
        "parquet": f"read_parquet('{file}')",
    }[fmt]
    plain = ", ".join(
        f"epoch_us({column.name})" if column.kind == "time" else column.name for column in columns
    )  # its own times need another library
    with duckdb.connect(config={"preserve_insertion_order": True}) as connection:
        rows = connection.execute(f"SELECT {plain} FROM {source}").fetchall()
    return [tuple(_as_reported(fmt, column, value) for column, value in zip(columns, row, strict=True)) for row in rows]


def _as_reported(fmt: str, column: Column, value: Any) -> Any:
    if column.kind == "time" and value is not None:
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=value)
    return rearm(value) if fmt == "csv" and isinstance(value, str) else value


def test_an_export_in_months_is_a_folder_that_pyarrow_reads_as_one(tmp_path: Path) -> None:
    """month=YYYY-MM by UTC; a month that comes again gets a second part; the manifest names every file."""
    days = (0, 1, 31, 41, 396, 2)  # the third and the fifth are midnights in UTC, evenings of the month before there
    there = dt.timezone(dt.timedelta(hours=-5))
    rows = [event(n, "a", (START + dt.timedelta(days=day)).astimezone(there)) for n, day in enumerate(days)]
    folder = tmp_path / "trail"
    assert export(rows, COLUMNS, "parquet", folder, origin=origin(), by_month_of="observed_at") == 6
    found = sorted(str(path.relative_to(tmp_path)) for path in folder.rglob("*.parquet"))
    parts = ["month=2026-03/part-0", "month=2026-03/part-1", "month=2026-04/part-0", "month=2027-04/part-0"]
    assert found == [f"trail/{part}.parquet" for part in parts]
    table = dataset.dataset(folder, partitioning="hive").to_table()
    assert sorted(table.column("change_set_id").to_pylist()) == list(range(6))
    assert sorted(table.column("month").to_pylist())[0] == "2026-03"
    manifest = json.loads((tmp_path / "trail.manifest.json").read_text())
    assert sorted(file["path"] for file in manifest["files"]) == found
    assert all(file["sha256"] == _sha256(tmp_path / file["path"]) for file in manifest["files"])
    assert sum(file["rows"] for file in manifest["files"]) == manifest["rows"] == 6


# ----------------------------------------------------------------------------------------------------------- excel

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def sheet_of(file: Path) -> list[dict[str, tuple[str, str]]]:
    """The rows of a workbook as its format says: by column, the type and the value of each cell that has one."""
    with zipfile.ZipFile(file) as book, book.open("xl/worksheets/sheet1.xml") as sheet:
        rows = ElementTree.parse(sheet).getroot().iter(f"{_MAIN}row")
        return [{cell.get("r", "").rstrip("0123456789"): _value(cell) for cell in row} for row in rows]


def _value(cell: ElementTree.Element) -> tuple[str, str]:
    assert cell.find(f"{_MAIN}f") is None, "a formula"
    text = "".join(cell.itertext())
    return cell.get("t", "n"), re.sub("_x([0-9A-F]{4})_", lambda code: chr(int(code[1], 16)), text)


def test_a_cell_of_excel_is_what_it_is_and_no_formula(tmp_path: Path) -> None:
    """Texts are texts, times are days since 1900 in UTC, and a number with too many digits is a text."""
    names = [*NASTY, "00104", "_x0041_", "https://e.example", "TRUE", "2026-03-01"]
    columns = (Column("text", "string"), Column("n", "integer"), Column("at", "time"), Column("yes", "boolean"))
    at = dt.datetime(2026, 3, 1, 20, 30, tzinfo=dt.timezone(dt.timedelta(hours=8)))
    file = tmp_path / "f.xlsx"
    export([(name, -5, at, False) for name in names] + [(None, 2**53 + 1, None, None)], columns, "xlsx", file)
    heading, *found, last = sheet_of(file)
    assert [value for _, value in heading.values()] == ["text", "n", "at", "yes"]
    assert [row.get("A", ("inlineStr", "")) for row in found] == [("inlineStr", disarm(name)) for name in names]
    assert {(row["B"], row["D"]) for row in found} == {(("n", "-5"), ("b", "0"))}
    time = dt.datetime(1899, 12, 30, tzinfo=dt.UTC) + dt.timedelta(days=float(found[0]["C"][1]))
    assert abs(time - at) < dt.timedelta(milliseconds=1)
    assert last == {"B": ("inlineStr", "9007199254740993")}, "no digit is lost"


# ----------------------------------------------------------------------------------------------- files, manifest


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet", "xlsx"])
def test_a_manifest_proves_what_a_file_holds(tmp_path: Path, fmt: str) -> None:
    """Count, SHA-256, columns, filter, time and chain heads; the heads are read before the rows."""
    order: list[str] = []

    def heads() -> Iterator[dict[str, Any]]:
        order.append("heads")
        yield from ({"org_id": "o1", "version": n, "hash": "ab" * 32} for n in range(3))

    def rows() -> Iterator[ListChange]:
        order.append("rows")
        yield from EVENTS

    file = tmp_path / f"trail.{fmt}"
    export(rows(), COLUMNS, fmt, file, origin=origin(chain_heads=heads(), filter={"org": "o1", "since": START}))
    manifest = json.loads((tmp_path / f"trail.{fmt}.manifest.json").read_text())
    assert order == ["heads", "rows"]
    assert manifest["rows"] == len(EVENTS)
    assert manifest["files"] == [
        {"path": file.name, "rows": len(EVENTS), "bytes": file.stat().st_size, "sha256": _sha256(file)}
    ]
    assert manifest["columns"] == [{"name": column.name, "kind": column.kind} for column in COLUMNS]
    assert manifest["filter"] == {"org": "o1", "since": "2026-03-01T00:00:00Z"}
    assert (manifest["what"], manifest["format"], manifest["taken_at"]) == ("changes", fmt, "2026-03-01T00:00:00Z")
    assert [head["version"] for head in manifest["chain_heads"]] == [0, 1, 2]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet", "xlsx"])
def test_an_export_that_breaks_leaves_the_old_file_and_nothing_else(tmp_path: Path, fmt: str) -> None:
    """Whole or not at all."""
    file = tmp_path / "f"
    file.write_text("old")

    with pytest.raises(RuntimeError, match="went away"):
        export(breaks(), COLUMNS, fmt, file, origin=origin())
    with pytest.raises(RuntimeError, match="went away"):
        export(breaks(), COLUMNS, "parquet", tmp_path / "trail", origin=origin(), by_month_of="observed_at")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_is_for_its_owner_and_a_replaced_one_keeps_its_mode(tmp_path: Path) -> None:
    """Whatever the umask says."""
    new, shared = tmp_path / "new", tmp_path / "shared"
    shared.write_text("old")
    shared.chmod(0o644)
    with shared.open() as reader:
        for file in (new, shared):
            export(EVENTS, COLUMNS, "csv", file, origin=origin())
        assert reader.read() == "old", "the new one takes the name at the end, and is not written over the old one"
    assert [stat.S_IMODE(file.stat().st_mode) for file in (new, shared)] == [0o600, 0o644]
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    export(EVENTS, COLUMNS, "csv", tmp_path / "link")
    assert (tmp_path / "link").is_symlink(), "what it points to is replaced"
    assert shared.stat().st_size == new.stat().st_size == (tmp_path / "linked").stat().st_size


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """So is a device: it is still one afterwards, and gets no manifest."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert export(EVENTS, COLUMNS, "jsonl", pipe, origin=origin()) == len(EVENTS)
        assert reader.communicate()[0].count(b"\n") == len(EVENTS)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_a_stream_gets_the_same_bytes_as_a_file(tmp_path: Path, fmt: str) -> None:
    """Also one that cannot seek."""
    export(EVENTS, COLUMNS, fmt, tmp_path / "f")
    read, write = os.pipe()
    with os.fdopen(write, "wb") as stream:
        assert export(EVENTS, COLUMNS, fmt, stream) == len(EVENTS)
    with os.fdopen(read, "rb") as received:
        assert received.read() == (tmp_path / "f").read_bytes()


@pytest.mark.parametrize("fmt", ["csv", "jsonl"])
def test_no_control_sequence_reaches_a_terminal(fmt: str) -> None:
    """JSON is the same JSON; a file or a pipe gets the bytes as they are."""
    name = "a\x1b]0;pwned\x07\x9b2J\u202eb\nc"
    event = EVENTS[0]._replace(new_name=name)
    master, terminal = os.openpty()
    with os.fdopen(master, "rb", buffering=0) as screen, os.fdopen(terminal, "wb", buffering=0) as stream:
        export([event], COLUMNS, fmt, stream)
        shown = ""
        while "observed_at" not in shown or "2026" not in shown:
            shown += screen.read(65536).decode()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    if fmt == "jsonl":
        assert json.loads(shown)["new_name"] == name
    else:
        assert r"a\x1b]0;pwned\x07\x9b2J\u202eb\x0ac" in shown
    pipe = io.BytesIO()
    export([event], COLUMNS, fmt, pipe)
    assert "\u202e" in pipe.getvalue().decode()


def by_month(fmt: Any, to: Any) -> int:
    return export(EVENTS, COLUMNS, fmt, to, by_month_of="observed_at")


def to_a_terminal() -> int:
    master, terminal = os.openpty()
    with os.fdopen(master, "rb"), os.fdopen(terminal, "wb") as stream:
        return export(EVENTS, COLUMNS, "parquet", stream)


REFUSED: dict[str, list[Callable[[Path], int]]] = {
    "create the folder": [
        lambda home: export(EVENTS, COLUMNS, "csv", home / "missing" / "f.csv"),
        lambda home: export(EVENTS, COLUMNS, "csv", home / "file" / "f.csv"),
    ],
    "is a folder": [lambda home: export(EVENTS, COLUMNS, "csv", home)],
    "-o FILE": [lambda home: to_a_terminal(), lambda home: export(EVENTS, COLUMNS, "xlsx", io.BytesIO())],
    "32,767 characters": [lambda home: export([event(1, "x" * 32_768)], COLUMNS, "xlsx", home / "f.xlsx")],
    "1,048,575 rows": [lambda home: export([()] * 1_048_576, COLUMNS, "xlsx", home / "f.xlsx")],
    "-o FOLDER": [lambda home: by_month("parquet", io.BytesIO()), lambda home: by_month("csv", home / "f")],
    "already exists": [lambda home: by_month("parquet", home)],  # old and new months would be read as one
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_written_is_refused_in_a_sentence_with_the_remedy(tmp_path: Path, said: str) -> None:
    (tmp_path / "file").touch()
    for refused in REFUSED[said]:
        with pytest.raises(UsageError, match=said):
            refused(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("library", "extra", "fmt"), [("pyarrow", "parquet", "parquet"), ("xlsxwriter", "excel", "xlsx")]
)
def test_without_its_library_a_format_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, fmt: Any
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"pip install 'flowtrail\[{extra}\]'"):
        export(iter(lambda: pytest.fail("was read"), None), COLUMNS, fmt, tmp_path / f"f.{fmt}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_is_named() -> None:
    with pytest.raises(FlowtrailError, match=r"/dev/full was not written: No space left"):
        export(EVENTS, COLUMNS, "csv", Path("/dev/full"))


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet", "xlsx"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the rows, the same memory: a page, or a row group of Parquet."""
    monkeypatch.setattr("etl.export.ROW_GROUP", 2000)
    peaks = []
    wide = 2 if fmt == "xlsx" else len(COLUMNS)  # tracing a workbook is slow
    for rows in (4_000, 16_000):
        tracemalloc.start()
        export((event(n, "name")[:wide] for n in range(rows)), COLUMNS[:wide], fmt, tmp_path / "f")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
