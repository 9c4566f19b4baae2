"""Cost curves of Flowtrail: from a hundred targets to a hundred thousand, from ten workflows to a million."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import databases, gateway, machine, world
from benchmarks.compare import CONTENDERS
from benchmarks.rounds import Round
from benchmarks.show import Drawn, seconds

FLOWS_OF_A_TARGET = 10
QUIET_RUNS = 3
"""The first quiet run after a load touches pages for the first time; the median is of what the database settles to."""


def shapes(most_targets: int, most_flows: int) -> list[tuple[str, world.Shape]]:
    """Along each axis in steps of ten; the axis is the number that grows."""
    by_targets = [("targets", world.Shape(10**n, FLOWS_OF_A_TARGET)) for n in range(2, 7) if 10**n <= most_targets]
    by_flows = [("workflows", world.Shape(1, 10**n)) for n in range(1, 8) if 10**n <= most_flows]
    return by_targets + by_flows


def measured(
    wanted: Sequence[tuple[str, world.Shape]], kinds: Sequence[str], place: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every point, as JSON has it."""
    points: list[dict[str, Any]] = []
    engines = []
    for kind in kinds:
        with databases.of_kind(kind, place) as made:
            engines.append(made.version())
            _warm_up(made, place)
            for axis, shape in wanted:
                points.append({"axis": axis, **shape._asdict(), "database": kind, **_point(shape, made, place)})
                say(f"{kind}, {shape.targets} targets x {shape.flows} workflows: {_in_short(points[-1])}")
    return {"machine": machine.described() | {"databases": ", ".join(engines)}, "curve": points}


def _warm_up(made: databases.Databases, place: Path) -> None:
    """Find out what there is to import before the clock runs."""
    _point(world.Shape(2, 40), made, place)


def _point(shape: world.Shape, made: databases.Databases, place: Path) -> dict[str, Any]:
    with gateway.running(shape) as asked, made.fresh() as database:
        round_ = Round(CONTENDERS["flowtrail"], shape, asked, database, place)
        phases = ("cold", *("quiet",) * QUIET_RUNS, "churn")
        runs = []
        for phase in phases:
            runs.append(asdict(round_.measured(phase)))
            round_.check(phase, thoroughly=False)
        return {"runs": runs, "size_bytes": database.size_bytes()}


def of_phase(point: dict[str, Any], phase: str, what: str) -> float:
    """The median of a point's runs of a phase."""
    values = sorted(run[what] for run in point["runs"] if run["phase"] == phase)
    return float(values[len(values) // 2])


def _in_short(point: dict[str, Any]) -> str:
    return " / ".join(f"{phase} {of_phase(point, phase, 'seconds'):.2f} s" for phase in ("cold", "quiet", "churn"))


def drawn(of: dict[str, Any]) -> Iterator[Drawn]:
    """A table an axis and database."""
    head = ("targets x workflows", "MB fetched", "cold s", "quiet s", "churn s", "quiet CPU s", "cold MiB", "quiet MiB",
            "churn MiB", "quiet written B/target", "quiet grown KiB", "database MB")  # fmt: skip
    series = dict.fromkeys((point["axis"], point["database"]) for point in of["curve"])
    for axis, kind in series:
        rows = [_row(p) for p in of["curve"] if (p["axis"], p["database"]) == (axis, kind)]
        yield Drawn(f"More {axis}, {kind}", head, rows)


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    def phase(name: str, what: str) -> float:
        return of_phase(point, name, what)

    return (
        f"{point['targets']:,} x {point['flows']:,}",
        f"{phase('quiet', 'fetched_bytes') / 1e6:,.2f}",
        *(seconds(phase(name, "seconds")) for name in ("cold", "quiet", "churn")),
        seconds(phase("quiet", "cpu_seconds")),
        *(f"{phase(name, 'peak_mib'):.0f}" for name in ("cold", "quiet", "churn")),
        f"{phase('quiet', 'written_bytes') / point['targets']:,.0f}",
        f"{phase('quiet', 'grown_bytes') / 1024:,.0f}",
        f"{point['size_bytes'] / 1e6:,.1f}",
    )
