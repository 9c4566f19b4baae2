"""The commands for setting Flowtrail up and keeping it running: init, db."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click
from click.exceptions import Exit

from etl import database
from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.maintenance import copy_database
from etl.cli.options import FILE, Given, shared
from etl.errors import UsageError
from etl.service.replica import LEASE
from etl.store import Store

db = CommandGroup("db", help="The database and its schema.")


@click.command()
@click.argument("folder", type=FILE, default=Path(), help="Where to write them.")
def init(folder: Path) -> None:
    """Write a commented flowtrail.toml and schedules/example.toml; never overwrite."""
    samples = {
        folder / "flowtrail.toml": files("etl.cli").joinpath("flowtrail.toml").read_text(encoding="utf-8"),
        folder / "schedules" / "example.toml": (_shipped("schedules") / "example.toml").read_text("utf-8"),
    }
    for path, text in samples.items():
        console.say(f"{path} {'written' if _write_new(path, text) else 'already exists and was left unchanged'}")
    console.say("\nNext: put the gateway's address and access key into flowtrail.toml and your organisations into")
    console.say("schedules/example.toml, export FLOWTRAIL_GATEWAY__SECRET_KEY, and run `flowtrail check`.")


def _shipped(folder: str) -> Path:
    """In a checkout it is next to ``etl/``; in the wheel it is inside."""
    package = Path(str(files("etl")))
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def _write_new(path: Path, text: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
    return True


@db.command()
@shared("config")
def upgrade(given: Given) -> None:
    """Create the schema, or bring it up to date; safe when several replicas start at once."""
    with given.application() as app:
        before = database.current(app.engine)
        database.upgrade(app.engine)
        now = database.expected()
        done = f"is at revision {now}" + ("" if before == now else f", upgraded from {before or 'nothing'}")
        console.say(f"The schema of {database.describe(app.engine.url)} {done}.")


@db.command()
@shared("json", "config")
def current(given: Given) -> None:
    """Show the schema's revision, and the one that this Flowtrail needs."""
    with given.application() as app:
        found, needed = database.current(app.engine), database.expected()
        if given.json:
            console.json({"current": found, "expected": needed})
        else:
            console.say(f"{database.describe(app.engine.url)}: revision {found or 'none'}, needs {needed}")


@db.command("check")
@click.option("--schema-only", is_flag=True, help="Skip SQLite's pages and indexes, which are read completely.")
@shared("json", "config")
def check_schema(given: Given, schema_only: bool) -> None:
    """Compare the schema with the expected one, including triggers and views; on SQLite, check every page and index."""
    with given.application() as app:
        marked = database.damage_of(app.engine)
        differences = database.check(app.engine)
        if not schema_only:
            differences += _integrity(app, after_damage=marked is not None)
        if given.json:
            console.json(differences)
        else:
            for difference in differences:
                console.say(difference, "red")
            if not differences:
                console.say(f"{database.describe(app.engine.url)} is as the migrations made it.")
        if marked is not None:
            _report_damage(app, marked)
    if differences:
        raise Exit(1)


def _integrity(app: Application, *, after_damage: bool) -> list[str]:
    """While a service is active, no table is locked longer than its writers wait. After damage nobody writes: then
    everything is checked, and an intact file may be written to again."""
    if database.current(app.engine) is None:
        return []
    active = Store(app.engine).lease_holder(LEASE) is not None and not after_damage
    limit = database.LIMIT_SECONDS if active else 0
    found = database.integrity(app.engine, limit_seconds=limit, everything=after_damage)
    if after_damage and found == database.WHOLE:
        database.note_whole(app.engine)
    return [*found.damage, *(_unfinished(table) for table in found.unfinished)]


def _report_damage(app: Application, marked: database.Damage) -> None:
    if database.damage_of(app.engine) is None:
        console.complain(f"It had been found damaged ({marked.said}) and is intact now: writing continues.", "green")
    else:
        console.complain(database.damage_sentence(app.engine, marked), "red")


def _unfinished(table: str) -> str:
    return (
        f"{table} was not checked completely, because writers were waiting: stop the service, "
        "or run `flowtrail backup`, which checks the copy"
    )


db.add_command(copy_database)


@db.command("grants")
@click.option("--owner", default="flowtrail_owner", help="Owns everything, runs the migrations.")
@click.option("--writer", default="flowtrail_writer", help="The service: appends the trail.")
@click.option("--reader", default="flowtrail_reader", help="For reports: reads.")
def print_grants(owner: str, writer: str, reader: str) -> None:
    """Print the SQL that gives PostgreSQL an owner, a writer that cannot rewrite the trail, and a reader."""
    console.stream(statement.encode() + b"\n" for statement in database.grants(owner, writer, reader))
