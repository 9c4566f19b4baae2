"""Medians out of what was measured, and what they say about the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.rounds import PHASES

PEERS = ("dlt_scd2", "dbt_snapshot")


class Key(NamedTuple):
    shape: str
    database: str
    contender: str


class Figures:
    """The medians of a comparison."""

    def __init__(self, compared: dict[str, Any]) -> None:
        self.cells = {Key(each["shape"], each["database"], each["contender"]): each for each in compared["cells"]}

    def tables(self) -> list[tuple[str, str]]:
        """Shapes and databases, each once, in the order of the comparison."""
        return list(dict.fromkeys((key.shape, key.database) for key in self.cells))

    def contenders(self, shape: str, database: str) -> list[str]:
        return [key.contender for key in self.cells if key[:2] == (shape, database)]

    def median(self, shape: str, database: str, contender: str, phase: str, what: str = "seconds") -> float | None:
        """None where it was not measured."""
        cell = self.cells.get(Key(shape, database, contender))
        values = [phases[phase][what] for phases in cell["rounds"]] if cell else []
        return float(statistics.median(values)) if values else None

    def runs(self, shape: str, database: str, contender: str) -> int:
        return len(self.cells[Key(shape, database, contender)]["rounds"])

    def latency_seconds(self, shape: str, database: str) -> float:
        return float(self.any_of(shape, database).get("latency_seconds", 0))

    def targets(self, shape: str, database: str) -> int:
        return int(self.any_of(shape, database)["targets"])

    def any_of(self, shape: str, database: str) -> dict[str, Any]:
        """A cell of that table, for what all have in common."""
        return next(cell for key, cell in self.cells.items() if key[:2] == (shape, database))

    def best_peer(self, shape: str, database: str, phase: str) -> float | None:
        found = [self.median(shape, database, peer, phase) for peer in PEERS]
        return min((each for each in found if each is not None), default=None)


class Goal(NamedTuple):
    """What is aimed at, and what was reached: ``reached <= limit``."""

    what: str
    limit: float
    reached: float

    @property
    def met(self) -> bool:
        return self.reached <= self.limit

    def __str__(self) -> str:
        return f"{self.what} <= {self.limit:g}: {self.reached:.2f} {'ok' if self.met else 'NOT MET'}"


class Limits(NamedTuple):
    """The highest ratio on each database."""

    sqlite: float
    postgresql: float


RATIOS = {
    "cold": {"A": Limits(2.0, 1.4), "B": Limits(0.9, 0.9), "C": Limits(2.5, 2.5)},
    "quiet": {"A": Limits(0.5, 0.5), "B": Limits(0.45, 0.55), "C": Limits(1.3, 1.3)},
    "churn": {"A": Limits(1.3, 1.1), "B": Limits(0.6, 0.7), "C": Limits(1.3, 1.3)},
}
"""To the floor with requests."""
PEER_SHARES: dict[str, dict[str, Limits]] = {
    "cold": dict.fromkeys("ABC", Limits(1, 1)),
    "quiet": {"A": Limits(1 / 9, 1 / 9), "B": Limits(1 / 3, 1 / 3), "C": Limits(1 / 14, 1 / 14)},
    "churn": {"A": Limits(1 / 8, 1 / 3.5)},
}
OVER_QUIET = {"cold": 1.5, "churn": 1.3}
"""Over TLS, to the quiet run."""
PEAK_MIB = {"A": 90, "B": 90, "C": 140, "D": 90}
WRITTEN_BYTES_A_TARGET = {"sqlite": 300, "postgresql": 600}
STATEMENTS_A_BATCH, BATCH = 3, 500
CONCURRENCY = 16


def goals(figures: Figures) -> Iterator[Goal]:
    """Every goal for which there are figures."""
    for shape, database in figures.tables():
        for phase in PHASES:
            yield from _ratios(figures, shape, database, phase)
        if figures.latency_seconds(shape, database):
            yield from _patience(figures, shape, database)
        yield from _thrift(figures, shape, database)
    yield from _statements(figures)


def _ratios(figures: Figures, shape: str, database: str, phase: str) -> Iterator[Goal]:
    """How its time compares with that of others, and of its own quiet run."""
    own = figures.median(shape, database, "flowtrail", phase)
    if own is None:
        return
    here = f"{shape} {database} {phase}, ratio to the"
    if limits := RATIOS[phase].get(shape):
        floor = figures.median(shape, database, "requests_floor", phase)
        yield from _ratio(f"{here} floor with requests", getattr(limits, database), own, floor)
    if shares := PEER_SHARES[phase].get(shape):
        best = figures.best_peer(shape, database, phase)
        yield from _ratio(f"{here} best peer", round(getattr(shares, database), 3), own, best)
    if phase in OVER_QUIET and shape.endswith("+tls"):
        quiet = figures.median(shape, database, "flowtrail", "quiet")
        yield from _ratio(f"{here} quiet run", OVER_QUIET[phase], own, quiet)


def _patience(figures: Figures, shape: str, database: str) -> Iterator[Goal]:
    """Where the gateway takes its time, waiting is all that a run does, and that costs little."""
    latency = figures.latency_seconds(shape, database)
    least = figures.targets(shape, database) * latency / CONCURRENCY
    taken = figures.median(shape, database, "flowtrail", "quiet") or 0.0
    where = f"{shape} {database} quiet"
    yield Goal(f"{where}, ratio to targets x latency / concurrency", 1.05, taken / least)
    cpu, other = (figures.median(shape, database, each, "quiet", "cpu_seconds") for each in ("flowtrail", "afternoon"))
    yield from _ratio(f"{where}, CPU in ratio to the afternoon's version", 0.5, cpu or 0.0, other)


def _ratio(what: str, limit: float, own: float, other: float | None) -> Iterator[Goal]:
    if other:
        yield Goal(what, limit, own / other)


def _thrift(figures: Figures, shape: str, database: str) -> Iterator[Goal]:
    peaks = [figures.median(shape, database, "flowtrail", phase, "peak_mib") for phase in PHASES]
    known = [each for each in peaks if each is not None]
    if shape in PEAK_MIB and known:
        yield Goal(f"{shape} {database} peak MiB", PEAK_MIB[shape], max(known))
    written = figures.median(shape, database, "flowtrail", "quiet", "written_bytes")
    if shape != "C" and written is not None:
        limit = WRITTEN_BYTES_A_TARGET[database]
        share = written / figures.targets(shape, database)
        yield Goal(f"{shape} {database} quiet, bytes written a target", limit, share)


def _statements(figures: Figures) -> Iterator[Goal]:
    """What a batch more costs: between the fewest targets and the most, so that a run's own statements drop out."""
    for database in dict.fromkeys(key.database for key in figures.cells):
        sent = {}
        for key, cell in figures.cells.items():
            if key.database == database and key.contender == "flowtrail" and cell["rounds"]:
                batches = -(-cell["targets"] // BATCH)
                sent[batches] = figures.median(key.shape, database, "flowtrail", "quiet", "statements") or 0.0
        if len(sent) > 1:
            least, most = min(sent), max(sent)
            each = (sent[most] - sent[least]) / (most - least)
            yield Goal(f"{database} quiet, statements a {BATCH} targets", STATEMENTS_A_BATCH, each)
