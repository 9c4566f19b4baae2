"""Every list that people, files and programs read: its columns, its filters and its order, each declared once.

Commands, the page, ``--json``, CSV and ``flowtrail export`` all read these. Lists of a moment are in ``asof``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Select,
    and_,
    case,
    func,
    or_,
    select,
    text,
)

from etl.database import reading
from etl.domain.approvals import HeldSet, shown_set
from etl.domain.kinds import CHANGE_KINDS, EVENT_KINDS
from etl.domain.model import Target, cycle_code
from etl.report.names import WHOLE, contains, id_contains
from etl.report.reading import sql, stream
from etl.report.rows import (
    Acknowledgement,
    Finding,
    Gap,
    HeldWorkflow,
    ListChange,
    ListState,
    ListWorkflow,
    OrgWorkflow,
    OrgWorkflowEvent,
    OrgWorkflowState,
    SyncRun,
    TargetHealth,
    UnlistedWorkflow,
    sql_columns,
    view,
)
from etl.schema import TARGET_KEY, acknowledgement, run_seal, sync_issue, target, workflow

T = TypeVar("T", bound=tuple[Any, ...])
Condition = Callable[[Any, str, Any], ColumnElement[bool]]
"""From the columns, the dialect, and the value that is asked for."""


class Filter(NamedTuple):
    """How a list is narrowed. A value that is None or empty narrows nothing.

    An ``id`` is a part of one, or a whole one after ``names.WHOLE``; a ``text`` is a part of a text, whatever its case.
    """

    kind: Literal["id", "text", "exact", "number", "one_of", "some_of", "moment", "inside"]
    """``inside``: nobody types it."""
    condition: Condition
    known: Sequence[str] = ()
    """What can be chosen."""


class Seals(NamedTuple):
    """The runs with seals after ``after``, up to ``last``; such runs write nothing more."""

    after: int
    last: int


def seals_after(engine: Engine, after: int) -> Seals:
    """The existing seals after ``after``."""
    with reading(engine) as connection:
        last = connection.execute(select(func.max(run_seal.c.id))).scalar()
    return Seals(after, max(after, last or 0))


class ListView(NamedTuple, Generic[T]):
    """A list: ``rows`` are all of one moment, in constant memory; ``page`` is read in the caller's transaction.

    The rows are NamedTuples whose fields are the columns of the view behind them. Without a filter there are all.
    """

    name: str
    row_type: type[T]
    source: Callable[[Mapping[str, Any], Sequence[str]], FromClause]
    """Where the columns are, for what is asked and for the columns that are wanted."""
    order: Sequence[str]
    """Columns; with ``-`` in front the highest first."""
    filters: Mapping[str, Filter]
    usual: Mapping[str, Any] = {}
    """What is asked for where nothing else is."""

    def select(
        self,
        dialect: str,
        *,
        columns: Sequence[str] = (),
        order: Sequence[str] = (),
        newest_first: bool = False,
        **asked: Any,
    ) -> Select[Any]:
        """The statement; ``columns`` are some of the columns, ``order`` replaces the usual one."""
        given = {**self.usual, **{name: value for name, value in asked.items() if not _is_nothing(value)}}
        wanted = columns or self.row_type._fields  # type: ignore[attr-defined]  # every row type is a NamedTuple
        source = self.source(given, wanted)
        conditions = (self.filters[name].condition(source.c, dialect, value) for name, value in given.items())
        chosen = select(*(source.c[name] for name in wanted)).where(*conditions)
        return chosen.order_by(*self.keys(source.c, order, newest_first=newest_first))

    def keys(self, columns: Any, order: Sequence[str] = (), *, newest_first: bool = False) -> list[ColumnElement[Any]]:
        """The order, of these columns."""
        found = []
        for name in order or self.order:
            column, falls = columns[name.removeprefix("-")], name.startswith("-") != newest_first
            found.append(column.desc() if falls else column)
        return found

    def rows(self, engine: Engine, *, limit: int | None = None, **asked: Any) -> Iterator[T]:
        """All rows, or the first ``limit`` of them, for commands and files: an id is a whole one here."""
        whole = {name: WHOLE + asked[name] for name in _IDS if asked.get(name) is not None}
        return stream(engine, self.select(engine.dialect.name, **asked | whole).limit(limit), self.row_type)

    def page(self, connection: Connection, limit: int, offset: int = 0, **asked: Any) -> list[T]:
        """At most ``limit`` rows after the first ``offset``."""
        chosen = self.select(connection.dialect.name, **asked).limit(limit).offset(offset)
        return [self.row_type(*row) for row in connection.execute(chosen)]

    def count(self, connection: Connection, **asked: Any) -> int:
        """How many rows there are."""
        chosen = self.select(connection.dialect.name, **asked).order_by(None).subquery()
        return int(connection.execute(select(func.count()).select_from(chosen)).scalar_one())


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence) and not value)


_IDS: Final = ("org", "user", "flow")


def _view(name: str, row_type: type[tuple[Any, ...]]) -> Callable[[Mapping[str, Any], Sequence[str]], FromClause]:
    return lambda asked, columns: view(name, row_type)


# ------------------------------------------------------------------------------------------------------- the filters


def _id(column: str) -> Filter:
    return Filter("id", lambda c, dialect, asked: id_contains(dialect, c[column], asked))


def _text(*columns: str) -> Filter:
    return Filter("text", lambda c, dialect, asked: or_(*(contains(dialect, c[name], asked) for name in columns)))


def _equal(column: str, kind: Literal["exact", "number"] = "exact") -> Filter:
    return Filter(kind, lambda c, _, asked: c[column] == asked)


def _one_of(conditions: Mapping[str, Callable[[Any], ColumnElement[bool]]]) -> Filter:
    return Filter("one_of", lambda c, _, asked: conditions[asked](c), tuple(conditions))


def _some_of(column: str, known: Sequence[str]) -> Filter:
    return Filter("some_of", lambda c, _, asked: c[column].in_(asked), known)


_CYCLE: Final = Filter("exact", lambda c, _, asked: c.cycle == cycle_code(asked))
_SINCE: Final = Filter("moment", lambda c, _, at: c.observed_at >= at)
_UNTIL: Final = Filter("moment", lambda c, _, at: c.observed_at < at)
_SEALS: Final = Filter(
    "inside",
    lambda c, _, seals: c.run_id.in_(
        select(run_seal.c.run_id).where(run_seal.c.id > seals.after, run_seal.c.id <= seals.last)
    ),
)
_EVENTS: Final = Filter("inside", lambda c, _, numbers: c.event_id.in_(numbers))
_ACKNOWLEDGED: Final = _one_of(
    {"no": lambda c: c.acknowledged_at.is_(None), "yes": lambda c: c.acknowledged_at.is_not(None)}
)
_AFTER: Final = Filter("inside", lambda c, _, at: c.observed_at > at)
_BEGUN_BEFORE: Final = Filter("inside", lambda c, _, at: c.last_unchanged_at < at)
_ORG: Final = {"org": _id("org_id")}
_USER: Final = {**_ORG, "user": _id("user_id")}
_FLOW: Final = {**_USER, "flow": _id("flow_id")}
_HAPPENED: Final = {
    **_FLOW,
    "name": _text("old_name", "new_name"),
    "since": _SINCE,
    "until": _UNTIL,
    "seals": _SEALS,
    "after": _AFTER,
    "begun_before": _BEGUN_BEFORE,
}
_LISTED: Final = {"name": _text("flow_name"), "find": _text("flow_id", "flow_name"), "cycle": _CYCLE}
_TARGET: Final = ("org_id", "user_id", "expression")
_STORY: Final = ("org_id", "flow_id")


# ---------------------------------------------------------------------------------------------------- users' lists

FLOWS: Final = ListView(
    "flows",
    ListWorkflow,
    _view("list_workflow", ListWorkflow),
    (*_TARGET, "flow_id"),
    {**_FLOW, **_LISTED, "expression": _equal("expression")},
)
CHANGES: Final = ListView(
    "changes",
    ListChange,
    _view("list_change", ListChange),
    ("observed_at", "change_set_id", "flow_id", "kind"),
    {**_HAPPENED, "kind": _some_of("kind", CHANGE_KINDS)},
)
HISTORY: Final = ListView(
    "history", ListState, _view("list_history", ListState), (*_TARGET, "flow_id", "valid_from"), _FLOW
)

HELD: Final = "held"
"""Stands for an error code if something is held."""
TARGETS: Final = ListView(
    "targets",
    TargetHealth,
    _view("target_health", TargetHealth),
    _TARGET,
    {
        **_USER,
        "show": _one_of(
            {
                "configured": lambda c: c.retired_at.is_(None),
                "problems": lambda c: and_(
                    c.retired_at.is_(None), or_(c.consecutive_failures > 0, c.held_since.is_not(None))
                ),
                "never_observed": lambda c: and_(c.retired_at.is_(None), c.versions == 0),
                "empty": lambda c: and_(c.retired_at.is_(None), c.versions > 0, c.flow_count == 0),
                "retired": lambda c: c.retired_at.is_not(None),
            }
        ),
        "cause": Filter(
            "exact",
            lambda c, _, cause: (
                c.held_since.is_not(None)
                if cause == HELD
                else and_(c.consecutive_failures > 0, c.last_error_code == cause)
            ),
        ),
    },
    {"show": "configured"},
)
GAPS: Final = ListView(
    "gaps",
    Gap,
    lambda asked, columns: _open_first(view("coverage_gap", Gap)),
    ("is_closed", "-gap_from", *_TARGET),
    {
        **_USER,
        "since": Filter("moment", lambda c, _, at: or_(c.gap_to.is_(None), c.gap_to > at)),
        "until": Filter("moment", lambda c, _, at: c.gap_from < at),
    },
)


def _open_first(gap: FromClause) -> FromClause:
    return select(gap, case((gap.c.gap_to.is_(None), 0), else_=1).label("is_closed")).subquery("gap")


IS_HELD: Final = and_(target.c.held_since.is_not(None), target.c.retired_at.is_(None))
"""Removals or changes of the target wait for a person."""


def latest_reason() -> ColumnElement[str | None]:
    """The guard's reason when it last held removals of ``target``."""
    held_by = sync_issue.c.target_id == target.c.id, sync_issue.c.verdict == "held"
    latest = select(sync_issue.c.message).where(*held_by).order_by(sync_issue.c.id.desc()).limit(1)
    return latest.scalar_subquery().label("reason")


