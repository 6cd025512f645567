"""The table as Markdown, and everything behind it as CSV. Pure."""

import csv
import io
from collections.abc import Mapping, Sequence

from load.peers.comparison import Row, Samples, Unit

HEADINGS = ("work", "ours", "peer", "theirs", "ratio", "aim")


def amount(figure: float, unit: Unit) -> str:
    """A figure for a person, with three digits that count."""
    if figure >= 100:
        return f"{figure:,.0f} {unit}"
    return f"{figure:.{1 if figure >= 10 else 2 if figure >= 1 else 3}f} {unit}"


def times(ratio: float) -> str:
    """A ratio for a person."""
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.1f} x" if ratio >= 10 else f"{ratio:.2f} x"


def cells(row: Row) -> tuple[str, ...]:
    """The row, in the order of the headings."""
    aim = "" if row.aim is None else f">= {row.aim:g} x{'' if row.reached else ': missed'}"
    return row.work, amount(row.ours, row.unit), row.peer, amount(row.theirs, row.unit), times(row.ratio), aim


def markdown(rows: Sequence[Row], versions: Mapping[str, str], notes: Sequence[str]) -> str:
    """The whole report."""
    lines = [
        "# Peers side by side",
        "",
        "Each figure is the median of its runs. A ratio above 1 says that ours is faster, in rates and in times.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + " --- |" * len(HEADINGS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        "## Versions",
        "",
        *(f"- {name}: {version}" for name, version in versions.items()),
        "",
        "## Verified",
        "",
        *(f"- {note}" for note in notes),
        "",
    ]
    return "\n".join(lines)


def table_csv(rows: Sequence[Row]) -> str:
    """The table, for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("work", "unit", "ours", "peer", "theirs", "ratio", "aim", "runs"))
    writer.writerows(
        (row.work, row.unit, row.ours, row.peer, row.theirs, row.ratio, "" if row.aim is None else row.aim, row.runs)
        for row in rows
    )
    return text.getvalue()


def samples_csv(samples: Samples) -> str:
    """Every figure of every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("work", "unit", "contender", "run", "figure"))
    writer.writerows(
        (work.words, work.unit, contender, number, figure)
        for (work, contender), figures in samples.items()
        for number, figure in enumerate(figures, start=1)
    )
    return text.getvalue()
