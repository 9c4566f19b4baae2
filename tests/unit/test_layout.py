"""Tables in terminals of any width: nothing is cut or left out; what does not fit beside the rest continues below."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from etl.cli.console import cell, laid_out
from etl.timeparse import parse_moment

ORG, ANN, BOB = "o15427722038191", "u15426865866571", "u15426865866572"
AT = dt.datetime(2026, 11, 24, 10, 35, 18, tzinfo=dt.UTC)
NOON = "2026-11-24 10:35:18Z"

CHANGES = [
    ("observed_at", "org_id", "user_id", "flow_id", "change", "flow_name"),
    (NOON, ORG, ANN, "2818", "renamed, was ev_charger_energy_settlement_hami_26", "ev_charger_settlement_v2"),
    (NOON, ORG, BOB, "2822", "cycle hour -> day", "bess_rack_energy_settlement_penglai_19"),
]
FLOWS = [
    ("org_id", "user_id", "flow_id", "flow_name", "cycle_label", "editable", "changed_at", "last_observed_at"),
    (ORG, ANN, "2818", "ev_charger_energy_settlement_hami_26_v2", "hour", "yes", NOON, NOON),
    (ORG, BOB, "9001", "储能电站月度碳账本结算与核对流程", "month", "no", NOON, NOON),
]
TABLES = {"changes": CHANGES, "flows": FLOWS}

AT_80 = """\
observed_at           org_id           user_id          flow_id
  change                                  flow_name
2026-11-24 10:35:18Z  o15427722038191  u15426865866571  2818
  renamed, was                            ev_charger_settlement_v2
  ev_charger_energy_settlement_hami_26
2026-11-24 10:35:18Z  o15427722038191  u15426865866572  2822
  cycle hour -> day                       bess_rack_energy_settlement_penglai_19
"""


def drawn(rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    return [line for lines in laid_out(rows, width) for line in lines]


def test_columns_that_do_not_fit_stand_below() -> None:
    assert drawn(CHANGES, 80) == AT_80.splitlines()


def test_a_value_wider_than_a_line_is_broken() -> None:
    assert drawn([CHANGES[0]], None) == ["  ".join(CHANGES[0])]
    assert drawn([("a", "name"), ("1", "x" * 20)], 12) == ["a", "  name", "1", "  xxxxxxxxxx", "  xxxxxxxxxx"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_every_id_and_time_is_whole(name: str, width: int) -> None:
    for row, lines in zip(TABLES[name], laid_out(TABLES[name], width), strict=True):
        assert max(map(cell_len, lines)) <= width
        assert all(any(value in line for line in lines) for value in row if " " not in value or value == NOON)


@pytest.mark.parametrize("name", TABLES)
def test_in_a_terminal_of_any_width_no_character_is_lost(name: str) -> None:
    for width in range(8, 220):
        for row, lines in zip(TABLES[name], laid_out(TABLES[name], width), strict=True):
            assert sorted("".join(lines).replace(" ", "")) == sorted("".join(row).replace(" ", ""))


def test_in_a_pipe_every_row_is_one_line() -> None:
    for rows in TABLES.values():
        for row, lines in zip(rows, laid_out(rows, None), strict=True):
            assert len(lines) == 1
            assert all(value in lines[0] for value in row)


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2026-11-24 10:35:18Z"), ("Asia/Shanghai", "2026-11-24 18:35:18+08:00")],
)
def test_a_time_says_its_offset_and_can_be_typed_as_it_is_shown(zone: str, shown: str) -> None:
    assert cell(AT, ZoneInfo(zone)) == shown
    assert parse_moment(shown, AT, dt.UTC) == AT
