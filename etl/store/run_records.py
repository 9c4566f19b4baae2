"""Begin, keep alive, end and seal runs; and read what a new run must know about earlier ones."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Engine

from etl.domain.model import RunStatus, Target
from etl.domain.seal import targets_digest
from etl.errors import SigningError
from etl.store import runs, seals
from etl.store.runs import NewRun
from etl.store.transactions import Transactions, reads, writes


class RunRecords(Transactions):
    """The part of a ``Store`` that is about runs."""

    is_running = reads(runs.is_running)
    written_by = reads(runs.written_by)
    observed_by = reads(runs.observed_by)
    served_until = reads(runs.served_until)
    due = reads(runs.due)
    was_aborted = reads(runs.was_aborted)
    marks = reads(runs.marks)
    beat = writes(runs.beat)
    close_run = writes(seals.close)

    def __init__(self, engine: Engine, stop: threading.Event | None = None, sign: seals.Sign | None = None) -> None:
        """``sign`` signs the seals; see ``require_signing``."""
        super().__init__(engine, stop)
        self._sign = sign
        self._digested: tuple[Sequence[Target], str] = ((), targets_digest(()))

    def require_signing(self) -> None:
        """Raise SigningError where the last seal is signed and this store signs none: the next one would be a finding
        for ever."""
        key_id = None if self._sign else self._read(seals.last_key_id)
        if key_id is not None:
            raise SigningError(
                f"The seals of this database are signed (key {key_id[:16]}), and a later one without a signature would "
                "be a finding for ever: set [seal] key_file, to this key or to a new one."
            )

    def begin_run(self, run: NewRun, now: dt.datetime, asked: Sequence[Target] = ()) -> int | None:
        """The id of a run that starts, to ask ``asked``; None if another run has its slot already.

        The lists of its schedules are recorded with it, unless an earlier run says that they are already.
        """
        digest = self._digest(asked)
        return self._write(
            lambda connection: runs.begin(connection, run, now, digest, asked),
            lambda run_id, connection: runs.was_begun(connection, run_id, run, now),
        )

    def _digest(self, asked: Sequence[Target]) -> str:
        """The digest of the targets. A schedule usually has the same list in each run: then it is not sorted again."""
        known, digest = self._digested
        if known is not asked:
            digest = targets_digest(asked)
            self._digested = (asked, digest)
        return digest

    def finish_run(self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime) -> bool:
        """Close a run, write how it ended, and seal it; False if it had been declared dead, which stays."""
        return self.close_run(run_id, now) and self.seal_run(run_id, status, sums, now)

    def seal_run(self, run_id: int, status: RunStatus, sums: Mapping[str, int], now: dt.datetime) -> bool:
        """End a closed run: write its status, its sums and its seal; False if that was done already.

        The sums of an aborted run are counted from what it wrote.
        """
        if status == "aborted":
            sums, latest_at = self._read(lambda connection: seals.recount(connection, run_id))
            now = max(now, latest_at or now)
        ended = self._write(
            lambda connection: seals.end(connection, run_id, status, sums, now, self._sign),
            lambda _, connection: seals.is_sealed(connection, run_id, status),
        )
        return ended or self._read(lambda connection: seals.is_sealed(connection, run_id, status))

    def recount(self, run_id: int) -> Mapping[str, int]:
        """The sums of a run, counted from its rows; ``unchanged`` is 0: an unchanged target leaves no row."""
        return self._read(lambda connection: seals.recount(connection, run_id)).sums

    def abort_abandoned_runs(self, now: dt.datetime) -> list[int]:
        """Declare runs whose heartbeat has stopped dead, and seal them; return their ids."""
        dead = self._write(lambda connection: runs.close_abandoned(connection, now))
        return [run_id for run_id in dead if self.seal_run(run_id, "aborted", {}, now)]

    @contextlib.contextmanager
    def _maintenance(self, now: dt.datetime) -> Iterator[int]:
        """A run of its own for writes that belong to no run with targets."""
        run = NewRun(origin="maintenance", host=socket.gethostname(), pid=os.getpid(), targets=0)
        run_id = self.begin_run(run, now)
        assert run_id is not None  # noqa: S101 - it has no slot that another could have taken
        yield run_id
        self.finish_run(run_id, "succeeded", {}, now)
