"""The commands backup, db copy and prune, and the maintenance that the service does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from etl import config, database, signing
from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import FILE, Given, shared
from etl.database import backup
from etl.errors import UsageError
from etl.service.maintenance import Maintenance
from etl.service.replica import LEASE, Service
from etl.service.verification import TimeStamps, Verification
from etl.store import Store, copy
from etl.system.clock import utc_now
from etl.verify import HeadsFile

_CONNECTIONS = 2


@click.command("backup")
@click.argument("file", type=FILE, help="The file to write.")
@shared("force", "config")
def back_up(given: Given, file: Path) -> None:
    """Copy the SQLite database into a checked file while the service runs; for PostgreSQL, print the commands."""
    with given.reading(logs=True) as app:
        if app.engine.dialect.name != "sqlite":
            dump = backup.dump_of(app.engine, file)
            console.say(f"{dump.backup}\n{dump.restore}")
            raise UsageError(
                "Nothing was done: PostgreSQL's own tools make the backup (first line) and restore it (second line, "
                "into a database NEW). They ask for the password, or find it in ~/.pgpass."
            )
        with console.counted("copying", hidden=False) as advance:
            backup.backup(app.engine, file, force=given.force, progress=advance)
    console.complain(
        f"{file} written and checked: `flowtrail verify` with it as [database] url proves the trail.", "green"
    )


@click.command()
@click.option("--before", help="Delete runs that ended before this time.")
@click.option("--keep", show_default="keep_runs", help="Delete runs older than this, such as 90d.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@shared("timezone", "json", "config")
def prune(given: Given, before: str | None, keep: str | None, dry_run: bool) -> None:
    """Delete the issues of old runs; the runs and their seals stay, and the trail is never touched."""
    with given.application() as app:
        limit = _limit(app, given, before, keep)
        database.require_current(app.engine)
        database.require_sound(app.engine)
        gone = app.sealing_store().prune_runs(
            limit, utc_now(), has_receivers=bool(app.settings.notify), dry_run=dry_run
        )
        app.keep_heads()
    if given.json:
        console.json({"before": limit, "runs": gone.runs, "issues": gone.issues, "dry_run": dry_run})
        return
    would = "would be deleted" if dry_run else "deleted"
    console.say(f"{gone.issues} issues of {gone.runs} runs that ended before {console.cell(limit)} UTC {would}.")


def _limit(app: Application, given: Given, before: str | None, keep: str | None) -> dt.datetime:
    if before is not None and keep is not None:
        raise UsageError("Give either --before or --keep, not both.")
    if (moment := given.moment(before)) is not None:
        return moment
    try:
        length = app.settings.retention.keep_runs if keep is None else config.retention_period(keep)
    except ValueError as error:
        raise UsageError(f"--keep {error}.") from None
    if length is None:
        raise UsageError("Runs are kept for ever here: say which to delete, with --keep 400d or --before.")
    return utc_now() - length


@click.command("copy")
@click.option("--to", help="The URL of the other database, without a password.")
@click.option("--to-file", type=FILE, help="A file that holds the URL with its password.")
@click.option(
    "--while-active", is_flag=True, help="Copy while a service is active; what it writes meanwhile is left out."
)
@shared("upgrade", "json", "config", upgrade="Create the schema of the other database first.")
def copy_database(given: Given, to: str | None, to_file: Path | None, while_active: bool) -> None:
    """Copy everything from the configured database into another, empty one: from SQLite to PostgreSQL, or back."""
    url = config.another_database(to, to_file)
    with given.application() as app:
        other = app.another_engine(url)
        if database.describe(other.url) == database.describe(app.engine.url):
            raise UsageError("Both are the same database: name another one to copy into.")
        database.require_current(app.engine)
        database.require_sound(app.engine)
        if given.upgrade:
            database.upgrade(other)
        database.require_current(other)
        for engine in (app.engine, other):
            _refuse_active(Store(engine, app.stop), database.describe(engine.url), while_active)
        written_meanwhile = backup.snapshot(app.engine) if while_active else nullcontext(app.engine)
        with written_meanwhile as source, console.counted("copying", hidden=given.json) as advance:
            copied = copy.copy(source, other, may_be_written=while_active, progress=advance)
    if given.json:
        console.json([each._asdict() for each in copied])
        return
    console.table("", ("table", "rows"), copied)
    console.say(f"Everything is in {database.describe(url)}, compared row by row. Set it as [database] url.", "bold")


def _refuse_active(store: Store, name: str, allowed: bool) -> None:
    holder = store.lease_holder(LEASE)
    if holder is not None and not allowed:
        raise UsageError(f"A service is active on {name} ({holder}): stop it first, or add --while-active.")


@contextmanager
def maintenance_running(app: Application, service: Service) -> Iterator[None]:
    """Let the active service keep chain heads and prune old runs, on separate connections."""
    kept = app.settings.retention
    if kept.keep_runs is None and not kept.heads_file:
        yield
        return
    engine = app.another_engine(app.settings.database.url, _CONNECTIONS)
    maintenance = Maintenance(
        app.sealing_store(engine),
        active=lambda: service.role == "active",
        clock=utc_now,
        keep_runs=kept.keep_runs,
        heads=HeadsFile(Path(kept.heads_file), engine) if kept.heads_file else None,
        has_receivers=bool(app.settings.notify),
        clock_is_right=lambda: _clock_is_right(app),
    )
    with maintenance.running():
        yield


def verification_of(app: Application, store: Store, service: Service) -> Verification:
    """What checks the trail while this replica is active, on a separate connection. Raises SigningError if a public key
    cannot be read."""
    return Verification(
        app.another_engine(app.settings.database.url, 1),
        store,
        active=lambda: service.role == "active",
        clock=utc_now,
        every=app.settings.verify.every,
        full=app.settings.verify.full,
        keys=[signing.load_public_key(Path(name)) for name in app.settings.verify.public_keys],
    )


def timestamps_of(app: Application, store: Store, service: Service) -> TimeStamps | None:
    """What has seals stamped while this replica is active; None if no authority is configured. Raises UsageError if the
    extra is not installed."""
    settings = app.settings.seal
    if not settings.timestamp_url:
        return None
    return TimeStamps(
        store,
        signing.timestamps_by(settings.timestamp_url),
        active=lambda: service.role == "active",
        clock=utc_now,
        every=settings.timestamp_every,
    )


def _clock_is_right(app: Application) -> bool | None:
    """Whether the gateway's clock confirms ours; None if no answer has come yet."""
    skew, limit = app.gateway.clock_skew, app.settings.gateway.max_clock_skew
    if not limit:
        return True
    return None if skew is None else abs(skew) <= limit
