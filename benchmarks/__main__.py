"""The command line of the benchmarks; `benchmarks/README.md` explains it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import alone, compare, show, world

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, invoke_without_command=True)
out = Console(width=170)
progress = Console(stderr=True, width=170)

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything that was measured into this file.")]
ShapeName = Annotated[str, typer.Option(help="A, B, C, D, or targets x workflows as in 200x500.")]
Latency = Annotated[str, typer.Option(help="Let every answer wait so long, as in 20ms.")]


@app.callback()
def main(
    context: typer.Context,
    shapes: Annotated[str, typer.Option(help="Which, by comma; others as in 200x500.")] = "A,B,C,D",
    in_databases: Annotated[str, typer.Option("--databases")] = "sqlite,postgresql",
    contenders: Annotated[str, typer.Option(help="Which, by comma.")] = ",".join(compare.CONTENDERS),
    runs: Annotated[int, typer.Option(help="Rounds of each contender in each shape.")] = 5,
    patience: Annotated[float, typer.Option(help="A contender that took so many seconds gets no more rounds.")] = 25,
    quick: Annotated[bool, typer.Option("--quick", help="Shapes A and B, one round, without dlt and dbt.")] = False,
    latency: Latency = "0ms",
    json_file: JsonFile = None,
) -> None:
    """Compare Flowtrail with what else would do the job."""
    if context.invoked_subcommand is not None:
        return
    if quick:
        shapes, runs, contenders = "A,B", 1, "flowtrail,floor,requests_floor,afternoon"
    wanted = compare.Wanted(
        shapes={name: shape_named(name) for name in shapes.split(",")},
        databases=in_databases.split(","),
        contenders=[compare.CONTENDERS[name] for name in contenders.split(",")],
        runs=runs,
        latency_seconds=_seconds(latency),
        patience_seconds=patience,
    )
    with _place() as folder:
        compared = compare.compared(wanted, Path(folder), progress.print)
    _keep(json_file, compared)
    for table in show.comparison(compared):
        out.print(table.rich())
    out.print(show.machine(compared), "", *show.goal_lines(compared), sep="\n", highlight=False)


@app.command()
def flowtrail(
    shape: ShapeName = "A",
    database: Annotated[str, typer.Option(help="sqlite or postgresql.")] = "sqlite",
    runs: int = 3,
    statements: Annotated[bool, typer.Option("--statements", help="Show what was sent in the last run.")] = False,
) -> None:
    """Flowtrail alone, for whoever works on its speed."""
    of = shape_named(shape)
    with _place() as folder:
        measured = alone.measured(of, database, runs, Path(folder))
    out.print(alone.drawn(f"{shape}, {database}, medians of {runs}", of, measured).rich())
    for each in measured[-3:] if statements else ():
        out.print(each.phase, each.heads)


def shape_named(name: str) -> world.Shape:
    if name in world.SHAPES:
        return world.SHAPES[name]
    targets, by, flows = name.partition("x")
    if not (by and targets.isdigit() and flows.isdigit()):
        raise typer.BadParameter(f"{name!r} is no shape: A, B, C, D, or targets x workflows as in 200x500")
    return world.Shape(int(targets), int(flows))


def _seconds(text: str) -> float:
    if not text.endswith("ms") or not text[:-2].replace(".", "").isdigit():
        raise typer.BadParameter(f"{text!r}: write milliseconds, as in 20ms")
    return float(text[:-2]) / 1000


def _place() -> tempfile.TemporaryDirectory[str]:
    """On disk: /tmp may be in memory, and what is in memory is not durable."""
    return tempfile.TemporaryDirectory(prefix="flowtrail-benchmark-", dir="/var/tmp")


def _keep(file: Path | None, measured: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    app()
