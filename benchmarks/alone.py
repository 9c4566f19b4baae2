"""Flowtrail alone: what whoever works on its speed looks at between two edits."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks import databases, gateway, world
from benchmarks.compare import CONTENDERS
from benchmarks.rounds import PHASES, Measurement, Round, whole_round
from benchmarks.show import Drawn, seconds

COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("user", "cpu_user_seconds", seconds),
    ("system", "cpu_system_seconds", seconds),
    ("server's CPU", "server_cpu_seconds", seconds),
    ("peak MiB", "peak_mib", "{:.0f}".format),
    ("calls", "calls", "{:.0f}".format),
    ("statements", "statements", "{:.0f}".format),
    ("rows read", "rows_read", "{:.0f}".format),
)


def measured(case: world.Case, database: str, runs: int, place: Path) -> list[Measurement]:
    """The phases of ``runs`` rounds; one before them finds out what there is to import."""
    found: list[Measurement] = []
    with databases.of_kind(database, place) as kinds, gateway.answering(case, place) as asked:
        for nth in range(runs + 1):
            with kinds.fresh() as fresh:
                round_ = Round(CONTENDERS["flowtrail"], case.shape, asked, fresh, place)
                phases = list(whole_round(round_, thoroughly=not nth))
            found += phases if nth else []
    return found


def drawn(title: str, shape: world.Shape, found: list[Measurement]) -> Drawn:
    """A row a phase."""
    head = ("phase", "seconds", "min", "max", *(name for name, _, _ in COLUMNS), "written/target", "grown/target")
    rows = [_row(phase, shape, [each for each in found if each.phase == phase]) for phase in PHASES]
    return Drawn(f"{title}: {shape.targets:,} targets x {shape.flows:,} workflows", head, rows)


def _row(phase: str, shape: world.Shape, of: list[Measurement]) -> tuple[str, ...]:
    def median(what: str) -> float:
        return float(statistics.median(getattr(each, what) for each in of))

    taken = [each.seconds for each in of]
    per_target = [f"{median(what) / shape.targets:,.0f}" for what in ("written_bytes", "grown_bytes")]
    return (
        phase,
        *map(seconds, (median("seconds"), min(taken), max(taken))),
        *(show(median(what)) for _, what, show in COLUMNS),
        *per_target,
    )
