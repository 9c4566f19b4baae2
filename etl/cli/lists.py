"""The commands that read lists: flows, changes, history of users; events, workflows of organisations; runs.

Their tables are here, too, and the sentence that says why a list is empty.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice, repeat
from operator import itemgetter
from typing import Any, Final

import click
from sqlalchemy import Engine

from etl.cli import console
from etl.cli.application import Application
from etl.cli.console import cell
from etl.cli.options import Options, kinds_option, shared
from etl.database import reading
from etl.domain.kinds import CHANGE_KINDS, DELTA_KINDS, EVENT_KINDS, GONE
from etl.domain.model import CYCLE_LABELS
from etl.errors import UsageError
from etl.printable import counted
from etl.report.asof import flows_as_of, targets_as_of
from etl.report.condition_checks import incomplete_directories
from etl.report.details import (
    FlowDetail,
    any_details,
    detail_sentences,
    details_of_flow,
    event_detail_sentence,
    schedule_in_words,
    states_with_details,
    with_details,
)
from etl.report.listings import CHANGES, EVENTS, FLOWS, HISTORY, RUNS, STATES, STATUSES, TARGETS, UNLISTED, WORKFLOWS
from etl.report.rows import RUN_COUNTS, ListChange, ListState, OrgWorkflowEvent, UnlistedWorkflow
from etl.report.runs import CAUSE_COLUMNS, causes
from etl.report.targets import observed_targets, unknown_name
from etl.system.clock import utc_now

NO_WHOLE_LISTS: Final = (
    "No user's whole list is known here: what happened in an organisation, and who sees what, is concluded from these "
    "alone, not from searches and not from the directory."
)
_USERS_NAMED: Final = 5
_TARGET: Final = ("org_id", "user_id", "expression")
_WORKFLOW: Final = (*_TARGET, "flow_id", "flow_name", "cycle", "editable")
_NOW: Final = (*_WORKFLOW, "changed_at", "last_observed_at", "missing_since")
_THEN: Final = (*_WORKFLOW, "coverage", "observed_before", "observed_after")
_TARGETS_THEN: Final = (*_TARGET, "coverage", "observed_before", "observed_after", "flow_count")
_ORG_WORKFLOW: Final = ("org_id", "flow_id", "flow_name", "cycle")
_ORG_NOW: Final = (*_ORG_WORKFLOW, "users", "editors", "first_listed_at", "changed_at", "last_listed_at",
                   "users_in_gap", "in_directory")  # fmt: skip
_ORG_THEN: Final = (*_ORG_WORKFLOW, "valid_from", "valid_to", "from_kind", "proven_for_all")
_STATE: Final = (*_WORKFLOW, "valid_from", "valid_to", "from_kind", "last_listed_at")
_RUN: Final = ("id", "schedule", "origin", "status", "started_at", "finished_at", *RUN_COUNTS)
CHANGE_COLUMNS: Final = (
    *("observed_at", "org_id", "user_id", "expression", "flow_id", "change", "flow_name", "EnOS"),
    *("ticket", "acknowledged_by"),
)
EVENT_COLUMNS: Final = (
    *("event_id", "observed_at", "org_id", "flow_id", "event", "flow_name", "users_after", "proven_for_all", "EnOS"),
    *("ticket", "acknowledged_by"),
)


@click.command()
@click.option("--targets", is_flag=True, help="With --as-of: one row per target, including empty lists.")
@shared("org", "user", "flow", "name", "cycle", "as_of", "timezone", "limit", "json", "config")
def flows(options: Options, targets: bool) -> None:
    """List the workflows that exist now or existed at a time, and how well that is known."""
    if targets and not options.as_of:
        raise UsageError("--targets needs --as-of and a time.")
    asked, at = options.filters(), options.moment(options.as_of)
    whose = {"org": options.org, "user": options.user}
    with options.reading() as app:
        empty = partial(why_empty, app.engine, options, at=at)
        if at is None:
            _print(options, FLOWS.rows(app.engine, **asked, limit=options.one_more()), _NOW, empty)
        elif targets:
            _print(options, targets_as_of(app.engine, at, **whose), _TARGETS_THEN, empty)
        elif _print(options, flows_as_of(app.engine, at, **asked), _THEN, empty):
            seen = observed_targets(app.engine, at, org=options.org, user=options.user)
            if missing := seen.targets - seen.observed:
                lacking = f"{_targets(missing)} not observed by then, and are missing here: --targets shows which."
                console.complain(lacking, "yellow")


@click.command()
@click.option("--unlisted", is_flag=True, help="Instead those in an organisation's directory that no user sees now.")
@shared("org", "flow", "name", "cycle", "as_of", "timezone", "limit", "json", "config")
def workflows(options: Options, unlisted: bool) -> None:
    """List the workflows of organisations, each once, as they are now or were then."""
    asked, at = options.filters(), options.moment(options.as_of)
    if unlisted and (options.as_of or options.cycle):
        raise UsageError("--unlisted is about now, and a directory says no cycle: leave out --as-of and --cycle.")
    with options.reading() as app:
        empty = partial(why_empty, app.engine, options, at=at, whole_lists=True)
        if unlisted:
            rows = UNLISTED.rows(app.engine, **asked, limit=options.one_more())
            _print(options, rows, UnlistedWorkflow._fields, partial(_why_none_unlisted, app.engine, options))
            _complain_of_directories(app.engine, options)
        elif at is None:
            _print(options, WORKFLOWS.rows(app.engine, **asked, limit=options.one_more()), _ORG_NOW, empty)
        else:
            _print(options, STATES.rows(app.engine, **asked, at=at, limit=options.one_more()), _ORG_THEN, empty)


@click.command()
@click.argument("run_id", type=int, required=False)
@click.option("--schedule", help="Only runs of this schedule.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs that ended so, or are still running.")
@shared("timezone", "limit", "json", "config")
def runs(options: Options, run_id: int | None, schedule: str | None, status: str | None) -> None:
    """List the runs, the latest first; with RUN_ID, why targets of that run did not go through."""
    zone = options.zone
    with options.reading() as app:
        rows = RUNS.rows(app.engine, schedule=schedule, status=status, run=run_id, limit=options.one_more())
        if run_id is None:
            none = "No such runs." if schedule or status else "No runs: `flowtrail sync` makes one."
            _print(options, rows, _RUN, lambda: none)
            return
        found = list(rows)
        if not found:
            raise UsageError(f"There is no run {run_id}: `flowtrail runs` lists them.")
        with reading(app.engine) as connection:
            why = causes(connection, run_id)
    if options.json:
        console.json({**found[0]._asdict(), "causes": list(_objects(why))})
        return
    console.rows("", _RUN, found, zone=zone)
    console.rows("\nWhat did not go through, by cause", CAUSE_COLUMNS, why, zone=zone)


@click.command()
@kinds_option(CHANGE_KINDS)
@click.option("--baselines", is_flag=True, help="Show the first lists, too, which report no change.")
@shared("since", "until", "org", "user", "flow", "name", "timezone", "limit", "json", "config")
def changes(options: Options, kinds: Sequence[str], baselines: bool) -> None:
    """Show the trail: what was added, removed, or changed, and between which two observations."""
    kind = kinds or (CHANGE_KINDS if baselines else DELTA_KINDS)
    hint = "" if kinds or baselines else " --baselines shows their first lists."
    asked = options.filters()
    with options.reading() as app:

        def cells(rows: Iterable[ListChange]) -> Iterable[Sequence[object]]:
            if not any_details(app.engine):
                return change_cells(rows)
            found = list(rows)
            with reading(app.engine) as connection:
                return change_cells(found, detail_sentences(connection, found, app.enos_zone))

        rows = CHANGES.rows(app.engine, **asked, kind=kind, newest_first=True, limit=options.one_more())
        empty = partial(why_empty, app.engine, options, "such changes", hint=hint)
        _print(options, rows, CHANGE_COLUMNS, empty, cells, partial(with_details, app.engine))


@click.command()
@kinds_option(EVENT_KINDS)
@click.option("--unacknowledged", is_flag=True, help="Only what nobody acknowledged: see `flowtrail ack`.")
@shared(
    *("since", "until", "org", "user", "flow", "name", "timezone", "limit", "json", "config"),
    user="Only this user's access.",
)
def events(options: Options, kinds: Sequence[str], unacknowledged: bool) -> None:
    """Show what happened in organisations: each event once, however many users saw it."""
    asked = {**options.filters(), "acknowledged": "no" if unacknowledged else None}
    with options.reading() as app:
        rows = EVENTS.rows(app.engine, **asked, kind=kinds, newest_first=True, limit=options.one_more())
        what = "events that nobody acknowledged" if unacknowledged else "such events"
        empty = partial(why_empty, app.engine, options, what, of_user=False, whole_lists=True)
        _print(options, rows, EVENT_COLUMNS, empty, partial(event_cells, app))


@click.command()
@click.argument("flow_id", metavar="FLOW_ID")
@shared("org", "user", "timezone", "limit", "json", "config")
def history(options: Options, flow_id: str) -> None:
    """Show one workflow's life, users with the same one together, and what happened to it in its organisation."""
    how: dict[str, Any] = {"zone": options.zone, "most": options.most()}
    only_searches = True

    def lives(states: Iterable[ListState]) -> Iterable[Sequence[object]]:
        nonlocal only_searches
        found = list(states)
        only_searches = all(state.expression for state in found)
        return _cells(_STATE, same_lives(found))

    with options.reading() as app:
        rows = HISTORY.rows(app.engine, flow=flow_id, org=options.org, user=options.user)
        empty = partial(why_empty, app.engine, options, f"trace of workflow {flow_id!r}")
        shown = _print(options, rows, _STATE, empty, lives, partial(states_with_details, app.engine, flow_id))
        if options.json:
            return
        if shown and only_searches:
            console.say(NO_WHOLE_LISTS)
        happened = EVENTS.rows(app.engine, flow=flow_id, org=options.org, limit=options.one_more())
        console.table(
            "\nWhat happened to it in its organisation", EVENT_COLUMNS, event_cells(app, happened), None, **how
        )
        with reading(app.engine) as connection:
            details = details_of_flow(connection, flow_id, options.org)[::-1]
        answers = (each._replace(freq=each.freq and schedule_in_words(each.freq)) for each in details)
        console.rows("\nWhat EnOS said when it was asked", FlowDetail._fields, answers, None, **how)


