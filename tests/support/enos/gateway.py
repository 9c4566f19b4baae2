"""The gateway that the tests ask: every call that Flowtrail knows, as documented, or with ordered faults."""

from __future__ import annotations

import copy
import datetime as dt
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any, Final, Literal

import msgspec

from etl.demo.gateway import FLOWS_PATH, TOKEN_PATH, DemoGateway, Reply, Request, item_of, json_reply, token_reply
from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos.faults import Endpoint, Fault, FaultBook, Order, Wire, faulty_reply, refusal
from tests.support.enos.services import DirectoryShape, RosterRequest, SearchRequest, flow_reply, roster_reply
from tests.support.enos.tokens import CLIENTS_FAULT, REFUSALS, TokenService, Verdict

ROSTER_PATH: Final = "/app-portal-service/v2.2/user/organization/roster"
OLDER_ROSTER_PATH: Final = "/app-portal-service/v2.0/user/organization/roster"
OLDER_FLOWS_PATH: Final = "/dataflow-batch-service/v2.0/flows"
Release = Literal["v2.1", "v2.0", "edge"]
"""EnOS since 2.1.2, before it, and EnOS Edge, which spells ``flow_id``."""


class Delivery(msgspec.Struct):
    """One request, and the answer that was really sent.

    ``flows`` is only set if a complete list went out in a whole answer with code 0 (``fault`` says whether it was a
    true one). ``status`` and ``code`` are those of the answer, also if it was not ``sent``.
    """

    endpoint: Endpoint
    path: str
    """With the query, as received."""
    org: str = ""
    user: str = ""
    expression: str = ""
    kept_open: bool = False
    """Whether the client wanted to use the connection again."""
    timestamp: str = ""
    """apim-timestamp, as received."""
    number: int = 0
    answered_at: dt.datetime | None = None
    """Just before the last byte, or when it was cut off; UTC."""
    verdict: Verdict = "unsigned"
    fault: str = "none"
    status: int = 0
    code: int | None = None
    sent: bool = False
    flows: tuple[Flow, ...] | None = None


class DeliveryLog:
    """What was delivered, in order, before the client has the whole answer; thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[Delivery] = []

    def put(self, entry: Delivery, sent: bool, flows: tuple[Flow, ...] | None) -> None:
        """Records a new entry, or a new result of one; does nothing if that is known already."""
        with self._changed:
            if entry.number and entry.sent == sent:
                return
            if not entry.number:
                entry.number = len(self._entries) + 1
                self._entries.append(entry)
            entry.answered_at, entry.sent, entry.flows = dt.datetime.now(dt.UTC), sent, flows if sent else None
            self._changed.notify_all()

    def entries(self, after: int = 0) -> list[Delivery]:
        """The entries whose number is greater than ``after``."""
        with self._changed:
            return [copy.copy(entry) for entry in self._entries[after:]]

    def wait_until(self, happened: Callable[[Sequence[Delivery]], bool], timeout_seconds: float = 30) -> bool:
        """Waits until the condition holds for the entries; False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: happened(self._entries), timeout_seconds)


