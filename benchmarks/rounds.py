"""One round of a contender: set up, cold, quiet, churn, each in a process of its own, and a look at what it wrote."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from benchmarks import world
from benchmarks.contenders import Holds
from benchmarks.databases import Database
from benchmarks.gateway import Gateway
from benchmarks.jobs import Job

ROOT: Final = Path(__file__).parents[1]
BENCH_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
PHASES: Final = ("cold", "quiet", "churn")
PATIENCE_SECONDS: Final = 1800
BATCH: Final = 500
"""Targets that Flowtrail asks for together."""


class Wrong(Exception):
    """A contender failed, or did not write what it had to."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who is measured: a module of `benchmarks.contenders`."""

    name: str
    title: str
    patience: int = 1
    """How many times the usual patience it gets."""
    speaks_tls: bool = True
    own_python: bool = False
    """Runs in the benchmark's own environment, because Flowtrail does not depend on it."""

    @property
    def python(self) -> str:
        return str(BENCH_PYTHON) if self.own_python else sys.executable

    def module(self) -> Any:
        return importlib.import_module(f"benchmarks.contenders.{self.name}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a phase cost. ``log_bytes`` went to PostgreSQL's log, ``grown_bytes`` is by how much the database grew."""

    phase: str
    seconds: float
    cpu_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    server_cpu_seconds: float
    peak_mib: float
    calls: int
    statements: int
    rows_read: int
    written_bytes: int
    """To the log on PostgreSQL; on SQLite everything that the process wrote to files."""
    grown_bytes: int
    answers: int
    """That the gateway gave, a second time counted again."""
    fetched_bytes: int
    heads: dict[str, int]


class Round:
    """A contender on a database of its own, phase by phase."""

    _numbers = count(1)

    def __init__(
        self, contender: Contender, shape: world.Shape, gateway: Gateway, database: Database, place: Path,
        concurrency: int = 16,
    ) -> None:  # fmt: skip
        self._contender, self._shape, self._gateway, self._database = contender, shape, gateway, database
        folder = place / f"round-{next(self._numbers)}"
        folder.mkdir()
        targets = folder / "targets.csv"
        world.write_targets(shape, targets)
        self._job = Job(
            contender=contender.name, phase="set_up", gateway=gateway.url, targets=str(targets), folder=str(folder),
            concurrency=concurrency, certificate=gateway.certificate, **database.job(),
        )  # fmt: skip
        self._imports = place / f"imports-{contender.name}-{self._job.database}.txt"
        self._run("set_up")

    def measured(self, phase: str) -> Measurement:
        """Raises Wrong where the job fails."""
        self._gateway.phase("churn" if phase == "churn" else "quiet")
        database = self._database
        database.settle()
        log, size, cpu = database.log_bytes(), database.size_bytes(), database.server_cpu_seconds()
        cost = json.loads(self._run(phase))
        written = cost.pop("written_bytes")
        served = self._gateway.served()
        if served["answers"] < self._shape.targets:
            raise Wrong(f"{self._contender.title}, {phase}: asked {served['answers']} times only")
        for what, limit in self._limits(phase):
            if cost[what] > limit:
                raise Wrong(f"{self._contender.title}, {phase}: {what} {cost[what]}, and not at most {limit}")
        return Measurement(
            phase=phase,
            cpu_seconds=cost["cpu_user_seconds"] + cost["cpu_system_seconds"],
            server_cpu_seconds=database.server_cpu_seconds() - cpu,
            written_bytes=written if self._job.file else database.log_bytes() - log,
            grown_bytes=database.size_bytes() - size,
            answers=served["answers"],
            fetched_bytes=served["bytes"],
            **cost,
        )

    def _limits(self, phase: str) -> Iterator[tuple[str, int]]:
        """What a contender may do in this phase at most, whatever is in its database."""
        holds: Holds = self._contender.module().HOLDS
        if phase == "quiet" and holds.quiet_statements:
            a_run, a_batch = holds.quiet_statements
            yield "statements", a_run + a_batch * -(-self._shape.targets // BATCH)
        if phase == "quiet" and holds.quiet_rows:
            a_run, a_target = holds.quiet_rows
            yield "rows_read", a_run + a_target * self._shape.targets

    def check(self, phase: str, *, thoroughly: bool) -> None:
        """Raises Wrong unless the contender holds what the gateway answered: the number of rows, or thoroughly each."""
        holds: Holds = self._contender.module().HOLDS
        churned = phase == "churn"
        made = world.changes(self._shape)
        left = churned and self._job.database in holds.leaves_removed_on
        if thoroughly and (phase != "quiet" or holds.quiet_writes):
            self._same_rows(holds.current, churned, left)
        elif phase != "quiet" or holds.quiet_writes:
            found = self._database.query(f"SELECT count(*) FROM ({holds.current}) AS now")
            removed = made["removed"] * (not left)
            self._expect("rows", found[0][0] if found else 0, self._shape.rows + (made["added"] - removed) * churned)
        if holds.trail:
            rows = sum(made.values()) - holds.closes_rows * made["removed"]
            self._expect(
                "rows in the trail", self._database.query(holds.trail)[0][0], self._shape.rows + rows * churned
            )

    def _same_rows(self, sql: str, churned: bool, left: bool) -> None:
        expected = Counter(world.rows(self._shape, churned))
        if left:
            expected |= Counter(world.removed(self._shape))
        found = Counter(world.Row._make((*row[:5], bool(row[5]))) for row in self._database.query(sql))
        for words, rows in (("missing", expected - found), ("too many", found - expected)):
            if rows:
                raise Wrong(f"{self._contender.title}: {rows.total()} rows {words}: {next(iter(rows))}")

    def _expect(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise Wrong(f"{self._contender.title}: {found} {what} instead of {expected}")

    def _run(self, phase: str) -> str:
        folder = Path(self._job.folder)
        spec, said = folder / "job.json", folder / f"{phase}.log"
        spec.write_text(json.dumps(asdict(replace(self._job, phase=phase)) | {"imports": str(self._imports)}))
        with said.open("w") as log:
            command = [self._contender.python, "-m", "benchmarks.jobs", str(spec)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, timeout=PATIENCE_SECONDS
            )
        if done.returncode:
            last = said.read_text(errors="replace").strip().splitlines()[-2:]
            raise Wrong(f"{self._contender.title}, {phase}: {' / '.join(last) or done.returncode}")
        return done.stdout


def whole_round(round_: Round, *, thoroughly: bool = True, phases: tuple[str, ...] = PHASES) -> Iterator[Measurement]:
    """All phases, each checked."""
    for phase in phases:
        yield round_.measured(phase)
        round_.check(phase, thoroughly=thoroughly)
