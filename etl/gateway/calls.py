"""The documented calls to EnOS: addresses, parameters, and how a request is signed.

| | ``v2.1`` | ``v2.0`` |
|---|---|---|
| EnOS | 2.1.2 and later | before 2.1.2, and EnOS Edge |
| path | ``/batch-processing-service/v2.1`` | ``/dataflow-batch-service/v2.0`` |
| path of the roster | ``/app-portal-service/v2.2/user/organization/roster`` | the same, ``v2.0`` |
| parameter of the search | ``expression`` | ``searchValue`` |
| path of the directory | ``/directories`` below the path | the same |
| first page of a search | 1 | 0 (its latest documentation: 1) |
| success | ``code`` is 0 | ``status`` is 0, and a ``code``, if any, is 0 |
| names in an item | ``flowId``, ``flowName`` | the same, or ``flow_id``, ``flow_name`` (EnOS Edge) throughout |

Source: EnOS API documentation, "Get My Flow", "List Workflow Directories", "Get Timezone" and "Get Organization User
List" of both versions, and of EnOS Edge; "Get Access Token" and "Signature".
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from etl.config import ApiVersion
from etl.domain.model import Target
from etl.gateway.errors import Hidden


class Api(NamedTuple):
    """One column of the table above."""

    service: str
    search: str
    roster_path: str
    is_older: bool = False


APIS: Final[Mapping[ApiVersion, Api]] = {
    "v2.1": Api(
        service="/batch-processing-service/v2.1",
        search="expression",
        roster_path="/app-portal-service/v2.2/user/organization/roster",
    ),
    "v2.0": Api(
        service="/dataflow-batch-service/v2.0",
        search="searchValue",
        roster_path="/app-portal-service/v2.0/user/organization/roster",
        is_older=True,
    ),
}
LATEST: Final = APIS["v2.1"]

Call = Literal["details", "directory", "flows", "roster", "search", "timezone", "token"]

TOKEN_PATH: Final = "/apim-token-service/v2.0/token/get"  # noqa: S105 (a path)
ROSTER_PAGE: Final = 1000
"""Users per page: the documented default."""
SEARCH_PAGE: Final = 50
"""Workflows per page: as many as the documentation advises."""
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

    def signed(self, token: str, secret: str, timestamp_ms: int) -> dict[str, str]:
        """The headers that authenticate the request."""
        proof = signature(token, self.params, timestamp_ms, secret, self.body)
        return {"apim-accesstoken": token, "apim-timestamp": str(timestamp_ms), "apim-signature": proof}


def my_flows(api: Api, target: Target) -> Request:
    """*Get My Flow*; without an expression all workflows are listed."""
    asked = {"action": "getMyFlow", "orgId": target.org_id, "userId": target.user_id}
    if target.expression:
        asked[api.search] = target.expression
    return Request("flows", "GET", f"{api.service}/flows", dict(sorted(asked.items())), target[:2])


def directory(api: Api, org_id: str, user_id: str) -> Request:
    """*List Workflow Directories* of an organisation, asked as one of its users."""
    asked = {"action": "listWorkFlowDirs", "orgId": org_id, "userId": user_id}
    return Request("directory", "GET", f"{api.service}/directories", asked, ("directory", org_id))


def flow(api: Api, org_id: str, flow_id: str, user_id: str) -> Request:
    """*Get Flow*, as a user who sees it."""
    asked = {"action": "get", "flowId": flow_id, "orgId": org_id, "userId": user_id}
    return Request("details", "GET", f"{api.service}/flows", asked, (org_id, flow_id))


def timezone(api: Api) -> Request:
    """*Get Timezone*, of the server; no organisation and no user."""
    path = f"{api.service}/time"
    return Request("timezone", "GET", path, {"action": "getTimeZone"}, path)


def search(api: Api, org_id: str, user_id: str) -> Request:
    """The first page of *Search Flow*: workflows of everybody in the organisation."""
    pagination: dict[str, object] = {"pageNo": 0 if api.is_older else 1, "pageSize": SEARCH_PAGE, "sorters": []}
    body = msgspec.json.encode({"expression": "", "pagination": pagination}).decode()
    asked = {"action": "search", "orgId": org_id, "userId": user_id}
    return Request("search", "POST", f"{api.service}/flows", asked, (org_id, user_id), body)


def roster_page(api: Api, org_id: str, page: int) -> Request:
    """*Get Organization User List*, one page of it; pages count from 0."""
    asked = {"orgId": org_id, "pagination": {"pageNo": page, "pageSize": ROSTER_PAGE, "sorters": []}}
    body = msgspec.json.encode(asked).decode()
    return Request("roster", "POST", api.roster_path, {}, (api.roster_path, org_id), body)


def token(access_key: Hidden, timestamp_ms: int, secret: Hidden) -> tuple[Request, Hidden]:
    """*Get Access Token*; with it the proof of the secret that it contains: SHA-256 (hex) of key, time, secret."""
    proof = Hidden(_sha256(f"{access_key}{timestamp_ms}{secret}"))
    asked = {"appKey": str(access_key), "encryption": str(proof), "timestamp": timestamp_ms}
    body = Hidden(msgspec.json.encode(asked).decode())
    return Request("token", "POST", TOKEN_PATH, {}, TOKEN_PATH, body), proof


def signature(token: str, params: Mapping[str, str], timestamp_ms: int, secret: str, body: str = "") -> Hidden:
    """``apim-signature``: SHA-256 (hex) of token, decoded parameters in ASCII order of name, body, time, secret."""
    joined = "".join([name + params[name] for name in sorted(params)])
    return Hidden(_sha256(f"{token}{joined}{body}{timestamp_ms}{secret}"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
