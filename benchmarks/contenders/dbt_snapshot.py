"""dbt snapshot on top of a plain loader: the floor with requests fills a table, dbt compares it with its snapshot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from benchmarks.contenders import Holds, floor, requests_floor
from benchmarks.jobs import Job, Work

HOLDS = Holds(
    current="SELECT org_id, user_id, flow_id, flow_name, cycle, editable FROM flow_snapshot WHERE dbt_valid_to IS NULL",
    trail="SELECT count(*) FROM flow_snapshot",
    closes_rows=True,
    leaves_removed_on=("sqlite",),
)

PROJECT = """
name: benchmark
version: "1.0"
profile: benchmark
flags:
  send_anonymous_usage_stats: false
"""
SQLITE = """
benchmark:
  target: it
  outputs:
    it:
      type: sqlite
      threads: 1
      database: database
      schema: main
      schemas_and_paths: {{main: "{job.file}"}}
      schema_directory: "{job.folder}/none"
"""
POSTGRESQL = """
benchmark:
  target: it
  outputs:
    it:
      type: postgres
      threads: 1
      host: "{job.server[host]}"
      port: {job.server[port]}
      user: {job.server[user]}
      password: "-"
      dbname: {job.server[dbname]}
      schema: public
"""
SNAPSHOT = """
{{% snapshot flow_snapshot %}}
{{{{ config(
    target_schema="{schema}", unique_key=["org_id", "user_id", "flow_id"], strategy="check",
    check_cols=["flow_name", "cycle", "editable"], hard_deletes="invalidate",
) }}}}
SELECT org_id, user_id, flow_id, flow_name, cycle, editable
FROM {schema}.flow JOIN {schema}.asked ON asked.id = flow.target_id
{{% endsnapshot %}}
"""


def set_up(job: Job) -> None:
    floor.set_up(job)
    folder = Path(job.folder)
    (folder / "snapshots").mkdir()
    (folder / "dbt_project.yml").write_text(PROJECT)
    (folder / "profiles.yml").write_text((SQLITE if job.file else POSTGRESQL).format(job=job))
    snapshot = SNAPSHOT.format(schema="main" if job.file else "public")
    (folder / "snapshots" / "flow_snapshot.sql").write_text(snapshot)


def prepare(job: Job) -> Work:
    import requests  # noqa: F401 - an import is no work
    from dbt.cli.main import dbtRunner  # type: ignore[import-not-found]

    os.environ["DO_NOT_TRACK"] = "1"
    if job.file:
        give_sqlite_md5()
    return lambda: work(job, dbtRunner())


def give_sqlite_md5() -> None:
    """dbt-sqlite's snapshots want this function, which its documentation takes from an extension of SQLite."""
    from dbt.adapters.sqlite.connections import SQLiteConnectionManager  # type: ignore[import-not-found]

    opened = SQLiteConnectionManager.open

    def with_md5(connection: Any) -> Any:
        connection = opened(connection)
        connection.handle.create_function("md5", 1, md5, deterministic=True)
        return connection

    SQLiteConnectionManager.open = staticmethod(with_md5)


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def work(job: Job, runner: Any) -> None:
    asked = job.asked()
    floor.load(job, asked, requests_floor.bodies(job, asked))
    where = ("--project-dir", job.folder, "--profiles-dir", job.folder)
    done = runner.invoke(["--quiet", "snapshot", *where])
    if not done.success:
        raise RuntimeError(str(done.exception or [each.message for each in done.result]))
