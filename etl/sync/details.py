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
from concurrent.futures import Future, wait
from typing import Final

import msgspec
import structlog

from etl.domain.detail import Detail
from etl.errors import DatabaseError, GatewayError, Interrupted, RunClosed
from etl.store import Changed
from etl.sync.batch import CircuitBreaker, RunContext
from etl.sync.result import Details

_REMEDY: Final = "what is missing is asked for with its next change; docs/enos.md says what each code means"
_CODES_REPORTED: Final = 5


class DetailLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many details may be asked for at the end of a run, and how."""

    most: int
    within: dt.timedelta
    keep_body: bool


def ask_for_details(context: RunContext, run_id: int, limits: DetailLimits) -> Details:
    """Ask once for each workflow that the run found changed, store the answers, and return how it went. Raises
    RunClosed if the run was declared dead and sealed meanwhile."""
    give_up_at = time.monotonic() + limits.within.total_seconds()
    log = structlog.get_logger(__name__)
    try:
        changed = context.store.changed_workflows(run_id, limits.most + 1)
        asked = changed[: limits.most]
        done = _DetailFetcher(context, run_id, limits, give_up_at).fetch(asked)
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


class _DetailFetcher:
    def __init__(self, context: RunContext, run_id: int, limits: DetailLimits, give_up_at: float) -> None:
        self._context = context
        self._run_id = run_id
        self._keep_body = limits.keep_body
        self._give_up_at = give_up_at
        self._breaker = CircuitBreaker(context.down_after)

    def fetch(self, changed: Sequence[Changed]) -> Details:
        """Ask in groups of as many as may be in flight; each group is written when it has come."""
        kept, codes, left_out = 0, Counter[str](), 0
        size = self._context.in_flight
        for group in (changed[start : start + size] for start in range(0, len(changed), size)):
            answers = self._group(group)
            found = [each for each in answers if isinstance(each, Detail)]
            if found:
                self._context.store.add_details(self._run_id, found, keep_body=self._keep_body)
            kept += len(found)
            codes.update(each for each in answers if isinstance(each, str))
            left_out += answers.count(None)
        commonest = dict(codes.most_common(_CODES_REPORTED))
        return Details(asked=kept + codes.total(), failed=codes.total(), left_out=left_out, codes=commonest)

    def _group(self, group: Sequence[Changed]) -> list[Detail | str | None]:
        work: list[Future[Detail | str | None]] = [
            self._context.fetchers.submit(contextvars.copy_context().run, self._one, changed) for changed in group
        ]
        wait(work)
        return [each.result() for each in work]

    def _one(self, changed: Changed) -> Detail | str | None:
        """The detail, the code of the error, or None if nothing was asked."""
        left = self._give_up_at - time.monotonic()
        if left <= 0 or self._breaker.is_open or self._context.stop.is_set():
            return None
        try:
            detail = self._context.gateway.detail(*changed, left)
        except Interrupted:
            return None
        except GatewayError as error:
            self._breaker.saw(error)
            return error.code
        self._breaker.saw(None)
        return detail
