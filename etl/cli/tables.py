"""Tables of changes and events for people, and in a sentence why a list is empty."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from etl.cli import console
from etl.cli.console import cell
from etl.domain.model import CYCLE_LABELS
from etl.errors import UsageError
from etl.report.details import event_detail_sentence
from etl.report.rows import OrgWorkflowEvent
from etl.report.targets import ObservedTargets, observed_targets, unknown_name

_COLUMNS: Final = ("observed_at", "org_id", "user_id", "expression", "flow_id", "change", "flow_name", "EnOS")
_IF_ANY: Final = ("expression", "EnOS")
SEARCHES_ONLY: Final = (
    "Only searches are known here: what happened in an organisation is concluded from whole lists, those of targets "
    "without an expression."
)


def event_table(
    title: str,
    events: Iterable[Any],
    *,
    zone: dt.tzinfo = dt.UTC,
    details: Sequence[str] = (),
) -> None:
    """Print a table of events, which have the columns of ``list_change``. Times are shown in ``zone``; ``details``
    is what EnOS said about each."""
    rows = [
        (e.observed_at, e.org_id, e.user_id, e.expression, e.flow_id, what_happened(e), e.new_name or e.old_name, said)
        for e, said in zip(events, chain(details, repeat("")), strict=False)
    ]
    console.table(title, _COLUMNS, rows, "no changes", zone=zone, if_any=_IF_ANY)


def cycle_label(code: str | None) -> str:
    """A cycle in words, as everything for people has it; one that EnOS does not document as it is."""
    return CYCLE_LABELS.get(code or "") or _shown(code)


def what_happened(event: Any) -> str:
    """The change in a few words."""
    match event.kind:
        case "cycle_changed":
            return f"cycle {cycle_label(event.old_cycle)} -> {cycle_label(event.new_cycle)}"
        case "renamed":
            return f"renamed, was {_shown(event.old_name)}"
        case "editable_changed":
            return f"editable {_shown(event.old_editable)} -> {_shown(event.new_editable)}"
        case "removed":
            return f"removed, cycle {cycle_label(event.old_cycle)}"
        case kind:
            return f"{kind}, cycle {cycle_label(event.new_cycle)}"


def story_table(
    title: str, events: Iterable[OrgWorkflowEvent], *, zone: dt.tzinfo = dt.UTC, enos_zone: dt.tzinfo | None = None
) -> None:
    """A table of an organisation's events."""
    rows = [
        (e.observed_at, e.org_id, e.flow_id, what_happened_to_all(e), e.new_name or e.old_name,
         e.users_after, "" if e.proven_for_all else "no", event_detail_sentence(e, enos_zone))
        for e in events
    ]  # fmt: skip
    columns = ("observed_at", "org_id", "flow_id", "event", "flow_name", "users_after", "proven_for_all", "EnOS")
    console.table(title, columns, rows, zone=zone, if_any=("proven_for_all", "EnOS"))


def what_happened_to_all(event: Any) -> str:
    """An organisation's event in a few words."""
    match event.kind:
        case "access_granted":
            return f"{event.user_id} was given access"
        case "access_lost":
            return f"{event.user_id} lost access"
        case "disappeared":
            return f"disappeared, cycle {cycle_label(event.old_cycle)}"
        case _:
            return what_happened(event)


def _shown(value: object) -> str:
    return console.cell(value) or "none"


class EmptyResult(NamedTuple):
    """An empty result, and what was asked for: to say why it is empty."""

    found: str
    """What is missing: "workflows"."""
    org: str | None
    user: str | None
    at: dt.datetime
    zone: dt.tzinfo
    narrowed: bool = False
    """Whether other filters were given too."""
    then: bool = False
    """Whether it is about a past moment."""
    whole_lists: bool = False
    """Whether only lists without a search expression count."""
    hint: str = ""
    """A sentence on what may be asked for instead."""

    def why_empty(self, engine: Engine) -> str:
        """Why nothing was found."""
        wrong = no_such_name(engine, org=self.org, user=self.user)
        if wrong is not None:
            return wrong
        seen = observed_targets(engine, self.at, org=self.org, user=self.user)
        if self.whole_lists and seen.targets and seen.searches == seen.targets:
            return SEARCHES_ONLY
        if not seen.observed:
            return _not_observed(seen, self.zone)
        none = f"No {self.found}{' then' if self.then else ''}"
        if seen.retired == seen.observed:
            return f"{none}: {_targets(seen.retired)} retired{' then' if self.then else ', and no longer asked for'}."
        if self.narrowed:
            last = cell(seen.last_at, self.zone)
            return f"No {self.found}: {_targets(seen.observed)} observed, last at {last}.{self.hint}"
        return f"{none}: {_targets(seen.observed - seen.retired)} observed, each with an empty list."


def require_names(engine: Engine, *, org: str | None = None, user: str | None = None) -> None:
    """Refuse names that no target has: a file or an account about nobody would look like an answer. Raises UsageError
    and DatabaseError."""
    wrong = no_such_name(engine, org=org, user=user)
    if wrong is not None:
        raise UsageError(wrong)


def not_observed_then(seen: ObservedTargets) -> str | None:
    """A sentence about the targets that a past list lacks because they had not been observed yet."""
    missing = seen.targets - seen.observed
    if not missing or not seen.observed:
        return None
    return f"{_targets(missing)} not observed by then, and are missing here: --targets shows which."


def no_such_name(engine: Engine, *, org: str | None = None, user: str | None = None) -> str | None:
    """A sentence about the first of the names that no target has. Raises DatabaseError."""
    wrong = unknown_name(engine, org=org, user=user)
    if wrong is None:
        return None
    what = "organisation" if wrong.what == "org_id" else "user"
    hint = f" Did you mean {wrong.similar!r}?" if wrong.similar not in (None, wrong.name) else ""
    where = ", in this organisation" if wrong.similar == wrong.name else ""
    return f"Unknown {what}{where}: {wrong.name!r}.{hint}"


def _not_observed(seen: ObservedTargets, zone: dt.tzinfo) -> str:
    if not seen.targets:
        return "Nothing was observed yet: run `flowtrail sync`."
    if seen.first_at is None:
        return f"Not observed yet: {_targets(seen.targets)} asked for, without a valid answer; see `flowtrail status`."
    return f"Not observed then: the first look was at {cell(seen.first_at, zone)}."


def _targets(count: int) -> str:
    return f"{count} target was" if count == 1 else f"{count} targets were"
