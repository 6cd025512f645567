"""Plots are drawn from the records alone, are light, and are the same when they are drawn again."""

from pathlib import Path

import pytest

from load.scaling import plot, records
from load.scaling.catalogue import AXES, SCALES, Dimension, Figure
from load.scaling.records import Record

MAX_BYTES = 120_000


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for dimension in Dimension:
        taken = []
        for figure in Figure:
            cost = (0.5, 0.2, 0.3) if SCALES[figure].counted else (None, None, None)
            taken += [Record(x, figure, 100.0 + x, 90.0 + x, 110.0 + x, *cost) for x in AXES[dimension].points]
        records.write(records.path_of(dimension, tmp_path), taken)
    return tmp_path


def test_each_figure_has_a_plot_with_its_unit_and_every_dimension(results: Path) -> None:
    plot.draw_all(results)
    for figure in Figure:
        drawn = (results / f"{figure}.svg").read_text()
        assert len(drawn) < MAX_BYTES
        assert SCALES[figure].unit in drawn
        for axis in AXES.values():
            assert axis.label.split("\n")[0] in drawn


def test_a_plot_drawn_again_is_the_same(results: Path) -> None:
    plot.draw_all(results)
    first = {path.name: path.read_bytes() for path in results.glob("*.svg")}
    plot.draw_all(results)
    assert {path.name: path.read_bytes() for path in results.glob("*.svg")} == first


def test_a_figure_that_was_measured_along_one_dimension_is_drawn_along_it(tmp_path: Path) -> None:
    records.write(records.path_of(Dimension.DEPTH, tmp_path), [Record(1, Figure.MEMORY, 200, 200, 200)])
    plot.draw_all(tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["memory.svg"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (7.25, "7.25"), (999, "999"), (1_000, "1k"), (61_669, "61.7k"), (1_000_000, "1M")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert plot.short(number) == text


@pytest.mark.parametrize(("lowest", "highest"), [(0.8, 30.0), (90.0, 120_000.0), (1.0, 9e6)])
def test_a_logarithmic_axis_has_few_round_values_within_it(lowest: float, highest: float) -> None:
    values = plot.round_values(lowest, highest)
    assert 2 <= len(values) <= 8
    assert all(lowest <= value <= highest for value in values)
