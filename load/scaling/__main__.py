"""`measure [DIMENSION…]` takes the figures, `plot` draws them; without a command, both."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from load.scaling import records
from load.scaling.catalogue import AXES, SCALES, Dimension, Figure
from load.subject import run_measurement


def main(arguments: Sequence[str]) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m load.scaling", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    measure = commands.add_parser("measure", help="take the figures along some dimensions, by default all")
    measure.add_argument("dimensions", nargs="*", type=Dimension, metavar="DIMENSION", help=", ".join(Dimension))
    measure.add_argument(
        "--only", nargs="+", type=Figure, default=list(Figure), metavar="FIGURE", help=", ".join(Figure)
    )
    measure.add_argument("--points", nargs="+", type=int, help="the points, of one dimension: 10000000, for example")
    measure.add_argument("--results", type=Path, default=records.RESULTS, help="where the CSVs are")
    plot = commands.add_parser("plot", help="draw an SVG per figure")
    plot.add_argument("--results", type=Path, default=records.RESULTS, help="where the CSVs are")
    given = parser.parse_args(arguments)
    if given.command is None:
        main(["measure"])
        main(["plot"])
        return
    if given.command == "plot":
        from load.scaling.plot import draw_all  # noqa: PLC0415 - its library is of a dependency group of its own

        draw_all(given.results)
        return
    chosen = given.dimensions or list(Dimension)
    if given.points and len(chosen) != 1:
        parser.error("--points are those of one dimension")
    for dimension in chosen:
        points = sorted(given.points or AXES[dimension].points)
        taking = take(dimension, points, frozenset(given.only), given.results)
        run_measurement(taking, loop_factory=uvloop.new_event_loop)


async def take(dimension: Dimension, points: Sequence[int], wanted: frozenset[Figure], results: Path) -> None:
    """Measure along a dimension; each point is written down as it is taken, in the place of an earlier taking."""
    from load.scaling.scenes import MEASURES  # noqa: PLC0415 - plots need none of the service

    path = records.path_of(dimension, results)
    started = time.perf_counter()
    print(f"{dimension}")
    async for taken in MEASURES[dimension](points, wanted):
        records.write(path, records.merge(records.read(path), taken))
        for record in taken:
            print(f"  {record.x:>9,}  {told(record)}", flush=True)
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    await asyncio.sleep(0)


def told(record: records.Record) -> str:
    """A record, for a person."""
    scale = SCALES[record.figure]
    text = f"{scale.title:<32} {record.value:>10,.1f} {scale.unit:<12}"
    if record.cpu_ms is not None:
        parts = (record.api_ms, record.postgres_ms, record.opa_ms)
        text += f" CPU {record.cpu_ms:.3f} ms (" + " + ".join(f"{part:.3f}" for part in parts if part is not None) + ")"
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
