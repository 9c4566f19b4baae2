"""What the gateway answers: a number of targets with a number of workflows each, before and after one per cent changed.

Everything follows from the shape, so the gateway, the contenders and the check of what they wrote agree on it without
talking to each other. Workflow number ``k`` counts through all targets; every hundredth is the one that changes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TARGETS_OF_AN_ORGANISATION = 50
CYCLES = ("D", "H", "W", "mi", "M")
WORDS = ("reduce_entity", "map", "join_device", "load", "sort_by_site", "power_curve", "energy_daily", "dedupe")
EVERY, WHICH = 100, 37
"""One workflow in so many changes, and which."""


class Shape(NamedTuple):
    """So many targets, with so many workflows each."""

    targets: int
    flows: int
    ids: int = 0
    """So many workflow ids among all lists, which then overlap, as those of an organisation's users; 0: they do not."""
    quarrel: int = 0
    """1: each target is told another name of the same workflow."""

    @property
    def rows(self) -> int:
        return self.targets * self.flows


SHAPES = {"A": Shape(200, 500), "B": Shape(2_000, 20), "C": Shape(1, 100_000), "D": Shape(20_000, 5)}
SHAPES["quarrel"] = Shape(200, 500, 500, quarrel=1)


class Case(NamedTuple):
    """A shape, and how the gateway answers."""

    shape: Shape
    tls: bool = False
    latency_seconds: float = 0.0


class Row(NamedTuple):
    """A workflow as one target sees it."""

    org_id: str
    user_id: str
    flow_id: str
    flow_name: str
    cycle: str
    editable: bool


def who(target: int) -> tuple[str, str]:
    """The organisation and the user of a target."""
    return f"o{15_427_722_000_000 + target // TARGETS_OF_AN_ORGANISATION}", f"u{15_426_865_000_000 + target}"


def write_targets(shape: Shape, file: Path) -> None:
    """The list of targets that every contender reads."""
    with file.open("w", newline="", encoding="utf-8") as out:
        lines = csv.writer(out)
        lines.writerow(("org", "user"))
        lines.writerows(who(target) for target in range(shape.targets))


def read_targets(file: Path) -> list[tuple[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return [(line["org"], line["user"]) for line in csv.DictReader(lines)]


def rows(shape: Shape, churned: bool) -> Iterator[Row]:
    """What the target tables must hold after a run."""
    for target in range(shape.targets):
        org, user = who(target)
        for flow in flows(shape, target, churned):
            yield Row(org, user, *flow)


def flows(shape: Shape, target: int, churned: bool) -> list[tuple[str, str, str, bool]]:
    """A target's list, in the order of its answer: by number, an added workflow beside the one that it was made of."""
    first = target * shape.flows
    listed: list[tuple[str, str, str, bool]] = []
    for number in range(first, first + shape.flows):
        listed += _after(shape, number) if churned and _changes(shape, number) else [_flow(shape, number)]
    return listed


def removed(shape: Shape) -> Iterator[Row]:
    """The workflows that a churn removes."""
    for number in _changing(shape):
        if _kind(shape, number) == "removed":
            yield Row._make((*who(number // shape.flows), *_flow(shape, number)))


def changes(shape: Shape) -> dict[str, int]:
    """How many changes of each kind a churn brings."""
    counted = dict.fromkeys(("added", "removed", "cycle_changed", "renamed"), 0)
    for number in _changing(shape):
        counted[_kind(shape, number)] += 1
    return counted


def body(shape: Shape, target: int, churned: bool) -> bytes:
    """The answer of Get My Flow."""
    data = [
        {"flowId": flow_id, "editable": editable, "flowName": name, "cycle": cycle}
        for flow_id, name, cycle, editable in flows(shape, target, churned)
    ]
    return json.dumps({"code": 0, "msg": "OK", "data": data}, separators=(",", ":")).encode()


def _changing(shape: Shape) -> Iterator[int]:
    return (number for number in range(shape.rows) if _changes(shape, number))


def _changes(shape: Shape, number: int) -> bool:
    return _workflow(shape, number) % EVERY == WHICH


def _workflow(shape: Shape, number: int) -> int:
    """Which one it is: whoever lists it sees the same name and cycle, and the same change."""
    return number % (shape.ids or shape.rows)


def _flow(shape: Shape, number: int) -> tuple[str, str, str, bool]:
    which = _workflow(shape, number)
    return (
        str(100_000 + which),
        f"{WORDS[which % 8]}_{which}" + shape.quarrel * f"_{number // shape.flows}",
        CYCLES[which * 7 % 5],
        number % 3 != 0,
    )


def _kind(shape: Shape, number: int) -> str:
    """Of twenty changes nine are of the cycle, six of the name, three add and two remove a workflow."""
    nth = _workflow(shape, number) // EVERY % 20
    return "cycle_changed" if nth < 9 else "renamed" if nth < 15 else "added" if nth < 18 else "removed"


def _after(shape: Shape, number: int) -> list[tuple[str, str, str, bool]]:
    """What has become of a workflow that changes: an addition is one more beside it."""
    flow_id, name, cycle, editable = _flow(shape, number)
    kind = _kind(shape, number)
    if kind == "removed":
        return []
    if kind == "cycle_changed":
        return [(flow_id, name, CYCLES[(CYCLES.index(cycle) + 1) % 5], editable)]
    if kind == "renamed":
        return [(flow_id, f"{name}_v2", cycle, editable)]
    return [(flow_id, name, cycle, editable), (f"9{flow_id}", f"{name}_copy", cycle, editable)]
