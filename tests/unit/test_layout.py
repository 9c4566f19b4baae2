"""Tables in terminals of any width: nothing is cut or left out; what does not fit beside the rest continues below."""

from __future__ import annotations

import datetime as dt
import sys
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

AT_80 = """\
observed_at           org_id           user_id          flow_id
  change
  flow_name
2026-11-24 10:35:18Z  o15427722038191  u15426865866571  2818
  renamed, was ev_charger_energy_settlement_hami_26
  ev_charger_settlement_v2
2026-11-24 10:35:18Z  o15427722038191  u15426865866572  2822
  cycle hour -> day
  bess_rack_energy_settlement_penglai_19
"""


def drawn(rows: list[tuple[str, ...]], width: int) -> list[str]:
    return [line for lines in laid_out(rows, width) for line in lines]


def test_columns_that_do_not_fit_stand_below_and_a_value_wider_than_a_line_is_broken() -> None:
    assert drawn(CHANGES, 80) == AT_80.splitlines()
    assert drawn([("a", "name"), ("1", "x" * 20)], 12) == ["a", "  name", "1", "  xxxxxxxxxx", "  xxxxxxxxxx"]
    assert drawn([("a", "name"), ("1", "one and two")], 12) == ["a", "  name", "1", "  one and", "  two"]


@pytest.mark.parametrize("rows", [CHANGES, FLOWS], ids=["changes", "flows"])
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(rows: list[tuple[str, ...]]) -> None:
    """Every id and time is whole where it fits into a line; and where everything does, as in a pipe, a row is one."""
    for width in (*range(8, 220), sys.maxsize):
        for row, lines in zip(rows, laid_out(rows, width), strict=True):
            assert sorted("".join(lines).replace(" ", "")) == sorted("".join(row).replace(" ", ""))
            assert max(map(cell_len, lines)) <= width
            whole = [value for value in row if " " not in value or value == NOON]
            assert width < 60 or all(any(value in line for line in lines) for value in whole)
            assert width < 200 or len(lines) == 1


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2026-11-24 10:35:18Z"), ("Asia/Shanghai", "2026-11-24 18:35:18+08:00")],
)
def test_a_time_says_its_offset_and_can_be_typed_as_it_is_shown(zone: str, shown: str) -> None:
    assert cell(AT, ZoneInfo(zone)) == shown
    assert parse_moment(shown, AT, dt.UTC) == AT
