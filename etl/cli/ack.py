"""The commands that say who agreed to a change: ack, ack list, ack revoke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.holds import signature
from etl.cli.lists import EVENT_COLUMNS, event_cells, require_names
from etl.cli.options import SHOWN, Options, shared
from etl.database import reading
from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS
from etl.errors import UsageError
from etl.printable import counted
from etl.report.listings import ACKNOWLEDGEMENTS, CHANGES, EVENTS
from etl.report.names import WHOLE
from etl.report.rows import OrgWorkflowEvent
from etl.system.clock import utc_now

if TYPE_CHECKING:
    from etl.store import NewAcknowledgement

_KINDS: Final = tuple(dict.fromkeys((*EVENT_KINDS, *DELTA_KINDS)))
_LONGEST: Final = {"ticket": 200, "note": 2_000}
_COLUMNS: Final = (
    *("id", "made_at", "made_by", "ticket", "note", "org_id", "flow_id", "user_id", "kind", "after", "until"),
    *("revokes", "revoked_by"),
)
_BY: Final = click.option("--by", show_default="your login", help="Who agrees; recorded before your login.")
_NOTE: Final = click.option("--note", help="Why.")


@click.group("ack", cls=CommandGroup, invoke_without_command=True)
@click.option("--event", "event_ids", type=int, multiple=True, metavar="ID", help="This event; may be repeated.")
@click.option("--kind", type=click.Choice(_KINDS), metavar="KIND", help=f"Only this kind: {', '.join(_KINDS)}.")
@_BY
@click.option("--ticket", help="The ticket under which it was agreed.")
@_NOTE
@shared(
    *("org", "flow", "user", "since", "until", "timezone", "json", "config"),
    org="What happens in this organisation.",
    user="Only this user's access, and changes of this user's list.",
    since="Only what happened after then: 'yesterday', '7 days ago', ISO.",
    until="Only what happened before then; without it, also all that comes.",
)
def ack(options: Options, event_ids: Sequence[int], kind: str | None, by: str | None, **why: str | None) -> None:
    """Say that you agree to events, those of a scope or these, and show which these are now.

    Made afterwards it accepts what happened, made before it announces it. Each event of the scope that is found later
    counts, too.
    """
    scoped = (options.org, options.flow, options.user, options.since, options.until, kind)
    if command := click.get_current_context().invoked_subcommand:
        if event_ids or by or any((*scoped, *why.values())):
            raise UsageError(f"Options of `ack {command}` go behind it: see `flowtrail ack {command} --help`.")
        return
    if bool(event_ids) == bool(options.org) or (event_ids and any(scoped)):
        raise UsageError("Name what you agree to: `flowtrail ack --event ID`, or `flowtrail ack --org ORG`.")
    for name in ("flow", "user"):
        if getattr(options, name) == "":
            raise UsageError(f"--{name} is empty: leave it out for any.")
    after, until = options.period()
    said: dict[str, Any] = {"made_by": signature(by), **{name: _text(name, value) for name, value in why.items()}}
    with options.application() as app:
        app.ready(upgrade=False)
        from etl.store import NewAcknowledgement, Store

        if options.org:
            require_names(app.engine, org=options.org)
            scope = {"org_id": options.org, "flow_id": options.flow, "user_id": options.user, "kind": kind}
            new = [NewAcknowledgement(**{**said, **scope, "after": after, "until": until})]
        else:
            new = [_of_event(event, said) for event in _events(app, event_ids)]
        made = Store(app.engine, app.stop).acknowledge(new, utc_now())
        most = None if options.json else SHOWN + 1
        found = (event for each in new for event in EVENTS.rows(app.engine, **_asked(each), limit=most))
        events = {event.event_id: event for event in found}
        with reading(app.engine) as connection:
            count = EVENTS.count(connection, **_asked(new[0], WHOLE)) if len(new) == 1 else len(events)
            changes = sum(CHANGES.count(connection, **_changes(each)) for each in new)
        ids = range(made.first, made.last + 1)
        if options.json:
            listed = [event._asdict() for event in events.values()]
            console.json({"ids": list(ids), "made_at": made.at, "events": listed, "changes": changes})
            return
        names = ", ".join(map(str, ids))
        covered = f"{counted(count, 'event')}, and {counted(changes, 'change')} of lists"
        console.say(f"Acknowledgement {names} covers now: {covered}.")
        how: dict[str, Any] = {"zone": options.zone, "most": SHOWN, "more": "--json lists all"}
        console.table("", EVENT_COLUMNS, event_cells(app, events.values()), None, **how)
        if options.org and until is None:
            console.say("It also covers all that happens from now on: --until ends it.")
        console.say(f"To take it back: `flowtrail ack revoke {made.first}`.")


def _events(app: Application, event_ids: Sequence[int]) -> list[OrgWorkflowEvent]:
    found = []
    for event_id in dict.fromkeys(event_ids):
        event = next(EVENTS.rows(app.engine, event=event_id, limit=1), None)
        if event is None:
            raise UsageError(f"There is no event {event_id}: `flowtrail events` lists them, by event_id.")
        found.append(event)
    return found


def _of_event(event: OrgWorkflowEvent, said: dict[str, Any]) -> NewAcknowledgement:
    """What covers an event: its workflow, its kind, its user, and the time in which it happened."""
    from etl.store import NewAcknowledgement

    same = {name: getattr(event, name) for name in ("org_id", "flow_id", "user_id", "kind")}
    return NewAcknowledgement(**said, **same, after=event.last_unchanged_at, until=event.observed_at)


def _changes(new: NewAcknowledgement) -> dict[str, Any]:
    """The same of changes of lists: a first list is none."""
    asked = _asked(new, WHOLE)
    return asked | {"kind": asked["kind"] or DELTA_KINDS}


def _asked(new: NewAcknowledgement, whole: str = "") -> dict[str, Any]:
    """What the events are asked for that an acknowledgement covers; ``whole`` goes before an id."""
    ids = {"org": new.org_id, "flow": new.flow_id, "user": new.user_id}
    asked = {name: whole + value for name, value in ids.items() if value is not None}
    return asked | {"after": new.after, "begun_before": new.until, "kind": (new.kind,) if new.kind else None}


def _text(name: str, value: str | None) -> str | None:
    if value is not None and (not value.isprintable() or len(value) > _LONGEST[name]):
        raise UsageError(f"--{name} must be printable text of at most {_LONGEST[name]} characters.")
    return (value or "").strip() or None


@ack.command("list")
@click.option("--ticket", help="Only this ticket.")
@shared(
    *("org", "user", "flow", "timezone", "limit", "json", "config"),
    user="Only those about this user.",
    flow="Only those about this workflow.",
)
def list_acknowledgements(options: Options, ticket: str | None) -> None:
    """Show who agreed to what, the latest first, and which of them were revoked."""
    with options.reading() as app:
        asked = {**options.filters(), "ticket": ticket}
        rows = ACKNOWLEDGEMENTS.rows(app.engine, **asked, newest_first=True, limit=options.one_more())
        if options.json:
            console.json_list(row._asdict() for row in rows)
            return
        none = "nobody acknowledged anything: `flowtrail ack` does"
        console.rows("", _COLUMNS, rows, none, zone=options.zone, most=options.most())


@ack.command()
@click.argument("number", metavar="ID", type=int)
@_BY
@_NOTE
@shared("json", "config")
def revoke(options: Options, number: int, by: str | None, note: str | None) -> None:
    """Take an acknowledgement back: from now on it covers nothing. It stays in the list, and so does this."""
    by, note = signature(by), _text("note", note)
    with options.application() as app:
        app.ready(upgrade=False)
        from etl.store import Store

        made = Store(app.engine, app.stop).revoke(number, by, note, utc_now())
    if options.json:
        console.json({"ids": [made.first], "made_at": made.at, "revokes": number})
        return
    console.say(f"Acknowledgement {number} no longer counts ({made.first}).")
