"""The calls beside *Get My Flow* as the documentation has them, with invented people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from etl.demo.gateway import Reply, directory_of, json_reply, tree_of
from etl.domain.model import Flow
from tests.support.enos.faults import refusal

_ZONE: Final = ZoneInfo("Asia/Shanghai")
"""The time zone of this gateway's answers."""
_FREQS: Final = {
    "M": "0 0 0 1 * ? *",
    "W": "0 0 0 ? * 2 *",
    "D": "0 0 0 * * ? *",
    "H": "0 0 * * * ? *",
    "mi": "0 0/5 * * * ? *",
}


class _Pagination(msgspec.Struct, rename="camel"):
    page_no: Annotated[int, msgspec.Meta(ge=0)]
    page_size: Annotated[int, msgspec.Meta(ge=1)]


class SearchRequest(msgspec.Struct):
    """What a search has to say."""

    pagination: _Pagination
    expression: str = ""


class DirectoryShape(NamedTuple):
    """How a directory is written, where that is not as in the usual sample."""

    key: Callable[[str], object] = int
    """A workflow's number: "2512.0" in the Chinese documentation."""
    levels: int = 2
    """Of directories, at least 2."""
    twice: bool = False
    """Whether the first workflow of each directory is once more in the one above."""

    def data(self, flows: Sequence[Flow]) -> list[dict[str, Any]]:
        tree = tree_of(flows)
        top = tree[0]["children"]
        for files in [folder["children"] for folder in top if folder["isDirectory"]]:
            files[:] = [file | {"key": self.key(str(file["key"]))} for file in files]
            top += files[: self.twice]
        for level in range(2, self.levels):
            tree = [directory_of(f"level {level}", tree)]
        return tree


class RosterRequest(msgspec.Struct, rename="camel"):
    """What a roster request has to say."""

    org_id: Annotated[str, msgspec.Meta(min_length=1)]
    pagination: _Pagination


def roster_reply(users: list[str], asked: RosterRequest, *, most: int, older: bool) -> Reply:
    """One page, of at most ``most`` users. A success of version 2.0 has the code 200."""
    size = min(asked.pagination.page_size, most)
    start = asked.pagination.page_no * size
    people = [
        {"userId": user, "email": f"{user}@people.example", "phone": "5550100", "phoneArea": "86", "name": f"P. {user}"}
        for user in sorted(users)[start : start + size]
    ]
    page = {"totalElements": len(users), "pageNo": asked.pagination.page_no, "pageSize": size}
    code, message = (200, "") if older else (0, "OK")
    return json_reply({"code": code, "message": message, "data": {"users": people, "pagination": page}})


def flow_reply(flow: Flow | None, updated_at: dt.datetime, update: dict[str, Any], *, older: bool) -> Reply:
    """The workflow, if the user sees it, with the keys and quirks of the documentation's sample: an integer id, and a
    graph that is not valid JSON. ``update`` has values that differ from the usual ones."""
    if flow is None:
        return refusal("details", 62103, "no privilege", older=older)
    detail = {
        "virtual": False,
        "freq": _FREQS.get(flow.cycle or "", ""),
        "type": 1,
        "cycle": flow.cycle,
        "alertMode": 3,
        "hasEditPri": True,
        "startTime": "2019-07-23",
        "locked": False,
        "owner": ";owner-1;owner-2;",
        "flowId": int(flow.flow_id) if flow.flow_id.isdecimal() else flow.flow_id,
        "creator": "creator-1",
        "createTime": "2019-07-22 08:56:58.0",
        "updateUser": "updater-1",
        "active": 1,
        "updateTime": f"{updated_at.astimezone(_ZONE):%Y-%m-%d %H:%M:%S}.0",
        "flowName": flow.flow_name,
        "graph": '{"creator":"creator-1 ","freq":"0 0 0 * * ? *","flows":[{"x":8.0E-4,}]',
        "hasReadPri": True,
        "desc": "",
        "visitor": ";visitor-1;",
    }
    envelope = {"status": 0, "msg": "Success"} if older else {"code": 0, "msg": "OK"}
    return json_reply(envelope | {"data": detail | update})
