"""The measurements as rows of CSV, and what is read out of them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from load.scaling.catalogue import Dimension, Figure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Record:
    """A figure at a point: the median of its rounds with their extremes, and the CPU time of each part.

    `api_ms`, `postgres_ms` and `opa_ms` are milliseconds per thing that the figure counts; None where it counts none.
    """

    x: int
    figure: Figure
    value: float
    low: float
    high: float
    api_ms: float | None = None
    postgres_ms: float | None = None
    opa_ms: float | None = None

    @property
    def cpu_ms(self) -> float | None:
        """Of all parts together."""
        parts = (self.api_ms, self.postgres_ms, self.opa_ms)
        return None if None in parts else sum(part for part in parts if part is not None)


COLUMNS = tuple(field.name for field in fields(Record))


def path_of(dimension: Dimension, directory: Path = RESULTS) -> Path:
    """The file of a dimension."""
    return directory / f"{dimension}.csv"


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records, in the order of figures and points; numbers to five digits, which is more than they are worth."""
    order = {figure: place for place, figure in enumerate(Figure)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in sorted(records, key=lambda record: (order[record.figure], record.x)):
            writer.writerow([_cell(value) for value in astuple(record)])


def read(path: Path) -> list[Record]:
    """The records of a file; none where it has not been written."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [_record(row) for row in csv.DictReader(file)]


def merge(before: Iterable[Record], now: Iterable[Record]) -> list[Record]:
    """Records with newer ones in the place of those of the same figure at the same point."""
    return list({(record.figure, record.x): record for record in (*before, *now)}.values())


def of_figure(records: Iterable[Record], figure: Figure) -> list[Record]:
    """The records of one figure, the smallest point first."""
    return sorted((record for record in records if record.figure is figure), key=lambda record: record.x)


def ratios(values: Sequence[float]) -> list[float]:
    """Each value by the first."""
    return [value / values[0] if values[0] else float("nan") for value in values]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _record(row: dict[str, str]) -> Record:
    def optional(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return Record(
        x=int(row["x"]),
        figure=Figure(row["figure"]),
        value=float(row["value"]),
        low=float(row["low"]),
        high=float(row["high"]),
        api_ms=optional("api_ms"),
        postgres_ms=optional("postgres_ms"),
        opa_ms=optional("opa_ms"),
    )
