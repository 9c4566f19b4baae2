"""The commands for setting Flowtrail up and keeping it running: init, db, backup, prune; completion."""

from __future__ import annotations

import datetime as dt
from contextlib import nullcontext, suppress
from importlib.resources import files
from pathlib import Path
from typing import Final

import click
from click.exceptions import Exit
from click.shell_completion import get_completion_class

from etl import config, database
from etl.cli import CommandGroup, app, console
from etl.cli.application import Application
from etl.cli.options import FILE, Options, shared
from etl.database import backup
from etl.errors import UsageError
from etl.printable import counted
from etl.service.replica import LEASE
from etl.store import Store, copy
from etl.system import disk
from etl.system.clock import utc_now

db = CommandGroup("db", help="The database and its schema.")
_FILES: Final = {
    "bash": (".local/share/bash-completion/completions/flowtrail", ""),
    "zsh": (".zfunc/_flowtrail", " ~/.zshrc must have `fpath+=~/.zfunc` before `autoload -Uz compinit && compinit`."),
    "fish": (".config/fish/completions/flowtrail.fish", ""),
}
"""Where each shell looks for it below the home folder, and what else it takes."""


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
    with suppress(FileExistsError), disk.errors_named(path, but=FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        return True
    return False


@db.command()
@shared("config")
def upgrade(options: Options) -> None:
    """Create the schema, or bring it up to date; safe when several replicas start at once."""
    with options.application() as app:
        before = database.current(app.engine)
        database.upgrade(app.engine)
        now = database.expected()
        done = f"is at revision {now}" + ("" if before == now else f", upgraded from {before or 'nothing'}")
        console.say(f"The schema of {database.describe(app.engine.url)} {done}.")


@db.command()
@shared("json", "config")
def current(options: Options) -> None:
    """Show the schema's revision, and the one that this Flowtrail needs."""
    with options.application() as app:
        found, needed = database.current(app.engine), database.expected()
        if options.json:
            console.json({"current": found, "expected": needed})
        else:
            console.say(f"{database.describe(app.engine.url)}: revision {found or 'none'}, needs {needed}")


@db.command("check")
@click.option("--schema-only", is_flag=True, help="Skip SQLite's pages and indexes, which are read completely.")
@shared("json", "config")
def check_schema(options: Options, schema_only: bool) -> None:
    """Compare the schema with the expected one, including triggers and views; on SQLite, check every page and index."""
    with options.application() as app:
        marked = database.damage_of(app.engine)
        differences = database.check(app.engine)
        if not schema_only:
            differences += _integrity(app, after_damage=marked is not None)
        if options.json:
            console.json(differences)
        else:
            for difference in differences:
                console.say(difference, "red")
            if not differences:
                console.say(f"{database.describe(app.engine.url)} is as the migrations made it.")
        if marked is not None and database.damage_of(app.engine) is None:
            told = f"It had been found damaged ({marked.said}) and is intact now: writing continues."
            console.complain(told, "green")
        elif marked is not None:
            console.complain(database.damage_sentence(app.engine, marked), "red")
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
    remedy = "stop the service, or run `flowtrail backup`, which checks the copy"
    return [
        *found.damage,
        *(f"{each} was not checked completely, because writers were waiting: {remedy}" for each in found.unfinished),
    ]


@db.command("copy")
@click.option("--to", help="The URL of the other database, without a password.")
@click.option("--to-file", type=FILE, help="A file that holds the URL with its password.")
@click.option(
    "--while-active", is_flag=True, help="Copy while a service is active; what it writes meanwhile is left out."
)
@shared("upgrade", "json", "config", upgrade="Create the schema of the other database first.")
def copy_database(options: Options, to: str | None, to_file: Path | None, while_active: bool) -> None:
    """Copy everything from the configured database into another, empty one: from SQLite to PostgreSQL, or back."""
    url = config.another_database(to, to_file)
    with options.application() as app:
        other = app.another_engine(url)
        if database.describe(other.url) == database.describe(app.engine.url):
            raise UsageError("Both are the same database: name another one to copy into.")
        database.require_current(app.engine)
        database.require_sound(app.engine)
        if options.upgrade:
            database.upgrade(other)
        database.require_current(other)
        for engine in (app.engine, other):
            _refuse_active(Store(engine, app.stop), database.describe(engine.url), while_active)
        written_meanwhile = backup.snapshot(app.engine) if while_active else nullcontext(app.engine)
        with written_meanwhile as source, console.progress("copying", hidden=options.json) as advance:
            copied = copy.copy(source, other, may_be_written=while_active, progress=advance)
    if options.json:
        console.json([each._asdict() for each in copied])
        return
    console.table("", ("table", "rows"), copied)
    console.say(f"Everything is in {database.describe(url)}, compared row by row. Set it as [database] url.", "bold")


def _refuse_active(store: Store, name: str, allowed: bool) -> None:
    holder = store.lease_holder(LEASE)
    if holder is not None and not allowed:
        raise UsageError(f"A service is active on {name} ({holder}): stop it first, or add --while-active.")


@db.command("grants")
@click.option("--owner", default="flowtrail_owner", help="Owns everything, runs the migrations.")
@click.option("--writer", default="flowtrail_writer", help="The service: appends the trail.")
@click.option("--reader", default="flowtrail_reader", help="For reports: reads.")
def print_grants(owner: str, writer: str, reader: str) -> None:
    """Print the SQL that gives PostgreSQL an owner, a writer that cannot rewrite the trail, and a reader."""
    console.stream(statement.encode() + b"\n" for statement in database.grants(owner, writer, reader))


@click.command("backup")
@click.argument("file", type=FILE, help="The file to write.")
@shared("force", "config")
def back_up(options: Options, file: Path) -> None:
    """Copy the SQLite database into a checked file while the service runs; for PostgreSQL, print the commands."""
    with options.reading() as app:
        if app.engine.dialect.name != "sqlite":
            dump = backup.dump_of(app.engine, file)
            console.say(f"{dump.backup}\n{dump.restore}")
            raise UsageError(
                "Nothing was done: PostgreSQL's own tools make the backup (first line) and restore it (second line, "
                "into a database NEW). They ask for the password, or find it in ~/.pgpass."
            )
        with console.progress("copying", hidden=False) as advance:
            backup.backup(app.engine, file, force=options.force, progress=advance)
    console.complain(
        f"{file} written and checked: `flowtrail verify` with it as [database] url proves the trail.", "green"
    )


@click.command()
@click.option("--before", help="Delete runs that ended before this time.")
@click.option("--keep", show_default="keep_runs", help="Delete runs older than this, such as 90d.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@shared("timezone", "json", "config")
def prune(options: Options, before: str | None, keep: str | None, dry_run: bool) -> None:
    """Delete the issues of old runs; the runs and their seals stay, and the trail is never touched."""
    with options.application() as app:
        limit = _limit(app, options, before, keep)
        database.require_current(app.engine)
        database.require_sound(app.engine)
        gone = app.sealing_store().prune_runs(
            limit, utc_now(), has_receivers=bool(app.settings.notify), dry_run=dry_run
        )
        app.keep_heads()
    if options.json:
        console.json({"before": limit, "runs": gone.runs, "issues": gone.issues, "dry_run": dry_run})
        return
    would = "would be deleted" if dry_run else "deleted"
    what = f"{counted(gone.issues, 'issue')} of {counted(gone.runs, 'run')}"
    console.say(f"{what} that ended before {console.cell(limit)} UTC {would}.")


def _limit(app: Application, options: Options, before: str | None, keep: str | None) -> dt.datetime:
    if before is not None and keep is not None:
        raise UsageError("Give either --before or --keep, not both.")
    if (moment := options.moment(before)) is not None:
        return moment
    try:
        length = app.settings.retention.keep_runs if keep is None else config.retention_period(keep)
    except ValueError as error:
        raise UsageError(f"--keep {error}.") from None
    if length is None:
        raise UsageError("Runs are kept for ever here: say which to delete, with --keep 400d or --before.")
    return utc_now() - length


def complete(shell: str, *, install: bool) -> None:
    """Print the script for ``shell`` (default: the current one), or install it. Raises UsageError."""
    shell = shell or config.shell_name()
    found = get_completion_class(shell) if shell in _FILES else None
    if found is None:
        raise UsageError(f"There is no completion for {shell or 'an unknown shell'}: name one of {', '.join(_FILES)}.")
    script = found(app, {}, "flowtrail", "_FLOWTRAIL_COMPLETE").source()
    if not install:
        click.echo(script)
        return
    name, more = _FILES[shell]
    path = Path.home() / name
    with disk.errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, encoding="utf-8")
    console.say(f"{path} written: a new {shell} completes flowtrail.{more}")
