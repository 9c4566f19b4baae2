"""The picture in the README: a month of two small organisations, and the page that shows them. ``make pictures``."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import msgspec
from playwright.sync_api import sync_playwright

from etl.config import Schedule
from etl.config.slots import Every
from etl.database import connect, upgrade
from etl.demo.world import World
from etl.domain.model import Target
from etl.report.health import read_within
from etl.web.app import create_app
from etl.web.page import Site
from etl.web.server import HttpServer
from tests.support.builders import GAP
from tests.support.enos import Fault, LocalGateway
from tests.support.house import House

FOLDER = Path(__file__).parents[2] / "docs" / "images"
EVERY = Every(dt.timedelta(hours=6))
TURNS = 116
"""How many times everybody is asked: four times a day, for a month."""


def live(house: House, targets: list[Target]) -> None:
    """A month: changes on most days, a gateway that is down one evening, a false answer at the end."""
    for turn in range(TURNS):
        house.offset = EVERY.interval * (turn + 1 - TURNS) - dt.timedelta(minutes=5)
        house.upstream.date_offset_seconds = house.offset.total_seconds()
        if turn % 4 == 2:
            house.world.evolve(turn // 4 * 5 % 4)
        if turn == 67:
            house.upstream.order(Fault("code", code=62109, times=None))
            house.hurry(0.3)
        if turn == TURNS - 1:
            house.upstream.order(Fault("empty", times=None, org=targets[-1].org_id, user=targets[-1].user_id))
        house.run(*targets, origin="schedule", schedule="plants", scheduled_for=EVERY.latest_until(house.now()))
        if turn == 67:
            house.upstream.clear_faults()
            house.hurry(20)


def main() -> None:
    """Write docs/images/page.png."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/flowtrail.db"
        engine = connect(url)
        upgrade(engine)
        world = World(7, orgs=2, users=3, flows=300)
        targets = [Target(org, user) for org in world.orgs() for user in world.users(org)]
        with LocalGateway(world, auth="none") as upstream:
            house = House(engine, url, upstream, concurrency=6)
            house.settings = msgspec.structs.replace(house.settings, auth="none")
            live(house, targets)
        house.offset = dt.timedelta(0)
        schedules = [Schedule(name="plants", path=Path("plants.toml"), slots=EVERY, targets=tuple(targets))]
        site = Site(
            engine,
            now=house.now,
            next_fire_times=lambda: {"plants": EVERY.next_after(house.now())},
            role=lambda: "active",
            coverage_gap=GAP,
            read_health=lambda connection, at: read_within(connection, schedules, at),
        )
        FOLDER.mkdir(exist_ok=True)
        with HttpServer(create_app(site), "127.0.0.1", 0) as server, sync_playwright() as play:
            browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1260, "height": 1000}, color_scheme="light")
            page.goto(server.url)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=FOLDER / "page.png")
            browser.close()
        engine.dispose()


if __name__ == "__main__":
    main()
