"""Proves that the trail is intact: replays every target, recomputes every link, compares heads kept elsewhere.

for finding in verify(engine):
    print(finding)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import Engine, func, select, true

from etl.database import misspelled_times, reading
from etl.database.integrity import WRITTEN_AS
from etl.domain.model import Target
from etl.errors import DatabaseError
from etl.schema import UnreadableTime, target
from etl.verify.answers import Answers, TargetAnswers, bodies, details
from etl.verify.chain import Chain, Missing, require_target, require_workflows
from etl.verify.finding import Broken, Finding, Verbatim, shown
from etl.verify.heads import HeadsFile, heads, latest_seal_line, seal_lines, whole_lines
from etl.verify.history import history
from etl.verify.kept import against
from etl.verify.observations import RunTimes, observations, run_times
from etl.verify.orphans import orphans
from etl.verify.rows import BEFORE_ALL, TOUCHED, Row, Rows, opened
from etl.verify.runs import Sealing
from etl.verify.seals import last_seal, seals, timestamps

if TYPE_CHECKING:  # its libraries come with an extra
    from etl.signing.keys import PublicKey
    from etl.signing.timestamps import Authorities

__all__ = [
    "Answers",
    "Finding",
    "HeadsFile",
    "Progress",
    "Sealing",
    "against",
    "heads",
    "last_seal",
    "latest_seal_line",
    "seal_lines",
    "seals",
    "verify",
    "whole_lines",
]

_ROWS_A_TRANSACTION: Final = 50_000
"""On SQLite a reader blocks writers, so reading is cut into transactions of about a second."""
_UNREADABLE: Final = (TypeError, ValueError, LookupError, OverflowError)
"""The errors of reading a value that its column does not allow."""
_NO_TEXT: Final = "Could not decode to UTF-8"
"""The message of Python's sqlite3 for bytes that are not text; they may belong to a later target."""


class Progress(NamedTuple):
    """How far a verification has come; at the end, what it has read."""

    targets: int
    of_targets: int
    change_sets: int
    changes: int


def verify(
    engine: Engine,
    *,
    since: int = 0,
    progress: Callable[[Progress], None] = lambda progress: None,
    sealing: Sealing | None = None,
    keys: Sequence[PublicKey] = (),
    authorities: Authorities | None = None,
    answers: Answers | None = None,
) -> Iterator[Finding]:
    """Replay every target in one pass; yield the first broken link of each, then orphans, then what the seals deny.

    Nothing is yielded where everything holds. ``since`` leaves out the seals up to that number, their runs, and the
    targets that got no version later.
    ``progress`` is called after every target, and before the first one while times are read; ``sealing`` counts the
    seals. ``keys`` are those that seals may be signed with (none: only that no signature is missing is checked),
    ``authorities`` those whose time stamps are believed. ``answers`` has the kept answers checked, and counts them.
    Each target and each run is read as of one moment; the service may go on writing. Raises DatabaseError where the
    database cannot be read.
    """
    replay = _Replay(engine, progress, answers, since)
    sound = True
    for finding in itertools.chain(_times(engine, replay.pause), replay.findings()):
        sound = False
        yield finding
    if answers is not None:
        yield from _of_runs(itertools.chain(bodies(engine, answers), details(engine)), sound)
    yield from orphans(engine)
    of_seals = seals(engine, since=since, sealing=sealing, keys=keys)
    stamps = timestamps(engine, since=since, sealing=sealing, authorities=authorities)
    yield from _of_runs(itertools.chain(history(engine), of_seals, stamps, observations(engine)), sound)


def _times(engine: Engine, read_on: Callable[[], None]) -> Iterator[Finding]:
    """Times in SQLite that are written in another way. A key that is no text is left to the other checks."""
    try:
        for each in misspelled_times(engine, read_on):
            yield Finding(what=f"{each.table}.{each.column} of {each.row}", expected=WRITTEN_AS, found=each.found_text)
    except DatabaseError as error:
        if _NO_TEXT not in str(error.__cause__):
            raise


