"""An independent checker of a Flowtrail database: it shares no code with ``etl/``, only the written rules.

    python -m tests.support.checker URL DELIVERIES      # what the local gateway says at /_demo/deliveries

Given what the gateway really delivered (complete, valid answers, in order), it lists in sentences where the database
breaks a rule: nothing invented, nothing lost, nothing twice, and every digest and hash as an auditor computes it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import itertools
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.support import story_checker

Flow = tuple[str, "str | None", "str | None", "bool | None"]
"""flow_id, flow_name, cycle, editable."""
State = dict[str, Flow]
Key = tuple[str, str, str]
"""org, user, expression."""
Row = SimpleNamespace

KINDS = ("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed")
VERDICTS = ("changed", "unchanged", "held", "failed", "stale")
PLACES = {"renamed": 1, "cycle_changed": 2, "editable_changed": 3}
"""The kinds that change an attribute, and its place in a workflow."""
APPROVED = ("removed", *PLACES)
NO_ANSWERS = {"date"}
"""Faults of the local gateway that deliver a list that no client may accept."""
_DAY = 24 * 3600 * 1_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Delivered(NamedTuple):
    """One complete valid answer that the gateway delivered."""

    org: str
    user: str
    expression: str
    flows: Sequence[Any]
    """Each ``(flow_id, flow_name, cycle, editable)``, as a tuple or with these attributes."""
    at: dt.datetime | None = None
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
    deliveries: Iterable[Any],
    *,
    settled: bool = True,
    every_answer: bool = False,
    guard: Guard | None = None,
    story: bool = False,
) -> list[str]:
    """What is wrong with the database at ``url``, in sentences; empty if nothing is.

    ``deliveries``: ``(org, user, expression, flows, time)`` of every complete valid answer, in order; time may be None.
    ``settled``: the run of each target's last answer has ended, so that answer must be in the database.
    ``every_answer``: also, no answer was held, superseded or interrupted, so each different one is a version.
    ``guard``: all was written by runs with these limits, which ask twice before they remove something.
    ``story``: every run that ended has derived the events of organisations.
    """
    tables = tables_of(url)
    answers: dict[Key, list[_Answer]] = defaultdict(list)
    for org, user, expression, flows, at, *kept_open in deliveries:
        at_micros = None if at is None else _micros(at)
        answers[org, user, expression].append(_Answer(_by_id(flows), at_micros, any(kept_open)))
    findings = _orphans(tables)
    for row in tables.target:
        one = _Target(row, tables, answers.pop((row.org_id, row.user_id, row.expression), []))
        findings += one.check(settled, every_answer, guarded=guard is not None)
    if settled:
        findings += [f"{_name(*key)} got an answer, and is not in the database" for key in answers]
    findings += _turnover(tables)
    findings += _seals(tables)
    if guard is not None:
        findings += _lost_too_much(tables, guard)
        findings += _changed_too_much(tables, guard)
    if story:
        findings += story_checker.check(tables, settled=settled)
    return findings + [f"run {run.id}: {finding}" for run in tables.sync_run for finding in _run(run, tables)]


def load(path: Path) -> list[Delivered]:
    """What the local gateway says at ``/_demo/deliveries``."""
    return [
        Delivered(e["org"], e["user"], e["expression"], e["flows"], _instant(e["answered_at"]), e["kept_open"])
        for e in json.loads(path.read_text("utf-8"))
        if e["sent"] and e["flows"] is not None and e["fault"] not in NO_ANSWERS
    ]


def digest(flows: Iterable[Flow]) -> str:
    """SHA-256 (hex) of a list of workflows, by the written rule."""
    return hashlib.sha256(_json(sorted(list(flow) for flow in flows))).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# ------------------------------------------------------------------------------------------------- one target


class _Answer(NamedTuple):
    state: State
    at: int | None
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
        self.holds = sorted(tables.by_target["hold_event"][row.id], key=lambda event: event.id)
        self.changes = {s.id: tables.changes[s.id] for s in self.sets}
        self.runs = {run.id: run for run in tables.sync_run}
        self.held_in = {issue.run_id for issue in self.issues if issue.verdict == "held"}
        self.states: list[State] = []
        self.touched: dict[str, tuple[int, int]] = {}
        """By flow_id: observed_at of the change sets that added it and that changed it last."""

    def check(self, settled: bool, every_answer: bool, *, guarded: bool) -> list[str]:
        self._replay()
        self._chain()
        self._state()
        self._spans()
        self._sealed_order()
        self._hold()
        self._delivered(guarded)
        if settled and self.answers:
            self._last_answer()
        if every_answer:
            self._each_answer(guarded)
        name = _name(self.row.org_id, self.row.user_id, self.row.expression)
        return [f"{name}: {finding}" for finding in self.findings]

    def _say(self, wrong: object, finding: str) -> None:
        if wrong:
            self.findings.append(finding)

    def _replay(self) -> None:
        state: State = {}
        for made in self.sets:
            before, at = state, f"version {made.version}"
            state = self._replayed(before, made, at)
            self.states.append(state)
            counts = Counter(change.kind for change in self.changes[made.id])
            wrong = [kind for kind in KINDS if counts[kind] != getattr(made, kind)]
            self._say(wrong, f"{at} counts {', '.join(wrong)} other than its changes")
            self._say(made.flow_count != len(state), f"{at} says {made.flow_count} workflows, replaying {len(state)}")
            self._say(made.state_digest != digest(state.values()), f"{at} has a state_digest that replaying denies")
            self._say(made.version > 1 and state == before, f"{at} changes nothing")

    def _replayed(self, before: State, made: Row, at: str) -> State:
        state, kinds = dict(before), defaultdict(set)
        for change in self.changes[made.id]:
            old = (change.flow_id, change.old_name, change.old_cycle, change.old_editable)
            new = (change.flow_id, change.new_name, change.new_cycle, change.new_editable)
            kinds[change.flow_id].add(change.kind)
            expected = before.get(change.flow_id, (change.flow_id, None, None, None))
            self._say(old != expected, f"{at}: the {change.kind} of {change.flow_id!r} has another before")
            if change.kind == "removed":
                self._say(new[1:] != (None, None, None), f"{at}: removed {change.flow_id!r} has an after")
                state.pop(change.flow_id, None)
                self.touched.pop(change.flow_id, None)
                continue
            again = len(kinds[change.flow_id]) > 1
            self._say(again and state[change.flow_id] != new, f"{at}: two afters of {change.flow_id!r}")
            state[change.flow_id] = new
            since = self.touched.get(change.flow_id, (made.observed_at, 0))[0]
            self.touched[change.flow_id] = (since, made.observed_at)
        for flow_id, found in kinds.items():
            right = _kinds(before.get(flow_id), state.get(flow_id), made.kind)
            self._say(found != right, f"{at}: {flow_id!r} is {sorted(found)} where it should be {sorted(right)}")
        return state

    def _chain(self) -> None:
        parent, earlier = "0" * 64, None
        versions = [made.version for made in self.sets]
        self._say(versions != list(range(1, len(versions) + 1)), f"versions are {versions}")
        self._say(self.row.version != len(versions), f"version {self.row.version} with {len(versions)} change sets")
        for made in self.sets:
            at = f"version {made.version}"
            kind = "baseline" if made.version == 1 else "delta"
            self._say(made.kind != kind, f"{at} is called {made.kind}")
            self._say(made.parent_hash != parent, f"{at} does not name the hash before as its parent")
            self._say(made.format != 1, f"{at} has format {made.format}")
            self._say(made.hash != self._hash(made), f"{at} has a hash that its content denies")
            self._say(earlier is not None and made.observed_at <= earlier, f"{at} lies before the version before")
            approval = made.run_id in self.runs and (self.runs[made.run_id].origin == "approval")
            self._say(made.approved_by is not None and not approval, f"{at} names an approver in no approval")
            unscoped = (made.approved_by is None) != (made.approved_scope is None)
            self._say(unscoped, f"{at} has an approver and no scope, or a scope and no approver")
            none = made.approved_by and not any(getattr(made, kind) for kind in APPROVED)
            self._say(none, f"{at} names an approver, and changes nothing that could be held")
            wrong = made.approved_scope != self._approved_scope(made.observed_at)
            self._say(wrong, f"{at} has an approved_scope that its hold denies")
            parent, earlier = made.hash, made.observed_at

    def _approved_scope(self, at: int) -> str | None:
        """Since when the hold lasted that was approved at a time, and what was held; None if nothing was approved."""
        held: set[Any] = set()
        since = None
        if not any(row.at == at and row.kind == "approved" for row in self.holds):
            return None
        for row in itertools.takewhile(lambda row: row.at < at, self.holds):
            since = since if held else row.at
            change = held.update if row.kind == "held" else held.difference_update
            change(_held_in(row))
        gone = sorted(flow_id for flow_id, kind, _ in held if kind == "removed")
        doubted = sorted((each for each in held if each[1] != "removed"), key=lambda each: each[:2])
        return _digest([self.row.org_id, self.row.user_id, self.row.expression, since, gone, doubted])

    def _hash(self, made: Row) -> str:
        sealed = sorted((s for s in self.spans if s.version == made.version - 1), key=lambda s: s.first_at)
        changes = sorted(self.changes[made.id], key=lambda c: (c.flow_id, c.kind))
        content = [
            "change/1",
            *(self.row.org_id, self.row.user_id, self.row.expression, made.version, made.kind, made.observed_at),
            made.last_unchanged_at,
            [
                [s.first_at, s.last_asked_at, s.last_at, s.observations, s.longest_gap_seconds, s.interrupted]
                for s in sealed
            ],
            *(made.approved_by, made.approved_scope, made.data_hash, made.state_digest),
            [
                [c.flow_id, c.kind, c.old_name, c.new_name, c.old_cycle, c.new_cycle, c.old_editable, c.new_editable]
                for c in changes
            ],
        ]
        return hashlib.sha256(made.parent_hash.encode() + _json(content)).hexdigest()

    def _state(self) -> None:
        state = self.states[-1] if self.states else {}
        found = {w.flow_id: (w.flow_id, w.flow_name, w.cycle, w.editable) for w in self.workflows.values()}
        differing = sorted(k for k in found.keys() | state.keys() if found.get(k) != state.get(k))
        self._say(differing, f"workflow is not what the trail makes: {differing[:3]}")
        wrong = sorted(
            flow_id
            for flow_id, w in self.workflows.items()
            if flow_id in self.touched and (w.first_listed_at, w.changed_at) != self.touched[flow_id]
        )
        self._say(wrong, f"first_listed_at or changed_at is not the trail's: {wrong[:3]}")
        self._say(self.row.flow_count != len(state), f"flow_count is {self.row.flow_count} of {len(state)}")
        if self.sets:
            right = digest(state.values())
            self._say(self.row.state_digest != right, "state_digest is not that of the state")
            answered = self.row.answer_digest == right or self.row.held_since is not None
            self._say(not answered, "answer_digest is another than state_digest, and nothing is held")
        else:
            seen = (self.row.state_digest, self.row.answer_digest, self.row.observation_id, self.row.held_since)
            self._say(any(seen) or self.spans, "never observed, and yet it has a state or a span")

    # Spans

    def _spans(self) -> None:
        before: Row | None = None
        for span in self.spans:
            at = f"span {span.id}"
            self._say(span.observations < 1, f"{at} has {span.observations} observations")
            asked = span.last_asked_at <= span.last_at
            self._say(not (span.first_at <= span.last_at and asked), f"{at} ends before it begins or was asked for")
            self._say(not _gap_fits(span), f"{at} cannot have a longest gap of {span.longest_gap_seconds} s")
            if before is None:
                self._say(span.interrupted, f"{at} is the target's first, and called interrupted")
            else:
                self._say(span.first_at <= before.last_at, f"{at} overlaps the one before")
                self._say(span.version < before.version, f"{at} is of an older version than the one before")
                same = span.version == before.version
                self._say(same and not span.interrupted, f"{at} follows one of its version uninterrupted")
            before = span
        self._open_span(before)

    def _open_span(self, latest: Row | None) -> None:
        open_id = self.row.observation_id
        if open_id is None:
            silent = self.row.version and self.row.held_since is None and not self.row.consecutive_failures
            self._say(silent, "no span is open, and nothing failed or is held")
            return
        self._say(latest is None or latest.id != open_id, "the open span is not the latest")
        self._say(latest is not None and latest.version != self.row.version, "the open span is of another version")
        self._say(self.row.held_since is not None, "a span is open while something is held")
        self._say(self.row.consecutive_failures or self.row.last_error_code, "a span is open after a failure")

    def _sealed_order(self) -> None:
        for made, following in zip(self.sets, [*self.sets[1:], None], strict=False):
            at = f"version {made.version}"
            own = [s for s in self.spans if s.version == made.version]
            earlier = [s for s in self.spans if s.version < made.version]
            asked = earlier[-1].last_asked_at if earlier else None
            self._say(made.last_unchanged_at != asked, f"{at}: last_unchanged_at is no span's last_asked_at")
            self._say(asked is not None and asked > made.observed_at, f"{at} was observed before it was asked")
            late = [s.id for s in own if following is not None and s.last_at >= following.observed_at]
            early = [s.id for s in own if s.first_at < made.observed_at]
            self._say(late or early, f"{at} was seen outside its time, in spans {late + early}")
            held = made.run_id in self.held_in
            at_once = bool(own) and own[0].first_at == made.observed_at
            wrong = made.run_id in self.runs and at_once == held
            self._say(wrong, f"{at} has {'a' if at_once else 'no'} span at once, held={held}")
            self._say(held and own and not own[0].interrupted, f"{at} ends a hold in a span not called interrupted")
        unknown = {s.version for s in self.spans} - {made.version for made in self.sets}
        self._say(unknown, f"spans of versions that are not there: {sorted(unknown)}")

    # What was held, and what was delivered

    def _hold(self) -> None:
        missing = [w.missing_since for w in self.workflows.values() if w.missing_since is not None]
        doubted = [w for w in self.workflows.values() if w.doubted is not None]
        held_since = self.row.held_since
        self._say(
            bool(missing or doubted) != (held_since is not None), "held_since, missing_since and doubted disagree"
        )
        earlier = held_since is not None and missing and min(missing) < held_since
        self._say(earlier, "a workflow went missing before the hold began")
        self._say(held_since is not None and not self.held_in and self._all_runs_known(), "held without an issue")

    def _all_runs_known(self) -> bool:
        return all(made.run_id in self.runs for made in self.sets)

    def _delivered(self, guarded: bool) -> None:
        """Each version is an answer that came after the previous version's (except for what the guard kept)."""
        places = [0]
        """Per version, the index of the first answer that may have followed it; initially 0."""
        for number, (made, state) in enumerate(zip(self.sets, self.states, strict=True)):
            before = self.states[number - 1] if number else State()
            partly = made.run_id in self.held_in or made.run_id not in self.runs
            rest = range(places[-1], len(self.answers))
            fitting = [i for i in rest if self._may_make(i, state, before, partly)]
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

    def _may_make(self, number: int, state: State, before: State, partly: bool) -> bool:
        answer = self.answers[number]
        return not answer.kept_open and _fits(state, answer.state, before, partly)

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

    def _lost_the_race(self, at: int | None) -> bool:
        """Whether the last answer came during a run in which this target was stale."""
        runs = [self.runs[i.run_id] for i in self.issues if i.verdict == "stale" and i.run_id in self.runs]
        return any(
            at is None or (run.started_at <= at and (run.finished_at is None or at <= run.finished_at)) for run in runs
        )

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


