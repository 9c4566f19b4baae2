"""The commands about the seals of runs: seal keygen, seal list, seal show, seal timestamp."""

from __future__ import annotations

import base64
from itertools import islice
from pathlib import Path

import click
import msgspec

from etl import signing
from etl.cli import CommandGroup, console
from etl.cli.options import FILE, Given, shared
from etl.domain.seal import kept_line
from etl.errors import UsageError
from etl.report import seals
from etl.store import Store

_COLUMNS = ("id", "run_id", "schedule", "origin", "status", "sealed_at", "seal", "key", "stamped_at")
_SHOWN = 20
_KEY_SHOWN = 16

seal = CommandGroup("seal", help="The seals of runs, and the key that signs them.")


@seal.command()
@click.argument("file", type=FILE, help="The private key; FILE.pub gets the public one.")
@shared("json")
def keygen(given: Given, file: Path) -> None:
    """Make a key pair (Ed25519) that signs seals; never overwrite one."""
    public = signing.generate_key(file)
    if given.json:
        console.json({"file": str(file), "public_file": f"{file}.pub", "key_id": public.key_id})
        return
    console.say(f"{file} holds the private key, for its owner alone (0600): [seal] key_file names it.")
    console.say(
        f"{file}.pub holds the public key: hand it to whoever checks the trail (`flowtrail verify --public-key`)."
    )
    console.say(f"Key {public.key_id}")


@seal.command("list")
@shared("limit", "timezone", "json", "config", limit=f"At most this many; {_SHOWN} by default, 0 shows all.")
def list_seals(given: Given) -> None:
    """Show the latest seals, each with its run, the key that signed it, and when an authority stamped it."""
    zone = given.zone
    with given.reading() as app:
        found = islice(seals.seals(app.engine), given.most(_SHOWN, _SHOWN))
        if given.json:
            console.json_list(each._asdict() for each in found)
            return
        rows = (
            (*each[:5], each.sealed_at, each.seal, (each.key_id or "")[:_KEY_SHOWN], each.stamped_at) for each in found
        )
        console.table("", _COLUMNS, rows, "no run has ended yet", zone=zone)


@seal.command()
@click.argument("number", metavar="ID", type=click.IntRange(1), help="The number of the seal.")
@click.option("--to", type=FILE, help="Write what was signed, the signature and the time stamp into files there.")
@shared("config")
def show(given: Given, number: int, to: Path | None) -> None:
    """Print a seal as it is kept elsewhere; with --to, write what `openssl` needs to check it."""
    with given.reading() as app:
        found = seals.seal(app.engine, number)
        token = seals.token(app.engine, number)
    if found is None:
        raise UsageError(f"There is no seal {number}: `flowtrail seal list` shows the latest.")
    kept = kept_line(found.trail_id, found.id, found.seal, found.sealed_at)
    console.data(msgspec.json.encode(kept) + b"\n")
    if to is not None:
        for name in _write(found, token, to):
            console.complain(f"{to / name} written.", "green")


@seal.command()
@shared("json", "config")
def timestamp(given: Given) -> None:
    """Have the last seal stamped now by the authority at `seal.timestamp_url`; the service does so regularly."""
    with given.application() as app:
        url = app.settings.seal.timestamp_url
        if not url:
            raise UsageError("There is no authority: set [seal] timestamp_url to the address of one (RFC 3161).")
        request = signing.timestamps_by(url)
        app.ready(upgrade=False)
        store = Store(app.engine, app.stop)
        last = store.last_seal()
        if last is None:
            raise UsageError("There is no seal yet: the first run that ends makes one.")
        stamped_at = last.stamped_at
        if last.stamped_seal != last.seal_id:
            stamp = request(last.message)
            store.keep_timestamp(last.seal_id, stamp.at, stamp.token)
            stamped_at = stamp.at
    if given.json:
        console.json({"id": last.seal_id, "stamped_at": stamped_at})
        return
    console.say(f"Seal {last.seal_id} was stamped at {console.cell(stamped_at)}.")


def _write(found: seals.Seal, token: bytes | None, folder: Path) -> list[str]:
    files = {f"seal-{found.id}.message": found.message}
    if found.signature is not None:
        files[f"seal-{found.id}.signature"] = _bytes_of(found.signature)
    if token is not None:
        files[f"seal-{found.id}.token"] = token
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be written: {error.strerror}.") from error
    return list(files)


def _bytes_of(signature: str) -> bytes:
    try:
        return base64.b64decode(signature)
    except ValueError:  # it was altered, which `verify` reports
        return signature.encode("utf-8", "surrogatepass")
