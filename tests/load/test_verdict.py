"""A verdict fails a storm in which less happened than it says."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from load.storms.verdict import Verdict
from tests.load.observed import NOTHING_SEEN

SEEN: Mapping[str, Any] = {**NOTHING_SEEN, "acknowledged_calls": 0}
RATES = {"intended_per_s": 1, "achieved_per_s": 1, "p50_ms": 1, "p95_ms": 1, "p99_ms": 1, "p99_from_sending_ms": 1}


def stream(*, intended: int = 0, done: int = 0, refused: int = 0, missed: int = 0, idle: int = 0) -> dict[str, int]:
    return {"intended": intended, "done": done, "refused": refused, "missed": missed, "idle": idle} | RATES


def verdict(
    arrivals: Mapping[str, Mapping[str, int]], answers: Sequence[tuple[str, str, int]] = (), **more: object
) -> Verdict:
    told = [{"call": call, "answer": answer, "count": count} for call, answer, count in answers]
    scenario = {"arrivals": arrivals, "answers": told, "errors": [], "findings": [], "notes": {}}
    return Verdict({**SEEN, "scenarios": {"calm": scenario}, **more}, audited_runs=1, audit_s=0.1, findings=())


def test_what_was_done_passes_beside_a_few_refusals_and_misses() -> None:
    calm = stream(intended=100, done=80, refused=15, missed=5)
    assert verdict({"spawn": calm, "never due": stream()}, [("spawn-run", "tenant_saturated", 1)]).faults == []


@pytest.mark.parametrize(
    "nothing", [stream(intended=9, refused=9), stream(intended=9, idle=9), stream(intended=1, missed=1)]
)
def test_a_stream_that_did_nothing_is_a_fault(nothing: Mapping[str, int]) -> None:
    told = verdict({"spawn": stream(intended=9, done=9), "cancel": nothing})
    assert told.faults == [f"calm: cancel: none of {nothing['intended']} arrivals was done"]


def test_a_storm_that_missed_more_than_its_profile_says_is_a_fault() -> None:
    half = {"spawn": stream(intended=100, done=50, missed=50)}
    assert verdict(half).faults == ["calm: spawn: missed 50 of 100 arrivals, may miss 5%"]
    assert verdict(half, may_miss=0.5).passed


def test_a_tenant_that_is_saturated_again_and_again_is_a_fault() -> None:
    done = {"spawn": stream(intended=100, done=98, refused=2)}
    told = verdict(done, [("spawn-run", "done", 98), ("spawn-run", "tenant_saturated", 2), ("join", "done", 900)])
    assert told.faults == ["calm: spawn-run: 2 of 100 answered tenant_saturated, at most 1% may be"]


def test_what_was_answered_is_told_of_each_storm() -> None:
    each = {"arrivals": {}, "errors": [], "findings": [], "notes": {"herds": 2, "herds decided": 1}}
    spawned = [{"call": "spawn-run", "answer": "done", "count": 3}]
    told = Verdict(
        {**SEEN, "scenarios": {"calm": {**each, "answers": spawned}, "wild": {**each, "answers": spawned}}}, 1, 0.1, ()
    )
    assert [line.split() for line in told.text().splitlines() if "spawn-run" in line] == [
        ["calm", "spawn-run", "done", "3"],
        ["wild", "spawn-run", "done", "3"],
    ]
    assert "<li>calm: herds 2.</li><li>calm: herds decided 1.</li>" in told.page()


def test_an_interruption_is_told_with_the_time_that_it_left() -> None:
    short = verdict({"spawn": stream(intended=9, done=9)}, seconds=40.0, ran_s=12.34, interrupted_after_s=12.34)
    assert "calm: passed, interrupted after 12.3 s of 40" in short.text()
    assert "verdict: passed, interrupted after 12.3 s of 40" in short.text()
    assert "12.3 s at pace" in short.page()
    assert "interrupted" not in verdict({"spawn": stream(intended=9, done=9)}).text()


def test_what_was_done_and_what_was_refused_are_shown() -> None:
    told = verdict({"spawn": stream(intended=100, done=83, refused=17)})
    assert "done" in told.text()
    assert "refused" in told.text()
    assert "<td>83</td><td>17</td>" in told.page()
