"""The control endpoints of the local gateway for tests in another process: ``/_demo/...``, loopback clients only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import msgspec

from etl.demo.auth import Request
from etl.demo.faults import Fault, Reply, refusal
from etl.demo.world import World
from etl.domain.model import Flow

if TYPE_CHECKING:
    from etl.demo.gateway import DemoGateway

_EDITS: Final = (
    *("set_flows", "add_user", "remove_user", "add_flow", "remove_flow"),
    *("rename", "set_cycle", "set_editable", "set_integer_ids", "say_of"),
)


def administer(gateway: DemoGateway, request: Request) -> Reply:
    """Carries out the request; 400 with the reason if that is impossible."""
    try:
        return Reply(200, msgspec.json.encode(_administered(gateway, request)))
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        return refusal("other", 400, f"{type(error).__name__}: {error}", 400)


def _administered(gateway: DemoGateway, request: Request) -> object:
    answer: object = None
    match request.method, request.path:
        case "POST", "/_demo/faults":
            given = msgspec.json.decode(request.body, type=Fault | list[Fault])
            for fault in given if isinstance(given, list) else [given]:
                gateway.order(fault)
        case "DELETE", "/_demo/faults":
            gateway.clear_faults()
        case "POST", "/_demo/evolve":
            gateway.world.evolve(**msgspec.json.decode(request.body or b"{}", type=dict[str, int]))
        case "POST", "/_demo/edit":
            _edit(gateway.world, **msgspec.json.decode(request.body, type=dict[str, Any]))
        case "GET", "/_demo/deliveries":
            answer = gateway.deliveries.entries(int(dict(parse_qsl(request.query)).get("after", 0)))
        case "GET", "/_demo/counters":
            answer = gateway.counters
        case _:
            raise LookupError(f"{request.method} {request.path}")
    return answer


def _edit(world: World, edit: str, **arguments: Any) -> None:
    if edit not in _EDITS:
        raise LookupError(f"unknown edit {edit}")
    for name, kind in (("flow", Flow), ("flows", list[Flow])):
        if name in arguments:
            arguments[name] = msgspec.convert(arguments[name], kind)
    getattr(world, edit)(**arguments)
