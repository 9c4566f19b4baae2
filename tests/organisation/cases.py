"""The examples of ``docs/organisation.md``: tables of answers, and the events that follow from them.

Each row is a run. Its users are asked two minutes apart, and each answer takes a minute. A cell is what a user's list
says about one workflow: ``w`` listed, ``w=b`` with the name b, ``w/H`` with the cycle H, ``-`` not listed, ``held``
not listed, and its removal held. ``x`` is a failed request, ``.`` a user who is not asked, ``out`` one who is no longer
configured. The rest of the row are the events derived at the run's end; a time with ``~`` means that the run ends
without a step.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path

from etl.domain.organisation.values import Answer, Event, Listed
from tests.organisation.state import KnownState

PAGE = Path(__file__).parents[2] / "docs" / "organisation.md"
DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def cases() -> Iterator[tuple[str, str]]:
    """Each example of the page, with the heading above it."""
    heading = ""
    for match in re.finditer(r"^(#+ [^\n]*)$|^```case\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1].strip("# ")
        else:
            yield heading, match[2]


def promised(case: str) -> list[str]:
    """For each run of an example, the events that the page gives."""
    header, *rows = case.splitlines()
    return [" ".join(row.split()[len(header.split()) :]) for row in rows]


def derived(case: str) -> list[str]:
    """For each run of an example, the events that are derived."""
    header, *rows = case.splitlines()
    users = header.split()[1:]
    state = KnownState(dict.fromkeys(users, dt.timedelta(hours=4)))
    return ["; ".join(_run(state, users, row.split())) for row in rows]


def _run(state: KnownState, users: list[str], row: list[str]) -> list[str]:
    hour, minute = row[0].strip("~").split(":")
    at = DAY + dt.timedelta(hours=int(hour), minutes=int(minute))
    for number, (user, cell) in enumerate(zip(users, row[1:], strict=False)):
        asked_at = at + 2 * number * MINUTE
        if cell == "out":
            state.retire(user, asked_at)
        elif cell == "held":
            state.answered(user, {}, Answer(asked_at, asked_at + MINUTE), {"w"})
        elif cell not in ("x", "."):
            state.answered(user, _list(cell), Answer(asked_at, asked_at + MINUTE))
    if row[0].startswith("~"):
        return []
    judgements = state.step(at + 2 * len(users) * MINUTE)
    return [_said(event) for judgement in judgements for event in judgement.events]


def _list(cell: str) -> dict[str, Listed]:
    if cell == "-":
        return {}
    name, _, cycle = cell.partition("/")
    return {"w": Listed(name.partition("=")[2] or "a", cycle or "D", True)}


def _said(event: Event) -> str:
    change = {
        "renamed": lambda: f"{event.old.name}->{event.new.name}",
        "cycle_changed": lambda: f"{event.old.cycle}->{event.new.cycle}",
    }.get(event.kind, lambda: event.user_id)()
    span = f"{_clock(event.last_unchanged_at)}..{_clock(event.observed_at)}"
    return " ".join(filter(None, [event.kind, change, span, "" if event.proven_for_all else "unproven"]))


def _clock(at: dt.datetime) -> str:
    return f"{(at - DAY) // dt.timedelta(hours=1)}:{at.minute:02}"
