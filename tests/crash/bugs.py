"""Seeded bugs: each must be caught by at least one check, or the checks prove nothing.

A bug is a few edits of the source in a temporary copy of the tree. The checks run there: a test
module, a single test, the model, or a sweep (``sweep:DATABASE, SCENARIO, DISTURBANCE``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).parents[2]
_COPIED = ("etl", "migrations", "schedules", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
_WORKER_TIMEOUT_SECONDS = 900

MODEL = "model"
DOWNTIME = (
    "tests/contract/test_observation_times.py"
    "::test_thirty_days_of_downtime_give_one_catch_up_run_and_the_count_of_the_others"
)


class Edit(NamedTuple):
    """Replaces ``old``, which occurs exactly once in the file or folder ``where``."""

    where: str
    old: str
    new: str

    def file(self, tree: Path) -> Path:
        """The file to edit. Raises ValueError if the source has changed, so that the bug must be adapted."""
        place = tree / self.where
        files = [place] if place.is_file() else sorted(place.rglob("*.py"))
        found = [file for file in files for _ in range(file.read_text().count(self.old))]
        if len(found) != 1:
            raise ValueError(f"{self.where} contains this {len(found)} times, not once: {self.old!r}")
        return found[0]


class Bug(NamedTuple):
    """What is wrong, the edits that cause it, and the checks that should catch it."""

    what: str
    edits: Sequence[Edit]
    checks: Sequence[str]


COMMIT_FIRST = """\
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("COMMIT")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
"""


def _bug(what: str, where: str, old: str, new: str, *checks: str) -> Bug:
    return Bug(what, [Edit(where, old, new)], checks)


BUGS = (
    _bug("state and trail are committed apart", "etl/store",
         "    _replay(connection, numbered)",
         COMMIT_FIRST + "    _replay(connection, numbered)",
         "sweep:SQLite, change, kill", "sweep:PostgreSQL, change, kill", MODEL),
    _bug("a version is committed before its answer is kept", "etl/store",
         "    answers.keep_answers(connection, run_id, won)",
         COMMIT_FIRST + "    answers.keep_answers(connection, run_id, won)",
         "sweep:SQLite, change, kill"),
    _bug("BEGIN is deferred on SQLite", "etl/database",
         '"BEGIN IMMEDIATE", session.WRITE',
         '"BEGIN", session.WRITE',
         "test_database"),
    _bug("a writer uses the default isolation of its role", "etl/database",
         "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
         "BEGIN READ WRITE",
         "test_store"),
    _bug("array_nulls is left to the role", "etl/database",
         '    "array_nulls": "on",\n',
         "",
         "sweep:PostgreSQL, change, hostile"),
    _bug("settings outlive their transaction, and other clients of the pooler get them", "etl/database",
         '.as_string(connection)}, true"',
         '.as_string(connection)}, false"',
         "test_sessions"),
    _bug("the fence is not compared", "etl/store",
         "[o for o in writing if now[o.fence.target_id].fence == o.fence.number]",
         "list(writing)",
         "test_store", MODEL),
    _bug("a slower answer beats a newer unchanged one", "etl/store",
         "    return latest.get(fence.target_id) == (",
         "    return True or latest.get(fence.target_id) == (",
         "test_store", MODEL),
    _bug("a quiet answer does not check the observations of its span", "etl/store",
         "observation.c.id == seen.c.id, observation.c.observations == seen.c.expected",
         "observation.c.id == seen.c.id",
         "test_store", MODEL),
    _bug("targets are not locked before they are compared", "etl/store",
         "_LOCK: Final = _NOW.order_by(target.c.id).with_for_update()",
         "_LOCK: Final = _NOW",
         "test_store"),
    _bug("spans are not locked before they are compared", "etl/store",
         "\n    .order_by(observation.c.id)\n    .with_for_update()",
         "",
         "test_store"),
    _bug("a target is not read again after its span was extended", "etl/store",
         "    if not quiet:\n        return\n",
         "    return\n",
         "test_store"),
    _bug("a batch loses one target's failure", "etl/store",
         "execute_many(connection, _FAILED, failed)",
         "execute_many(connection, _FAILED, failed[1:])",
         "test_store", MODEL),
    _bug("a failure does not end the span", "etl/store",
         'else_=bindparam("message")),\n        observation_id=None,\n',
         'else_=bindparam("message")),\n',
         "test_store", "sweep:SQLite, failed, kill", MODEL),
    _bug("a COMMIT without an answer is tried again blindly", "etl/database",
         "                if result and was_committed is not None and self._read(partial(was_committed, result[0])):\n",
         "                if False:\n",
         "test_store", "sweep:PostgreSQL, change, cut after", MODEL),
    _bug("a COMMIT without an answer is taken for done", "etl/database",
         "                if result and was_committed is not None and self._read(partial(was_committed, result[0])):\n",
         "                if result and was_committed is not None:\n",
         "test_store", "sweep:PostgreSQL, change, cut before"),
    _bug("the first change row of a batch is left out", "etl/store",
         "    later = ((n, made.changes) for",
         "    later = ((n, made.changes[1:]) for",
         "test_store", "sweep:SQLite, change, kill", MODEL),
    _bug("a change makes a workflow seem new", "etl/store",
         '            "changed_at": new.changed_at,\n',
         '            "changed_at": new.changed_at,\n            "first_listed_at": new.first_listed_at,\n',
         "test_store", "sweep:SQLite, change, kill", MODEL),
    _bug("a removed workflow stays in the list", "etl/store",
         '        connection.execute(_REMOVE, {"ids": deltas})\n',
         "",
         "test_store", "sweep:SQLite, remove, kill", MODEL),
    _bug("what comes back is not cleared", "etl/store",
         "            (outcome.missing_before - outcome.missing, None),\n",
         "",
         "test_store", "sweep:SQLite, comes back, kill", MODEL),
    _bug("a target that comes back stays retired", "etl/store",
         "    if retired and run is not None:\n",
         "    if False:\n",
         "test_store", MODEL),
    _bug("a run that was declared dead goes on writing", "etl/store",
         "    if row is None or row.closed_at is not None:\n",
         "    if row is None:\n",
         "test_seals"),
    _bug("a run ends without its seal", "etl/store",
         "    _seal(connection, run, _digests(connection, run_id, targets_digest), now, sign)\n",
         "",
         "sweep:SQLite, change, kill", "test_seals"),
    _bug("a user who no longer exists is recorded as having lost everything", "etl/sync",
         "            return Fetched(fence, error)\n",
         "            import datetime as dt\n"
         "            now = dt.datetime.now(dt.UTC)\n"
         '            gone = Snapshot(fence.target, (), "0" * 64, now, now, 1, b"", True)\n'
         '            return Fetched(fence, gone, True) if error.code == "62101" else Fetched(fence, error)\n',
         "sweep:SQLite, failed, kill", "test_sync", MODEL),
    _bug("an answer is skipped by its bytes although something is held", "etl/sync",
         "known = None if decided_anyway else fence.data_hash",
         "known = fence.data_hash",
         "test_commands", "sweep:SQLite, approve, kill", MODEL),
    _bug("the strict second reading is left out", "etl/sync",
         "        reread_strictly(snapshot)\n",
         "",
         "test_sync"),
    Bug("an answer over a reused connection is judged", [
        Edit("etl/sync",
             "if differs and not snapshot.sole_answer:",
             "if False:"),
        Edit("etl/sync",
             "msgspec.structs.replace(snapshot, sole_answer=False)",
             "snapshot"),
        Edit("etl/sync",
             " or not each.snapshot.sole_answer",
             ""),
        Edit("etl/domain/verdict.py",
             "if not snapshot.sole_answer",
             "if False"),
    ], ["sweep:PostgreSQL, change, twice for good", "test_sync", "test_verdict"]),
    _bug("a refusal over a reused connection is believed", "etl/gateway",
         '    elif pending.own_connection or (error.transient and error.code != "desync"):',
         "    elif True:",
         "test_gateway_connections", "test_sync"),
    _bug("bytes after the end of an answer go unnoticed", "etl/gateway",
         'if (self._end(connection, deadline) if own else connection.idle_state()) == "stray":',
         "if False:",
         "test_desync", "test_gateway_connections"),
    _bug("a reused connection is not checked for unread bytes", "etl/gateway",
         "                    idle_state = connection.idle_state()",
         '                    idle_state = "quiet" if connection.exchanges else connection.idle_state()',
         "test_gateway_connections"),
    _bug("a connection opened ahead is not checked before its request", "etl/gateway",
         "                    idle_state = connection.idle_state()",
         '                    idle_state = connection.idle_state() if connection.exchanges else "quiet"',
         "test_gateway_tls"),
    _bug("an interim answer is taken for the final one", "etl/gateway",
         "if isinstance(event := self._next_event(), h11.Response):",
         "if isinstance(event := self._next_event(), h11.Response | h11.InformationalResponse):",
         "sweep:SQLite, quiet, interim for good", "test_desync", "test_gateway_connections"),
    _bug("an answer with both a length and chunks is read", "etl/gateway",
         'if "Transfer-Encoding" in headers and (',
         "if False and (",
         "test_gateway_connections"),
    _bug("the last event of a step is left out", "etl/store",
         "for _, flow, _, event in events))\n",
         "for _, flow, _, event in events[:-1]))\n",
         "test_story"),
    _bug("a target has the shortest coverage gap of its schedules", "etl/store/membership.py",
         "    select(func.max(target_membership.c.coverage_gap_seconds))\n",
         "    select(func.min(target_membership.c.coverage_gap_seconds))\n",
         "test_story"),
    _bug("a step does not record which versions it judged", "etl/store",
         "    if affected:\n        connection.execute(text(_update_affected",
         "    if False:\n        connection.execute(text(_update_affected",
         "test_story", "sweep:SQLite, change, kill"),
    _bug("a step overwrites a concurrent one", "etl/store",
         "for i, m in members.items()):\n            raise StoryConflict\n",
         "for i, m in members.items()):\n            pass\n",
         "test_story"),
    _bug("a removal is recorded after a single answer", "etl/sync",
         "            if each.decision.uncertain or not each.snapshot.sole_answer:\n",
         "            if not each.snapshot.sole_answer:\n",
         "test_guard_together", "test_sync", MODEL),
    _bug("changes of most of a list are believed", "etl/domain/guard.py",
         "    over = {kind for kind in many if len(changes[kind]) >= limits.min_changed}  # C3\n",
         "    over: set[ChangeKind] = set()\n",
         "test_guard", "test_sync"),
    _bug("small lists that change together are not added up", "etl/sync",
         "            known |= new\n",
         "            pass\n",
         "test_guard_together"),
    _bug("an approval covers a hold that has ended", "etl/domain/chain.py",
         "    held = (held_since, sorted",
         "    held = (None, sorted",
         "test_sync"),
    _bug("an organisation's removals are not added up", "etl/domain/guard.py",
         "    return Sum(max(limits.min_removed, _at_least(limits.max_org_removed_share, had)), had, before)",
         "    return Sum(10**12, had, before)",
         "test_guard_together", MODEL),
    _bug("the sum is not checked where it is raised", "etl/store",
         '        if summed.ruling == "hold":\n',
         "        if False:\n",
         "test_guard_together"),
    _bug("the organisation is not locked while its sum is checked", "etl/store",
         "    connection.execute(mine.order_by(organisation.c.org_id).with_for_update())",
         "    connection.execute(mine.order_by(organisation.c.org_id))",
         "test_guard_together"),
    _bug("approved removals count against the organisation", "etl/store",
         "        connection.execute(delete(org_turnover).where(org_turnover.c.org_id.in_(approved)))",
         "        pass",
         "test_guard_together", MODEL),
    _bug("the turnover is not committed with its removals", "etl/store",
         "    turnover.count(connection, run_id, won, removals)\n",
         COMMIT_FIRST + "    turnover.count(connection, run_id, won, removals)\n",
         "sweep:SQLite, remove, kill", MODEL),
    _bug("a first answer that is empty is believed at once", "etl/domain/guard.py",
         "    return Decision(uncertain=not difference.added)  # 1, 2",
         "    return Decision()",
         "test_guard", "test_sync", MODEL),
    _bug("any number of targets may become empty in one run", "etl/domain/guard.py",
         "    return Sum(max(limits.max_emptied_targets, _at_least(limits.max_emptied_share, targets)), targets)",
         "    return Sum(10**12, targets)",
         "test_guard", MODEL),
    _bug("the guard takes its share of the answer, not of what is known", "etl/domain/guard.py",
         "    if _over_limit(len(absent), known, limits):  # 4\n",
         "    if _over_limit(len(absent), difference.both + len(difference.added), limits):\n",
         "test_guard", MODEL),
    _bug("a hold approves itself when the next answer looks normal", "etl/domain/guard.py",
         "    decision = hold(known, absent & missing)",
         "    decision = hold(known, frozenset())",
         "test_guard", MODEL),
    _bug("an approval covers removals that were not held", "etl/domain/guard.py",
         "    if unheld:\n",
         "    if False:\n",
         "test_guard", MODEL),
    _bug("an approval covers changes that were not held", "etl/domain/guard.py",
         "    elif new:\n",
         "    elif False:\n",
         "test_guard", "test_sync"),
    _bug("an approval covers whatever is held by now", "etl/sync",
         "    if approval.covers(fence.target, held.scope):\n",
         "    if True:\n",
         "test_sync"),
    _bug("a completely different list is half believed", "etl/domain/guard.py",
         "        return Decision(absent, whole=True, reason=reason)\n",
         "        return Decision(absent, reason=reason)\n",
         "test_guard", MODEL),
    _bug("times go back with the clock", "etl/domain/verdict.py",
         "    if earliest <= asked_at <= observed_at:\n",
         "    if True:\n",
         "test_verdict", MODEL),
    _bug("a long silence does not end a span", "etl/domain/verdict.py",
         "    if silence > coverage_gap:\n",
         "    if False:\n",
         "test_verdict", MODEL),
    _bug("the hash does not seal the spans", "etl/domain/chain.py",
         "last_unchanged_at, spans, ",
         "last_unchanged_at, [], ",
         "test_formats", "sweep:SQLite, change, kill", MODEL),
    _bug("the digest depends on the order of the answer", "etl/domain/chain.py",
         "digest(sorted(flows, key=_flow_id))",
         "digest(list(flows))",
         "test_formats", MODEL),
    _bug("a renamed workflow forgets its old name", "etl/domain/diff.py",
         "        old.flow_name if old else None,\n",
         "        None,\n",
         "test_diff", "sweep:SQLite, change, kill", MODEL),
    _bug("editable null and false are the same", "etl/domain/diff.py",
         "if getattr(before, attribute) != getattr(after, attribute)",
         "if (getattr(before, attribute) or None) != (getattr(after, attribute) or None)",
         "test_diff", MODEL),
    _bug("code false is a success", "etl/gateway",
         "    return int(found[0]) if found else None",
         '    return int(found[0]) if found else 0 if bytes(raw or b"") == b"false" else None',
         "test_gateway_answers"),
    _bug("the transport asks again, with the same signature", "etl/gateway",
         "            connection.close()\n            raise\n        deadline.release()",
         "            connection.close()\n            if own:\n                raise\n"
         '            request.headers["Connection"] = "close"\n'
         "            return self.send(request, timeout=timeout)\n        deadline.release()",
         "test_gateway", "sweep:SQLite, change, outage once"),
    _bug("two upgrades at once", "migrations/env.py",
         '        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")',
         "        pass",
         "test_migrations"),
    _bug("a service serves two slots that it missed", "etl/service/runs.py",
         "        if is_served(slot, due.served, self.clock()):\n            return\n",
         '        if origin == "catch_up":\n'
         '            self._run(schedule, slot - dt.timedelta(hours=1), "schedule")\n'
         "            due = self.context.store.due(schedule.name, slot)\n"
         "        if is_served(slot, due.served, self.clock()):\n"
         "            return\n",
         DOWNTIME),
)  # fmt: skip


class Proof(NamedTuple):
    """Which checks caught a bug, and which did not."""

    bug: Bug
    caught_by: Sequence[str]
    missed_by: Sequence[str]


@contextmanager
def seeded(bug: Bug) -> Iterator[Path]:
    """A copy of the tree with the bug in it."""
    folder = Path(tempfile.mkdtemp(prefix="flowtrail-bug-"))
    try:
        for name in _COPIED:
            source = TREE / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / name)
        for edit in bug.edits:
            file = edit.file(folder)
            file.write_text(file.read_text().replace(edit.old, edit.new))
        yield folder
    finally:
        shutil.rmtree(folder)


def false_alarms(checks: Iterable[str]) -> list[str]:
    """The checks that fail without a bug: they would prove nothing."""
    with seeded(Bug("none", (), ())) as folder:
        return [check for check in checks if _catches(folder, check)]


def prove(bug: Bug) -> Proof:
    """Run the bug's checks."""
    with seeded(bug) as folder:
        caught = {check: _catches(folder, check) for check in bug.checks}
    return Proof(bug, [m for m in bug.checks if caught[m]], [m for m in bug.checks if not caught[m]])


