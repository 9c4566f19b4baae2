"""The service and the receiver of its webhook are killed at random moments; what happened arrives whole and in order.

More of it: `KILLS=50 SEED=7 make test ARGS=tests/acceptance/test_webhooks_killed.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from etl.database import reading, writing
from etl.domain.model import Flow
from tests.support import webhook_keeper
from tests.support.enos import LocalGateway
from tests.support.postgres import free_port
from tests.support.program import ANN, ORG, Program, here
from tests.support.served import wait_until
from tests.support.webhook_receiver import SECRET

KILLS, SEED = int(os.environ.get("KILLS", "2")), int(os.environ.get("SEED", "1"))
RULE = (
    "-- title: nothing is hourly\n-- key: org_id, flow_id\nSELECT org_id, flow_id FROM org_workflow WHERE cycle = 'H'"
)
HAPPENED = """
SELECT e.kind AS kind, e.event_id AS id FROM org_event e JOIN run_seal s ON s.run_id = e.run_id
WHERE s.id > :first ORDER BY s.id, e.event_id
"""
FOUND = """
SELECT id, 'began' AS what FROM finding UNION ALL SELECT id, 'ended' FROM finding WHERE until IS NOT NULL
"""


class Keeper:
    """The receiver's process, and what it has kept so far."""

    def __init__(self, file: Path, rng: random.Random) -> None:
        self._file, self._rng, self.port = file, rng, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        given = map(str, (self.port, self._file, SECRET, self._rng.randrange(10**6)))
        self._process = subprocess.Popen([sys.executable, webhook_keeper.__file__, *given])

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self._file, timeout=60)) as connection:
            return connection.execute(query).fetchall()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(row[0]) for row in self.rows("SELECT event FROM kept ORDER BY n")]


def asked(engine: Engine, query: str, **given: Any) -> list[Any]:
    with reading(engine) as connection:
        return [tuple(row) for row in connection.execute(text(query), given)]


def test_nothing_is_missing_or_out_of_order_however_often_both_sides_are_killed(
    flowtrail: Program, gateway: LocalGateway, database_url: str, engine: Engine
) -> None:
    rng = random.Random(SEED)
    keeper = Keeper(flowtrail.folder / "kept.db", rng)
    (flowtrail.folder / "secret").write_text(SECRET)
    (flowtrail.folder / "secret").chmod(0o600)
    (flowtrail.folder / "rules").mkdir()
    (flowtrail.folder / "rules" / "hourly.sql").write_text(RULE)
    flowtrail.database_url = database_url
    url = f"http://127.0.0.1:{keeper.port}/"
    flowtrail.configure(rest=f'[[webhook]]\nname = "tickets"\nurl = "{url}"\nsecret_file = "secret"')
    gateway.world.set_flows(ORG, ANN, [Flow(str(n), "one", "D", True) for n in range(1, 301)])
    assert here(flowtrail, "sync").exit_code == 0, "the webhook begins before it"
    keeper.start()
    try:
        for _ in range(KILLS):
            service = flowtrail.start("serve", PYTHONDONTWRITEBYTECODE="1")
            service.wait_for("run_ended")
            for _ in range(rng.randrange(1, 4)):
                time.sleep(rng.random())
                for number in rng.sample(range(1, 301), rng.choice((1, 5, 60))):
                    gateway.world.set_cycle(ORG, str(number), rng.choice("DHWM"))
                if rng.random() < 0.3:
                    keeper.kill()
                    keeper.start()
            time.sleep(rng.random())
            service.stop(signal.SIGKILL)
            with writing(engine) as connection:
                connection.execute(text("DELETE FROM lease"))  # it ends by itself, half a minute later
        assert here(flowtrail, "rules", "check").exit_code == 0
        wait_until(lambda: here(flowtrail, "sync").exit_code in (0, 1))
        wait_until(lambda: here(flowtrail, "notify").exit_code == 0)
    finally:
        keeper.kill()
    assert keeper.rows("SELECT * FROM wrong") == []
    events = keeper.events()
    of_flows = [(each["data"]["kind"], each["data"]["event_id"]) for each in events if "flow_id" in each["data"]]
    assert of_flows == asked(engine, HAPPENED, first=1)
    assert len(of_flows) > KILLS
    of_rules = [(e["data"]["id"], e["type"].rpartition(".")[2]) for e in events if "finding" in e["type"]]
    assert sorted(of_rules) == sorted(asked(engine, FOUND))
    assert all(of_rules.index((number, "began")) < n for n, (number, what) in enumerate(of_rules) if what == "ended")
    answers = Counter(row[0] for row in keeper.rows("SELECT answer FROM request"))
    print(f"{KILLS} kills: {len(of_flows)} events, {len(of_rules)} of findings, answers {dict(answers)}")
