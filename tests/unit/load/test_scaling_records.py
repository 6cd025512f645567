"""Measurements are read back as they were written, and newer ones take the place of older ones."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load.scaling import records
from load.scaling.catalogue import Figure
from load.scaling.probes import Round, read_wrk, summary
from load.scaling.records import Record
from load.scaling.stage import Cpu

amounts = st.floats(min_value=1e-3, max_value=1e9)
measurements = st.builds(
    Record,
    x=st.integers(0, 10_000_000),
    figure=st.sampled_from(Figure),
    value=amounts,
    low=amounts,
    high=amounts,
    api_ms=st.none() | amounts,
    postgres_ms=st.none() | amounts,
    opa_ms=st.none() | amounts,
)


@settings(max_examples=25, deadline=None)
@given(written=st.lists(measurements, unique_by=lambda record: (record.figure, record.x)))
def test_what_is_written_is_read_back_to_four_digits(
    tmp_path_factory: pytest.TempPathFactory, written: list[Record]
) -> None:
    path = tmp_path_factory.mktemp("results") / "tree_size.csv"
    records.write(path, written)
    found = {(record.figure, record.x): record for record in records.read(path)}
    assert set(found) == {(record.figure, record.x) for record in written}
    for record in written:
        again = found[record.figure, record.x]
        assert again.value == pytest.approx(record.value, rel=1e-4)
        assert (again.api_ms is None) == (record.api_ms is None)


def test_what_has_not_been_measured_has_no_records(tmp_path: Path) -> None:
    assert records.read(tmp_path / "depth.csv") == []


def test_a_figure_that_is_taken_again_replaces_its_point_only() -> None:
    old = [Record(1, Figure.SPAWN, 100, 90, 110), Record(10, Figure.SPAWN, 50, 40, 60)]
    new = Record(10, Figure.SPAWN, 99, 98, 100)
    assert records.merge(old, [new]) == [old[0], new]


def test_a_figure_is_told_from_the_smallest_point_up() -> None:
    taken = [Record(10, Figure.SPAWN, 2, 2, 2), Record(1, Figure.SPAWN, 1, 1, 1), Record(1, Figure.DRAIN, 3, 3, 3)]
    assert [record.x for record in records.of_figure(taken, Figure.SPAWN)] == [1, 10]


def test_ratios_are_to_the_first() -> None:
    assert records.ratios([4.0, 2.0, 8.0]) == [1.0, 0.5, 2.0]
    assert records.ratios([0.0])[0] != records.ratios([0.0])[0], "of nothing there is no ratio"


def test_a_figure_is_its_median_and_its_cost_that_of_all_rounds() -> None:
    rounds = [Round(10, Cpu(1, 0.5, 0), 100), Round(30, Cpu(2, 0.5, 0), 100), Round(20, Cpu(0, 0, 1), 200)]
    record = summary(5, Figure.SPAWN, rounds)
    assert (record.value, record.low, record.high) == (20, 10, 30)
    assert (record.api_ms, record.postgres_ms, record.opa_ms) == (7.5, 2.5, 2.5)
    assert record.cpu_ms == 12.5


def test_a_figure_that_counts_nothing_has_no_cost() -> None:
    assert summary(1, Figure.MEMORY, [Round(200)]).cpu_ms is None


def test_wrk_is_read() -> None:
    out = "  2814 requests in 2.00s, 2.71MB read\nRequests/sec:   1406.31\nTransfer/sec:      1.35MB\n"
    assert read_wrk(out) == (2814, 1406.31)


@pytest.mark.parametrize("trouble", ["  Non-2xx or 3xx responses: 1\n", "  Socket errors: connect 0, read 1\n"])
def test_what_wrk_could_not_do_is_no_figure(trouble: str) -> None:
    out = "  2814 requests in 2.00s, 2.71MB read\nRequests/sec:   1406.31\n"
    with pytest.raises(RuntimeError):
        read_wrk(out + trouble)
    with pytest.raises(RuntimeError):
        read_wrk("")
