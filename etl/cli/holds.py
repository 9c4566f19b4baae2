"""The commands for removals and changes that wait for a person: guard list, guard approve."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import click
from click.exceptions import Exit

from etl.cli import CommandGroup, console
from etl.cli.lists import require_names
from etl.cli.options import SHOWN, Options, shared, typed_user
from etl.cli.run import show_report
from etl.domain.approvals import Approval, code, described, fits, is_code, scope_of_all, shown_set
from etl.domain.model import Target
from etl.errors import UsageError
from etl.report.listings import HELD_WORKFLOWS, held_sets
from etl.report.rows import HeldWorkflow
from etl.report.targets import unknown_name
from etl.sync import RunReport

_ANY: Final = "any"
_LONGEST_NAME: Final = 200
_COLUMNS: Final = (
    *("org_id", "user_id", "expression", "code", "held_since"),
    *("flow_id", "flow_name", "cycle", "held", "reason"),
)

guard = CommandGroup("guard", help="Removals and changes that wait for a person.")


@guard.command("list")
@shared("org", "timezone", "json", "config")
def list_held(options: Options) -> None:
    """Show what waits for a person, the reason, and the codes for `guard approve`."""
    zone, org = options.zone, options.org
    with options.reading() as app:
        held = list(held_sets(app.engine))
        of_all = code(scope_of_all(held)) if held else ""
        of_orgs = {name: code(scope_of_all(sets)) for name, sets in groupby(held, lambda each: each.target.org_id)}
        rows = _rows(HELD_WORKFLOWS.rows(app.engine, org=org))
        if options.json:
            console.json_list({**row, "org_code": of_orgs.get(row["org_id"], ""), "all_code": of_all} for row in rows)
            return
        _show_rows(rows, zone, unknown_name(app.engine, org=org) or "nothing is held")
    scope = of_orgs.get(org) if org else of_all
    if scope:
        which = f"--org {shlex.quote(org)}" if org else "--all"
        console.say("To approve one target: `flowtrail guard approve ORG USER --expect CODE`.")
        console.say(f"To approve all of them: `flowtrail guard approve {which} --expect {scope}`.")


@guard.command()
@click.argument("org_id", metavar="[ORG]", required=False)
@click.argument("user_id", metavar="[USER]", required=False, callback=typed_user)
@click.option("--all", "everything", is_flag=True, help="Every held target.")
@click.option(
    "--expect",
    metavar="CODE",
    show_default="asked for on a terminal",
    help="The code from `guard list`; 'any' approves whatever is held by then.",
)
@click.option("--by", show_default="your login", help="Who approves; recorded in the trail before your login.")
@shared("expression", "org", "json", "config", org="Every held target of an organisation.")
def approve(
    options: Options, org_id: str | None, user_id: str | None, everything: bool, expect: str | None, by: str | None
) -> None:
    """Confirm what is held: ask the gateway once more, and apply its answer."""
    if sum((user_id is not None, bool(options.org), everything)) != 1 or (org_id and user_id is None):
        raise UsageError("Name what to approve: `flowtrail guard approve ORG USER`, `--org ORG`, or `--all`.")
    if expect not in (None, _ANY) and not is_code(expect or ""):
        raise UsageError(f"--expect takes a code from `flowtrail guard list`, or 'any', not {expect!r}.")
    target = Target(org_id, user_id, options.expression) if org_id and user_id is not None else None
    signed = signature(by)
    with options.application(asks_gateway=True) as app:
        app.ready(upgrade=False)
        org = target.org_id if target else options.org
        require_names(app.engine, org=org)
        whom = str(target) if target else f"organisation {org}" if org else "all targets"
        held = [each for each in held_sets(app.engine, org=org) if target in (None, each.target)]
        if not held and (target or expect not in (None, _ANY)):
            raise UsageError(f"Nothing is held for {whom}: `flowtrail guard list` shows what is.")
        done: RunReport | None = None
        if held:
            scope, changes = held[0].scope if target else scope_of_all(held), sum(each.changes for each in held)
            if expect is None:
                rows = (row for row in HELD_WORKFLOWS.rows(app.engine, org=org) if target in (None, Target(*row[:3])))
                _ask_person(rows, scope, changes, as_json=options.json)
            elif expect != _ANY and not fits(expect, scope):
                raise UsageError(
                    f"Not approved: {expect} is not the code of what is held for {whom} now, {changes} changes with "
                    f"the code {code(scope)}. Look at `flowtrail guard list` before you approve them."
                )
            scopes = None if expect == _ANY else {each.target: each.scope for each in held}
            targets = [each.target for each in held]
            store = app.sealing_store()
            with app.telling_webhooks(store):
                context = app.run_context(store)
                done = app.run("approval", targets, context=context, approval=Approval(signed, scopes))
            app.keep_heads()
    if done is None:
        console.json(None) if options.json else console.say("Nothing is held.")
        return
    show_report(done, options.json)
    if done.status != "succeeded":
        raise Exit(1)


def _ask_person(rows: Iterable[HeldWorkflow], scope: str, changes: int, *, as_json: bool) -> None:
    """Raises UsageError without a terminal, and Exit if the person says no."""
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "Say what you approve: `--expect CODE` with the code from `flowtrail guard list`, "
            "or `--expect any` for whatever is held now."
        )
    _show_rows(_rows(rows), dt.UTC)
    if not click.confirm(f"Approve these {changes} changes (code {code(scope)})?"):
        console.say("Nothing was approved.")
        raise Exit(1)


def signature(by: str | None) -> str:
    """The name that goes into the trail: the one that the person gives, and the login that the system knows."""
    login = f"{_login()}@{socket.gethostname()}"
    if not by:
        return login
    if not by.isprintable() or len(by) > _LONGEST_NAME:
        raise UsageError(f"--by must be printable text of at most {_LONGEST_NAME} characters.")
    return f"{by} ({login})"


def _login() -> str:
    """The login of the process's user id; the environment could be set to any name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _rows(removals: Iterable[HeldWorkflow]) -> Iterator[dict[str, Any]]:
    """Each workflow with what is held of it, and the code of its target's held set."""
    for (*key, since), of_target in groupby(removals, key=itemgetter(0, 1, 2, 3)):
        listed = list(of_target)
        own = code(shown_set(Target(*key), since, ((row.flow_id, row.doubted) for row in listed)).scope)
        yield from ({**row._asdict(), "held": described(row.doubted), "code": own} for row in listed)


def _show_rows(rows: Iterable[Mapping[str, Any]], zone: dt.tzinfo, empty: str = "nothing is held") -> None:
    console.rows("", _COLUMNS, rows, empty, zone=zone, most=SHOWN, more="`flowtrail guard list --json` lists all")
