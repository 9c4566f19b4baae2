"""Flowtrail itself: what `flowtrail sync` does, behind the parsing of its command line."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.contenders import Holds
from benchmarks.jobs import Job, Work

HOLDS = Holds(
    current=(
        "SELECT org_id, user_id, flow_id, flow_name, cycle, editable FROM workflow"
        " JOIN target ON target.id = workflow.target_id"
    ),
    trail="SELECT count(*) FROM workflow_change",
    quiet_statements=(19, 3),
    quiet_rows=(20, 4),
)

SETTINGS = """
[gateway]
url = "{job.gateway}"
access_key = "benchmark"
ca_bundle = "{job.certificate}"
concurrency = {job.concurrency}
max_body = "1GiB"
deadline = "10m"

[database]
url = "{job.url}"
"""
SCHEDULE = """
every = "15m"
targets_file = "{job.targets}"
"""


def set_up(job: Job) -> None:
    from etl import database

    folder = Path(job.folder)
    (folder / "schedules").mkdir()
    (folder / "flowtrail.toml").write_text(SETTINGS.format(job=job))
    (folder / "schedules" / "all.toml").write_text(SCHEDULE.format(job=job))
    engine = database.connect(job.url)
    database.upgrade(engine)
    engine.dispose()


def prepare(job: Job) -> Work:
    from etl.cli import app

    os.environ["FLOWTRAIL_GATEWAY__SECRET_KEY"] = "secret-of-the-benchmark"
    arguments = ["--config", str(Path(job.folder) / "flowtrail.toml"), "sync", "--json"]

    def sync() -> None:
        if code := app(arguments, standalone_mode=False):
            raise SystemExit(code)

    return sync
