"""An afternoon's version: requests in a thread pool, SQLAlchemy, the difference in Python, a table of history."""

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any

from benchmarks.contenders import Holds
from benchmarks.contenders.requests_floor import Asker
from benchmarks.jobs import Job, Work

HOLDS = Holds(
    current="SELECT org_id, user_id, flow_id, flow_name, cycle, editable FROM flow",
    trail="SELECT count(*) FROM history",
)

Key = tuple[str, str, str]
Value = tuple[str, str, bool]


@cache
def orm() -> SimpleNamespace:
    """The mapped classes; SQLAlchemy is imported when they are first asked for."""
    from sqlalchemy import DateTime
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase):
        pass

    class Flow(Base):
        __tablename__ = "flow"
        org_id: Mapped[str] = mapped_column(primary_key=True)
        user_id: Mapped[str] = mapped_column(primary_key=True)
        flow_id: Mapped[str] = mapped_column(primary_key=True)
        flow_name: Mapped[str]
        cycle: Mapped[str]
        editable: Mapped[bool]

    class History(Base):
        __tablename__ = "history"
        id: Mapped[int] = mapped_column(primary_key=True)
        at = mapped_column(DateTime)
        kind: Mapped[str]
        org_id: Mapped[str]
        user_id: Mapped[str]
        flow_id: Mapped[str]
        old_name: Mapped[str | None]
        new_name: Mapped[str | None]
        old_cycle: Mapped[str | None]
        new_cycle: Mapped[str | None]

    return SimpleNamespace(Base=Base, Flow=Flow, History=History)


def set_up(job: Job) -> None:
    from sqlalchemy import create_engine

    orm().Base.metadata.create_all(create_engine(job.url))


def prepare(job: Job) -> Work:
    import requests  # noqa: F401 - an import is no work

    orm()
    return lambda: work(job)


def work(job: Job) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    asker = Asker(job.gateway, job.certificate)
    asked = job.asked()
    engine = create_engine(job.url)
    with Session(engine) as session, ThreadPoolExecutor(job.concurrency) as pool:
        for who, body in zip(asked, pool.map(asker.get, asked), strict=True):
            update_target(session, who, flows_in(body))
        session.commit()
    engine.dispose()


def flows_in(body: bytes) -> dict[str, Value]:
    answer = json.loads(body)
    if answer["code"] != 0:
        raise ValueError(answer["msg"])
    return {item["flowId"]: (item["flowName"], item["cycle"], item["editable"]) for item in answer["data"]}


def update_target(session: Any, who: tuple[str, str], answered: dict[str, Value]) -> None:
    from sqlalchemy import delete, insert, select, update

    flow = orm().Flow
    mine = (flow.org_id == who[0], flow.user_id == who[1])
    columns = select(flow.flow_id, flow.flow_name, flow.cycle, flow.editable).where(*mine)
    known: dict[str, Value] = {flow_id: (*value,) for flow_id, *value in session.execute(columns)}
    added = [flow_id for flow_id in answered if flow_id not in known]
    gone = [flow_id for flow_id in known if flow_id not in answered]
    changed = [flow_id for flow_id, value in answered.items() if flow_id in known and known[flow_id] != value]
    if added:
        session.execute(insert(flow), [row((*who, each), answered[each]) for each in added])
    if changed:
        session.execute(update(flow), [row((*who, each), answered[each]) for each in changed])
    if gone:
        session.execute(delete(flow).where(*mine, flow.flow_id.in_(gone)))
    events = [history((*who, each), known.get(each), answered.get(each)) for each in (*added, *changed, *gone)]
    if events:
        session.execute(insert(orm().History), events)


def row(key: Key, value: Value) -> dict[str, Any]:
    names = ("org_id", "user_id", "flow_id", "flow_name", "cycle", "editable")
    return dict(zip(names, (*key, *value), strict=True))


def history(key: Key, old: Value | None, new: Value | None) -> dict[str, Any]:
    kind = "changed" if old and new else "added" if new else "removed"
    names = ("org_id", "user_id", "flow_id", "old_name", "old_cycle", "new_name", "new_cycle")
    values = (*key, *(old or (None,) * 3)[:2], *(new or (None,) * 3)[:2])
    return {"at": dt.datetime.now(dt.UTC).replace(tzinfo=None), "kind": kind, **dict(zip(names, values, strict=True))}
