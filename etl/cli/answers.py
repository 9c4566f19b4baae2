"""The command that prints a kept answer: answer."""

from __future__ import annotations

import click

from etl.cli import console
from etl.cli.options import Given, shared
from etl.domain.answers import data_of
from etl.domain.model import Target
from etl.errors import UsageError
from etl.report.versions import VersionAnswer, answer_of


@click.command("answer")
@click.argument("org_id", metavar="ORG")
@click.argument("user_id", metavar="USER")
@click.option("--version", type=click.IntRange(1), show_default="the latest", help="Which version.")
@shared("expression", "config")
def print_answer(given: Given, org_id: str, user_id: str, version: int | None) -> None:
    """Print the bytes of `data` in the answer that made a version, as received; `archive.answers` keeps them."""
    target = Target(org_id, user_id, given.expression)
    with given.reading() as app:
        found = answer_of(app.engine, target, version)
    if found is None:
        named = "no version" if version is None else f"no version {version}"
        raise UsageError(f"There is {named} of {target}: `flowtrail changes` shows the versions that there are.")
    console.stream([_bytes_of(found, target)])


def _bytes_of(found: VersionAnswer, target: Target) -> bytes:
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
