"""The documented requests to EnOS, in one place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from etl.domain.model import Target
from etl.gateway.api import Api
from etl.gateway.signature import signature
from etl.gateway.token import Token

Call = Literal["details", "flows", "roster", "token"]

ROSTER_PAGE: Final = 1000
"""Users per page: the documented default."""


NOT_QUOTED: Final = '"***"'
"""Stands for any content of an answer about people."""


class Request(NamedTuple):
    """One request, before it is signed."""

    call: Call
    method: Literal["GET", "POST"]
    path: str
    params: Mapping[str, str]
    """Decoded, in ASCII order of name."""
    asker: Hashable
    """Requests with the same asker get strictly increasing timestamps."""
    body: str = ""

    @property
    def address(self) -> str:
        """Path and query, as they are sent."""
        query = "&".join([f"{name}={quote(value, safe='')}" for name, value in self.params.items()])
        return f"{self.path}?{query}" if query else self.path

    @property
    def is_personal(self) -> bool:
        """Whether its answer is about people: nothing of it may get into a message or a log."""
        return self.call == "roster"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that a body needs."""
        if not self.body:
            return {}
        return {"Content-Type": "application/json", "Content-Length": str(len(self.body.encode()))}

    def signed(self, token: Token | None, timestamp_ms: int) -> dict[str, str]:
        """The headers that authenticate the request; none if the gateway needs no key."""
        if token is None:
            return {}
        proof = signature(token.value, self.params, timestamp_ms, token.secret, self.body)
        return {
            "apim-accesstoken": token.value,
            "apim-timestamp": str(timestamp_ms),
            "apim-signature": proof,
        }


def my_flows(api: Api, target: Target) -> Request:
    """*Get My Flow*; without an expression all workflows are listed."""
    asked = {"action": "getMyFlow", "orgId": target.org_id, "userId": target.user_id}
    if target.expression:
        asked[api.search] = target.expression
    return Request("flows", "GET", api.path, dict(sorted(asked.items())), target[:2])


def flow(api: Api, org_id: str, flow_id: str, user_id: str) -> Request:
    """*Get Flow*, as a user who sees it."""
    asked = {"action": "get", "flowId": flow_id, "orgId": org_id, "userId": user_id}
    return Request("details", "GET", api.path, asked, (org_id, flow_id))


def roster_page(api: Api, org_id: str, page: int) -> Request:
    """*Get Organization User List*, one page of it; pages count from 0."""
    asked = {"orgId": org_id, "pagination": {"pageNo": page, "pageSize": ROSTER_PAGE, "sorters": []}}
    body = msgspec.json.encode(asked).decode()
    return Request("roster", "POST", api.roster_path, {}, (api.roster_path, org_id), body)
