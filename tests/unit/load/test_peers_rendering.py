"""What the comparison's reports show."""

import csv
import io

import pytest

from load.peers.comparison import Contender, Row, Unit, Work
from load.peers.rendering import amount, cells, markdown, samples_csv, table_csv, times

ROW = Row("single spawns", Unit.CHILDREN, 1512.4, "Temporal", 187.2, 8.079, 8.0, 3)
MISSED = Row("a cancel", Unit.MILLISECONDS, 30.04, "DBOS, in its own way", 60.0, 1.997, 300.0, 5)


@pytest.mark.parametrize(
    ("figure", "shown"),
    [(60123.4, "60,123 ms"), (100.0, "100 ms"), (30.04, "30.0 ms"), (5.4, "5.40 ms"), (0.4361, "0.436 ms")],
)
def test_a_figure_is_shown_with_the_digits_that_count(figure: float, shown: str) -> None:
    assert amount(figure, Unit.MILLISECONDS) == shown


@pytest.mark.parametrize(("ratio", "shown"), [(1234.5, "1,234 x"), (33.333, "33.3 x"), (0.456, "0.46 x")])
def test_a_ratio_is_shown_with_the_digits_that_count(ratio: float, shown: str) -> None:
    assert times(ratio) == shown


def test_a_missed_aim_is_told_and_a_reached_one_stated() -> None:
    assert cells(ROW)[-1] == ">= 8 x"
    assert cells(MISSED)[-1] == ">= 300 x: missed"


def test_the_report_holds_the_table_the_versions_and_what_was_verified() -> None:
    text = markdown([ROW, MISSED], {"Temporal": "1.5.1"}, ["children counted: 1,000"])
    assert "| single spawns | 1,512 children/s | Temporal | 187 children/s | 8.08 x | >= 8 x |" in text
    assert "- Temporal: 1.5.1" in text
    assert "- children counted: 1,000" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_for_programs_holds_what_was_measured_unrounded() -> None:
    read = list(csv.DictReader(io.StringIO(table_csv([ROW, MISSED]))))
    assert [float(row["ours"]) for row in read] == [ROW.ours, MISSED.ours]
    assert read[1]["peer"] == MISSED.peer
    assert read[0]["unit"] == "children/s"


def test_every_figure_of_every_run_is_kept() -> None:
    samples = {(Work.GROUPS, Contender.REMIT): [1.0, 2.0], (Work.GROUPS, Contender.DBOS_FLAT): [3.0]}
    read = list(csv.DictReader(io.StringIO(samples_csv(samples))))
    assert [(row["contender"], row["run"], float(row["figure"])) for row in read] == [
        ("Remit", "1", 1.0),
        ("Remit", "2", 2.0),
        (Contender.DBOS_FLAT, "1", 3.0),
    ]
