"""What a run works with, in a process of tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etl.store import Store
from etl.sync import RunContext
from tests.support.builders import LIMITS


@contextlib.contextmanager
def run_context(
    store: Store, gateway: Any, in_flight: int = 2, **given: Any
) -> Iterator[tuple[RunContext, ThreadPoolExecutor]]:
    """A context, and the threads for its batches; ``given`` overrides its fields."""
    with (
        ThreadPoolExecutor(in_flight) as fetchers,
        ThreadPoolExecutor(2) as writers,
        ThreadPoolExecutor(2) as batches,
    ):
        fields = {"limits": LIMITS, "down_after": 9, "stop": threading.Event(), **given}
        pools: dict[str, Any] = {"fetchers": fetchers, "writers": writers, "in_flight": in_flight}
        yield RunContext(store=store, gateway=gateway, **pools, **fields), batches
