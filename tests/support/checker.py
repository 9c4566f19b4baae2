"""Checks a Flowtrail database against what the gateway delivered: nothing invented, nothing lost, nothing twice.

Given what the gateway really delivered (complete, valid answers, in order), it lists in sentences where the database
breaks a rule. It reads the tables itself and has them checked by ``etl/audit/check.py``, which shares no code with the
rest of ``etl/``; what it adds is what no auditor can know. That the current rows are what the trail makes is left to
``verify``, which runs beside it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from etl.audit import check as audit
from tests.support import story_checker

Flow = tuple[str, "str | None", "str | None", "bool | None"]
"""flow_id, flow_name, cycle, editable."""
State = dict[str, Flow]
Key = tuple[str, str, str]
"""org, user, expression."""
Row = SimpleNamespace

PLACES = {"renamed": 1, "cycle_changed": 2, "editable_changed": 3}
"""The kinds that change an attribute, and its place in a workflow."""
APPROVED = ("removed", *PLACES)
NO_ANSWERS = {"date"}
"""Faults of the local gateway that deliver a list that no client may accept."""
_attributes = attrgetter("flow_id", "flow_name", "cycle", "editable")
_DAY = 24 * 3600 * 1_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Delivered(NamedTuple):
    """One complete valid answer that the gateway delivered."""

    org: str
    user: str
    expression: str
    flows: Sequence[Any]
    """Each with ``flow_id``, ``flow_name``, ``cycle`` and ``editable``."""
    at: dt.datetime
    kept_open: bool = False
    """Whether its connection may have carried other answers, too; then it makes no version."""


class Guard(NamedTuple):
    """What an organisation may lose within a day (or during a test) before its removals are held, and how much of a
    list may change at once."""

    min_removed: int = 10
    max_org_removed_share: float = 0.3
    min_changed: int = 10
    max_changed_share: float = 0.5


def check(
    url: str,
    deliveries: Iterable[Delivered],
    *,
    settled: bool = True,
    every_answer: bool = False,
    guard: Guard | None = None,
    story: bool = False,
) -> list[str]:
    """What is wrong with the database at ``url``, in sentences; empty if nothing is.

    ``deliveries``: every complete valid answer, in order.
    ``settled``: the run of each target's last answer has ended, so that answer must be in the database.
    ``every_answer``: also, no answer was held, superseded or interrupted, so each different one is a version.
    ``guard``: all was written by runs with these limits, which ask twice before they remove something.
    ``story``: every run that ended has derived the events of organisations.
    """
    tables = tables_of(url)
    answers: dict[Key, list[_Answer]] = defaultdict(list)
    for each in deliveries:
        state = {flow.flow_id: _attributes(flow) for flow in each.flows}
        answers[each[:3]].append(_Answer(state, _micros(each.at), each.kept_open))
    findings: list[str] = []
    for row in tables.target:
        one = _Target(row, tables, answers.pop((row.org_id, row.user_id, row.expression), []))
        findings += one.check(settled, every_answer, guarded=guard is not None)
    if settled:
        findings += [f"{_name(*key)} got an answer, and is not in the database" for key in answers]
    findings += _turnover(tables)
    findings += _audited(tables)
    if guard is not None:
        findings += _lost_too_much(tables, guard)
        findings += _changed_too_much(tables, guard)
    if story:
        findings += story_checker.check(tables, settled=settled)
    return findings


def delivered(entries: Iterable[Any]) -> list[Delivered]:
    """Every complete, valid answer in what the local gateway logged of its deliveries."""
    return [
        Delivered(entry.org, entry.user, entry.expression, entry.flows, entry.answered_at, entry.kept_open)
        for entry in entries
        if entry.sent and entry.flows is not None and entry.fault not in NO_ANSWERS
    ]


def digest(flows: Iterable[Flow]) -> str:
    """SHA-256 (hex) of a list of workflows, by the written rule."""
    listed = json.dumps(sorted(list(flow) for flow in flows), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(listed.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- one target


class _Answer(NamedTuple):
    state: State
    at: int
    kept_open: bool


class _Target:
    """A target with all its rows; ``check`` applies the rules."""

    def __init__(self, row: Row, tables: Row, answers: list[_Answer]) -> None:
        self.row = row
        self.answers = answers
        self.findings: list[str] = []
        self.sets = sorted(tables.by_target["change_set"][row.id], key=lambda s: s.version)
        self.spans = sorted(tables.by_target["observation"][row.id], key=lambda s: s.id)
        self.workflows = {w.flow_id: w for w in tables.by_target["workflow"][row.id]}
        self.issues = tables.by_target["sync_issue"][row.id]
        self.changes = {s.id: tables.changes[s.id] for s in self.sets}
        self.runs = {run.id: run for run in tables.sync_run}
        self.held_in = {issue.run_id for issue in self.issues if issue.verdict == "held"}
        self.states: list[State] = []

    def check(self, settled: bool, every_answer: bool, *, guarded: bool) -> list[str]:
        name = _name(self.row.org_id, self.row.user_id, self.row.expression)
        try:
            self._replay()
        except audit.Broken as broken:
            return [str(broken)]
        self._spans_of_holds()
        known = all(made.run_id in self.runs for made in self.sets)
        self._say(self.row.held_since is not None and not self.held_in and known, "held without an issue")
        self._delivered(guarded)
        if settled and self.answers:
            self._last_answer()
        if every_answer:
            self._each_answer(guarded)
        return [f"{name}: {finding}" for finding in self.findings]

    def _say(self, wrong: object, finding: str) -> None:
        if wrong:
            self.findings.append(finding)

    def _replay(self) -> None:
        """Keep the state after each version. Raises Broken where the versions do not make one chain."""
        chain = _Chain((self.row.org_id, self.row.user_id, self.row.expression), self.runs)
        spans = sorted(self.spans, key=lambda span: span.first_at)
        self._say(spans != self.spans, "spans are not in the order of their times")
        for made in self.sets:
            changes = sorted(
                (dict(vars(each)) for each in self.changes[made.id]),
                key=lambda change: (change["flow_id"], change["kind"]),
            )
            chain.link(vars(made), changes, [vars(span) for span in spans if span.version == made.version])
            self.states.append({flow_id: tuple(flow) for flow_id, flow in chain.state.items()})

    def _spans_of_holds(self) -> None:
        """A version opens a span at once, unless something is held."""
        for made in self.sets:
            own = [span for span in self.spans if span.version == made.version]
            held, at_once = made.run_id in self.held_in, bool(own) and own[0].first_at == made.observed_at
            wrong = made.run_id in self.runs and at_once == held
            self._say(wrong, f"version {made.version} has {'a' if at_once else 'no'} span at once, held={held}")

    def _delivered(self, guarded: bool) -> None:
        """Each version is an answer that came after the previous version's (except for what the guard kept)."""
        places = [0]
        """Per version, the index of the first answer that may have followed it; initially 0."""
        for number, (made, state) in enumerate(zip(self.sets, self.states, strict=True)):
            before = self.states[number - 1] if number else State()
            partly = made.run_id in self.held_in or made.run_id not in self.runs
            rest = range(places[-1], len(self.answers))
            of_version = [i for i in rest if not self.answers[i].kept_open]
            fitting = [i for i in of_version if _fits(state, self.answers[i].state, before, partly)]
            found = next(iter(fitting), None)
            self._say(found is None, f"version {made.version} was never delivered, or not in this order")
            if guarded and fitting and made.approved_by is None and _loses(number, before, state):
                first = self._first_that_loses(number, places)
                found = next((i for i in fitting if i > first), None)
                self._say(found is None, f"version {made.version} loses something after a single answer")
            places.append(places[-1] if found is None else found + 1)
        seen = sum(span.observations for span in self.spans)
        self._say(seen > len(self.answers), f"{seen} observations of {len(self.answers)} answers")

    def _first_that_loses(self, number: int, places: Sequence[int]) -> int:
        """The index of the first answer in the run of a change set that lacks something recorded at that time.

        The record may be older than the previous version, because other runs write meanwhile. Without such an answer:
        the number of answers.
        """
        run = self.runs.get(self.sets[number].run_id)
        began = run.started_at if run else 0
        lacking = [len(self.answers)]
        for known in range(number + 1):
            ended_by = self.runs.get(self.sets[known].run_id)
            over = ended_by.finished_at if ended_by else None
            if known == number or over is None or over >= began:
                before = self.states[known - 1] if known else State()
                after = range(places[known], len(self.answers))
                lacking += [next((i for i in after if _loses(known, before, self.answers[i].state)), len(self.answers))]
        return min(lacking)

    def _last_answer(self) -> None:
        last, at, kept_open = self.answers[-1]
        state = self.states[-1] if self.states else {}
        if self._lost_the_race(at):
            return
        if kept_open and state != last:
            self._say(not self.row.consecutive_failures, "an answer that differs was not asked for once more")
            return
        if self.row.held_since is None:
            self._say(not self.sets or state != last, "the last answer is not the state")
            return
        missing = {flow_id for flow_id, w in self.workflows.items() if w.missing_since is not None}
        self._say(missing != state.keys() - last.keys(), "what is held is not what the last answer lacks")
        doubted = {
            (w.flow_id, kind): new for w in self.workflows.values() for kind, new in json.loads(w.doubted or "[]")
        }
        differing = {key: new for key, new in _changed(state, last).items() if key[1] in {kind for _, kind in doubted}}
        self._say(doubted != differing, "what is doubted is not what the last answer changes")
        self._say(self.row.answer_digest != digest(last.values()), "answer_digest is not the last answer's")

    def _lost_the_race(self, at: int) -> bool:
        """Whether the last answer came during a run in which this target was stale."""
        runs = [self.runs[i.run_id] for i in self.issues if i.verdict == "stale" and i.run_id in self.runs]
        return any(run.started_at <= at and (run.finished_at is None or at <= run.finished_at) for run in runs)

    def _each_answer(self, guarded: bool) -> None:
        """An answer that removes something, or a first list that is empty, only causes a second request."""
        distinct: list[State] = []
        counted, asked_again = 0, False
        for state, _, kept_open in self.answers:
            before = distinct[-1] if distinct else None
            is_new = state != before
            if is_new and kept_open:
                asked_again = before is not None and len(state) < len(before)
                continue  # it was requested again; at the end of the run if it is shorter
            uncertain = not state if before is None else _is_asked_again(before, state)
            if guarded and uncertain and not asked_again:
                asked_again = True
                continue
            asked_again = False
            distinct += [state] if is_new else []
            counted += 1
        self._say(distinct != self.states, f"{len(distinct)} different answers made {len(self.states)} versions")
        seen = sum(span.observations for span in self.spans)
        self._say(seen != counted, f"{counted} answers made {seen} observations")


