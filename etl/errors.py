"""What can fail, and what to do about it.

FlowtrailError                     exit code
|- ConfigError                     2   settings or schedules: every problem at once
|- UsageError                      2   the command line asks for what cannot be done
|- DatabaseError                   3
|  |- DatabaseUnreachable          3   trying again later can help
|  |- DatabaseDamaged              3   nothing is written until `flowtrail db check` finds it intact
|  `- SchemaMismatch               3   names the command that helps
|     `- SchemaAhead               3   a newer release has migrated already
|- SigningError                    2   a key, a signature or a time stamp that cannot or must not be used
|  `- NoTimestamp                  1   the time-stamp authority gave none; another attempt can help
|- RunClosed                       1   the run was declared dead meanwhile, or has ended: nothing more is written for it
|- RuleFailed                      1   a rule cannot be evaluated; its findings stay as they were
|- ClusterError                    2   the workers of the cluster cannot be used; nothing was done with them
`- GatewayError                    1   one target (or the token) got no valid answer
   |- TransientGatewayError            the same request may succeed later: retried within the deadline (itself: EnOS
   |  |                                says that it failed, 62109 and 99500)
   |  `- GatewayUnreachable            connection, TLS, timeout, half an answer, 429, 5xx, 1001, 1005
   `- PermanentGatewayError            asking again gives the same: never retried (itself: clock_skew, secret)
      |- Refused                       an error code or HTTP status that says no
      `- Malformed                     not the answer that the documentation promises

In addition there is one flag, ``gateway_down_evidence``. It is true for every GatewayUnreachable, and for every error
of the token, even a permanent one (a revoked key is refused at once, and still stops the run).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class FlowtrailError(Exception):
    """The message is one clear sentence for a person: what, where, and the remedy."""

    exit_code: ClassVar[int] = 1


class Problem(NamedTuple):
    """One thing wrong with the settings: the place (file and key), and what to do."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(FlowtrailError):
    """Settings or schedules that cannot be used; ``problems`` lists all of them."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class UsageError(FlowtrailError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class DatabaseError(FlowtrailError):
    """The database refused or failed; the message names it without its password."""

    exit_code = 3
    condition: str = "database_unreachable"
    """The code of the condition while this error lasts."""


class DatabaseUnreachable(DatabaseError):
    """No connection, or a connection that broke; trying again later can help."""


class DatabaseDamaged(DatabaseError):
    """Damage was found, just now or before; nothing is written until `flowtrail db check` finds the database intact."""

    condition = "database_damaged"


class SchemaMismatch(DatabaseError):
    """The schema is missing, older, newer or altered; the message names the command that helps."""

    condition = "schema_behind"


class SchemaAhead(SchemaMismatch):
    """A newer release has migrated; this one may finish its work, because a migration leaves what it reads."""


class ClusterError(FlowtrailError):
    """The Dask cluster cannot be used: no scheduler, no worker, or one that is set up differently."""

    exit_code = 2


class RunClosed(FlowtrailError):
    """A closed run writes nothing more: it has ended, or was declared dead because its heartbeat had stopped."""

    def __init__(self, run_id: int) -> None:
        super().__init__(f"run {run_id} is closed: it has ended, or was declared dead meanwhile")
        self.run_id = run_id

    def __reduce__(self) -> tuple[type[RunClosed], tuple[int]]:
        return RunClosed, (self.run_id,)


class RuleFailed(FlowtrailError):
    """A rule cannot be evaluated as it is written. The message is what it does: "gives more than 10,000 rows: ..."."""


class SigningError(FlowtrailError):
    """A key, a signature or a time stamp that cannot or must not be used; no run depends on any of them."""

    exit_code = 2


class NoTimestamp(SigningError):
    """The time-stamp authority cannot be reached, refused, or gave an invalid answer."""

    exit_code = 1


class GatewayError(FlowtrailError):
    """No valid answer for a target.

    ``code`` is what goes to ``sync_issue.error_code``: an EnOS code ("62101"), "http_503", or a name such as
    "timeout", "deadline", "malformed", "clock_skew", "gateway_down".
    ``gateway_down_evidence``: it failed for transport, 429, 5xx or the token; many targets in a row that fail so
    mean that the gateway is down.
    ``attempts``: how often this target was tried.
    """

    transient: ClassVar[bool]
    gateway_down_evidence: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str,
        attempts: int = 1,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.attempts = attempts
        self.retry_after_seconds = retry_after_seconds


class TransientGatewayError(GatewayError):
    """The same request, signed anew, may succeed later."""

    transient = True


class GatewayUnreachable(TransientGatewayError):
    """Connection, TLS, timeout, 429, 5xx or the token: many in a row mean that the gateway is down."""

    gateway_down_evidence = True


class PermanentGatewayError(GatewayError):
    """Asking again gives the same answer."""

    transient = False


class Refused(PermanentGatewayError):
    """An error code or HTTP status that says no."""


class Malformed(PermanentGatewayError):
    """Not the answer that the documentation promises; the message names the item and the field."""


class Interrupted(FlowtrailError):
    """A stop came in the middle: no attempt, nothing is written."""
