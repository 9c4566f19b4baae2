"""*Get Flow* of the local gateway: who updated a workflow last, when, and its exact schedule."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from etl.demo.faults import Reply, refusal
from etl.demo.world import UnknownOrg, UnknownUser, World
from etl.domain.model import Flow

ZONE: Final = ZoneInfo("Asia/Shanghai")
"""The time zone of this gateway's answers."""
_FREQS: Final = {
    "M": "0 0 0 1 * ? *",
    "W": "0 0 0 ? * 2 *",
    "D": "0 0 0 * * ? *",
    "H": "0 0 * * * ? *",
    "mi": "0 0/5 * * * ? *",
}
_CREATED: Final = "2019-07-22 08:56:58.0"


def flow_reply(world: World, asked: dict[str, str], *, older: bool) -> Reply:
    """The workflow, if the user sees it."""
    org, user, flow_id = (asked.get(name, "") for name in ("orgId", "userId", "flowId"))
    try:
        flow = next((flow for flow in world.flows(org, user) if flow.flow_id == flow_id), None)
    except (UnknownOrg, UnknownUser):
        return refusal("details", 62101, "user does not exist or is not in the organization", older=older)
    if flow is None:
        return refusal("details", 62103, "no privilege", older=older)
    envelope = {"status": 0, "msg": "Success"} if older else {"code": 0, "msg": "OK"}
    return Reply(200, msgspec.json.encode(envelope | {"data": _data(world, org, flow)}), 0)


def _data(world: World, org: str, flow: Flow) -> dict[str, Any]:
    """With the keys and quirks of the documentation's sample: an integer id, and a graph that is not valid JSON."""
    updated_at, update = world.update_of(org, flow.flow_id)
    return {
        "virtual": False,
        "freq": _FREQS.get(flow.cycle or "", ""),
        "type": 1,
        "cycle": flow.cycle,
        "alertMode": 3,
        "hasEditPri": True,
        "startTime": "2019-07-23",
        "locked": False,
        "flowId": int(flow.flow_id) if flow.flow_id.isdecimal() else flow.flow_id,
        "owner": ";owner-1;owner-2;",
        "creator": "creator-1",
        "createTime": _CREATED,
        "updateUser": "updater-1",
        "active": 1,
        "updateTime": _text(updated_at),
        "flowName": flow.flow_name,
        "graph": '{"creator":"creator-1 ","freq":"0 0 0 * * ? *","flows":[{"x":8.0E-4,}]',
        "hasReadPri": True,
        "desc": "",
        "visitor": ";visitor-1;",
    } | update


def _text(at: dt.datetime) -> str:
    return f"{at.astimezone(ZONE):%Y-%m-%d %H:%M:%S}.0"
