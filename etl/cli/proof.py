"""The commands that prove the trail: verify, seal, audit, answer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import click
import msgspec
from click.exceptions import Exit

from etl import database, signing, verify
from etl.audit import Extent, write_bundle
from etl.cli import CommandGroup, console
from etl.cli.application import Application
from etl.cli.lists import require_names
from etl.cli.options import FILE, Options, shared, typed_user
from etl.database import backup
from etl.domain.answers import data_of
from etl.domain.model import Target
from etl.domain.seal import kept_line
from etl.errors import DatabaseError, UsageError
from etl.export import whole_file
from etl.printable import counted
from etl.report import runs
from etl.report.runs import VersionAnswer, answer_of
from etl.store import Store
from etl.system.clock import utc_now
from etl.system.disk import open_regular

_COLUMNS = ("id", "run_id", "schedule", "origin", "status", "sealed_at", "seal", "key", "stamped_at")
_SHOWN = 20
_KEY_SHOWN = 16
seal = CommandGroup("seal", help="The seals of runs, and the key that signs them.")


@click.command("verify")
@click.option(
    "--head", is_flag=True, help="Print the chain heads, open spans and the last seal as JSON lines, and stop."
)
@click.option(
    "--since", type=click.IntRange(0), default=0, metavar="SEAL", help="Check only the runs sealed after this one."
)
@click.option(
    "--against", type=FILE, help="Prove that the heads in this file, as --head printed them, are still there."
)
@click.option(
    "--public-key",
    "public_keys",
    type=FILE,
    multiple=True,
    help="Every signature must be by this key; may be repeated if the key was replaced.",
)
@click.option(
    "--tsa", type=FILE, help="Every time stamp must be from an authority whose root certificate is in this PEM file."
)
@click.option(
    "--answers", is_flag=True, help="Read the kept answers again: each must give the version that refers to it."
)
@shared("json", "config")
def verify_trail(
    options: Options,
    head: bool,
    since: int,
    against: Path | None,
    public_keys: Sequence[Path],
    tsa: Path | None,
    answers: bool,
) -> None:
    """Replay every target, check digests and hashes, and report the first broken link of each."""
    keys = [signing.load_public_key(each) for each in public_keys]
    authorities = None if tsa is None else signing.load_authorities(tsa)
    done, sealing, read = verify.Progress(0, 0, 0, 0), verify.Sealing(), verify.Answers() if answers else None
    with options.reading() as app:
        if head:
            lines = chain(verify.heads(app.engine, utc_now()), verify.latest_seal_line(app.engine))
            console.stream(msgspec.json.encode(line) + b"\n" for line in lines)
            return
        with console.progress("replaying", hidden=options.json) as advance, ExitStack() as files:

            def report(progress: verify.Progress) -> None:
                nonlocal done
                done = progress
                advance(progress.targets, progress.of_targets)

            cut: list[int] = []
            kept = _opened(against, files, cut.append) if against else None
            trusted: dict[str, Any] = {"keys": keys, "authorities": authorities, "answers": read}
            found = list(verify.verify(app.engine, since=since, progress=report, sealing=sealing, **trusted))
            found += _damage(app) + _schema(app)
            if kept is not None:
                found += verify.against(app.engine, kept, is_whole=lambda: not cut)
            for line in cut:
                lacking = "the last, was cut short and ignored; whether the file lacks targets was not checked"
                console.complain(f"Line {line}, {lacking}.", "yellow")
    if options.json:
        console.json([finding.as_object() for finding in found])
    else:
        for finding in found:
            console.say(str(finding), "red")
        through = _through(done, sealing, read, keys=bool(keys), authorities=authorities is not None)
        through += f"; compared with {against}" if against else ""
        console.say(f"{through}: {f'{len(found)} findings' if found else 'everything holds'}.", "bold")
    if found:
        raise Exit(1)


def _through(
    done: verify.Progress, sealing: verify.Sealing, read: verify.Answers | None, *, keys: bool, authorities: bool
) -> str:
    """What the check went through, in words; ``keys`` and ``authorities``: whether there were any to check with."""
    through = f"{counted(done.targets, 'target')}, {counted(done.change_sets, 'change set')}, "
    through += f"{counted(done.changes, 'change')} replayed, {counted(sealing.seals, 'seal')}"
    if sealing.signed:
        through += f" ({sealing.signed} signed{'' if keys else '; --public-key FILE checks the signatures'})"
    if sealing.last_stamp:
        seal, at = sealing.last_stamp
        unchecked = "" if authorities else "; --tsa FILE checks whose they are"
        through += f", {sealing.stamped} time stamps (the last of seal {seal}, {console.cell(at)}{unchecked})"
    if read is not None:
        through += f", {read.kept} answers ({read.bytes} bytes; {read.proven} of {read.versions} versions have theirs)"
    if sealing.unsealed_runs:
        through += f" ({sealing.unsealed_runs} runs with {sealing.unsealed_versions} change sets are not sealed yet)"
    return through


def _opened(path: Path, files: ExitStack, cut: Callable[[int], None]) -> Iterable[bytes]:
    try:
        return verify.whole_lines(files.enter_context(open_regular(path)), cut)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def _schema(app: Application) -> list[verify.Finding]:
    """Other commands read views; an altered view would contradict the trail."""
    try:
        differences = database.check(app.engine)
    except DatabaseError as error:
        console.complain(f"The schema was not compared with what the migrations make: {error}", "yellow")
        return []
    made = "as the migrations made it"
    return [verify.Finding(what="the schema", expected=made, found=f"not: {each}") for each in differences]


def _damage(app: Application) -> list[verify.Finding]:
    """Check an SQLite file: a damaged index may have led the replay past rows."""
    found = database.integrity(app.engine)
    for table in found.unfinished:
        console.complain(
            f"The indexes of {table} were not checked completely, because writers were waiting: "
            "`flowtrail db check` does it while the service is stopped.",
            "yellow",
        )
    return [verify.Finding(what="the file", expected="whole", found=f"damaged: {each}") for each in found.damage]


@seal.command()
@click.argument("file", type=FILE, help="The private key; FILE.pub gets the public one.")
@shared("json")
def keygen(options: Options, file: Path) -> None:
    """Make a key pair (Ed25519) that signs seals; never overwrite one."""
    public = signing.generate_key(file)
    if options.json:
        console.json({"file": str(file), "public_file": f"{file}.pub", "key_id": public.key_id})
        return
    console.say(f"{file} holds the private key, for its owner alone (0600): [seal] key_file names it.")
    console.say(
        f"{file}.pub holds the public key: hand it to whoever checks the trail (`flowtrail verify --public-key`)."
    )
    console.say(f"Key {public.key_id}")


@seal.command("list")
@shared("limit", "timezone", "json", "config", limit=f"At most this many; {_SHOWN} by default, 0 shows all.")
def list_seals(options: Options) -> None:
    """Show the latest seals, each with its run, the key that signed it, and when an authority stamped it."""
    zone = options.zone
    with options.reading() as app:
        found = runs.seals(app.engine, options.most(_SHOWN, _SHOWN))
        if options.json:
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
def show(options: Options, number: int, to: Path | None) -> None:
    """Print a seal as it is kept elsewhere; with --to, write what `openssl` needs to check it."""
    with options.reading() as app:
        found = runs.seal(app.engine, number)
        token = runs.token(app.engine, number)
    if found is None:
        raise UsageError(f"There is no seal {number}: `flowtrail seal list` shows the latest.")
    kept = kept_line(found.trail_id, found.id, found.seal, found.sealed_at)
    console.data(msgspec.json.encode(kept) + b"\n")
    if to is not None:
        for name in _write(found, token, to):
            console.complain(f"{to / name} written.", "green")


@seal.command()
@shared("json", "config")
def timestamp(options: Options) -> None:
    """Have the last seal stamped now by the authority at `seal.timestamp_url`; the service does so regularly."""
    with options.application() as app:
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
    if options.json:
        console.json({"id": last.seal_id, "stamped_at": stamped_at})
        return
    console.say(f"Seal {last.seal_id} was stamped at {console.cell(stamped_at)}.")


def _write(found: runs.Seal, token: bytes | None, folder: Path) -> list[str]:
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


@click.command()
@click.option("--output", "-o", type=FILE, required=True, help="The file to write, a zip archive.")
@shared(
    *("since", "until", "org", "force", "timezone", "json", "config"),
    since="Runs sealed from then on: 2026-03-01, '7 days ago'; from the first run if omitted.",
    until="Runs sealed before then; to the last run if omitted.",
)
def audit(options: Options, output: Path) -> None:
    """Write a bundle for an auditor: the trail of that time, what proves it, and a checker that needs nothing else."""
    if output.is_file() and not options.force:
        raise UsageError(f"{output} exists already: --force replaces it.")
    extent = Extent(*options.period(), options.org)
    with options.reading() as app:
        require_names(app.engine, org=options.org)
        now = utc_now()
        with backup.snapshot(app.engine) as engine, whole_file(output) as file:
            done = write_bundle(engine, file, extent, now)
    if options.json:
        console.json({"file": str(output), **done._asdict(), "extent": done.extent._asdict()})
        return
    if done.extent.until != extent.until:
        ends = console.cell(done.extent.until)
        console.complain(f"A run is under way: the bundle ends before it began, at {ends}.", "yellow")
    counts = f"{counted(done.targets, 'target')}, {counted(done.change_sets, 'change set')}, "
    counts += f"{counted(done.changes, 'change')}, {counted(done.answers, 'answer')}"
    console.say(f"{output}: {done.runs} of {counted(done.seals, 'sealed run')}, {counts}.", "bold")
    console.say(f"Check it anywhere: unzip {output} check.py, read it, and run `python check.py {output}`.")


@click.command("answer")
@click.argument("org_id", metavar="ORG")
@click.argument("user_id", metavar="USER", callback=typed_user)
@click.option("--version", type=click.IntRange(1), show_default="the latest", help="Which version.")
@shared("expression", "config")
def print_answer(options: Options, org_id: str, user_id: str, version: int | None) -> None:
    """Print the bytes of `data` in the answer that made a version, as received; `archive.answers` keeps them."""
    target = Target(org_id, user_id, options.expression)
    with options.reading() as app:
        found = answer_of(app.engine, target, version)
    if found is None:
        named = "no version" if version is None else f"no version {version}"
        raise UsageError(f"There is {named} of {target}: `flowtrail changes` shows the versions that there are.")
    console.stream([_answer_bytes(found, target)])


def _answer_bytes(found: VersionAnswer, target: Target) -> bytes:
    if found.kept is None:
        raise UsageError(
            f"The answer that made version {found.version} of {target} was not kept: [archive] answers was not "
            f'"changed" at {found.observed_at:%Y-%m-%d %H:%M:%S} UTC.'
        )
    try:
        return data_of(found.kept)
    except ValueError as error:
        raise UsageError(
            f"The answer that made version {found.version} of {target} cannot be read, because its row is {error}: "
            "run `flowtrail verify --answers`."
        ) from None
