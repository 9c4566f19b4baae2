"""The only importer of requests: asks EnOS for a target's list, and returns a complete snapshot or a GatewayError."""

from etl.gateway.client import Exchanged, Gateway, TokenCheck
from etl.gateway.recording import Exchange, Recorder
from etl.gateway.strict import reread_strictly

__all__ = ["Exchange", "Exchanged", "Gateway", "Recorder", "TokenCheck", "reread_strictly"]