def _held_in(event: Row) -> list[tuple[str, str, Any]]:
    """What a hold event is about: removals, and changes with their new values."""
    removed = [(flow_id, "removed", None) for flow_id in json.loads(event.flow_ids)]
    return removed + [tuple(doubt) for doubt in json.loads(event.doubted)]


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


def _kinds(before: Flow | None, after: Flow | None, made: str) -> set[str]:
    if before is None:
        return {"baseline" if made == "baseline" else "added"}
    if after is None:
        return {"removed"}
    named = (("renamed", 1), ("cycle_changed", 2), ("editable_changed", 3))
    return {kind for kind, column in named if before[column] != after[column]}


def _gap_fits(span: Row) -> bool:
    """The longest gap lies between the mean gap and the length of the span, in whole seconds, rounded down."""
    length = span.last_at - span.first_at
    if span.observations < 2:
        return bool(length == 0 and span.longest_gap_seconds == 0)
    mean = length // (span.observations - 1) // 1_000_000
    return bool(length > 0 and mean <= span.longest_gap_seconds <= length // 1_000_000)


def _fits(state: State, answer: State, before: State, guarded: bool) -> bool:
    if state == answer:
        return True
    kept = state.keys() - answer.keys()
    whole = all(state.get(flow_id) == flow for flow_id, flow in answer.items())
    return guarded and whole and all(before.get(flow_id) == state[flow_id] for flow_id in kept)


def _name(org: str, user: str, expression: str) -> str:
    return f"{org}/{user}" + (f" [{expression}]" if expression else "")


# ----------------------------------------------------------------------------------------- runs, and the tables


def _run(run: Row, tables: Row) -> Iterator[str]:
    if run.status == "running":
        if run.finished_at is not None:
            yield "running, and finished"
        return
    if run.finished_at is None:
        yield f"{run.status} without finished_at"
    if run.status == "aborted":
        return
    sets, issues = tables.by_run["change_set"][run.id], tables.by_run["sync_issue"][run.id]
    verdicts = Counter(issue.verdict for issue in issues)
    held = {issue.target_id for issue in issues if issue.verdict == "held"}
    right = {verdict: verdicts[verdict] for verdict in ("held", "failed", "stale")}
    right |= {"changed": sum(made.target_id not in held for made in sets)}
    right |= {kind: sum(getattr(made, kind) for made in sets) for kind in KINDS}
    wrong = {name: (getattr(run, name), value) for name, value in right.items() if getattr(run, name) != value}
    if wrong:
        yield f"its sums are not those of its rows (said, found): {wrong}"
    if run.targets != sum(getattr(run, verdict) for verdict in VERDICTS):
        yield "its verdicts do not add up to its targets"
    trouble = run.failed + run.held
    status = "succeeded" if not trouble else "failed" if run.failed == run.targets else "partial"
    if run.status != status:
        yield f"called {run.status} where it {status}"


SUMS = ("targets", *VERDICTS, *KINDS)


DETAIL = (
    *("org_id", "flow_id", "run_id", "asked_at", "observed_at", "update_user", "update_time", "creator", "create_time"),
    *("owner", "freq", "active", "type", "locked", "detail_hash"),
)
ORG_EVENT = (
    *("run_id", "org_id", "flow_id", "kind", "user_id", "old_name", "new_name", "old_cycle", "new_cycle"),
    *(
        "old_editable",
        "new_editable",
        "last_unchanged_at",
        "observed_at",
        "users_before",
        "users_after",
        "proven_for_all",
    ),
    *("unheard", "decided_at"),
)


def _seals(tables: Row) -> Iterator[str]:
    """Every run that has ended has one seal, linked to the previous one, with the digests of what the run wrote."""
    runs = {run.id: run for run in tables.sync_run}
    targets = {row.id: [row.org_id, row.user_id, row.expression] for row in tables.target}
    ended = {run.id for run in tables.sync_run if run.status != "running"}
    sealed = [seal.run_id for seal in tables.run_seal]
    for run_id in sorted(ended ^ set(sealed)):
        yield (
            f"run {run_id} has ended without a seal"
            if run_id in ended
            else f"run {run_id} is sealed, and has not ended"
        )
    if len(set(sealed)) < len(sealed) or [seal.id for seal in tables.run_seal] != list(range(1, len(sealed) + 1)):
        yield f"seals are not numbered from 1, or seal a run twice: {sealed}"
    parent, before, trail_id = "", 0, ""
    for seal in tables.run_seal:
        for trail in tables.trail:
            if trail.first_seal == seal.id:
                begun = ["trail/1", trail.trail_id, trail.created_at]
                parent, trail_id = _digest(begun + ([parent] if parent else [])), trail.trail_id
        run = runs.get(seal.run_id)
        if run is None or run.status == "running":
            continue
        content = ["seal/1", trail_id, seal.id, run.id, run.schedule, run.origin, run.scheduled_for, run.missed]
        content += [run.status, run.started_at, run.finished_at, [getattr(run, name) for name in SUMS]]
        digests = _digests(run, tables, targets)
        if any(row.pruned_run_id == run.id for row in tables.pruned_issues):
            digests[2] = seal.issues_digest
        own = hashlib.sha256(parent.encode() + _json([*content, *digests, seal.sealed_at])).hexdigest()
        if (seal.parent, seal.seal) != (parent, own):
            yield f"seal {seal.id} of run {run.id} is not what its rows make of it"
        if seal.sealed_at < max(before, run.finished_at) or run.closed_at is None:
            yield f"seal {seal.id}: its run was not closed, or times go back"
        parent, before = seal.seal, seal.sealed_at


def _digests(run: Row, tables: Row, targets: dict[int, list[str]]) -> list[str]:
    def rows(table: str) -> list[Row]:
        return sorted((row for row in getattr(tables, table) if row.run_id == run.id), key=lambda row: row.id)

    scope = json.loads(run.scope)
    asked = [tuple(each) for each in scope.get("targets", ())]
    for schedule in scope.get("schedules", ()):
        members: dict[tuple[str, ...], None] = {}
        for row in sorted(tables.target_membership, key=lambda row: row.id):
            if row.schedule == schedule and row.id <= scope["membership_id"]:
                key = tuple(targets[row.target_id])
                members.pop(key, None)
                if row.kind == "joined":
                    members[key] = None
        asked += members
    wanted = [each for each in set(asked) if scope.get("org_id") in (None, each[0])]
    wanted = [each for each in wanted if scope.get("user_id") in (None, each[1])]
    made = sorted(rows("change_set"), key=lambda row: (targets[row.target_id], row.version))
    issues = sorted(rows("sync_issue"), key=lambda row: (targets[row.target_id], row.id))
    events = [
        [
            [*targets[row.target_id], row.run_id, row.schedule, row.kind, row.at, row.coverage_gap_seconds]
            for row in rows("target_membership")
        ],
        [
            [
                *targets[row.target_id],
                row.run_id,
                row.kind,
                row.at,
                *map(json.loads, (row.flow_ids, row.doubted)),
                row.data_hash,
            ]
            for row in rows("hold_event")
        ],
        [[getattr(row, name) for name in DETAIL] for row in rows("workflow_detail")],
        [
            [getattr(event, name) for name in ORG_EVENT]
            for event in sorted(tables.org_event, key=lambda event: event.event_id)
            if event.run_id == run.id
        ],
        [[row.run_id, row.pruned_run_id, row.at] for row in rows("pruned_issues")],
    ]
    return [
        _digest(sorted(map(list, wanted))),
        _digest([row.hash for row in made]),
        _digest([[*targets[row.target_id], row.verdict, row.error_code, row.missing] for row in issues]),
        _digest(events),
    ]


def _digest(value: object) -> str:
    return hashlib.sha256(_json(value)).hexdigest()


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


def _orphans(tables: Row) -> list[str]:
    targets = {row.id for row in tables.target}
    sets = {made.id for made in tables.change_set}
    runs = {run.id for run in tables.sync_run}
    twice = [key for key, n in Counter((t.org_id, t.user_id, t.expression) for t in tables.target).items() if n > 1]
    findings = [f"{_name(*key)} has two rows" for key in twice]
    findings += [
        f"{table} has rows of targets that are not there"
        for table, rows in tables.by_target.items()
        if any(rows[target_id] for target_id in list(rows) if target_id not in targets)
    ]
    findings += [
        f"workflow_change has rows of change set {n}, which is not there" for n in tables.changes.keys() - sets
    ]
    return findings + [f"sync_issue {i.id} is of no run" for i in tables.sync_issue if i.run_id not in runs]


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
    by_target = ("workflow", "change_set", "observation", "sync_issue", "hold_event")
    return Row(
        **found,
        changes=_grouped(found["workflow_change"], "change_set_id"),
        by_target={name: _grouped(found[name], "target_id") for name in by_target},
        by_run={name: _grouped(found[name], "run_id") for name in ("change_set", "sync_issue")},
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


def _by_id(flows: Iterable[Any]) -> State:
    listed = [tuple(flow) if isinstance(flow, list | tuple) else _fields(flow) for flow in flows]
    return {flow[0]: flow for flow in listed}


def _fields(flow: Any) -> Flow:
    return flow.flow_id, flow.flow_name, flow.cycle, flow.editable


def main(arguments: Sequence[str]) -> int:
    """Print every finding; return 1 if there is one."""
    if len(arguments) != 2:
        print("usage: python -m tests.support.checker URL DELIVERIES", file=sys.stderr)
        return 2
    findings = check(arguments[0], load(Path(arguments[1])))
    print("\n".join(findings) or "nothing invented, nothing lost, nothing twice")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
