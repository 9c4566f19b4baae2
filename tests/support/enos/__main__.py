"""``python -m tests.support.enos``: the gateway as its own process, to try things by hand.

| request | what it does |
|---|---|
| POST /_demo/evolve | lets a day pass |
| POST /_demo/edit | an edit of the world: ``{"edit": "set_cycle", "org": "o1", "flow_id": "7", "cycle": "D"}`` |
| POST /_demo/faults, DELETE /_demo/faults | orders a `Fault`, ``{"kind": "outage", "times": null}``; clears all |
| GET /_demo/deliveries | what was asked and answered |
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
from typing import Any, Final, get_args

import msgspec

from etl.demo.gateway import Reply, Request, json_reply
from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos.faults import Fault
from tests.support.enos.gateway import LocalGateway, Release

_EDITS: Final = (
    *("set_flows", "remove_user", "add_flow", "remove_flow", "unlist", "leave_out"),
    *("rename", "set_cycle", "set_editable"),
)


class SteeredGateway(LocalGateway):
    """Does what requests to ``/_demo/`` say; 400 with the reason if that is impossible."""

    def exchange(self, request: Request, connection: socket.socket) -> bool:
        if not request.path.startswith("/_demo/"):
            return super().exchange(request, connection)
        try:
            reply = Reply(msgspec.json.encode(self._steer(request)))
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            reply = json_reply({"msg": f"{type(error).__name__}: {error}"}, 400)
        connection.sendall(reply.head("") + reply.body)
        return not request.is_last

    def _steer(self, request: Request) -> object:
        match request.method, request.path:
            case "POST", "/_demo/faults":
                self.order(msgspec.json.decode(request.body, type=Fault))
            case "DELETE", "/_demo/faults":
                self.clear_faults()
            case "POST", "/_demo/evolve":
                self.world.evolve()
            case "POST", "/_demo/edit":
                self._edit(**msgspec.json.decode(request.body, type=dict[str, Any]))
            case "GET", "/_demo/deliveries":
                return self.deliveries.entries()
            case _:
                raise LookupError(f"{request.method} {request.path}")
        return None

    def _edit(self, edit: str, **given: Any) -> None:
        if edit not in _EDITS:
            raise LookupError(f"edit is none of {', '.join(_EDITS)}")
        kinds = {"flow": Flow, "flows": list[Flow]}
        getattr(self.world, edit)(**{k: msgspec.convert(v, kinds[k]) if k in kinds else v for k, v in given.items()})


def main() -> None:
    """Prints the gateway's URL, and serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.enos", description="A local EnOS gateway.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--auth", choices=("token", "none"), default="token")
    parser.add_argument("--release", choices=get_args(Release), default="v2.1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--orgs", type=int, default=1)
    parser.add_argument("--users", type=int, default=2, help="in each organisation")
    parser.add_argument("--flows", type=int, default=50, help="that each user sees")
    parser.add_argument("--evolve-every", type=float, metavar="SECONDS", help="let a day pass, each time")
    given = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # set explicitly: a background job of a shell would ignore Ctrl-C
        signal.signal(number, lambda *_: stopped.set())
    world = World(given.seed, orgs=given.orgs, users=given.users, flows=given.flows)
    with SteeredGateway(world, port=given.port, auth=given.auth, release=given.release) as gateway:
        sys.stdout.write(f"{gateway.url}\n")
        sys.stdout.flush()
        while not stopped.wait(given.evolve_every):
            world.evolve()


if __name__ == "__main__":
    main()
