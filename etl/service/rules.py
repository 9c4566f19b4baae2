"""Evaluates rules, beside the runs: on connections of its own, and no run ever waits for one.

| a rule is evaluated | because |
|---|---|
| when a run was sealed that wrote something | its result may be another |
| when its text is another | |
| an hour after the last time | time passes for its moments, and lists are found unchanged |
| by ``flowtrail rules check`` | somebody asks |
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.config.rules import Refused, Rule, Rules, read_rules, signature
from etl.database.restricted import GaveWay, Query, Select, selecting
from etl.domain.rules import keyed
from etl.errors import DatabaseError, RuleFailed
from etl.log import get_logger
from etl.store import Store
from etl.store.findings import LAST_RUN, Evaluation, KnownRule
from etl.system.background import BackgroundLoop

TICK_SECONDS: Final = 5.0
EVERY: Final = dt.timedelta(hours=1)
_LOOK_SECONDS: Final = 60.0
"""How often to see whether a rule was evaluated too long ago."""
_STOP_SECONDS: Final = 3.0
_TRIES: Final = 10
_PAUSE_SECONDS: Final = 0.5
_NEVER_ALONE: Final = f"was ended {_TRIES} times for a run that had to write: make it read less"


class Round(NamedTuple):
    """The rules that were evaluated, and those for which there was no time."""

    evaluated: Sequence[str]
    left: Sequence[str]


@dataclass(eq=False)
class RuleBook:
    """The rules of a folder, and what they find in a database."""

    engine: Engine
    """One of its own."""
    store: Store
    folder: Path
    _: KW_ONLY
    timeout: dt.timedelta
    clock: Callable[[], dt.datetime]
    stopped: Callable[[], bool] = lambda: False
    rest: Callable[[float], None] = lambda seconds: None
    """Called after each rule with the seconds that it took."""

    def __post_init__(self) -> None:
        self._log: Any = get_logger("etl.service.rules")

    def evaluate(self, rule: Rule, known: KnownRule | None = None, seal_id: int = 0) -> Evaluation:
        """What a rule finds now; nothing is written. Raises GaveWay where it was stopped, DatabaseError."""
        with selecting(self.engine) as select:
            return self._evaluate(select, rule, known, seal_id)

    def _evaluate(self, select: Select, rule: Rule, known: KnownRule | None, seal_id: int) -> Evaluation:
        at, began, run_id = self.clock(), time.monotonic(), None
        found, error = dict[str, str](), None
        query = Query(rule.sql(at), rule.functions, self.timeout.total_seconds(), self.stopped)
        try:
            rows, run_id = self._patiently(select, query)
            found = keyed(rows, rule.key)
        except (RuleFailed, ValueError) as failed:
            error = str(failed)
        took_ms, after = round((time.monotonic() - began) * 1000), known and known.evaluated_at
        return Evaluation(
            rule.name, rule.title, rule.severity, rule.text, after, at, seal_id, took_ms, run_id, found, error
        )

    def _patiently(self, select: Select, query: Query) -> Any:
        """Begin again while a run has to write, for some time."""
        for _ in range(_TRIES):
            try:
                return select(query, LAST_RUN)
            except GaveWay:
                if self.stopped():
                    raise
                time.sleep(_PAUSE_SECONDS)
        raise RuleFailed(_NEVER_ALONE)

    def round(
        self, names: Collection[str] = (), *, only_due: bool = True, go_on: Callable[[], bool] = lambda: True
    ) -> Round:
        """Evaluate the rules that are due, or all with these ``names``, the one that waited longest first.

        ``go_on`` is called before each. Findings of files that are gone end, unless only some names are wanted.
        """
        rules, known, seal_id = read_rules(self.folder), self.store.known_rules(), self.store.last_seal_id()
        if not names:
            self._forget(rules, known)
        for refused in rules.refused:
            if refused.name and (not names or refused.name in names):
                self._refuse(refused, known.get(refused.name))
        wanted = [rule for rule in rules.usable if not names or rule.name in names]
        if only_due:
            wanted = [rule for rule in wanted if self._is_due(rule, known.get(rule.name), seal_id)]
        waiting = sorted(wanted, key=lambda rule: _evaluated_at(known.get(rule.name)))
        done, unchanged = list[str](), list[Evaluation]()
        try:
            with selecting(self.engine) as select:
                while waiting and go_on():
                    rule = waiting.pop(0)
                    began = time.monotonic()
                    made = self._evaluate(select, rule, known.get(rule.name), seal_id)
                    if self._is_unchanged(made, known.get(rule.name)):
                        unchanged.append(made)
                    else:
                        self._write(made)
                    done.append(rule.name)
                    self.rest(time.monotonic() - began)
        except GaveWay:
            waiting.insert(0, rule)
        if unchanged:
            self.store.note_unchanged(unchanged)
        return Round(done, [rule.name for rule in waiting])

    def _is_due(self, rule: Rule, known: KnownRule | None, seal_id: int) -> bool:
        if known is None or known.text != rule.text or known.evaluated_at is None:
            return True
        now = self.clock()
        if not now - EVERY < known.evaluated_at <= now:
            return True
        return known.seal_id < seal_id and self.store.something_written_since(known.seal_id)

    def _is_unchanged(self, made: Evaluation, known: KnownRule | None) -> bool:
        """Whether only the moment is new; then all such rules are noted in one transaction."""
        if known is None or (known.text, known.error) != (made.text, made.error):
            return False
        return made.error is not None or self.store.open_findings(made.rule) == made.found

    def _write(self, made: Evaluation) -> None:
        written = self.store.write_evaluation(made)
        if made.error is not None:
            self._log.warning("rule_failed", rule=made.rule, error=made.error, remedy="its findings stay as they were")
        elif written is not None and (written.begun or written.ended):
            self._log.info(
                "rule_findings", rule=made.rule, begun=written.begun, ended=written.ended, open=len(made.found)
            )

    def _forget(self, rules: Rules, known: Collection[str]) -> None:
        unreadable = any(not each.name for each in rules.refused)
        if not unreadable and set(known) - rules.names:
            for name in self.store.remove_rules(rules.names, self.clock()):
                self._log.info("rule_removed", rule=name)

    def _refuse(self, refused: Refused, known: KnownRule | None) -> None:
        """A file that is no rule: nobody can say what it finds. With its repair its text is another."""
        error = f"is refused: {refused.problem}"
        if known is not None and known.error == error:
            return
        title, severity = (known.title, known.severity) if known else (refused.name, "warning")
        after, seal_id = (known.evaluated_at, known.seal_id) if known else (None, 0)
        self._write(Evaluation(refused.name, title, severity, "", after, self.clock(), seal_id, 0, error=error))


def _evaluated_at(known: KnownRule | None) -> dt.datetime:
    return known.evaluated_at if known and known.evaluated_at else dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass(eq=False)
class RuleWatch:
    """Runs in a separate thread, while this replica is active, and takes at most half of a processor."""

    book: RuleBook
    _: KW_ONLY
    active: Callable[[], bool]
    changed: Callable[[], None] = lambda: None
    """Called after a round that evaluated something."""

    def __post_init__(self) -> None:
        self.loop = BackgroundLoop(
            "rules", self._step, first_after_seconds=TICK_SECONDS, stop_within_seconds=_STOP_SECONDS
        )
        self.book.stopped = lambda: self.loop.stopping
        self.book.rest = self.loop.wait
        self._seen: tuple[object, ...] | None = None
        """The files and the last seal when nothing was due."""
        self._look_at = 0.0
        self._log: Any = get_logger("etl.service.rules")

    def _step(self) -> float:
        try:
            self.evaluate_if_due()
        except DatabaseError:  # the service itself says so
            pass
        except Exception:
            self._log.exception("rules_not_evaluated", remedy="they are evaluated again")
            return _LOOK_SECONDS
        return TICK_SECONDS

    def evaluate_if_due(self) -> None:
        """Evaluate what is due. While there is no rule, nothing is read but the folder."""
        if not self.active():
            self._seen = None
            return
        files = signature(self.book.folder)
        if not files and self._seen == ():
            return
        now = (files, self.book.store.last_seal_id())
        if now == self._seen and time.monotonic() < self._look_at:
            return
        done = self.book.round(go_on=lambda: self.active() and not self.loop.stopping)
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self._seen = (() if not files else now) if not done.left else None
        if done.evaluated:
            self.changed()