def _changed(before: State, after: State) -> dict[tuple[str, str], Any]:
    """By workflow and kind, the new value of what changed."""
    both = before.keys() & after.keys()
    return {(i, k): after[i][n] for i in both for k, n in PLACES.items() if before[i][n] != after[i][n]}


def _is_asked_again(before: State, answer: State) -> bool:
    """Whether an answer lacks something, or changes half of what both have in an attribute (the usual share)."""
    counted, both = Counter(kind for _, kind in _changed(before, answer)), len(before.keys() & answer.keys())
    return bool(before.keys() - answer.keys()) or any(
        count >= Guard().max_changed_share * both for count in counted.values()
    )


def _loses(number: int, before: State, answer: State) -> bool:
    """Whether an answer lacks something of the version before, or is the first list and empty."""
    return bool(before.keys() - answer.keys()) if number else not answer


def _fits(state: State, answer: State, before: State, guarded: bool) -> bool:
    if state == answer:
        return True
    kept = state.keys() - answer.keys()
    whole = all(state.get(flow_id) == flow for flow_id, flow in answer.items())
    return guarded and whole and all(before.get(flow_id) == state[flow_id] for flow_id in kept)


def _name(org: str, user: str, expression: str) -> str:
    return f"{org}/{user}" + (f" [{expression}]" if expression else "")


