"""What the comparison makes of figures: medians, and ratios that say how many times better ours is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.peers.comparison import COMPARISONS, Comparison, Contender, Measurements, Row, Unit, Work, rows

RATE, TIME = Work.SINGLES, Work.CANCELLED
FIGURES = st.floats(min_value=0.001, max_value=1e9)


def compared(work: Work, ours: list[float], theirs: list[float], aim: float | None = None) -> Row:
    samples = {(work, Contender.REMIT): ours, (work, Contender.DBOS): theirs}
    (row,) = rows(samples, [Comparison(work, Contender.DBOS, aim=aim)])
    return row


def test_a_higher_rate_is_a_ratio_above_one() -> None:
    assert compared(RATE, [1500.0], [500.0]).ratio == 3.0


def test_a_shorter_time_is_a_ratio_above_one() -> None:
    assert compared(TIME, [20.0], [10_000.0]).ratio == 500.0


@given(ours=FIGURES, theirs=FIGURES)
def test_a_time_and_the_rate_it_makes_compare_alike(ours: float, theirs: float) -> None:
    assert math.isclose(compared(TIME, [ours], [theirs]).ratio, compared(RATE, [1 / ours], [1 / theirs]).ratio)


def test_one_run_that_was_disturbed_does_not_move_the_row() -> None:
    row = compared(RATE, [1000.0, 1100.0, 10.0], [500.0, 550.0, 5000.0])
    assert (row.ours, row.theirs, row.runs) == (1000.0, 550.0, 3)


def test_work_done_several_times_in_a_run_counts_with_its_median() -> None:
    measurements = Measurements()
    measurements.add(RATE, Contender.REMIT, 1.0, 2.0, 90.0)
    measurements.add(RATE, Contender.REMIT, 4.0)
    assert measurements.samples == {(RATE, Contender.REMIT): [2.0, 4.0]}


@pytest.mark.parametrize(("aim", "reached"), [(3.0, True), (3.1, False), (None, None)])
def test_an_aim_is_reached_from_its_very_ratio_on(aim: float | None, *, reached: bool | None) -> None:
    assert compared(RATE, [1500.0], [500.0], aim).reached is reached


def test_what_one_side_has_not_measured_makes_no_row() -> None:
    ours_alone = {(RATE, Contender.REMIT): [1.0]}
    theirs_alone = {(RATE, Contender.DBOS): [1.0]}
    comparison = [Comparison(RATE, Contender.DBOS)]
    assert rows(ours_alone, comparison) == rows(theirs_alone, comparison) == rows({}, comparison) == []


def test_a_row_says_so_where_theirs_is_of_other_work() -> None:
    samples = {(Work.LARGE_DRAIN, Contender.REMIT): [60_000.0], (Work.DRAIN, Contender.TEMPORAL): [100.0]}
    (row,) = rows(samples, [Comparison(Work.LARGE_DRAIN, Contender.TEMPORAL, their_work=Work.DRAIN)])
    assert row.ratio == 600.0
    assert row.peer == f"{Contender.TEMPORAL} ({Work.DRAIN.words})"


def test_only_figures_of_one_unit_are_compared_and_each_pair_once() -> None:
    for comparison in COMPARISONS:
        their_work, peer = comparison.theirs
        assert their_work.unit is comparison.work.unit
        assert peer is not Contender.REMIT
    assert len({(comparison.work, comparison.peer) for comparison in COMPARISONS}) == len(COMPARISONS)


def test_nothing_aims_at_less_than_parity_but_beside_the_limit() -> None:
    below = {comparison.peer for comparison in COMPARISONS if comparison.aim is not None and comparison.aim < 1}
    assert below == {Contender.PLAIN_INSERT}


def test_of_times_the_shorter_and_of_rates_the_higher_is_better() -> None:
    for work in Work:
        assert compared(work, [1.0], [2.0]).ratio == (2.0 if work.unit is Unit.MILLISECONDS else 0.5)
