"""Secrets stay secret, files stay private, and foreign text cannot forge a line of the log."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from etl import log
from etl.demo.world import World
from etl.domain.model import Flow
from tests.support.enos import Fault, LocalGateway
from tests.support.program import ANN, KEY, ORG, Program, disguises

CANARY = 's3cr3t/ca+nary="ä&\\'
HOSTILE = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0x200B, 0xFEFF)]


@pytest.fixture
def gateway() -> Iterator[LocalGateway]:
    world = World(orgs=0)
    world.set_flows(ORG, ANN, [Flow("1", "one", "D", True)])
    with LocalGateway(world, access_key=KEY, secret_key=CANARY) as gateway:
        yield gateway


@pytest.mark.parametrize("trouble", [None, "outage", "html", "expired", "redirect", "cut"])
def test_no_secret_and_no_token_in_any_byte_that_the_program_leaves(
    flowtrail: Program, gateway: LocalGateway, trouble: str | None
) -> None:
    environment = {"FLOWTRAIL_GATEWAY__SECRET_KEY": CANARY, "FLOWTRAIL_LOG__LEVEL": "DEBUG"}
    flowtrail("sync", **environment)
    if trouble:
        gateway.order(Fault(trouble, times=None, location="http://127.0.0.1:9/"))  # type: ignore[arg-type]
    for command in (["check"], ["sync"], ["plan"], ["export", "changes", "-o", "out.csv"], ["verify", "--head"]):
        done = flowtrail(*command, **environment)
        (flowtrail.folder / f"{command[0]}.txt").write_text(done.stdout + done.stderr)
    left = {path: path.read_bytes() for path in flowtrail.folder.rglob("*") if path.is_file()}
    assert len(left) > 6
    for secret in (CANARY, gateway.tokens._token):
        for kind, disguise in disguises(secret).items():
            assert [path.name for path, content in left.items() if disguise in content] == [], kind


def test_no_secret_in_the_log_or_the_arguments_of_a_service(flowtrail: Program, gateway: LocalGateway) -> None:
    flowtrail.configure(gateway='secret_key_file = "secret"\ndeadline = "2s"')
    (flowtrail.folder / "secret").write_text(CANARY)
    os.chmod(flowtrail.folder / "secret", 0o600)
    os.environ.pop("FLOWTRAIL_GATEWAY__SECRET_KEY", None)
    service = flowtrail.start("serve")
    service.wait_for("run_ended")
    arguments = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
    assert service.stop(signal.SIGTERM) == 0
    said = json.dumps(service.log).encode() + arguments
    assert all(disguise not in said for disguise in disguises(CANARY).values())


@pytest.mark.parametrize("style", ["console", "json"])
def test_one_record_is_one_line_whatever_a_name_contains(style: str) -> None:
    stream = io.StringIO()
    log.configure("INFO", style, stream)  # type: ignore[arg-type]
    try:
        logger = structlog.get_logger("etl.test")
        for character in HOSTILE:
            logger.info("seen", name=f"a{character}b", many=[f"c{character}d"])
            try:
                raise ValueError(f"{ord(character)} e{character}f")
            except ValueError:
                logger.exception("failed")
    finally:
        structlog.reset_defaults()
    lines = stream.getvalue().split("\n")
    assert len(lines) == 2 * len(HOSTILE) + 1
    assert not any(character in stream.getvalue() for character in HOSTILE if character != "\n")
