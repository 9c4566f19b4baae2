"""``python -m etl.demo``: the local gateway as its own process; one line with its URL when it is ready."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from etl.demo.gateway import DemoGateway
from etl.demo.world import World


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m etl.demo", description="A local EnOS gateway.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--access-key", default="demo-access-key")
    parser.add_argument("--secret-key", default="demo-secret-key", help="invented: never a real one")
    parser.add_argument("--auth", choices=("token", "none"), default="token")
    parser.add_argument("--release", choices=("v2.1", "v2.0", "edge"), default="v2.1")
    parser.add_argument("--token-seconds", type=float, default=7200)
    parser.add_argument("--max-skew-seconds", type=float, default=300)
    parser.add_argument("--date-offset-seconds", type=float, default=0)
    parser.add_argument("--orgs", type=int, default=1)
    parser.add_argument("--users", type=int, default=2, help="in each organisation")
    parser.add_argument("--flows", type=int, default=50, help="that each user sees")
    parser.add_argument("--no-shuffle", action="store_true", help="every answer in the same order")
    parser.add_argument("--evolve-every", type=float, metavar="SECONDS", help="one step of the world, each time")
    parser.add_argument("--deliveries", type=Path, metavar="FILE", help="JSON lines of what was delivered")
    parser.add_argument("--admin", action="store_true", help="open /_demo/ to this machine")
    return parser.parse_args()


def _gateway(given: argparse.Namespace) -> DemoGateway:
    return DemoGateway(
        World(given.seed, orgs=given.orgs, users=given.users, flows=given.flows),
        access_key=given.access_key,
        secret_key=given.secret_key,
        auth=given.auth,
        release=given.release,
        host=given.host,
        port=given.port,
        token_seconds=given.token_seconds,
        max_skew_seconds=given.max_skew_seconds,
        date_offset_seconds=given.date_offset_seconds,
        shuffle=not given.no_shuffle,
        seed=given.seed,
        deliveries_file=given.deliveries,
        admin=given.admin,
    )


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    given = _arguments()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # set explicitly: a background job of a shell would ignore Ctrl-C
        signal.signal(number, lambda *_: stopped.set())
    with _gateway(given) as gateway:
        sys.stdout.write(f"{gateway.url}\n")
        sys.stdout.flush()
        while not stopped.wait(given.evolve_every):
            gateway.world.evolve()


if __name__ == "__main__":
    main()
