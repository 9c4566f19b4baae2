"""Tables in terminals of 60, 80 and 200 columns: ids, times and numbers stay whole, the least important give way."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from etl.cli.layout import cell, table
from etl.timeparse import parse_moment

ORG, ANN, BOB = "o15427722038191", "u15426865866571", "u15426865866572"
GOLDEN = Path(__file__).parents[1] / "support" / "golden" / "tables"
AT = dt.datetime(2026, 11, 24, 10, 35, 18, tzinfo=dt.UTC)
NOON = "2026-11-24 10:35:18Z"

CHANGES = (
    ("observed at", "organisation", "user", "workflow", "what happened", "name"),
    [
        (NOON, ORG, ANN, "2818", "renamed, was ev_charger_energy_settlement_hami_26", "ev_charger_settlement_v2"),
        (NOON, ORG, BOB, "2822", "cycle H -> D", "bess_rack_energy_settlement_penglai_19"),
    ],
)
FLOWS = (
    ("org_id", "user_id", "flow_id", "flow_name", "cycle_label", "editable", "changed_at", "last_observed_at"),
    [
        (ORG, ANN, "2818", "ev_charger_energy_settlement_hami_26_v2", "hour", "yes", NOON, NOON),
        (ORG, BOB, "9001", "储能电站月度碳账本结算与核对流程", "month", "no", NOON, NOON),
    ],
)
PROBLEMS = (
    ("org_id", "user_id", "last_observed_at", "consecutive_failures", "last_error_code", "last_error"),
    [(ORG, ANN, NOON, "12", "malformed", "the body is no JSON: an HTML page, <title>Sign in to continue</title>")],
)


def drawn(columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int | None) -> str:
    shown = table(columns, rows, width)
    return "\n".join([shown.heading, *(line for lines in shown.rows for line in lines)]) + "\n"


TABLES = {"changes": CHANGES, "flows": FLOWS, "problems": PROBLEMS}


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_a_terminal_of_this_width_looks_like_this(name: str, width: int) -> None:
    """An intended change: write what ``drawn`` gives into the file, and look at it."""
    assert drawn(*TABLES[name], width) == (GOLDEN / f"{name}-{width}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_the_name_of_a_row_is_never_cut_in_a_narrow_terminal(name: str) -> None:
    columns, rows = TABLES[name]
    for width in range(1, 220):
        for row, lines in zip(rows, table(columns, rows, width).rows, strict=True):
            assert all(value in lines[0] for value in row if value in (ORG, ANN, BOB, "2818", "2822", "9001"))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_wide_as_the_terminal_at_most_once_its_ids_fit(name: str) -> None:
    columns, rows = TABLES[name]
    for width in range(60, 220):
        shown = table(columns, rows, width)
        lines = [shown.heading, *(line for lines in shown.rows for line in lines)]
        assert max(map(cell_len, lines)) <= width


def test_in_a_pipe_nothing_is_cut_and_every_row_is_one_line() -> None:
    for columns, rows in TABLES.values():
        shown = table(columns, rows, None)
        assert all(value in lines[0] for row, lines in zip(rows, shown.rows, strict=True) for value in row)
        assert [len(lines) for lines in shown.rows] == [1] * len(rows)


@pytest.mark.parametrize("columns", [CHANGES[0], FLOWS[0], PROBLEMS[0]], ids=["changes", "flows", "problems"])
def test_a_column_without_rows_is_its_heading(columns: tuple[str, ...]) -> None:
    assert table(columns, [], None).heading == "  ".join(columns)


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2026-11-24 10:35:18Z"), ("Asia/Shanghai", "2026-11-24 18:35:18+08:00")],
)
def test_a_time_says_its_offset_and_can_be_typed_as_it_is_shown(zone: str, shown: str) -> None:
    assert cell(AT, ZoneInfo(zone)) == shown
    assert parse_moment(shown, AT, dt.UTC) == AT