def _held_workflows(asked: Mapping[str, Any], columns: Sequence[str]) -> FromClause:
    names = ("flow_id", "flow_name", "cycle", "missing_since", "doubted")
    chosen = select(*TARGET_KEY, target.c.held_since, *(workflow.c[name] for name in names), latest_reason())
    chosen = chosen.join_from(target, workflow, workflow.c.target_id == target.c.id)
    held = or_(workflow.c.missing_since.is_not(None), workflow.c.doubted.is_not(None))
    return chosen.where(IS_HELD, held).subquery("held")


HELD_WORKFLOWS: Final = ListView("held", HeldWorkflow, _held_workflows, (*_TARGET, "flow_id"), _USER)
"""Each workflow of which something is held, and the latest reason why."""


def held_sets(engine: Engine, *, org: str | None = None) -> Iterator[HeldSet]:
    """What is held of each target, by organisation, user and expression."""
    for (*key, since), rows in groupby(HELD_WORKFLOWS.rows(engine, org=org), key=itemgetter(0, 1, 2, 3)):
        yield shown_set(Target(*key), since, ((row.flow_id, row.doubted) for row in rows))


CAUSE_COLUMNS: Final = ("cause", "targets", "organisations", "most_failures", "example")
"""An error code or ``held``, the most consecutive failures of one of its targets, and one of its messages."""


