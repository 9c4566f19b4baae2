"""The two documented versions of the workflow calls: their paths, parameters and answers.

| | ``v2.1`` | ``v2.0`` |
|---|---|---|
| EnOS | 2.1.2 and later | before 2.1.2, and EnOS Edge |
| path | ``/batch-processing-service/v2.1/flows`` | ``/dataflow-batch-service/v2.0/flows`` |
| path of the roster | ``/app-portal-service/v2.2/user/organization/roster`` | the same, ``v2.0`` |
| parameter of the search | ``expression`` | ``searchValue`` |
| success | ``code`` is 0 | ``status`` is 0, and a ``code``, if any, is 0 |
| names in an item | ``flowId``, ``flowName`` | the same, or ``flow_id``, ``flow_name`` (EnOS Edge) throughout |

Source: EnOS API documentation, "Get My Flow" and "Get Organization User List" of both versions, and of EnOS Edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from etl.config import ApiVersion


class Api(NamedTuple):
    """One column of the table above."""

    version: ApiVersion
    path: str
    search: str
    roster_path: str
    is_older: bool = False


APIS: Final[Mapping[ApiVersion, Api]] = {
    "v2.1": Api(
        "v2.1",
        path="/batch-processing-service/v2.1/flows",
        search="expression",
        roster_path="/app-portal-service/v2.2/user/organization/roster",
    ),
    "v2.0": Api(
        "v2.0",
        path="/dataflow-batch-service/v2.0/flows",
        search="searchValue",
        roster_path="/app-portal-service/v2.0/user/organization/roster",
        is_older=True,
    ),
}
LATEST: Final = APIS["v2.1"]
