"""What ``flowtrail demo`` shows: step by step, what happens upstream before each sync."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from etl.demo.gateway import DemoGateway
from etl.demo.world import World
from etl.domain.model import Flow

ACCESS_KEY = "demo-access-key"
SECRET_KEY = "demo-secret-key"  # noqa: S105 - invented for the demo


def world(seed: int) -> World:
    """Two organisations with three users each; small enough to read, large enough for the guard."""
    return World(seed, orgs=2, users=3, flows=24)


def write_settings(folder: Path, gateway_url: str, schedule: dict[str, list[str]]) -> Path:
    """A settings file, a secret and a schedule for the local gateway, with the directory of each organisation, asked
    for as its first user; returns the settings file."""
    (folder / "schedules").mkdir(parents=True, exist_ok=True)
    secret = folder / "secret"
    with open(os.open(secret, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(SECRET_KEY)
    targets = "\n".join(
        f'[[targets]]\norg = "{org}"\nusers = {users!r}\ndirectory = "{users[0]}"\n' for org, users in schedule.items()
    )
    (folder / "schedules" / "plants.toml").write_text(f'cron = "*/15 * * * *"\n\n{targets}', encoding="utf-8")
    settings = folder / "flowtrail.toml"
    settings.write_text(
        f'[gateway]\nurl = "{gateway_url}"\naccess_key = "{ACCESS_KEY}"\nsecret_key_file = "secret"\n'
        'timeout = "1s"\ndeadline = "1s"      # short, so that the outage is\n',
        encoding="utf-8",
    )
    return settings


def scenes(gateway: DemoGateway) -> Iterator[tuple[str, str]]:
    """The title of each act, and the explanation before its sync. Each changes the world or the gateway, and expects
    one sync before the next."""
    org = gateway.world.orgs()[0]
    user, other, *_ = gateway.world.users(org)
    yield ("The first look", "Nothing was known before, so the lists become baselines, not a burst of 'added'.")
    yield ("Nothing happened", "The same lists in another order: one hash per target, and nothing new in the trail.")
    renamed, faster, gone, taken = sorted(gateway.world.flows(org, user), key=lambda flow: flow.flow_id)[:4]
    gateway.world.set_cycle(org, faster.flow_id, "H" if faster.cycle != "H" else "D")
    gateway.world.rename(org, renamed.flow_id, f"{renamed.flow_name}_v2")
    gateway.world.remove_flow(org, gone.flow_id)
    gateway.world.unlist(org, taken.flow_id)
    gateway.world.add_flow(org, Flow("9001", "carbon_ledger_monthly_close", "M", True), [user])
    yield (
        "A working day",
        f"In {org}: a new cycle, a new name, one workflow deleted, one taken from everybody, one new.",
    )
    gateway.down = True
    yield ("The gateway is down", "All eight targets fail, and no workflow is recorded as removed.")
    gateway.down, gateway.emptied = False, (other,)
    yield (
        "A false answer",
        f"The gateway says 'OK', and {other} has no workflows at all. The guard holds the removals.",
    )
    gateway.emptied = ()
    yield ("All is well again", "They were there all the time: the hold ends, and the trail shows no change.")