def causes(connection: Connection) -> Sequence[Any]:
    """Why targets have problems, the most frequent cause first; a target that fails and is held counts in both."""
    return connection.execute(text(sql("causes"))).all()


# ---------------------------------------------------------------------------------------------------- organisations

EVENTS: Final = ListView(
    "events",
    OrgWorkflowEvent,
    _view("org_workflow_event", OrgWorkflowEvent),
    ("event_id",),
    {
        **_HAPPENED,
        "kind": _some_of("kind", EVENT_KINDS),
        "event": _equal("event_id", "number"),
        "events": _EVENTS,
        "acknowledged": _ACKNOWLEDGED,
    },
)
_revoking: Final = acknowledgement.alias("revoking")
ACKNOWLEDGEMENTS: Final = ListView(
    "acknowledgements",
    Acknowledgement,
    lambda asked, columns: (
        select(acknowledgement, _revoking.c.id.label("revoked_by"))
        .outerjoin(_revoking, _revoking.c.revokes == acknowledgement.c.id)
        .subquery("acknowledgements")
    ),
    ("id",),
    {**_FLOW, "ticket": _equal("ticket")},
)
STATES: Final = ListView(
    "workflows",
    OrgWorkflowState,
    _view("org_workflow_history", OrgWorkflowState),
    _STORY,
    {
        **_ORG,
        "flow": _id("flow_id"),
        **_LISTED,
        "at": Filter("moment", lambda c, _, at: and_(c.valid_from <= at, or_(c.valid_to.is_(None), c.valid_to > at))),
    },
)
"""The states that workflows had ``at`` a moment."""


