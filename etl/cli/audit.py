"""The command that writes an audit bundle: audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etl import database
from etl.audit import Extent, write_bundle
from etl.cli import console, options
from etl.cli.empty_results import require_names
from etl.database import backup
from etl.errors import UsageError
from etl.export.files import whole_file
from etl.printable import counted
from etl.system.clock import utc_now


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(name="audit")(audit)


def audit(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, a zip archive.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="Runs sealed from then on: 2026-03-01, '7 days ago'.", show_default="the first run"
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Runs sealed before then.", show_default="the last run")
    ] = None,
    org: options.Org = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    timezone: options.Zone = "UTC",
    as_json: options.Json = False,
    config_file: options.Config = None,
) -> None:
    """Write a bundle for an auditor: the trail of that time, what proves it, and a checker that needs nothing else."""
    if output.is_file() and not force:
        raise UsageError(f"{output} exists already: --force replaces it.")
    extent = Extent(*options.period(since, until, timezone), org)
    with options.open_application(context, config_file) as app:
        database.require_current(app.engine)
        require_names(app.engine, org=org)
        now = utc_now()
        with backup.snapshot(app.engine) as engine, whole_file(output) as file:
            done = write_bundle(engine, file, extent, now)
    if as_json:
        console.json({"file": str(output), **done._asdict(), "extent": done.extent._asdict()})
        return
    if done.extent.until != extent.until:
        ends = console.cell(done.extent.until)
        console.complain(f"A run is under way: the bundle ends before it began, at {ends}.", "yellow")
    counts = f"{counted(done.targets, 'target')}, {counted(done.change_sets, 'change set')}, "
    counts += f"{counted(done.changes, 'change')}, {counted(done.answers, 'answer')}"
    console.say(f"{output}: {done.runs} of {counted(done.seals, 'sealed run')}, {counts}.", "bold")
    console.say(f"Check it anywhere: unzip {output} check.py, read it, and run `python check.py {output}`.")
