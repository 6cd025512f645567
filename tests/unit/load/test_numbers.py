"""What the table of numbers makes of its rounds: medians, percentiles over all of them, and what was missed."""

import pytest
from rich.console import Console

from load.bare import WHERE_AIMED
from load.bench_cancel import SMALL
from load.numbers import LARGE, Figure, Rounds, amount, render

OF_FENCES = {Figure.FENCE_BESIDE, Figure.FENCE_PACED, Figure.FENCE_FLAT_OUT}


def a_rounds(singles: list[float], over_large: float = 12.0) -> Rounds:
    """Rounds in which every figure is there."""
    rounds = Rounds()
    for figure in Figure:
        if figure not in {*OF_FENCES, Figure.FENCE_GROWTH, Figure.MEMORY}:
            rounds.samples[figure] = [1.0]
    rounds.samples[Figure.BARE] = [bare * WHERE_AIMED for bare in (0.25, 0.5, 4.0)]
    rounds.samples[Figure.SINGLES] = singles
    rounds.fences[Figure.FENCE_BESIDE] = [5.0] * 98 + [18.0, 90.0]
    rounds.fences[Figure.FENCE_PACED] = [39.0]
    rounds.fences[Figure.FENCE_FLAT_OUT] = [150.0]
    rounds.over = {SMALL: [10.0, 10.0, 99.0], 1_000: [11.0], LARGE: [over_large]}
    rounds.finish(212.0)
    return rounds


def shown(rounds: Rounds) -> str:
    console = Console(width=260)
    with console.capture() as captured:
        console.print(render(rounds, 5))
    return captured.get()


@pytest.mark.parametrize(
    ("figure", "value", "reached"),
    [
        (Figure.SINGLES, 1_500, True),
        (Figure.SINGLES, 1_499, False),
        (Figure.FENCE_BESIDE, 20, True),
        (Figure.FENCE_BESIDE, 20.1, False),
        (Figure.DRAIN_OF_UPDATE, 0.1, None),
    ],
)
def test_more_of_a_rate_and_less_of_a_time_is_better(figure: Figure, value: float, reached: bool | None) -> None:
    assert figure.is_reached(value) is reached


def test_percentiles_are_of_the_fences_of_all_rounds_and_the_growth_is_of_medians() -> None:
    rounds = a_rounds([1.0])
    assert rounds.samples[Figure.FENCE_BESIDE] == [90.0]
    assert rounds.samples[Figure.FENCE_GROWTH] == [1.2]
    assert rounds.samples[Figure.MEMORY] == [212.0]


def test_a_figure_is_read_with_three_digits() -> None:
    assert [amount(value, "ms") for value in (1_234.5, 12.345, 1.2345)] == ["1,234 ms", "12.3 ms", "1.23 ms"]
    assert amount(1_500, "/s") == "1,500/s"
    assert amount(0.5, "") == "0.50"


def by_figure(rounds: Rounds) -> dict[Figure, str]:
    lines = shown(rounds).splitlines()
    return {figure: next(line for line in lines if line.startswith(f"│ {figure.words} ")) for figure in Figure}


def test_an_aim_is_said_as_it_stands_and_at_the_pace_of_the_machine() -> None:
    told = by_figure(a_rounds([760.0]))
    assert "0.50 of 10,500/s" in told[Figure.BARE]
    assert ">= 1,500/s: missed" in told[Figure.SINGLES]
    assert ">= 750/s: met" in told[Figure.SINGLES]
    assert "<= 12.0 ms: met" in told[Figure.ALONE]
    assert "<= 40.0 ms: met" in told[Figure.FENCE_PACED]
    assert "20.0 ms" not in told[Figure.FENCE_PACED]
    # These are of no machine.
    for figure in (Figure.GROUPS_OF_INSERT, Figure.FENCE_GROWTH, Figure.MEMORY, Figure.ARRIVED):
        assert told[figure].count(": m") == 1


def test_the_table_says_the_median_and_what_was_missed() -> None:
    told = by_figure(a_rounds([1_600.0, 1_400.0, 1_550.0]))
    assert "1,550/s" in told[Figure.SINGLES]
    assert "1,400 to 1,600" in told[Figure.SINGLES]
    assert "missed" not in told[Figure.SINGLES]
    assert "missed" in told[Figure.FENCE_FLAT_OUT]
    assert "missed" not in told[Figure.DRAIN_OF_UPDATE]
