"""The command that prints a kept answer: answer."""

from __future__ import annotations

from typing import Annotated

import typer

from etl import database
from etl.cli import console, options
from etl.domain.answers import data_of
from etl.domain.model import Target
from etl.errors import UsageError
from etl.report.answers import VersionAnswer, answer_of


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(name="answer")(print_answer)


def print_answer(
    context: typer.Context,
    org_id: Annotated[str, typer.Argument(metavar="ORG", show_default=False)],
    user_id: Annotated[str, typer.Argument(metavar="USER", show_default=False)],
    expression: Annotated[str, typer.Option("--expression", help="The target's search expression.")] = "",
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Which version.", show_default="the latest")
    ] = None,
    config_file: options.Config = None,
) -> None:
    """Print the bytes of `data` in the answer that made a version, as received; `archive.answers` keeps them."""
    target = Target(org_id, user_id, expression)
    with options.open_application(context, config_file, logs=False) as app:
        database.require_current(app.engine)
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
