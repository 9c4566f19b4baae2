"""The command line of the benchmarks; `benchmarks/README.md` explains it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import alone, compare, curve, show, world
from benchmarks.rounds import BENCH_PYTHON

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, invoke_without_command=True)
out = Console(width=170)
progress = Console(stderr=True, width=170)

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything that was measured into this file.")]
OTHERS = "targets x workflows as in 200x500, or as in 200x500/700 where all lists share so many workflow ids"
ShapeName = Annotated[str, typer.Option(help=f"A, B, C, D, or {OTHERS}.")]


@app.callback()
def main(
    context: typer.Context,
    shapes: Annotated[str, typer.Option(help="Which, by comma; others as in 200x500 or 200x500/700.")] = "A,B,C,D",
    in_databases: Annotated[str, typer.Option("--databases")] = "sqlite,postgresql",
    contenders: Annotated[str, typer.Option(help="Which, by comma.")] = ",".join(compare.CONTENDERS),
    runs: Annotated[int, typer.Option(help="Rounds of each contender in each shape.")] = 5,
    patience: Annotated[float, typer.Option(help="A contender that took so many seconds gets no more rounds.")] = 12,
    quick: Annotated[bool, typer.Option("--quick", help="Shapes A and B, one round, without dlt and dbt.")] = False,
    waiting: Annotated[str, typer.Option("--latency", help="Let every answer wait so long.")] = "0ms",
    json_file: JsonFile = None,
) -> None:
    """Compare Flowtrail with what else would do the job."""
    if context.invoked_subcommand is not None:
        return
    if quick:
        shapes, runs, contenders = "A,B", 1, "flowtrail,floor,requests_floor,afternoon"
    wanted = compare.Wanted(
        shapes={name: shape_named(name) for name in shapes.split(",")},
        databases=kinds_named(in_databases),
        contenders=[compare.CONTENDERS[name] for name in _known(contenders, compare.CONTENDERS)],
        runs=runs,
        latency_seconds=_seconds(waiting),
        patience_seconds=patience,
    )
    _compare(wanted, json_file)


def _compare(wanted: compare.Wanted, json_file: Path | None) -> None:
    compared: dict[str, Any] = {}
    with _place() as folder:
        for compared in compare.compared(wanted, Path(folder), progress.print):
            _keep(json_file, compared)
    if not compared:
        raise typer.Exit(1)
    for table in show.comparison(compared):
        out.print(table.rich())
    out.print(show.machine(compared), "", *show.goal_lines(compared), sep="\n", highlight=False)


@app.command()
def flowtrail(
    shape: ShapeName = "A",
    database: Annotated[str, typer.Option(help="sqlite or postgresql.")] = "sqlite",
    runs: int = 3,
    waiting: Annotated[str, typer.Option("--latency", help="Let every answer wait so long.")] = "0ms",
    tls: Annotated[bool, typer.Option("--tls", help="Ask over TLS.")] = False,
    statements: Annotated[bool, typer.Option("--statements", help="Show what was sent in the last run.")] = False,
) -> None:
    """Flowtrail alone, for whoever works on its speed."""
    of = shape_named(shape)
    kinds_named(database)
    with _place() as folder:
        waits = _seconds(waiting)
        measured = alone.measured(of, database, runs, Path(folder), tls=tls, latency_seconds=waits)
    how = f"{database}, {waiting} an answer{', TLS' * tls}"
    out.print(alone.drawn(f"{shape}, {how}, medians of {runs}", of, measured).rich())
    for each in measured[-3:] if statements else ():
        out.print(each.phase, each.heads)


@app.command()
def latency(
    waiting: Annotated[str, typer.Option("--latency", help="Let every answer wait so long.")] = "20ms",
    shapes: Annotated[str, typer.Option(help="Which, by comma; others as in 200x500 or 200x500/700.")] = "B",
    in_databases: Annotated[str, typer.Option("--databases")] = "sqlite,postgresql",
    runs: int = 3,
    json_file: JsonFile = None,
) -> None:
    """Flowtrail and the afternoon's version where every answer takes its time, 16 requests at once."""
    wanted = compare.Wanted(
        shapes={name: shape_named(name) for name in shapes.split(",")},
        databases=kinds_named(in_databases),
        contenders=[compare.CONTENDERS[name] for name in ("flowtrail", "afternoon")],
        runs=runs,
        latency_seconds=_seconds(waiting),
    )
    _compare(wanted, json_file)


@app.command(name="curve")
def cost_curve(
    in_databases: Annotated[str, typer.Option("--databases")] = "sqlite",
    most_targets: Annotated[int, typer.Option(help="From a hundred in steps of ten; 0 leaves this axis out.")] = 10**5,
    most_workflows: Annotated[int, typer.Option(help="From ten in steps of ten; 0 leaves this axis out.")] = 10**6,
    json_file: JsonFile = None,
) -> None:
    """What Flowtrail costs with more targets, and with more workflows of one target."""
    with _place() as folder:
        wanted = curve.shapes(most_targets, most_workflows)
        measured = curve.measured(wanted, kinds_named(in_databases), Path(folder), progress.print)
    _keep(json_file, measured)
    for table in curve.drawn(measured):
        out.print(table.rich())


@app.command()
def plot(
    files: Annotated[list[Path], typer.Argument(help="What --json wrote.")],
    folder: Annotated[Path, typer.Option(help="Where the SVG files go.")] = Path("docs/images"),
) -> None:
    """Draw what was measured."""
    if not BENCH_PYTHON.exists():
        raise typer.BadParameter("plots need matplotlib: `make bench-setup` installs it into .venv-bench")
    subprocess.run([BENCH_PYTHON, "-m", "benchmarks.plots", folder, *files], check=True)


@app.command()
def report(files: Annotated[list[Path], typer.Argument(help="What --json wrote.")]) -> None:
    """Print what was measured as Markdown, for docs/performance.md."""
    for file in files:
        measured = json.loads(file.read_text())
        tables = curve.drawn(measured) if "curve" in measured else show.comparison(measured)
        lines = [] if "curve" in measured else [f"- {line}" for line in show.goal_lines(measured)]
        skipped = [f"- skipped: {line}" for line in measured.get("skipped", ())]
        parts = [f"Measured on {show.machine(measured)}.\n", *(table.markdown() for table in tables)]
        sys.stdout.write("\n".join([*parts, *lines, *skipped]) + "\n\n")


def shape_named(name: str) -> world.Shape:
    if name in world.SHAPES:
        return world.SHAPES[name]
    found = re.fullmatch(r"(\d+)x(\d+)(?:/(\d+))?", name)
    shape = world.Shape(*(int(number or 0) for number in found.groups())) if found else None
    if shape is None or 0 < shape.ids < shape.flows:
        raise typer.BadParameter(f"{name!r} is no shape: A, B, C, D, or {OTHERS}")
    return shape


def kinds_named(names: str) -> list[str]:
    return _known(names, ("sqlite", "postgresql"))


def _known(names: str, known: Collection[str]) -> list[str]:
    for name in names.split(","):
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names.split(",")


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
