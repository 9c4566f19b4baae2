"""The only importer of requests: asks EnOS for a target's list, and returns a whole snapshot or a GatewayError."""

from etl.gateway.client import Exchanged, Gateway, TokenCheck, utc_now
from etl.gateway.strict import reread_strictly

__all__ = ["Exchanged", "Gateway", "TokenCheck", "reread_strictly", "utc_now"]
