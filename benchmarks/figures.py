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
        self.latency_seconds = float(compared.get("latency_seconds", 0))
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


RATIOS = (
    ("quiet", {"A": (1.2, "requests_floor"), "B": (0.6, "requests_floor"), "C": (3, "requests_floor")}),
    ("cold", {"A": (4, "floor"), "B": (0.8, "requests_floor"), "C": (4, "floor")}),
    ("churn", {"A": (3, "floor"), "B": (0.8, "requests_floor"), "C": (3, "floor")}),
)
PEER_SHARES: dict[str, dict[str, float]] = {
    "quiet": {"A": 1 / 9, "B": 1 / 3, "C": 1 / 14},
    "cold": {"A": 1, "B": 1, "C": 1},
}
PEAK_MIB = {"A": 90, "B": 90, "C": 160, "D": 90}
WRITTEN_BYTES_A_TARGET = {"sqlite": 300, "postgresql": 600}
STATEMENTS_A_BATCH, BATCH = 3, 500


CONCURRENCY = 16


def goals(figures: Figures) -> Iterator[Goal]:
    """Every goal for which there are figures."""
    if figures.latency_seconds:
        yield from _patience(figures)
        return
    for shape, database in figures.tables():
        here = f"{shape} {database}"
        for phase, limits in RATIOS:
            own = figures.median(shape, database, "flowtrail", phase)
            if shape in limits and own is not None:
                limit, than = limits[shape]
                other = figures.median(shape, database, than, phase)
                title = "floor" if than == "floor" else "floor with requests"
                yield from _ratio(f"{here} {phase}, ratio to the {title}", limit, own, other)
            share = PEER_SHARES.get(phase, {}).get(shape)
            if share is not None and own is not None:
                best = figures.best_peer(shape, database, phase)
                yield from _ratio(f"{here} {phase}, ratio to the best peer", round(share, 3), own, best)
        yield from _thrift(figures, shape, database)
    yield from _statements(figures)


def _patience(figures: Figures) -> Iterator[Goal]:
    """Where the gateway takes its time, waiting is all that a run does, and that costs little."""
    for shape, database in figures.tables():
        targets = figures.cells[Key(shape, database, figures.contenders(shape, database)[0])]["targets"]
        least = targets * figures.latency_seconds / CONCURRENCY
        taken = figures.median(shape, database, "flowtrail", "quiet") or 0.0
        where = f"{shape} {database} quiet, {figures.latency_seconds * 1000:g} ms an answer"
        yield Goal(f"{where}, ratio to targets x latency / concurrency", 1.05, taken / least)
        cpu, other = (
            figures.median(shape, database, each, "quiet", "cpu_seconds") for each in ("flowtrail", "afternoon")
        )
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
        targets = figures.cells[Key(shape, database, "flowtrail")]["targets"]
        limit = WRITTEN_BYTES_A_TARGET[database]
        yield Goal(f"{shape} {database} quiet, bytes written a target", limit, written / targets)


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
