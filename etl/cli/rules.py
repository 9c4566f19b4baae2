"""The commands about rules, and what `sync` does with them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.exceptions import Exit

from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.options import FILE, Options, shared
from etl.config.rules import Rules, read_rule, read_rules
from etl.domain.rules import as_object
from etl.errors import FlowtrailError, RuleFailed, UsageError
from etl.printable import counted
from etl.report.listings import FINDINGS
from etl.report.rules import RuleState, rule_states
from etl.service.replica import LEASE
from etl.service.rules import RuleBook
from etl.store import Store
from etl.system.clock import utc_now

_SHARE_SECONDS: Final = 2.0
"""After a sync no rule begins once so much time was spent on them."""
_LIST: Final = ("rule", "severity", "open", "since", "evaluated_at", "title", "error")
_FOUND: Final = ("rule", "severity", "since", "until", "ended_by", "found")
_STYLES: Final = {"error": "red", "warning": "yellow", "info": ""}
rules = CommandGroup("rules", help="The rules: queries that should find nothing.")


@rules.command("list")
@click.argument("names", nargs=-1)
@shared("timezone", "limit", "json", "config")
def list_rules(options: Options, names: Sequence[str]) -> None:
    """Show the rules and what is open; of each NAME, everything that it ever found."""
    zone = options.zone
    with options.reading() as app:
        _require_names(app, read_rules(app.settings.rules_dir), names)
        if not names:
            states = rule_states(app.engine)
            if options.json:
                console.json([each._asdict() for each in states])
                return
            empty = f"none was evaluated; their folder is {app.settings.rules_dir}"
            console.table("", _LIST, ([getattr(each, name) for name in _LIST] for each in states), empty, zone=zone)
            return
        found = FINDINGS.rows(app.engine, rule=names, limit=options.one_more())
        if options.json:
            console.json_list(_as_json(each) for each in found)
            return
        console.table("", _FOUND, ((*_cells(each),) for each in found), "it never found anything", zone=zone,
                      most=options.most())  # fmt: skip


@rules.command("check")
@click.argument("names", nargs=-1)
@click.option("--strict", is_flag=True, help="Exit with 1 if anything is open, whatever its severity.")
@shared("timezone", "limit", "json", "config")
def check_rules(options: Options, names: Sequence[str], strict: bool) -> None:
    """Evaluate all rules, or those with these names, and show what is open.

    Exits with 1 if a rule fails, or a finding of severity error is open.
    """
    zone = options.zone
    with options.application() as app:
        app.ready(upgrade=False)
        _require_names(app, read_rules(app.settings.rules_dir), names)
        store = Store(app.engine, app.stop)
        with app.telling_webhooks(store):
            rule_book(app, store).round(names, only_due=False)
        chosen = [each for each in rule_states(app.engine) if not names or each.rule in names]
        found = list(FINDINGS.rows(app.engine, rule=names, show="open", limit=options.one_more()))
    if options.json:
        console.json({"rules": [each._asdict() for each in chosen], "findings": [_as_json(each) for each in found]})
    else:
        for each in chosen:
            _say(each)
        if found:
            console.table("\nOpen", _FOUND, (_cells(each) for each in found), zone=zone, most=options.most())
    worst = [each for each in chosen if each.error or (each.open and (strict or each.severity == "error"))]
    if worst:
        raise Exit(1)


@rules.command("test")
@click.argument("file", type=FILE)
@shared("limit", "json", "config")
def test_rule(options: Options, file: Path) -> None:
    """Show what the rule in FILE would find now; nothing is written."""
    with options.reading() as app:
        rule = read_rule(file)
        made = rule_book(app, Store(app.engine, app.stop)).evaluate(rule)
    if made.error is not None:
        raise RuleFailed(f"The rule in {file} {made.error}.")
    rows = [as_object(row) for row in made.found.values()]
    if options.json:
        console.json(rows)
        return
    columns = list(rows[0]) if rows else []
    said = f"{counted(len(rows), 'finding')} in {made.took_ms / 1000:.2f} s"
    console.say(f"{rule.title} ({rule.severity}): {said}.", "bold")
    if rows:
        console.table("", columns, ([*row.values()] for row in rows), most=options.most())


def rule_book(app: Application, store: Store) -> RuleBook:
    """The rules of the settings, evaluated on a connection of their own."""
    return RuleBook(
        app.another_engine(pool_size=1, patience_seconds=5.0),
        store,
        app.settings.rules_dir,
        timeout=app.settings.rules.timeout,
        clock=utc_now,
        stopped=app.stop.is_set,
    )


def evaluate_after_sync(app: Application, store: Store) -> None:
    """Evaluate what is due after a run, for a short time, unless a service does; a failure is said, and is no error."""
    try:
        if store.lease_holder(LEASE) is not None:
            return
        began = time.monotonic()
        done = rule_book(app, store).round(go_on=lambda: time.monotonic() - began < _SHARE_SECONDS)
    except FlowtrailError as error:
        console.complain(f"The rules were not evaluated: {error}", "yellow")
        return
    if done.left:
        console.complain(
            f"Not evaluated: {counted(len(done.left), 'rule')}, as {_SHARE_SECONDS:g} s were spent on others. The next "
            "sync begins with these; `flowtrail rules check` evaluates all.",
            "yellow",
        )


def rule_problems(app: Application) -> Sequence[tuple[str, str | None]]:
    """Each rule, and what is wrong with its file or its statement (None: nothing); for `check`."""
    known = read_rules(app.settings.rules_dir)
    return [
        *((rule.name, None) for rule in known.usable),
        *((each.name or str(app.settings.rules_dir), str(each.problem)) for each in known.refused),
    ]


def _require_names(app: Application, known: Rules, names: Sequence[str]) -> None:
    there = known.names | {each.rule for each in rule_states(app.engine)}
    for name in names:
        if name not in there:
            raise UsageError(f"There is no rule {name!r} in {app.settings.rules_dir}: `flowtrail rules list` has all.")


def _say(state: RuleState) -> None:
    if state.error:
        console.say(f"BAD {state.rule}: {state.error}", "red")
    elif state.open:
        console.say(f"{counted(state.open, 'finding')} {state.rule}: {state.title}", _STYLES[state.severity])
    else:
        console.say(f"ok  {state.rule}: {state.title}")


def _as_json(found: Any) -> Mapping[str, Any]:
    return {**found._asdict(), "key": as_object(found.key), "row": as_object(found.row)}


def _cells(found: Any) -> list[Any]:
    shown = ", ".join(f"{name} {value}" for name, value in as_object(found.row).items() if value is not None)
    return [found.rule, found.severity, found.since, found.until, found.ended_by, shown]