class LocalGateway(DemoGateway):
    """An EnOS gateway on this machine, while its ``with`` block lasts.

    ``auth="none"`` asks for no token, ``release`` is which EnOS it is, ``shuffle`` gives the items of each answer
    another order (seeded), ``date_offset_seconds`` shifts its Date headers. ``updates`` has what Get Flow says
    otherwise of a workflow (org, flow_id), by EnOS's names.
    """

    def __init__(
        self,
        world: World,
        *,
        access_key: str = "demo-access-key",
        secret_key: str = "demo-secret-key",
        auth: Literal["token", "none"] = "token",
        release: Release = "v2.1",
        port: int = 0,
        shuffle: bool = True,
        roster_page_size: int = 1000,
    ) -> None:
        super().__init__(world, port=port)
        self.tokens = TokenService(access_key, secret_key)
        self.deliveries = DeliveryLog()
        self.faults = FaultBook()
        self.date_offset_seconds = 0.0
        self.updates: dict[tuple[str, str], dict[str, Any]] = {}
        self.timezone: object = None
        """What Get Timezone says; None: there is no such service."""
        self.directory_shape = DirectoryShape()
        self._began_at = dt.datetime.now(dt.UTC)
        self._signed = auth == "token"
        self._edge = release == "edge"
        self._older = older = release != "v2.1"
        flows_path = OLDER_FLOWS_PATH if older else FLOWS_PATH
        self._endpoints: dict[str, Endpoint] = {
            TOKEN_PATH: "token",
            flows_path: "flows",
            OLDER_ROSTER_PATH if older else ROSTER_PATH: "roster",
            flows_path.replace("/flows", "/time"): "timezone",
            flows_path.replace("/flows", "/directories"): "directory",
        }
        self._roster_page_size = roster_page_size
        self._shuffles = shuffle
        self._random = random.Random(0)
        self._served: dict[tuple[str, str], list[tuple[Flow, ...]]] = {}
        """By target: its list when it was served last, behind the one before that."""
        self._strays: dict[socket.socket, tuple[bytes, float]] = {}
        """By connection: stray bytes to send before its next answer, and how long before."""

    def order(self, fault: Fault) -> Order:
        """Makes this fault from now on; the order tells when a request met it."""
        return self.faults.order(fault)

    def clear_faults(self) -> None:
        """Clears all faults for new requests; what hangs already stays hanging."""
        self.faults.clear()

    def calls(self, endpoint: Endpoint) -> int:
        """How many requests to this endpoint it has answered, or left without an answer as ordered."""
        return sum(entry.endpoint == endpoint for entry in self.deliveries.entries())

    @property
    def bad_signatures(self) -> int:
        """The client's mistakes: a signature or encryption that is wrong, missing, too old or used before."""
        return sum(entry.verdict in CLIENTS_FAULT for entry in self.deliveries.entries())

    def exchange(self, request: Request, connection: socket.socket) -> bool:
        endpoint, asked = self._endpoints.get(request.path, "other"), request.asked
        if endpoint == "flows":
            actions: dict[str, Endpoint] = {"get": "details", "search": "search"}
            endpoint = actions.get(asked.get("action", ""), endpoint)
        entry = Delivery(
            endpoint=endpoint,
            path=f"{request.path}?{request.query}" if request.query else request.path,
            org=_roster_org(request) if endpoint == "roster" else asked.get("orgId", ""),
            user=asked.get("userId", ""),
            expression=asked.get("searchValue" if self._older else "expression", ""),
            kept_open=not request.is_last,
            timestamp=request.headers.get("apim-timestamp", ""),
        )
        fault = self.faults.take(endpoint, entry.org, entry.user)
        honest = self._honest(request, asked, entry, fault)
        if fault.kind == "expired":
            self.tokens.expire()
        reply = faulty_reply(fault, honest, endpoint, older=self._older)
        if not entry.kept_open:
            reply = reply._replace(headers={"Connection": "close", **reply.headers})
        if reply.body is not honest.body:
            entry.flows = None
        entry.fault, entry.status, entry.code = fault.kind, reply.status, _code_of(reply)
        return self._deliver(connection, entry, reply, fault)

    def _deliver(self, connection: socket.socket, entry: Delivery, reply: Reply, fault: Fault) -> bool:
        flows = entry.flows

        def note(sent: bool) -> None:
            self.deliveries.put(entry, sent, flows)

        offset = self.date_offset_seconds + (fault.seconds if fault.kind == "date" else 0)
        start = reply.head(formatdate(time.time() + offset, usegmt=True))
        try:
            self._stray(connection)
            Wire(connection, self.closing, note).deliver(start, reply.body, fault)
            if fault.kind == "twice":
                self._strays[connection] = start + reply.body, fault.seconds
                if not entry.kept_open:
                    self._stray(connection)
        except OSError:
            note(False)
            return False
        delimited = b"\r\nContent-Length:" in start or b"\r\nTransfer-Encoding:" in start
        return delimited and entry.kept_open and reply.headers.get("Connection") != "close"

    def _stray(self, connection: socket.socket) -> None:
        stray, seconds = self._strays.pop(connection, (b"", 0.0))
        if stray:
            connection.sendall(stray)
            self.closing.wait(seconds)

    # Honest answers

    def _honest(self, request: Request, asked: dict[str, str], entry: Delivery, fault: Fault) -> Reply:
        match entry.endpoint, request.method:
            case "token", "POST":
                return self._token(request, entry)
            case "roster", "POST":
                return self._refused(request, entry) or self._roster(request.body)
            case "details", "GET":
                return self._refused(request, entry) or self._detail(asked, entry)
            case "flows", "GET":
                return self._refused(request, entry) or self._my_flows_or(asked, entry, fault)
            case "directory", "GET" if asked.get("action") == "listWorkFlowDirs":
                return self._refused(request, entry) or self._directory(entry, fault)
            case "search", "POST":
                return self._refused(request, entry) or self._search(request.body, entry)
            case "timezone", "GET" if self.timezone is not None:
                return self._refused(request, entry) or self._success({"timezone": self.timezone})
            case "other" | "timezone", _:
                return refusal("other", 404, "no such service", 404)
        return refusal(entry.endpoint, 405, "method not allowed", 405)

    def _token(self, request: Request, entry: Delivery) -> Reply:
        entry.verdict, token, seconds = self.tokens.issue(request.body, time.time())
        if entry.verdict in REFUSALS:
            return refusal("token", *REFUSALS[entry.verdict])
        return token_reply(token, seconds)

    def _refused(self, request: Request, entry: Delivery) -> Reply | None:
        """A refusal, unless the request is authenticated."""
        entry.verdict = self.tokens.check(request, time.time()) if self._signed else "unsigned"
        if entry.verdict not in REFUSALS:
            return None
        status = 401 if entry.verdict == "unknown_token" else 200
        return refusal(entry.endpoint, *REFUSALS[entry.verdict], status, older=self._older)

    def _roster(self, body: bytes) -> Reply:
        try:
            asked = msgspec.json.decode(body, type=RosterRequest)
            users = self.world.users(asked.org_id)
        except msgspec.MsgspecError:
            return refusal("roster", 31400, "Organization ID and pagination value are required")
        except KeyError:
            return refusal("roster", 31404, "Can not find this organization")
        return roster_reply(users, asked, most=self._roster_page_size, older=self._older)

    def _detail(self, asked: dict[str, str], entry: Delivery) -> Reply:
        key = entry.org, asked.get("flowId", "")
        try:
            flow = next((flow for flow in self.world.flows(entry.org, entry.user) if flow.flow_id == key[1]), None)
        except KeyError:
            return self._no_user(entry)
        updated_at = self.world.updated_at.get(key, self._began_at)
        return flow_reply(flow, updated_at, self.updates.get(key, {}), older=self._older)

    def _my_flows_or(self, asked: dict[str, str], entry: Delivery, fault: Fault) -> Reply:
        if asked.get("action") != "getMyFlow" or not (entry.org and entry.user):
            return refusal("flows", 99400, "action, userId and orgId are required", older=self._older)
        try:
            entry.flows = self._listed(entry, fault)
        except KeyError:
            return self._no_user(entry)
        items = [self._item(flow) for flow in entry.flows]
        if self._shuffles:
            self._random.shuffle(items)
        return self._success(items)

    def _directory(self, entry: Delivery, fault: Fault) -> Reply:
        try:
            self.world.flows(entry.org, entry.user)
            files = self._kept(self.world.directory(entry.org), fault)
        except KeyError:
            return self._no_user(entry)
        return self._success(self.directory_shape.data(files))

    def _search(self, body: bytes, entry: Delivery) -> Reply:
        try:
            asked = msgspec.json.decode(body, type=SearchRequest)
            flows = [flow for flow in self.world.directory(entry.org) if found(flow, asked.expression)]
        except msgspec.MsgspecError as error:
            return refusal("search", 99400, str(error), older=self._older)
        except KeyError:
            return self._no_user(entry)
        start = (asked.pagination.page_no - (not self._older)) * asked.pagination.page_size
        items = [self._item(flow) for flow in flows[start : start + asked.pagination.page_size]]
        return self._success([{k: v for k, v in item.items() if k not in ("cycle", "editable")} for item in items])

    def _success(self, data: object) -> Reply:
        envelope = {"status": 0, "msg": "Success"} if self._older else {"code": 0, "msg": "OK"}
        return json_reply({**envelope, "requestId": uuid.uuid4().hex, "data": data})

    def _no_user(self, entry: Delivery) -> Reply:
        if entry.org not in self.world.orgs():
            return refusal(entry.endpoint, 99404, "organization not found", older=self._older)
        words = "user does not exist or is not in the organization"
        return refusal(entry.endpoint, 62101, words, older=self._older)

    def _listed(self, entry: Delivery, fault: Fault) -> tuple[Flow, ...]:
        """What this answer lists; KeyError if there is no such user."""
        flows = self.world.flows(entry.org, entry.user)
        served = self._served.setdefault((entry.org, entry.user), [flows])
        if flows != served[-1]:
            served[:] = [served[-1], flows]
        flows = served[0 if fault.kind == "stale" else -1]
        return self._kept(tuple(flow for flow in flows if found(flow, entry.expression)), fault)

    def _kept(self, flows: tuple[Flow, ...], fault: Fault) -> tuple[Flow, ...]:
        """What an answer with this fault lists of them."""
        if fault.kind not in ("empty", "partial"):
            return flows
        kept = int(len(flows) * fault.share) if fault.kind == "partial" else 0
        return tuple(self._random.sample(flows, kept))

    def _item(self, flow: Flow) -> dict[str, Any]:
        item = item_of(flow)
        if self._edge:
            item = {{"flowId": "flow_id", "flowName": "flow_name"}.get(key, key): value for key, value in item.items()}
        return item


def found(flow: Flow, expression: str) -> bool:
    """Whether EnOS' fuzzy search finds it: part of flowId or flowName, whatever the case."""
    sought = expression.casefold()
    return sought in flow.flow_id.casefold() or sought in (flow.flow_name or "").casefold()


def _roster_org(request: Request) -> str:
    try:
        return str(msgspec.json.decode(request.body)["orgId"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return ""


def _code_of(reply: Reply) -> int | None:
    """The code in an EnOS answer; None for what is none."""
    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, msgspec.Raw])
        return msgspec.json.decode(answer.get("status", answer.get("code", b"null")), type=int | None)
    except msgspec.MsgspecError:
        return None
