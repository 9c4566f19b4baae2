"""The command line of the benchmarks."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import databases, gateway, world
from benchmarks.rounds import PHASES, Contender, Measurement, Round, whole_round

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(width=150)

FLOWTRAIL = Contender(name="flowtrail", title="Flowtrail")


@app.command()
def flowtrail(
    shape: Annotated[str, typer.Option(help="A, B, C, D, or targets x workflows as in 200x500.")] = "A",
    database: Annotated[str, typer.Option(help="sqlite or postgresql.")] = "sqlite",
    runs: int = 3,
    statements: Annotated[bool, typer.Option("--statements", help="Show what was sent in the last run.")] = False,
) -> None:
    """Flowtrail alone, for whoever works on its speed."""
    of = shape_named(shape)
    measured: list[Measurement] = []
    with (
        tempfile.TemporaryDirectory(prefix="flowtrail-benchmark-") as folder,
        databases.of_kind(database, Path(folder)) as kinds,
        gateway.running(of) as asked,
    ):
        for nth in range(runs + 1):
            with kinds.fresh() as fresh:
                found = list(whole_round(Round(FLOWTRAIL, of, asked, fresh, Path(folder)), thoroughly=not nth))
                measured += found if nth else []  # the first one finds out what there is to import
    out.print(_alone(shape, database, of, measured))
    for each in measured[-3:] if statements else ():
        out.print(each.phase, each.heads)


def shape_named(name: str) -> world.Shape:
    if name in world.SHAPES:
        return world.SHAPES[name]
    targets, _, flows = name.partition("x")
    return world.Shape(int(targets), int(flows))


def _alone(name: str, database: str, shape: world.Shape, measured: list[Measurement]) -> Table:
    title = f"{name}: {shape.targets} targets x {shape.flows} workflows, {database}; medians of {len(measured) // 3}"
    columns = ("phase", "seconds", "min", "max", "user", "system", "server CPU", "peak MiB", "calls", "statements",
               "written/target", "grown/target")  # fmt: skip
    table = Table(*columns, title=title)
    for phase in PHASES:
        of = [each for each in measured if each.phase == phase]

        def median(field: str, of: list[Measurement] = of) -> float:
            return float(statistics.median(getattr(each, field) for each in of))

        seconds = [each.seconds for each in of]
        table.add_row(
            phase, f"{median('seconds'):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}",
            f"{median('cpu_user_seconds'):.2f}", f"{median('cpu_system_seconds'):.2f}",
            f"{median('server_cpu_seconds'):.2f}", f"{median('peak_mib'):.0f}", f"{median('calls'):.0f}",
            f"{median('statements'):.0f}", f"{median('written_bytes') / shape.targets:.0f}",
            f"{median('grown_bytes') / shape.targets:.0f}",
        )  # fmt: skip
    return table


@app.callback()
def main() -> None:
    """Benchmarks of Flowtrail."""


if __name__ == "__main__":
    app()