def _org_workflows(asked: Mapping[str, Any], columns: Sequence[str]) -> FromClause:
    """The view looks up the users of each workflow, if their columns are wanted, which suits a few workflows; for the
    whole list of an organisation, look once at everything that its users see."""
    org = str(asked.get("org", ""))
    if not org.startswith(WHOLE) or "flow" in asked or "last_listed_at" not in columns:
        return view("org_workflow", OrgWorkflow)
    whole = text(sql("whole_list")).bindparams(org_id=org.removeprefix(WHOLE))
    return whole.columns(*sql_columns(OrgWorkflow)).subquery("org_workflow")


WORKFLOWS: Final = ListView(
    "workflows",
    OrgWorkflow,
    _org_workflows,
    _STORY,
    {
        **_ORG,
        "flow": _id("flow_id"),
        **_LISTED,
        "which": _one_of({"uneditable": lambda c: c.editors == 0, "single": lambda c: c.users == 1}),
    },
)

UNLISTED: Final = ListView(
    "unlisted",
    UnlistedWorkflow,
    _view("unlisted_workflow", UnlistedWorkflow),
    _STORY,
    {**_ORG, "flow": _id("flow_id"), "name": _text("flow_name"), "find": _text("flow_id", "flow_name")},
)

# ------------------------------------------------------------------------------------------------------------ rules

FINDINGS: Final = ListView(
    "findings",
    Finding,
    _view("finding", Finding),
    ("rule", "-id"),
    {
        "rule": Filter("exact", lambda c, _, asked: c.rule.in_([asked] if isinstance(asked, str) else asked)),
        "show": _one_of({"open": lambda c: c.until.is_(None), "ended": lambda c: c.until.is_not(None)}),
    },
)

# ------------------------------------------------------------------------------------------------------------- runs

STATUSES: Final = ("running", "succeeded", "partial", "failed", "aborted")
RUNS: Final = ListView(
    "runs",
    SyncRun,
    _view("sync_run", SyncRun),
    ("-id",),
    {
        "schedule": _equal("schedule"),
        "status": Filter("one_of", lambda c, _, asked: c.status == asked, STATUSES),
        "run": _equal("id", "number"),
    },
)