def _catches(folder: Path, check: str) -> bool:
    if check.startswith("sweep:"):
        every = "4" if "kill" in check else "1"
        command = ["tests.crash", "--sweep", check.removeprefix("sweep:"), "--every", every, "--stop"]
    elif check == MODEL:
        command = ["tests.crash", "--only", "model", "--count", "40", "--stop"]
    else:
        command = ["pytest", "-q", "-x", "-p", "no:cacheprovider", _path(folder, check)]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=_WORKER_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{check} could not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def _path(folder: Path, check: str) -> str:
    """The file of a test module, or the test itself."""
    if "::" in check:
        return check
    (file,) = folder.glob(f"tests/*/{check}.py")
    return str(file.relative_to(folder))


def table(proofs: Sequence[Proof]) -> str:
    """The table of docs/reliability.md."""
    lines = ["| seeded bug | caught by |", "|---|---|"]
    lines += [f"| {proof.bug.what} | {', '.join(map(_shown, proof.caught_by)) or 'NOTHING'} |" for proof in proofs]
    return "\n".join(lines)


def _shown(check: str) -> str:
    if check == MODEL:
        return "the model"
    if check.startswith("sweep:"):
        return f"sweep ({check.removeprefix('sweep:')})"
    return f"`{Path(check.partition('::')[0]).stem}`"