# ----------------------------------------------------------------------------------------- runs, and the tables


SOURCES = {
    "trails": "trail",
    "seals": "run_seal",
    "runs": "sync_run",
    "memberships": "target_membership",
    "holds": "hold_event",
    "details": "workflow_detail",
    "org_events": "org_event",
    "pruned_issues": "pruned_issues",
    "issues": "sync_issue",
    "change_sets": "change_set",
    "changes": "workflow_change",
    "spans": "observation",
}
"""The table of each file of a bundle."""
PARSED = ("scope", "flow_ids", "doubted")


class _Bundle(audit.Bundle):
    """The tables as a bundle of everything, as if it had been written by somebody else than the program."""

    def __init__(self, tables: Row) -> None:
        self._targets = {row.id: row for row in tables.target}
        self._tables = tables
        self.since = self.until = self.org_id = None
        self.answers = frozenset()
        self.unnamed_answers = {}
        last = tables.run_seal[-1] if tables.run_seal else Row(id=0, seal=None, sealed_at=0)
        self.last_seal, self.made_at = {"id": last.id, "seal": last.seal}, last.sealed_at

    def whole(self) -> Iterator[audit.Broken]:
        return iter(())

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        columns = [column.partition(":")[0] for column in audit.FILES[name].split()]
        listed = [{column: self._value(row, column) for column in columns} for row in self._of(name)]
        if "version" in columns or name == "issues":
            order = [column for column in ("version", "flow_id", "kind", "first_at") if column in columns]
            listed.sort(key=lambda row: (*audit.target_of(row), *(row[column] for column in order)))
        return iter(listed)

    def _of(self, name: str) -> list[Row]:
        found: list[Row] = getattr(self._tables, SOURCES[name]) if name in SOURCES else []
        if name == "runs":
            found = [run for run in found if run.status != "running"]
        if name == "changes":
            sets = {made.id: made for made in self._tables.change_set}
            found = [Row(**{**vars(sets[row.change_set_id]), **vars(row)}) for row in found]
        return sorted(found, key=_place)

    def _value(self, row: Row, column: str) -> Any:
        if column == "opened":
            return "whole"
        if hasattr(row, "target_id") and column in ("org_id", "user_id", "expression"):
            return getattr(self._targets[row.target_id], column)
        value = getattr(row, column)
        return json.loads(value) if column in PARSED else value