def same_lives(states: Sequence[ListState]) -> list[ListState]:
    """One life for all users whose lives are the same to the second, whenever each of them was asked last."""
    lives: dict[Any, list[list[ListState]]] = {}
    for _, of_user in groupby(states, key=itemgetter(0, 1, 2)):
        life = list(of_user)
        same = tuple(
            (each.org_id, each.user_id == "", *each[2:7], cell(each.valid_from), cell(each.valid_to), each.from_kind)
            for each in life
        )
        lives.setdefault(same, []).append(life)
    return [
        together[0]._replace(
            user_id=_users([each.user_id for each in together]),
            last_listed_at=max(filter(None, (each.last_listed_at for each in together)), default=None),
        )
        for of_users in lives.values()
        for together in zip(*of_users, strict=True)
    ]


def _users(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _USERS_NAMED} more" if len(ids) > _USERS_NAMED else ""
    return ", ".join(ids[:_USERS_NAMED]) + more


# ---------------------------------------------------------------------------------------------------------- printing


def _objects(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (row._asdict() for row in rows)


def _print(
    options: Options,
    rows: Iterator[Any],
    columns: Sequence[str],
    empty: Callable[[], str],
    cells: Callable[[Iterator[Any]], Iterable[Sequence[object]]] | None = None,
    objects: Callable[[Iterator[Any]], Iterator[dict[str, Any]]] = _objects,
) -> bool:
    """Print the rows, or why there are none; return whether there are any."""
    if options.json:
        printed = console.json_list(objects(islice(rows, options.most())))
        if not printed:
            console.complain(empty(), "yellow")
        return printed
    shown = cells(rows) if cells else _cells(columns, rows)
    printed = console.table("", columns, shown, None, zone=options.zone, most=options.most())
    if not printed:
        console.say(empty())
    return printed


def _cells(columns: Sequence[str], rows: Iterable[Any]) -> Iterator[Sequence[object]]:
    """These columns; cycles in words, where the list says any."""
    for row in rows:
        yield [_cycle_of(row) if name == "cycle" else getattr(row, name) for name in columns]


def _cycle_of(row: Any) -> str:
    return "" if _is_of_directory(row) else cycle_label(row.cycle)


def _is_of_directory(row: Any) -> bool:
    return getattr(row, "user_id", None) == ""


def change_cells(changes: Iterable[ListChange], details: Iterable[str] = repeat("")) -> Iterator[Sequence[object]]:
    """``CHANGE_COLUMNS`` of changes; ``details`` is what EnOS said about each."""
    for e, said in zip(changes, details, strict=False):
        name = e.new_name or e.old_name
        agreed = (e.ticket, e.acknowledged_by)
        yield e.observed_at, e.org_id, e.user_id, e.expression, e.flow_id, what_happened(e), name, said, *agreed


def event_cells(app: Application, events: Iterable[OrgWorkflowEvent]) -> Iterator[Sequence[object]]:
    for e in events:
        doubt, said = "" if e.proven_for_all else "no", event_detail_sentence(e, app.enos_zone)
        what = (what_happened(e), e.new_name or e.old_name, e.users_after, doubt, said)
        yield e.event_id, e.observed_at, e.org_id, e.flow_id, *what, e.ticket, e.acknowledged_by


def cycle_label(code: str | None) -> str:
    """A cycle in words, as everything for people has it; one that EnOS does not document as it is."""
    return CYCLE_LABELS.get(code or "") or _shown(code)


def what_happened(event: Any) -> str:
    """A change, or an organisation's event, in a few words."""
    match event.kind:
        case "cycle_changed":
            return f"cycle {cycle_label(event.old_cycle)} -> {cycle_label(event.new_cycle)}"
        case "renamed":
            return f"renamed, was {_shown(event.old_name)}"
        case "editable_changed":
            return f"editable {_shown(event.old_editable)} -> {_shown(event.new_editable)}"
        case "access_granted":
            return f"{event.user_id} was given access"
        case "access_lost":
            return f"{event.user_id} lost access"
        case "baseline" | "added" | "removed" as kind if _is_of_directory(event):
            return str(kind)
        case "disappeared" if getattr(event, "in_directory", None) is not None:
            return f"{GONE[event.in_directory]}, cycle {cycle_label(event.old_cycle)}"
        case "removed" | "disappeared" as kind:
            return f"{kind}, cycle {cycle_label(event.old_cycle)}"
        case kind:
            return f"{kind}, cycle {cycle_label(event.new_cycle)}"


def _shown(value: object) -> str:
    return cell(value) or "none"


# --------------------------------------------------------------------------------------------------- an empty result


def why_empty(
    engine: Engine,
    options: Options,
    what: str = "",
    at: dt.datetime | None = None,
    *,
    of_user: bool = True,
    whole_lists: bool = False,
    hint: str = "",
) -> str:
    """Why there is no ``what``, or no workflow, ``at`` a past moment (None: now).

    ``of_user``: whether the user is one whose list was asked for. ``whole_lists``: whether only users' lists without a
    search expression count. ``hint``: what may be asked for instead.
    """
    narrowed = bool(what or options.flow or options.name or options.cycle)
    what = what or ("such workflows" if narrowed else "workflows")
    org, user = options.org, options.user if of_user else None
    wrong = unknown_name(engine, org=org, user=user)
    if wrong is not None:
        return wrong
    known = observed_targets(engine, at or utc_now(), org=org, user=user)
    seen = observed_targets(engine, at or utc_now(), org=org, user=user, whole_lists=True) if whole_lists else known
    if known.targets and not seen.targets:
        return NO_WHOLE_LISTS
    if not seen.targets:
        return "Nothing was observed yet: run `flowtrail sync`."
    if seen.first_at is None:
        asked = f"{_targets(seen.targets)} asked for"
        return f"Not observed yet: {asked}, without a valid answer; see `flowtrail status`."
    if not seen.observed:
        return f"Not observed then: the first look was at {cell(seen.first_at, options.zone)}."
    then = " then" if at else ""
    if seen.retired == seen.observed:
        return f"No {what}{then}: {_targets(seen.retired)} retired{then or ', and no longer asked for'}."
    if narrowed:
        last = cell(seen.last_at, options.zone)
        return f"No {what}: {_targets(seen.observed)} observed, last at {last}.{hint}"
    return f"No {what}{then}: {_targets(seen.observed - seen.retired)} observed, each with an empty list."


def _complain_of_directories(engine: Engine, options: Options) -> None:
    """What they listed last may not be so any more, or is not all that there is."""
    for known in TARGETS.rows(engine, org=options.org, user="", show="problems"):
        problem = "is held" if known.held_since else f"fails ({known.last_error_code})"
        last = f"at {cell(known.last_observed_at, options.zone)}" if known.last_observed_at else "never"
        console.complain(f"The directory of {known.org_id} {problem}: it was observed last {last}.", "yellow")
    with reading(engine) as connection:
        for incomplete in incomplete_directories(connection, {options.org} if options.org else None):
            console.complain(incomplete.sentence, "yellow")


def _why_none_unlisted(engine: Engine, options: Options) -> str:
    wrong = unknown_name(engine, org=options.org)
    if wrong is not None:
        return wrong
    directories = observed_targets(engine, utc_now(), org=options.org, user="")
    if directories.targets == directories.retired:
        return 'No directory is asked for: add `directory = "USER"` to [[targets]].'
    if not directories.observed:
        return "Not observed yet: no directory gave a valid answer; see `flowtrail status`."
    return "None: as far as is known, somebody sees each workflow in the directory."


def require_names(engine: Engine, *, org: str | None = None, user: str | None = None) -> None:
    """Refuse names that no target has: a file or an account about nobody would look like an answer. Raises UsageError
    and DatabaseError."""
    wrong = unknown_name(engine, org=org, user=user)
    if wrong is not None:
        raise UsageError(wrong)


def _targets(count: int) -> str:
    return f"{counted(count, 'target')} {'was' if count == 1 else 'were'}"
