"""The only importer of requests: asks EnOS for a target's list, and returns a complete snapshot or a GatewayError."""

from etl.gateway.client import Gateway
from etl.gateway.recording import Exchange, Recorder
from etl.gateway.strict import reread_strictly

__all__ = ["Exchange", "Gateway", "Recorder", "reread_strictly"]