def _place(row: Row) -> int:
    """The place of a row in its table, where it has one."""
    numbers = [getattr(row, name) for name in ("event_id", "id") if hasattr(row, name)]
    return int(numbers[0]) if numbers else 0


class _Chain(audit.Chain):
    """The versions of a target, whether their runs have ended or not."""

    def __init__(self, target: Key, runs: dict[int, Row]) -> None:
        super().__init__(target, cast("Any", None), None)
        self._runs = runs

    def _require_run(self, row: dict[str, Any], at: str) -> None:
        if (row["approved_by"] is None) != (row["approved_scope"] is None):
            raise audit.Broken(at, "has an approver and no scope, or a scope and no approver")
        if row["approved_by"] is not None and row["run_id"] in self._runs:
            audit.require(at, "the origin of its run", "approval", self._runs[row["run_id"]].origin)
        if row["approved_by"] is not None and not any(row[kind] for kind in APPROVED):
            raise audit.Broken(at, "names an approver, and changes nothing that could be held")

    def _require_answer(self, row: dict[str, Any], before: Any, at: str) -> None:
        """Answers are not kept here; what was delivered is known better."""


def _audited(tables: Row) -> Iterator[str]:
    """What an auditor would find. While a run is under way, only the seals are followed."""
    for run in tables.sync_run:
        if (run.status == "running") != (run.finished_at is None):
            yield f"run {run.id}: {run.status}, with finished_at {run.finished_at}"
    if not tables.trail and not tables.run_seal:
        return
    whole = audit.Check(_Bundle(tables))
    if not any(run.status == "running" for run in tables.sync_run):
        whole.run()
        yield from whole.findings
        return
    try:
        whole.trail.read_seals()
    except audit.Broken as broken:
        yield str(broken)
    yield from whole.findings


