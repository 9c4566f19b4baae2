"""The command that writes an audit bundle: audit."""

from __future__ import annotations

from pathlib import Path

import click

from etl.audit import Extent, write_bundle
from etl.cli import console
from etl.cli.empty_results import require_names
from etl.cli.options import FILE, Given, shared
from etl.database import backup
from etl.errors import UsageError
from etl.export.files import whole_file
from etl.printable import counted
from etl.system.clock import utc_now


@click.command()
@click.option("--output", "-o", type=FILE, required=True, help="The file to write, a zip archive.")
@shared(
    *("since", "until", "org", "force", "timezone", "json", "config"),
    since="Runs sealed from then on: 2026-03-01, '7 days ago'; from the first run if omitted.",
    until="Runs sealed before then; to the last run if omitted.",
)
def audit(given: Given, output: Path) -> None:
    """Write a bundle for an auditor: the trail of that time, what proves it, and a checker that needs nothing else."""
    if output.is_file() and not given.force:
        raise UsageError(f"{output} exists already: --force replaces it.")
    extent = Extent(*given.period(), given.org)
    with given.reading(logs=True) as app:
        require_names(app.engine, org=given.org)
        now = utc_now()
        with backup.snapshot(app.engine) as engine, whole_file(output) as file:
            done = write_bundle(engine, file, extent, now)
    if given.json:
        console.json({"file": str(output), **done._asdict(), "extent": done.extent._asdict()})
        return
    if done.extent.until != extent.until:
        ends = console.cell(done.extent.until)
        console.complain(f"A run is under way: the bundle ends before it began, at {ends}.", "yellow")
    counts = f"{counted(done.targets, 'target')}, {counted(done.change_sets, 'change set')}, "
    counts += f"{counted(done.changes, 'change')}, {counted(done.answers, 'answer')}"
    console.say(f"{output}: {done.runs} of {counted(done.seals, 'sealed run')}, {counts}.", "bold")
    console.say(f"Check it anywhere: unzip {output} check.py, read it, and run `python check.py {output}`.")
