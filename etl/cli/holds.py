"""The commands for removals and changes that wait for a person: guard list, guard approve."""

from __future__ import annotations

import datetime as dt
import os
import pwd
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final, NamedTuple

import click
from click.exceptions import Exit

from etl import sync
from etl.cli import CommandGroup, console
from etl.cli.application import Application, a_run
from etl.cli.options import Given, shared
from etl.cli.run import show_report
from etl.cli.tables import no_such_name, require_names
from etl.domain.holds import Approval, HeldSet, code, described, fits, is_code, scope_of_all, shown_set
from etl.domain.model import Target
from etl.errors import UsageError
from etl.report import HeldWorkflow, Report
from etl.sync import RunReport
from etl.system.clock import utc_now

_ANY: Final = "any"
_SHOWN: Final = 200
"""Rows of a table on a screen."""
_LONGEST_NAME: Final = 200
_COLUMNS: Final = (
    *("org_id", "user_id", "expression", "code", "held_since"),
    *("flow_id", "flow_name", "cycle", "held", "reason"),
)

guard = CommandGroup("guard", help="Removals and changes that wait for a person.")


class _Selection(NamedTuple):
    """Of whom what is held is to be approved: one target, an organisation, or all."""

    org: str | None
    target: Target | None

    def held(self, report: Report) -> list[HeldSet]:
        found = report.held_sets(org=self.org)
        return [each for each in found if self.target in (None, each.target)]

    def __str__(self) -> str:
        return str(self.target) if self.target else f"organisation {self.org}" if self.org else "all targets"


@guard.command("list")
@shared("org", "timezone", "json", "config")
def list_held(given: Given) -> None:
    """Show what waits for a person, the reason, and the codes for `guard approve`."""
    zone, org = given.zone, given.org
    with given.reading(logs=True) as app:
        report = Report(app.engine)
        codes = _codes(report.held_sets())
        if given.json:
            console.json_list({**row, **codes.columns(row["org_id"])} for row in _rows(report.holds(org=org)))
            return
        _show_rows(_rows(report.holds(org=org)), zone, no_such_name(app.engine, org=org) or "nothing is held")
    scope = codes.by_org.get(org) if org else codes.of_all
    if scope:
        which = f"--org {shlex.quote(org)}" if org else "--all"
        console.say("To approve one target: `flowtrail guard approve ORG USER --expect CODE`.")
        console.say(f"To approve all of them: `flowtrail guard approve {which} --expect {scope}`.")


@guard.command()
@click.argument("org_id", metavar="[ORG]", required=False)
@click.argument("user_id", metavar="[USER]", required=False)
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
    given: Given, org_id: str | None, user_id: str | None, everything: bool, expect: str | None, by: str | None
) -> None:
    """Confirm what is held: ask the gateway once more, and apply its answer."""
    selection = _selection(given, org_id, user_id, everything)
    _check_expected(expect)
    signature = _signature(by)
    with given.application(asks_gateway=True) as app:
        app.ready(upgrade=False)
        report = Report(app.engine)
        require_names(app.engine, org=selection.org)
        held = selection.held(report)
        if not held and (selection.target or expect not in (None, _ANY)):
            raise UsageError(f"Nothing is held for {selection}: `flowtrail guard list` shows what is.")
        done = None
        if held:
            _check_seen(report, selection, held, expect, as_json=given.json)
            scopes = None if expect == _ANY else {each.target: each.scope for each in held}
            done = _approve(app, [each.target for each in held], Approval(signature, scopes))
            app.keep_heads()
    if done is None:
        console.json(None) if given.json else console.say("Nothing is held.")
        return
    show_report(done, given.json)
    if done.status != "succeeded":
        raise Exit(1)


# ------------------------------------------------------------------------------------------------ what is approved


