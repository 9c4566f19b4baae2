"""dlt with its scd2 strategy: a resource of Arrow tables, fetched with requests in a thread pool.

Of dlt's variants this is the fastest here: rows as Arrow, with the hash that scd2 compares computed beforehand, loaded
by COPY of CSV on PostgreSQL. ``DICTS`` has the other one, rows as dictionaries.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import Holds, floor, requests_floor
from benchmarks.jobs import Job, Work

HOLDS = Holds(
    current="SELECT org_id, user_id, flow_id, flow_name, cycle, editable FROM flow WHERE _dlt_valid_to IS NULL",
    trail="SELECT count(*) FROM flow",
    closes_rows=True,
)
DICTS = False
COLUMNS = ("org_id", "user_id", "flow_id", "flow_name", "cycle", "editable")


def set_up(job: Job) -> None:
    """dlt makes its tables itself, in its first run."""


def prepare(job: Job) -> Work:
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["RUNTIME__LOG_LEVEL"] = "CRITICAL"
    os.environ["DLT_PROJECT_DIR"] = job.folder
    import dlt  # type: ignore[import-not-found]
    import pyarrow  # type: ignore[import-untyped]  # noqa: F401 - an import is no work
    import requests  # noqa: F401

    return lambda: work(job, dlt)


def work(job: Job, dlt: Any) -> None:
    strategy = {"disposition": "merge", "strategy": "scd2"}
    if not DICTS:
        strategy["row_version_column_name"] = "row_hash"
    resource = dlt.resource(dicts(job) if DICTS else tables(job), name="flow", write_disposition=strategy)
    pipeline = dlt.pipeline(
        pipeline_name="benchmark",
        pipelines_dir=str(Path(job.folder) / "dlt"),
        destination=destination(job, dlt),
        dataset_name="main" if job.file else "public",
    )
    pipeline.run(resource, loader_file_format=None if DICTS else "parquet" if job.file else "csv")


def destination(job: Job, dlt: Any) -> Any:
    if job.file:
        return dlt.destinations.sqlalchemy(credentials=f"sqlite:///{job.file}")
    of = job.server
    # By TCP: dlt's URL has no place for the directory of a socket.
    where = f"{of['user']}:{of['password']}@127.0.0.1:{of['port']}/{of['dbname']}"
    return dlt.destinations.postgres(credentials=f"postgresql://{where}")


def answered(job: Job) -> Iterator[tuple[tuple[str, str], Any]]:
    asked = job.asked()
    for who, body in zip(asked, requests_floor.bodies(job, asked), strict=True):
        yield who, floor.decoder.decode(body).data


def dicts(job: Job) -> Iterator[Any]:
    for who, items in answered(job):
        yield [dict(zip(COLUMNS, (*who, i.flow_id, i.flow_name, i.cycle, i.editable), strict=True)) for i in items]


def tables(job: Job, at_once: int = 100_000) -> Iterator[Any]:
    rows: list[tuple[Any, ...]] = []
    for who, items in answered(job):
        rows += [(*who, i.flow_id, i.flow_name, i.cycle, i.editable) for i in items]
        if len(rows) >= at_once:
            yield table(rows)
            rows = []
    if rows:
        yield table(rows)


def table(rows: list[tuple[Any, ...]]) -> Any:
    import pyarrow

    hashes = [hashlib.sha1("\x1f".join(map(str, row)).encode()).hexdigest() for row in rows]
    return pyarrow.table(dict(zip((*COLUMNS, "row_hash"), (*zip(*rows, strict=True), hashes), strict=True)))
