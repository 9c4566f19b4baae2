"""``python -m etl.demo --port 8900``: the demo's gateway as its own process. SIGUSR1 lets a day pass."""

from __future__ import annotations

import argparse
import signal
import sys

from etl.demo.gateway import DemoGateway
from etl.demo.world import World


def main() -> None:
    """Prints the gateway's URL, and serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m etl.demo", description="A local EnOS gateway.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    world = World()
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    with DemoGateway(world, port=parser.parse_args().port) as gateway:
        sys.stdout.write(f"{gateway.url}\n")
        sys.stdout.flush()
        while signal.sigwait(awaited) == signal.SIGUSR1:
            world.evolve()


if __name__ == "__main__":
    main()