def _selection(given: Given, org_id: str | None, user_id: str | None, everything: bool) -> _Selection:
    if sum((bool(org_id and user_id), bool(given.org), everything)) != 1 or (org_id and not user_id):
        raise UsageError("Name what to approve: `flowtrail guard approve ORG USER`, `--org ORG`, or `--all`.")
    if org_id and user_id:
        return _Selection(org_id, Target(org_id, user_id, given.expression))
    return _Selection(given.org, None)


def _check_expected(expect: str | None) -> None:
    if expect not in (None, _ANY) and not is_code(expect or ""):
        raise UsageError(f"--expect takes a code from `flowtrail guard list`, or 'any', not {expect!r}.")


def _check_seen(
    report: Report, selection: _Selection, held: Sequence[HeldSet], expect: str | None, *, as_json: bool
) -> None:
    """Require that exactly this set is approved. Raises UsageError, or Exit if a person says no."""
    scope = held[0].scope if selection.target else scope_of_all(held)
    changes = sum(each.changes for each in held)
    if expect is None:
        _ask_person(report, selection, scope, changes, as_json=as_json)
    elif expect != _ANY and not fits(expect, scope):
        raise UsageError(
            f"Not approved: {expect} is not the code of what is held for {selection} now, {changes} changes with the "
            f"code {code(scope)}. Look at `flowtrail guard list` before you approve them."
        )


def _ask_person(report: Report, selection: _Selection, scope: str, changes: int, *, as_json: bool) -> None:
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "Say what you approve: `--expect CODE` with the code from `flowtrail guard list`, "
            "or `--expect any` for whatever is held now."
        )
    shown = (each for each in report.holds(org=selection.org) if selection.target in (None, Target(*each[:3])))
    _show_rows(_rows(shown), dt.UTC)
    if not click.confirm(f"Approve these {changes} changes (code {code(scope)})?"):
        console.say("Nothing was approved.")
        raise Exit(1)


def _approve(app: Application, targets: Sequence[Target], approval: Approval) -> RunReport | None:
    return sync.run(
        app.run_context(app.sealing_store()),
        a_run("approval", len(targets)),
        targets,
        app.batches,
        clock=utc_now,
        approval=approval,
    )


def _signature(by: str | None) -> str:
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


# ---------------------------------------------------------------------------------------------------- what is shown


class _Codes(NamedTuple):
    """The codes that cover several targets."""

    of_all: str
    by_org: Mapping[str, str]

    def columns(self, org_id: str) -> dict[str, str]:
        return {"org_code": self.by_org.get(org_id, ""), "all_code": self.of_all}


def _codes(held_sets: Iterable[HeldSet]) -> _Codes:
    held = list(held_sets)
    by_org = {
        org_id: code(scope_of_all(of_org)) for org_id, of_org in groupby(held, key=lambda each: each.target.org_id)
    }
    return _Codes(code(scope_of_all(held)) if held else "", by_org)


def _rows(removals: Iterable[HeldWorkflow]) -> Iterator[dict[str, Any]]:
    """Each workflow with what is held of it, and the code of its target's held set."""
    for (*key, since), of_target in groupby(removals, key=itemgetter(0, 1, 2, 3)):
        listed = list(of_target)
        own = code(shown_set(Target(*key), since, ((row.flow_id, row.doubted) for row in listed)).scope)
        yield from ({**row._asdict(), "held": described(row.doubted), "code": own} for row in listed)


def _show_rows(rows: Iterable[Mapping[str, Any]], zone: dt.tzinfo, empty: str = "nothing is held") -> None:
    listed = list(islice(rows, _SHOWN + 1))
    used = [c for c in _COLUMNS if any(row[c] not in (None, "") for row in listed)]
    console.table("", used, ([row[c] for c in used] for row in listed[:_SHOWN]), empty, zone=zone)
    if len(listed) > _SHOWN:
        console.complain(f"Only the first {_SHOWN} are shown: `flowtrail guard list --json` lists all.", "dim")
