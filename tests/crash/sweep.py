"""The exhaustive sweep: a run is disturbed at its n-th point, n = 1, 2, 3... until a run no longer gets that far.

After each disturbance the checker reads the database as it was left. Then the recovery commands run, and the checker
compares the database with what the gateway really delivered.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from tests.crash.disturbances import Disturbance, Disturbed
from tests.crash.place import Place, file_of
from tests.crash.scenarios import ORG, Scenario, prepared
from tests.support import checker

MOST_POINTS = 5_000


class Trial(NamedTuple):
    """One disturbance, and its findings."""

    what: str
    at: int
    disturbed: Disturbed
    findings: Sequence[str]

    def __str__(self) -> str:
        found = "\n    ".join(self.findings)
        return f"{self.what} at {self.at} ({self.disturbed.ended.label}):\n    {found}"


class Sweep:
    """A scenario in a place, tried again and again from the same beginning."""

    def __init__(self, place: Place, scenario: Scenario, disturbance: Disturbance) -> None:
        self._place = place
        self._scenario = scenario
        self._disturbance = disturbance
        self._template = prepared(place, scenario)
        self._known = place.deliveries if self._template else []
        self._bad_signatures = 0
        scenario.upstream(place.gateway.world)
        place.schedule(ORG, scenario.configured)
        self.name = f"{place.databases.kind}, {scenario.name}, {disturbance.name}"

    def trial(self, at: int) -> Trial:
        """Disturb, check, recover, and check again."""
        place = self._place
        url = self._disturbance.database(place, self._template)
        place.use(url, self._known)
        disturbed = self._disturbance.run(place, self._scenario.command, at)
        findings = [*self._ended_badly(disturbed), *self._at_once(), *self._recover(), *self._badly_signed()]
        findings += place.findings(settled=True)
        place.databases.drop(url)
        return Trial(self.name, at, disturbed, findings)

    def _ended_badly(self, disturbed: Disturbed) -> Iterator[str]:
        said, code = self._place.said, disturbed.ended.code
        if self._disturbance.dies and code == -signal.SIGKILL:
            return
        if code not in (0, 1, 3):
            yield f"ended with {code}: {said}"
        if "Traceback" in said:
            yield f"a traceback: {said}"
        harmed = disturbed.reached and not self._disturbance.harmless
        if not harmed and code != self._scenario.undisturbed:
            yield f"undisturbed, and ended with {code}: {said}"

    def _at_once(self) -> list[str]:
        """Check the database as it was left; for SQLite a copy, so that the program itself recovers the original."""
        place = self._place
        if not place.databases.is_sqlite:
            return place.findings(settled=False) if _has_schema(place.url) else []
        file = file_of(place.url)
        if not file.exists():
            return []
        copy = place.folder / "copy"
        shutil.copytree(file.parent, copy)
        url = f"sqlite:///{copy / file.name}"
        findings = place.findings(settled=False, url=url) if _has_schema(url) else []
        shutil.rmtree(copy)
        return findings

    def _recover(self) -> Iterator[str]:
        code = 0
        for command in self._scenario.recovery:
            code = self._place.run(*command).code
            if "Traceback" in self._place.said or code not in (0, 1):
                yield f"afterwards {' '.join(command)} exits with {code}: {self._place.said}"
        if code != self._scenario.exits:
            yield f"recovery exits with {code}, not {self._scenario.exits}: {self._place.said}"

    def _badly_signed(self) -> Iterator[str]:
        """Every request has its own signature, a repeated one too."""
        bad = self._place.gateway.bad_signatures - self._bad_signatures
        self._bad_signatures += bad
        if bad:
            yield f"{bad} requests had a bad signature, or one that was used before"

    def close(self) -> None:
        if self._template is not None:
            self._place.databases.drop(self._template)


def swept(
    place: Place, scenario: Scenario, disturbance: Disturbance, points: Iterable[int] = range(1, MOST_POINTS)
) -> Iterator[Trial]:
    """The trials at ``points``, up to the first point that is not reached; that run must have succeeded undisturbed."""
    with closing(Sweep(place, scenario, disturbance)) as sweep:
        for at in points:
            trial = sweep.trial(at)
            yield trial
            if not trial.disturbed.reached:
                break


def _has_schema(url: str) -> bool:
    """Whether the schema exists. Its tables are created together or not at all."""
    connection: Any = checker._connect(url)
    with closing(connection):
        cursor = connection.cursor()
        ours = "(SELECT tablename FROM pg_tables WHERE schemaname = 'public') AS ours"
        catalog, name = ("sqlite_master", "name") if url.startswith("sqlite") else (ours, "tablename")
        cursor.execute(f"SELECT count(*) FROM {catalog} WHERE {name} IN ('target', 'lease', 'alembic_version')")
        count = cursor.fetchone()[0]
        assert count in (0, 3), f"half a schema: {count} of 3 tables"
        return bool(count)
