"""*Get Organization User List* of the local gateway: pages of invented people."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from etl.demo.faults import Reply, refusal
from etl.demo.world import UnknownOrg, World

ROSTER_PATH: Final = "/app-portal-service/v2.2/user/organization/roster"
OLDER_ROSTER_PATH: Final = "/app-portal-service/v2.0/user/organization/roster"
_OK: Final = (0, "OK")
_OLDER_OK: Final = (200, "")
"""The code and message of a success in the documentation of version 2.0."""


class _Pagination(msgspec.Struct, rename="camel"):
    page_no: Annotated[int, msgspec.Meta(ge=0)]
    page_size: Annotated[int, msgspec.Meta(ge=1)]


class _RosterRequest(msgspec.Struct, rename="camel"):
    org_id: Annotated[str, msgspec.Meta(min_length=1)]
    pagination: _Pagination


def roster_page(world: World, body: bytes, *, most: int, older: bool) -> Reply:
    """One page, of at most ``most`` users."""
    try:
        asked = msgspec.json.decode(body, type=_RosterRequest)
        users = sorted(world.users(asked.org_id))
    except msgspec.MsgspecError:
        return refusal("roster", 31400, "Organization ID and pagination value are required")
    except UnknownOrg:
        return refusal("roster", 31404, "Can not find this organization")
    size = min(asked.pagination.page_size, most)
    start = asked.pagination.page_no * size
    code, message = _OLDER_OK if older else _OK
    data = {
        "users": [_person(user) for user in users[start : start + size]],
        "pagination": {"totalElements": len(users), "pageNo": asked.pagination.page_no, "pageSize": size},
    }
    return Reply(200, msgspec.json.encode({"code": code, "message": message, "data": data}), code)


def _person(user: str) -> dict[str, str]:
    mail = f"{user}@people.example"
    return {"userId": user, "email": mail, "phone": "5550100", "phoneArea": "86", "name": f"Person {user}"}
