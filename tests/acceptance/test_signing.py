"""Signed seals, from the key file to the auditor, with the commands as a user types them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from etl.cli import app
from etl.errors import SigningError
from tests.support.authority import Authority, served
from tests.support.program import SECRET, Program

Command = Callable[..., Result]


@pytest.fixture
def run(flowtrail: Program) -> Command:
    """The commands in this process; a refusal is the exception that would be printed."""
    settings = str(flowtrail.folder / "flowtrail.toml")
    environment = {"FLOWTRAIL_GATEWAY__SECRET_KEY": SECRET}
    return lambda *arguments: CliRunner().invoke(app, ["--config", settings, *arguments], env=environment)


def test_a_signed_trail_is_checked_by_others_with_the_public_key_alone(
    flowtrail: Program, run: Command, tmp_path: Path
) -> None:
    key = tmp_path / "seal.pem"
    made = run("seal", "keygen", str(key), "--json")
    assert (made.exit_code, key.stat().st_mode & 0o777) == (0, 0o600)
    key_id = json.loads(made.stdout)["key_id"]
    flowtrail.configure(rest=f'[seal]\nkey_file = "{key.name}"')
    assert run("sync").exit_code == 0
    assert f"seals are signed with the key {key_id}" in run("check").stdout
    key.unlink()
    checked = run("verify", "--public-key", f"{key}.pub")
    assert (checked.exit_code, "1 seal (1 signed): everything holds" in checked.stdout) == (0, True)
    assert "1 signed; --public-key FILE checks the signatures" in run("verify").stdout
    run("seal", "keygen", str(tmp_path / "other.pem"))
    checked = run("verify", "--public-key", str(tmp_path / "other.pem.pub"), "--json")
    assert (checked.exit_code, json.loads(checked.stdout)[0]["what"]) == (1, "run_seal 1.key_id")


def test_a_service_does_not_start_where_a_public_key_cannot_be_read(flowtrail: Program) -> None:
    flowtrail.configure(rest='[verify]\npublic_keys = ["missing.pub"]')
    refused = flowtrail("serve")
    assert (refused.returncode, "missing.pub cannot be read" in refused.stderr) == (2, True), refused.stderr


def test_openssl_checks_what_show_writes(flowtrail: Program, run: Command, tmp_path: Path) -> None:
    run("seal", "keygen", str(tmp_path / "seal.pem"))
    flowtrail.configure(rest=f'[seal]\nkey_file = "{tmp_path / "seal.pem"}"')
    run("sync")
    shown = run("seal", "show", "1", "--to", str(tmp_path / "evidence"))
    assert json.loads(shown.stdout)["id"] == 1
    (listed,) = json.loads(run("seal", "list", "--json").stdout)
    assert (listed["seal"], listed["status"]) == (json.loads(shown.stdout)["seal"], "succeeded")
    files = ["-in", "evidence/seal-1.message", "-sigfile", "evidence/seal-1.signature"]
    asked = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "seal.pem.pub", "-rawin", *files]
    assert subprocess.run(asked, cwd=tmp_path, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda key: key.chmod(0o640), "is open to others (mode 0640): chmod 600"),
        (lambda key: key.unlink(), "cannot be read: No such file or directory."),
        (lambda key: key.write_text("x"), "is not a private key in PEM"),
        (None, "set [seal] key_file, to this key or to a new one."),
    ],
    ids=["open to others", "not there", "no key", "no longer configured"],
)
@pytest.mark.parametrize("command", ["sync", "prune"])
def test_nothing_is_done_if_the_seal_could_not_be_signed(
    flowtrail: Program, run: Command, tmp_path: Path, spoil: Callable[[Path], None] | None, sentence: str, command: str
) -> None:
    key = tmp_path / "seal.pem"
    run("seal", "keygen", str(key))
    flowtrail.configure(rest=f'[seal]\nkey_file = "{key}"')
    run("sync")
    spoil(key) if spoil is not None else flowtrail.configure()
    refused = run(command)
    assert isinstance(refused.exception, SigningError)
    assert (sentence in str(refused.exception), refused.exception.exit_code) == (True, 2)
    assert flowtrail.rows("SELECT count(*) FROM sync_run") == [(1,)]


def test_a_missing_seal_is_reported_in_one_sentence(run: Command) -> None:
    run("sync")
    assert str(run("seal", "show", "7").exception) == "There is no seal 7: `flowtrail seal list` shows the latest."


def test_the_last_seal_is_stamped_on_demand_and_the_stamp_is_checked(
    flowtrail: Program, run: Command, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tsa")
    with served(authority.answer) as url:
        flowtrail.configure(rest=f'[seal]\ntimestamp_url = "{url}"')
        assert "the first run that ends makes one" in str(run("seal", "timestamp").exception)
        run("sync")
        told = [json.loads(run("seal", "timestamp", "--json").stdout) for _ in range(2)]
        assert told[0] == told[1]
        assert "answers; its clock says" in run("check").stdout
    assert run("seal", "show", "1", "--to", str(tmp_path / "evidence")).exit_code == 0
    token, message = (tmp_path / "evidence" / f"seal-1.{name}" for name in ("token", "message"))
    assert authority.confirms(token.read_bytes(), message.read_bytes())
    checked = run("verify", "--tsa", str(authority.root))
    assert (checked.exit_code, "1 time stamps (the last of seal 1," in checked.stdout) == (0, True)
    assert "--tsa FILE checks whose they are" in run("verify").stdout
    run("sync")
    refused = run("seal", "timestamp")
    assert isinstance(refused.exception, SigningError)
    assert "cannot be reached" in str(refused.exception)


def test_the_answer_of_a_version_is_printed_as_it_came(flowtrail: Program, run: Command) -> None:
    run("sync")
    refused = str(run("answer", "o1", "ann").exception)
    assert refused.startswith("The answer that made version 1 of o1/ann was not kept: [archive] answers was not")
    assert str(run("answer", "o1", "ann", "--version", "7").exception).startswith("There is no version 7 of o1/ann")
    (flowtrail.folder / "flowtrail.db").unlink()
    flowtrail.configure(rest='[archive]\nanswers = "changed"')
    run("sync")
    printed = run("answer", "o1", "ann").stdout_bytes
    assert flowtrail.rows("SELECT data_hash FROM change_set") == [(hashlib.sha256(printed).hexdigest(),)]
    assert "1 of 1 versions have theirs" in run("verify", "--answers").stdout
