"""The command that checks the trail: verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from click.exceptions import Exit

from etl import database, signing, verify
from etl.cli import console
from etl.cli.application import Application
from etl.cli.options import FILE, Given, shared
from etl.errors import DatabaseError, UsageError
from etl.printable import counted
from etl.system.clock import utc_now
from etl.system.disk import open_regular


class _Trusted(NamedTuple):
    """Which signatures and time stamps are trusted, and whether answers are read."""

    keys: Sequence[verify.PublicKey]
    authorities: verify.Authorities | None
    answers: verify.Answers | None
    """Counts the kept answers, if they are read."""


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
    given: Given,
    head: bool,
    since: int,
    against: Path | None,
    public_keys: Sequence[Path],
    tsa: Path | None,
    answers: bool,
) -> None:
    """Replay every target, check digests and hashes, and report the first broken link of each."""
    trusted = _Trusted(
        [signing.load_public_key(each) for each in public_keys],
        None if tsa is None else signing.load_authorities(tsa),
        verify.Answers() if answers else None,
    )
    with given.reading(logs=True) as app:
        if head:
            lines = chain(verify.heads(app.engine, utc_now()), verify.latest_seal_line(app.engine))
            console.stream(msgspec.json.encode(line) + b"\n" for line in lines)
            return
        found, through = _findings(app, against, since, trusted, hidden=given.json)
    if given.json:
        console.json([finding.as_object() for finding in found])
    else:
        for finding in found:
            console.say(str(finding), "red")
        console.say(f"{through}: {f'{len(found)} findings' if found else 'everything holds'}.", "bold")
    if found:
        raise Exit(1)


def _findings(
    app: Application, against: Path | None, since: int, trusted: _Trusted, *, hidden: bool
) -> tuple[list[verify.Finding], str]:
    reached: list[verify.Progress] = [verify.Progress(0, 0, 0, 0)]
    sealing = verify.Sealing()
    with console.counted("replaying", hidden=hidden) as advance, ExitStack() as files:

        def report(progress: verify.Progress) -> None:
            reached[:] = [progress]
            advance(progress.targets, progress.of_targets)

        cut: list[int] = []
        kept = _opened(against, files, cut.append) if against else None
        found = list(verify.verify(app.engine, since=since, progress=report, sealing=sealing, **trusted._asdict()))
        found += _damage(app) + _schema(app)
        if kept is not None:
            found += verify.against(app.engine, kept, is_whole=lambda: not cut)
        for line in cut:
            console.complain(
                f"Line {line}, the last, was cut short and ignored; whether the file lacks targets was not checked.",
                "yellow",
            )
    through = _through(reached[0], sealing, trusted)
    return found, through + (f"; compared with {against}" if against else "")


def _through(done: verify.Progress, sealing: verify.Sealing, trusted: _Trusted) -> str:
    """What the check went through, in words."""
    through = f"{counted(done.targets, 'target')}, {counted(done.change_sets, 'change set')}, "
    through += f"{counted(done.changes, 'change')} replayed, {counted(sealing.seals, 'seal')}"
    if sealing.signed:
        unchecked = "" if trusted.keys else "; --public-key FILE checks the signatures"
        through += f" ({sealing.signed} signed{unchecked})"
    if sealing.last_stamp:
        seal, at = sealing.last_stamp
        unchecked = "" if trusted.authorities else "; --tsa FILE checks whose they are"
        through += f", {sealing.stamped} time stamps (the last of seal {seal}, {console.cell(at)}{unchecked})"
    if (read := trusted.answers) is not None:
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
