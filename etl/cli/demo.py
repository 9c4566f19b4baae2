"""``flowtrail demo``: runs the tour of etl.demo with the real program."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import click

from etl import config
from etl.cli import console
from etl.cli.application import Application
from etl.cli.lists import CHANGE_COLUMNS, EVENT_COLUMNS, change_cells, event_cells
from etl.cli.options import FILE
from etl.cli.run import show_report
from etl.demo import tour
from etl.demo.gateway import DemoGateway
from etl.domain.kinds import DELTA_KINDS
from etl.errors import UsageError
from etl.report.health import read_within
from etl.report.listings import CHANGES, EVENTS
from etl.system import disk
from etl.system.clock import utc_now


@click.command()
@click.option("--folder", type=FILE, help="Folder for everything; a new temporary one if omitted.")
@click.option("--seed", type=int, default=7, help="Seed of the simulated world.")
@click.option("--serve", is_flag=True, help="Serve the page afterwards, until Ctrl-C.")
@click.option("--listen", default="127.0.0.1:8787", help="Address for --serve.")
def demo(folder: Path | None, seed: int, serve: bool, listen: str) -> None:
    """Show a day on this machine: changes, an outage, a false answer, and the trail they leave."""
    if folder is not None and (folder / "flowtrail.db").exists():
        raise UsageError(f"{folder} already has a flowtrail.db: name another --folder, the demo starts from nothing.")
    with disk.temporary_files():
        home = folder or Path(tempfile.mkdtemp(prefix="flowtrail-demo-"))
    world = tour.world(seed)
    with DemoGateway(world) as gateway:
        with disk.errors_named(home / "flowtrail.toml"):
            settings_file = tour.write_settings(home, gateway.url, {org: world.users(org) for org in world.orgs()})
        with Application(config.load(settings_file, {})) as app:
            app.ready(upgrade=True)
            for number, (title, text) in enumerate(tour.scenes(gateway), 1):
                _show(app, f"{number}. {title}", text)
            trail = change_cells(CHANGES.rows(app.engine, kind=DELTA_KINDS))
            console.table("\nThe trail, without its baselines", CHANGE_COLUMNS, trail, None)
            events = event_cells(app, EVENTS.rows(app.engine))
            console.table("\nWhat happened in the organisation, each thing once", EVENT_COLUMNS, events, None)
            _show_what_next(settings_file)
            if serve:
                _keep_the_page_up(app, listen)


def _show(app: Application, title: str, text: str) -> None:
    console.say(f"\n{title}", "bold cyan")
    console.say(text, "dim")
    show_report(app.run("command", app.schedules[0].targets, app.schedules[:1]), as_json=False)


def _keep_the_page_up(app: Application, listen: str) -> None:
    from etl.web.app import create_app
    from etl.web.page import Site
    from etl.web.server import HttpServer

    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise UsageError(f"--listen takes HOST:PORT, not {listen!r}.")
    slots = app.schedules[0].slots
    site = Site(
        app.engine,
        now=utc_now,
        next_fire_times=lambda: {"plants": slots.next_after(utc_now())},
        role=lambda: "active",
        coverage_gap=app.settings.coverage_gap,
        read_health=lambda connection, at: read_within(connection, app.schedules, at),
    )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with HttpServer(create_app(site), host or "127.0.0.1", int(port)) as server:
        console.say(f"\nThe page: {server.url} (Ctrl-C ends it)", "bold")
        stopped.wait()


def _show_what_next(settings_file: Path) -> None:
    flowtrail = "flowtrail" if shutil.which("flowtrail") else str(Path(sys.argv[0]).absolute())
    console.say("\nEverything is in one SQLite file. Try next:", "bold")
    for command in ("changes --kind cycle_changed", "flows --org o15427722038191", "workflows --unlisted", "status"):
        console.say(f"  {flowtrail} --config {settings_file} {command}")