def _turnover(tables: Row) -> Iterator[str]:
    """The turnover of a run in an organisation is the sum of its versions; an approval deletes the turnover."""
    org = {target.id: target.org_id for target in tables.target}
    approved = {org[made.target_id] for made in tables.change_set if made.approved_by is not None}
    right: Counter[tuple[str, int, str]] = Counter()
    for made in tables.change_set:
        if made.approved_by is None and made.target_id in org:
            for kind in ("added", "removed"):
                right[org[made.target_id], made.run_id, kind] += getattr(made, kind)
    counted: Counter[tuple[str, int, str]] = Counter()
    for row in tables.org_turnover:
        for kind in ("added", "removed"):
            counted[row.org_id, row.run_id, kind] += getattr(row, kind)
    for key in right.keys() | counted.keys():
        if counted[key] > right[key] or (counted[key] < right[key] and key[0] not in approved):
            yield f"{key[0]}: {counted[key]} {key[2]} are counted of run {key[1]}, its versions say {right[key]}"


def _lost_too_much(tables: Row, guard: Guard) -> Iterator[str]:
    """No organisation lost more of its lists than the guard allows (undecidable if targets were retired)."""
    day_ago = _micros(dt.datetime.now(dt.UTC)) - _DAY
    counted = [row for row in tables.org_turnover if row.counted_at > day_ago]
    for org in {row.org_id for row in counted}:
        mine = [target for target in tables.target if target.org_id == org]
        turned = [row for row in counted if row.org_id == org]
        removed, added = (sum(getattr(row, kind) for row in turned) for kind in ("removed", "added"))
        had = sum(target.flow_count for target in mine) + removed - added
        too_much = removed >= guard.min_removed and removed >= guard.max_org_removed_share * had
        if too_much and not any(target.retired_at for target in mine):
            yield f"{org} lost {removed} of {had} workflows, and nobody held or approved them"


def _changed_too_much(tables: Row, guard: Guard) -> Iterator[str]:
    """No version changes most of its list in one attribute, unless a person approved it."""
    for made in tables.change_set:
        both = made.flow_count - made.added
        for kind in PLACES:
            count = getattr(made, kind)
            too_much = count >= guard.min_changed and count >= guard.max_changed_share * both
            if too_much and made.kind == "delta" and made.approved_by is None:
                yield f"change set {made.id} has {count} {kind} of {both} workflows, and nobody held or approved them"


TABLES = (
    *("target", "workflow", "change_set", "workflow_change", "observation", "sync_run", "sync_issue"),
    *("org_turnover", "target_membership", "hold_event", "pruned_issues", "run_seal", "trail", "org_event"),
    *("workflow_detail", "org_flow", "org_loss"),
)


def tables_of(url: str) -> Row:
    """Every table as a list of rows, from one snapshot; times as microseconds."""
    with contextlib.closing(_connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN" if url.startswith("sqlite") else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found = {table: list(_rows(cursor, table)) for table in TABLES}
        for table in ("run_seal", "trail"):
            found[table].sort(key=lambda row: row.id)
        connection.rollback()
    by_target = ("workflow", "change_set", "observation", "sync_issue")
    return Row(
        **found,
        changes=_grouped(found["workflow_change"], "change_set_id"),
        by_target={name: _grouped(found[name], "target_id") for name in by_target},
    )


def _grouped(rows: Iterable[Row], column: str) -> defaultdict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups


DIRECTLY: dict[str, str] = {}
"""Another URL of the same database: without a pooler, or with a role whose defaults are known."""


def _connect(url: str) -> Any:
    """Connect with a plain driver. SQLite is opened for writing: it may have to roll back what a killed process did."""
    if url.startswith("sqlite:///"):
        file = Path(url.removeprefix("sqlite:///")).absolute()
        return sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=60, isolation_level=None)
    import psycopg

    url = DIRECTLY.get(url, url)
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), options="-c timezone=UTC")


def _rows(cursor: Any, table: str) -> Iterator[Row]:
    cursor.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    for values in cursor.fetchall():
        yield Row(**{name: _value(name, value) for name, value in zip(names, values, strict=True)})


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "at" or name.endswith(("_at", "_since", "_for")):
        return _micros(_instant(value))
    return bool(value) if name in ("interrupted", "proven_for_all", "locked") or name.endswith("editable") else value


def _instant(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    at = dt.datetime.fromisoformat(value)
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def _micros(at: dt.datetime) -> int:
    return (at - _EPOCH) // dt.timedelta(microseconds=1)
