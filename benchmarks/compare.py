"""The comparison: every contender in every shape on every database, in turns, so that a slow minute hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import databases, gateway, machine, world
from benchmarks.rounds import BENCH_PYTHON, Contender, Measurement, Round, Wrong, whole_round

CONTENDERS = {
    each.name: each
    for each in (
        Contender(name="flowtrail", title="Flowtrail", patience=4),
        Contender(name="floor", title="floor", patience=4, speaks_tls=False),
        Contender(name="requests_floor", title="floor with requests", patience=4),
        Contender(name="afternoon", title="afternoon's version"),
        Contender(name="dlt_scd2", title="dlt, scd2", own_python=True),
        Contender(name="dbt_snapshot", title="dbt snapshot", own_python=True),
    )
}
PACKAGES = ("dlt", "dbt-core", "dbt-postgres", "dbt-sqlite", "requests", "SQLAlchemy", "msgspec", "psycopg")
REHEARSED = world.Shape(3, 40)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to compare."""

    cases: dict[str, world.Case]
    databases: Sequence[str]
    contenders: Sequence[Contender]
    runs: int
    patience_seconds: float = 12.0
    """Whose rounds in one shape have taken so long is not asked for another; see also `Contender.patience`."""


def compared(wanted: Wanted, place: Path, say: Say) -> Iterator[dict[str, Any]]:
    """Everything that was measured so far, as JSON has it, after each shape on each database."""
    cells: list[dict[str, Any]] = []
    skipped: list[str] = []
    of = machine.described() | {"databases": ""}
    versions = machine.versions(str(BENCH_PYTHON), PACKAGES) if BENCH_PYTHON.exists() else {}
    for kind in wanted.databases:
        try:
            with databases.of_kind(kind, place) as kinds:
                of["databases"] = ", ".join(filter(None, (of["databases"], kinds.version())))
                able = list(_able(wanted, kind, kinds, place, say, skipped))
                for name, case in wanted.cases.items():
                    cells += _cell(wanted, able, name, case, kind, kinds, place, say, skipped)
                    yield {"machine": of, "versions": versions, "cells": cells, "skipped": skipped}
        except RuntimeError as error:
            skipped.append(f"{kind}: {error}")
            say(f"skipped: {skipped[-1]}")


def _able(
    wanted: Wanted, kind: str, kinds: databases.Databases, place: Path, say: Say, skipped: list[str]
) -> Iterator[Contender]:
    """Those who pass a rehearsal, which also finds out what each has to import before the clock runs."""
    with gateway.running(REHEARSED) as asked:
        for contender in wanted.contenders:
            try:
                if contender.own_python and not BENCH_PYTHON.exists():
                    raise Wrong(f"{contender.title}: not installed; `make bench-setup` does it")
                with kinds.fresh() as database:
                    list(whole_round(Round(contender, REHEARSED, asked, database, place)))
                yield contender
            except Wrong as error:
                skipped.append(f"{kind}: {error}")
                say(f"skipped on {kind}: {error}")


def _cell(
    wanted: Wanted, able: Sequence[Contender], name: str, case: world.Case, kind: str, kinds: databases.Databases,
    place: Path, say: Say, skipped: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    able = [each for each in able if not case.tls or each.speaks_tls]
    measured: dict[str, list[list[Measurement]]] = {contender.name: [] for contender in able}
    spent = dict.fromkeys(measured, 0.0)
    with gateway.answering(case, place) as asked:
        for nth in range(wanted.runs):
            for contender in able:
                if spent[contender.name] > wanted.patience_seconds * contender.patience:
                    continue
                began = time.monotonic()
                try:
                    with kinds.fresh() as database:
                        round_ = Round(contender, case.shape, asked, database, place)
                        last = list(whole_round(round_, thoroughly=not nth))
                except Wrong as error:
                    skipped.append(f"{name} {kind}: {error}")
                    say(f"failed: {skipped[-1]}")
                    spent[contender.name] = math.inf
                    continue
                measured[contender.name].append(last)
                spent[contender.name] += time.monotonic() - began
                figures = " / ".join(f"{each.seconds:.2f}" for each in last)
                say(f"{name} {kind} {contender.title}, run {nth + 1}: {figures} s")
    for contender in able:
        yield {
            "shape": name,
            **case.shape._asdict(),
            "tls": case.tls,
            "latency_seconds": case.latency_seconds,
            "database": kind,
            "contender": contender.name,
            "title": contender.title,
            "rounds": [{each.phase: asdict(each) for each in phases} for phases in measured[contender.name]],
        }