def _of_runs(findings: Iterator[Finding], chains_are_sound: bool) -> Iterator[Finding]:
    """A value that cannot be read ends the comparison; its target has been reported already."""
    try:
        yield from findings
    except _UNREADABLE as error:
        unreadable = str(error)
    except DatabaseError as error:
        if isinstance(error.__cause__, UnreadableTime):
            unreadable = str(error.__cause__)
        elif _NO_TEXT in str(error.__cause__):
            unreadable = _NO_TEXT
        else:
            raise
    else:
        return
    if chains_are_sound:
        found = shown(Verbatim(f"not: {unreadable}"))
        yield Finding(what="a row that names a run", expected="readable", found=found)


class _Replay:
    """One pass over all targets, in several short transactions on SQLite."""

    def __init__(
        self, engine: Engine, progress: Callable[[Progress], None], answers: Answers | None, since: int
    ) -> None:
        self._engine = engine
        self._progress = progress
        self._answers = answers
        self._since = since
        self._budget = _ROWS_A_TRANSACTION if engine.dialect.name == "sqlite" else None
        self._any_bytes = False
        self._after: int | None = BEFORE_ALL
        """The last target that was replayed; None once all were."""
        with reading(engine) as connection:
            those = target.c.id.in_(TOUCHED) if since else true()
            count = select(func.count()).select_from(target).where(those)
            targets = connection.execute(count, {"since": since} if since else {}).scalar_one()
        self._done = Progress(0, targets, 0, 0)

    def pause(self) -> None:
        """Let the caller rest, or end the check."""
        self._progress(self._done)

    def findings(self) -> Iterator[Finding]:
        """Replay all targets; yield the first broken link of each."""
        while self._after is not None:
            try:
                with reading(self._engine) as connection:
                    times = run_times(connection)
                    with opened(connection, self._after, since=self._since, any_bytes=self._any_bytes) as rows:
                        yield from self._replay_some(rows, times)
            except DatabaseError as error:
                if self._any_bytes or _NO_TEXT not in str(error.__cause__):
                    raise
                self._any_bytes = True

    def _replay_some(self, rows: Rows, times: RunTimes) -> Iterator[Finding]:
        began = sum(self._done)
        for row in rows.targets:
            chain, finding = _replay_target(rows, row, times, self._answers)
            self._after = row[0]
            done = self._done
            self._done = Progress(
                done.targets + 1, done.of_targets, done.change_sets + chain.version, done.changes + chain.changes
            )
            self._progress(self._done)
            if finding is not None:
                yield finding
            if self._budget is not None and sum(self._done) - began >= self._budget:
                return
        self._after = None


def _replay_target(rows: Rows, row: Row, times: RunTimes, answers: Answers | None) -> tuple[Chain, Finding | None]:
    """Follow a target to its end, or to its first broken link."""
    chain = Chain(Target(*row[1:4]), times)
    try:
        _follow(rows, row, chain, answers)
    except Broken as broken:
        return chain, broken.of(chain.target)
    except _UNREADABLE as error:
        place = f"a row of the target after version {chain.version}"
        found = shown(Verbatim(f"not: {error}"))
        return chain, Finding(target=chain.target, what=place, expected="readable", found=found)
    return chain, None


def _follow(rows: Rows, row: Row, chain: Chain, answers: Answers | None) -> None:
    target_id = row[0]
    own = None if answers is None else TargetAnswers(rows.connection, target_id, answers)
    for change_set in rows.change_sets.take(target_id):
        chain.link(change_set, rows.changes_of(target_id, change_set.version))
        chain.add_spans(rows.spans.take((target_id, change_set.version)))
        if own is not None:
            own.require_version(chain, change_set)
    stray = rows.spans.skipped((target_id + 1,))
    if stray is not None and stray[0] == target_id:
        raise Broken("observation.version", Verbatim(f"one of the versions 1 to {chain.version}"), stray[1])
    missing, doubted = require_workflows(chain, rows.workflows.take(target_id))
    if own is not None:
        own.require_holds()
    last_hold = rows.last_hold(target_id) if missing else None
    require_target(chain, rows.target(row), Missing(missing, doubted, last_hold))
