"""``flowtrail demo``: the story of etl.demo, with the real program in the leading part."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from etl import config, disk, sync
from etl.cli import show
from etl.cli.events import event_table
from etl.cli.running import show_report
from etl.cli.workbench import Workbench, a_run, utc_now
from etl.demo import story
from etl.demo.gateway import DemoGateway
from etl.errors import UsageError
from etl.model import CHANGE_KINDS
from etl.report import Report


def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Keep everything here; without, in a new temporary folder.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another world.")] = 7,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the page up afterwards, until Ctrl-C.")] = False,
    listen: Annotated[str, typer.Option("--listen", help="Where --serve shows it.")] = "127.0.0.1:8787",
) -> None:
    """Tell the whole story on this machine: changes, an outage, a bogus answer, and the trail they leave."""
    if folder is not None and (folder / "flowtrail.db").exists():
        raise UsageError(f"{folder} has a flowtrail.db already: name another --folder, the demo starts from nothing.")
    with disk.temporary_files():
        home = folder or Path(tempfile.mkdtemp(prefix="flowtrail-demo-"))
    world = story.world(seed)
    with DemoGateway(world, access_key=story.ACCESS_KEY, secret_key=story.SECRET_KEY) as gateway:
        with disk.errors_named(home / "flowtrail.toml"):
            settings_file = story.write_settings(home, gateway.url, {org: world.users(org) for org in world.orgs()})
        with Workbench(config.load(settings_file, {})) as bench:
            bench.ready(upgrade=True)
            for number, scene in enumerate(story.scenes(gateway), 1):
                _act(bench, number, scene)
            _show_trail(bench)
            _show_what_next(settings_file)
            if serve:
                _keep_the_page_up(bench, listen)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(demo)


def _act(bench: Workbench, number: int, scene: story.Scene) -> None:
    show.out().print(Text(f"\n{number}. {scene.title}", "bold cyan"))
    show.say(scene.told, "dim")
    targets = bench.schedules[0].targets
    report = sync.run(
        bench.kit(), a_run("command", len(targets)), targets, bench.settings.coverage_gap, bench.batches, clock=utc_now
    )
    assert report is not None  # noqa: S101 - a command's run has no slot
    show_report(report, as_json=False)


def _show_trail(bench: Workbench) -> None:
    kinds = [kind for kind in CHANGE_KINDS if kind != "baseline"]
    event_table("\nThe trail, without its baselines", Report(bench.engine).changes(kinds=kinds))


def _keep_the_page_up(bench: Workbench, listen: str) -> None:
    from etl.web import HttpServer, create_app

    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise UsageError(f"--listen takes HOST:PORT, not {listen!r}.")
    now = utc_now
    slots = bench.schedules[0].slots
    app = create_app(
        bench.engine, now=now, next_fire_times=lambda: {"plants": slots.next_after(now())}, role=lambda: "active"
    )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with HttpServer(app, host or "127.0.0.1", int(port)) as server:
        show.say(f"\nThe page: {server.url} (Ctrl-C ends it)", "bold")
        stopped.wait()


def _show_what_next(settings_file: Path) -> None:
    flowtrail = "flowtrail" if shutil.which("flowtrail") else str(Path(sys.argv[0]).absolute())
    show.say("\nEverything is in one SQLite file. Try next:", "bold")
    for command in ("changes --kind cycle_changed", "flows --org o15427722038191", "status"):
        show.say(f"  {flowtrail} --config {settings_file} {command}")
