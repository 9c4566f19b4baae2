"""Asks for details of the workflows that a run found changed: after its last commit and before its end.

A failure is counted, and the workflow is asked for again with its next change: neither a verdict nor the end of the run
depends on details.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import wait
from typing import Final

import msgspec

from etl.domain.answers import Detail
from etl.errors import DatabaseError, GatewayError, Interrupted, RunClosed
from etl.log import get_logger
from etl.store import Changed
from etl.sync.batch import CircuitBreaker, RunContext
from etl.sync.result import Details

_REMEDY: Final = "what is missing is asked for with its next change; docs/enos.md says what each code means"
_CODES_REPORTED: Final = 5
_TIMEZONE_SECONDS: Final = 5.0


class DetailLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many details may be asked for at the end of a run, and how."""

    most: int
    within: dt.timedelta
    keep_body: bool


def ask_for_details(context: RunContext, run_id: int, limits: DetailLimits) -> Details:
    """Ask once for each workflow that the run found changed, store the answers, and return how it went. Raises
    RunClosed if the run was declared dead and sealed meanwhile."""
    log = get_logger(__name__)
    try:
        changed = context.store.changed_workflows(run_id, limits.most + 1)
        done = _fetch(context, run_id, limits, changed[: limits.most])
    except RunClosed:
        raise
    except DatabaseError as error:
        log.warning("details_failed", error=str(error), remedy=_REMEDY)
        return Details(failed=1)
    except Exception:
        log.exception("details_crashed", remedy=_REMEDY)
        return Details(failed=1)
    done = msgspec.structs.replace(done, capped=len(changed) > limits.most)
    if done.failed or done.left_out or done.capped:
        log.warning("details_incomplete", **msgspec.structs.asdict(done), remedy=_REMEDY)
    return done


def _timezone(context: RunContext, give_up_at: float) -> str | None:
    """The zone of EnOS's clock, as it says; None where it does not."""
    try:
        return context.gateway.timezone(max(0.0, min(_TIMEZONE_SECONDS, give_up_at - time.monotonic())))
    except (GatewayError, Interrupted):
        return None


def _fetch(context: RunContext, run_id: int, limits: DetailLimits, changed: Sequence[Changed]) -> Details:
    """Ask in groups of as many as may be in flight; each group is written when it has come."""
    give_up_at = time.monotonic() + limits.within.total_seconds()
    breaker = CircuitBreaker(context.down_after)

    def ask(one: Changed) -> Detail | str | None:
        """The detail, the code of the error, or None if nothing was asked."""
        left = give_up_at - time.monotonic()
        if left <= 0 or breaker.is_open or context.stop.is_set():
            return None
        try:
            detail = context.gateway.detail(*one, left)
        except Interrupted:
            return None
        except GatewayError as error:
            breaker.saw(error)
            return error.code
        breaker.saw(None)
        return detail

    timezone = _timezone(context, give_up_at) if changed else None
    kept, codes, left_out, size = 0, Counter[str](), 0, context.in_flight
    for group in (changed[start : start + size] for start in range(0, len(changed), size)):
        work = [context.fetchers.submit(contextvars.copy_context().run, ask, one) for one in group]
        wait(work)
        answers = [each.result() for each in work]
        found = [msgspec.structs.replace(each, enos_timezone=timezone) for each in answers if isinstance(each, Detail)]
        if found:
            context.store.add_details(run_id, found, keep_body=limits.keep_body)
        kept += len(found)
        codes.update(each for each in answers if isinstance(each, str))
        left_out += answers.count(None)
    commonest = dict(codes.most_common(_CODES_REPORTED))
    return Details(asked=kept + codes.total(), failed=codes.total(), left_out=left_out, codes=commonest)
