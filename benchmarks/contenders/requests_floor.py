"""The floor with requests: a signed `session.get` a call, in a thread pool; loaded, or hashed, as the floor does."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.contenders import floor
from benchmarks.jobs import Job, Work

HOLDS = floor.HOLDS

FLOWS = "/batch-processing-service/v2.1/flows"
TOKEN = "/apim-token-service/v2.0/token/get"
KEY, SECRET = "benchmark", "secret-of-the-benchmark"

set_up = floor.set_up


def prepare(job: Job) -> Work:
    import requests  # noqa: F401 - an import is no work

    if not job.file:
        import psycopg  # noqa: F401
    return lambda: floor.work(job, job.asked(), bodies)


class Asker:
    """Signed requests, with a session a thread."""

    def __init__(self, url: str, certificate: str = "") -> None:
        self._url = url
        self._trusted = certificate or True
        self._own = threading.local()
        self._token = self._obtain()

    def get(self, who: tuple[str, str]) -> bytes:
        """The body of one target's answer."""
        org, user = who
        params = {"action": "getMyFlow", "orgId": org, "userId": user}
        now = str(time.time_ns() // 1_000_000)
        signed = self._token + "".join(name + params[name] for name in sorted(params)) + now + SECRET
        headers = {
            "apim-accesstoken": self._token,
            "apim-timestamp": now,
            "apim-signature": hashlib.sha256(signed.encode()).hexdigest(),
        }
        response = self._session().get(
            self._url + FLOWS, params=params, headers=headers, timeout=30, verify=self._trusted
        )
        response.raise_for_status()
        return bytes(response.content)

    def _session(self) -> Any:
        import requests

        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        return self._own.session

    def _obtain(self) -> str:
        now = time.time_ns() // 1_000_000
        proof = hashlib.sha256(f"{KEY}{now}{SECRET}".encode()).hexdigest()
        asked = {"appKey": KEY, "encryption": proof, "timestamp": now}
        answer = self._session().post(self._url + TOKEN, json=asked, timeout=30, verify=self._trusted)
        return str(answer.json()["data"]["accessToken"])


def bodies(job: Job, asked: list[tuple[str, str]]) -> Iterator[bytes]:
    asker = Asker(job.gateway, job.certificate)
    with ThreadPoolExecutor(job.concurrency) as pool:
        yield from pool.map(asker.get, asked)
