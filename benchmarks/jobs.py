"""A job: one phase of one contender in a process of its own, and what it cost.

    python -m benchmarks.jobs JOB.json      # prints the cost as JSON

What counts are the seconds inside the job: without the interpreter's start and without imports (a job first imports
whatever earlier jobs of its kind turned out to need), but with opening the database.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import counting, world


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a contender is told."""

    contender: str
    phase: str
    """"set_up" (tables and files, not measured), "cold", "quiet" or "churn"."""
    gateway: str
    """Its URL."""
    targets: str
    """A CSV file with the columns org and user."""
    folder: str
    """A directory of its own, kept from phase to phase."""
    file: str = ""
    """The SQLite file; empty where the database is PostgreSQL."""
    server: dict[str, Any] = field(default_factory=dict)
    """host (the socket's directory), port, user, password, dbname: what libpq wants to know."""
    concurrency: int = 16
    certificate: str = ""
    """A file with the certificate that the gateway shows; empty: it speaks no TLS."""

    @property
    def database(self) -> str:
        return "sqlite" if self.file else "postgresql"

    @property
    def url(self) -> str:
        """For SQLAlchemy, with psycopg as PostgreSQL's driver."""
        if self.file:
            return f"sqlite:///{self.file}"
        of = self.server
        return f"postgresql+psycopg://{of['user']}@/{of['dbname']}?host={of['host']}&port={of['port']}"

    def asked(self) -> list[tuple[str, str]]:
        return world.read_targets(Path(self.targets))


Work = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a job cost its own process; ``written_bytes`` went to files, ``calls`` and ``statements`` to the driver, and
    ``rows_read`` came from it."""

    seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    peak_mib: float
    written_bytes: int
    calls: int
    statements: int
    rows_read: int
    heads: dict[str, int]
    """How often each statement, by its first words, was executed."""


def measured(work: Work, database: str) -> Cost:
    count = counting.start(database)
    gc.collect()
    written, cpu, began = _written(), _cpu(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    user, system = (after - before for before, after in zip(cpu, _cpu(), strict=True))
    return Cost(
        seconds=seconds,
        cpu_user_seconds=user,
        cpu_system_seconds=system,
        peak_mib=peak_mib(),
        written_bytes=_written() - written,
        calls=count.calls.total(),
        statements=count.statements.total(),
        rows_read=count.rows.total(),
        heads=dict(count.statements.most_common(25)),
    )


def peak_mib() -> float:
    """The most memory that this process has held; getrusage would count the parent's before exec as well."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _cpu() -> tuple[float, float]:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime for each in usages), sum(each.ru_stime for each in usages)


def _written() -> int:
    """Bytes given to write(2) and its relatives, so not to sockets."""
    with open("/proc/self/io", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def _import_what_is_known(file: Path) -> None:
    for name in file.read_text().split() if file.exists() else ():
        with suppress(Exception):
            importlib.import_module(name)


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    known = Path(given.pop("imports"))
    job = Job(**given)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = importlib.import_module(f"benchmarks.contenders.{job.contender}")
    if job.phase == "set_up":
        contender.set_up(job)
        return
    _import_what_is_known(known)
    work = contender.prepare(job)
    before = set(sys.modules)
    cost = measured(work, job.database)
    late = [name for name in sys.modules if name not in before and "benchmarks" not in name]
    if late:
        with known.open("a") as names:
            names.writelines(f"{name}\n" for name in late)
    json.dump(asdict(cost), results)
    results.close()


if __name__ == "__main__":
    main()
