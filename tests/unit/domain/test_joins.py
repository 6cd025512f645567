"""When a group is decided, and how: every mode over every order of outcomes."""

from hypothesis import given
from hypothesis import strategies as st

from kernel.domain.joins import (
    Decided,
    FailurePolicy,
    GroupStatus,
    JoinMode,
    JoinParameters,
    MemberEnded,
    Pending,
    Reparameterised,
    SequencedInput,
    Tally,
    TimedOut,
    decide,
    judge,
)
from kernel.domain.run import TERMINAL, RunStatus

outcomes = st.lists(st.sampled_from(sorted(TERMINAL)), min_size=1, max_size=12)


@st.composite
def groups(draw: st.DrawFn) -> tuple[JoinParameters, list[RunStatus]]:
    """A group and the outcome of each of its members, in the order in which they end."""
    ended = draw(outcomes)
    return (
        JoinParameters(
            size=len(ended),
            mode=draw(st.sampled_from(list(JoinMode))),
            failure_policy=draw(st.sampled_from(list(FailurePolicy))),
            quorum_threshold=draw(st.integers(1, len(ended))),
        ),
        ended,
    )


def ended_one_by_one(statuses: list[RunStatus]) -> list[MemberEnded]:
    return [MemberEnded(seq, status) for seq, status in enumerate(statuses, start=1)]


@given(groups())
def test_a_group_is_decided_once_all_have_ended(group: tuple[JoinParameters, list[RunStatus]]) -> None:
    parameters, statuses = group
    verdict, seq = decide(parameters, ended_one_by_one(statuses))
    assert isinstance(verdict, Decided)
    assert seq is not None


@given(groups(), st.lists(st.sampled_from(sorted(TERMINAL)), max_size=3))
def test_what_comes_after_the_decision_changes_nothing(
    group: tuple[JoinParameters, list[RunStatus]], later: list[RunStatus]
) -> None:
    parameters, statuses = group
    inputs = ended_one_by_one(statuses)
    decision = decide(parameters, inputs)
    more: list[SequencedInput] = [MemberEnded(100 + number, status) for number, status in enumerate(later)]
    assert decide(parameters, [*inputs, *more]) == decision


@given(groups())
def test_the_decision_comes_at_the_first_moment_it_can(group: tuple[JoinParameters, list[RunStatus]]) -> None:
    parameters, statuses = group
    inputs = ended_one_by_one(statuses)
    verdict, seq = decide(parameters, inputs)
    assert seq is not None
    before = decide(parameters, inputs[: seq - 1])
    assert isinstance(before[0], Pending)
    assert decide(parameters, inputs[:seq]) == (verdict, seq)


@given(outcomes)
def test_best_effort_waits_for_all_and_tells_of_failures(statuses: list[RunStatus]) -> None:
    verdict, seq = decide(JoinParameters(len(statuses)), ended_one_by_one(statuses))
    clean = all(status is RunStatus.COMPLETED for status in statuses)
    assert verdict == Decided(GroupStatus.COMPLETED if clean else GroupStatus.COMPLETED_WITH_ERRORS)
    assert seq == len(statuses)


@given(outcomes)
def test_fail_fast_fails_at_the_first_failure(statuses: list[RunStatus]) -> None:
    verdict, seq = decide(JoinParameters(len(statuses), JoinMode.FAIL_FAST), ended_one_by_one(statuses))
    failures = [number for number, status in enumerate(statuses, 1) if status is not RunStatus.COMPLETED]
    assert isinstance(verdict, Decided)
    assert seq == (failures[0] if failures else len(statuses))
    assert verdict.status is (GroupStatus.FAILED if failures else GroupStatus.COMPLETED)
    assert verdict.propagation_reason == ("join_fail_fast" if seq < len(statuses) else None)


@given(outcomes)
def test_first_success_completes_with_it_and_fails_when_none_is_left(statuses: list[RunStatus]) -> None:
    verdict, seq = decide(JoinParameters(len(statuses), JoinMode.FIRST_SUCCESS), ended_one_by_one(statuses))
    successes = [number for number, status in enumerate(statuses, 1) if status is RunStatus.COMPLETED]
    assert isinstance(verdict, Decided)
    assert seq == (successes[0] if successes else len(statuses))
    assert verdict.status is (GroupStatus.COMPLETED if successes else GroupStatus.FAILED)


@given(groups())
def test_a_quorum_completes_when_reached_and_fails_when_it_cannot_be(
    group: tuple[JoinParameters, list[RunStatus]],
) -> None:
    given_parameters, statuses = group
    threshold = given_parameters.quorum_threshold or 1
    parameters = JoinParameters(len(statuses), JoinMode.QUORUM, quorum_threshold=threshold)
    verdict, seq = decide(parameters, ended_one_by_one(statuses))
    assert isinstance(verdict, Decided)
    assert seq is not None
    so_far = statuses[:seq]
    successes = so_far.count(RunStatus.COMPLETED)
    if verdict.status is GroupStatus.COMPLETED:
        assert successes == threshold
    else:
        assert verdict.status is GroupStatus.FAILED
        assert successes + len(statuses) - seq == threshold - 1


@given(outcomes)
def test_a_fail_fast_policy_makes_best_effort_fail_fast(statuses: list[RunStatus]) -> None:
    inputs = ended_one_by_one(statuses)
    by_policy = decide(JoinParameters(len(statuses), JoinMode.ALL, FailurePolicy.FAIL_FAST), inputs)
    assert by_policy == decide(JoinParameters(len(statuses), JoinMode.FAIL_FAST), inputs)


def test_a_group_without_members_is_empty_from_the_start() -> None:
    assert decide(JoinParameters(0), []) == (Decided(GroupStatus.EMPTY), None)


def test_a_timeout_decides_what_is_undecided_and_nothing_else() -> None:
    parameters = JoinParameters(2)
    running: list[SequencedInput] = [MemberEnded(1, RunStatus.COMPLETED), TimedOut(2)]
    assert decide(parameters, running) == (Decided(GroupStatus.TIMED_OUT, "join_timed_out"), 2)
    done: list[SequencedInput] = [MemberEnded(1, RunStatus.COMPLETED), MemberEnded(2, RunStatus.COMPLETED), TimedOut(3)]
    assert decide(parameters, done) == (Decided(GroupStatus.COMPLETED), 2)


def test_new_parameters_are_judged_at_once() -> None:
    parameters = JoinParameters(3)
    looser = JoinParameters(3, JoinMode.FIRST_SUCCESS)
    inputs: list[SequencedInput] = [MemberEnded(1, RunStatus.COMPLETED), Reparameterised(2, looser)]
    assert decide(parameters, inputs) == (Decided(GroupStatus.COMPLETED, "join_first_success"), 2)


@given(groups())
def test_the_running_judgement_is_that_of_the_whole_history(group: tuple[JoinParameters, list[RunStatus]]) -> None:
    parameters, statuses = group
    tally = Tally(parameters.size)
    for number, status in enumerate(statuses, start=1):
        tally = tally.count(status)
        verdict = judge(parameters, tally)
        if isinstance(verdict, Decided):
            assert decide(parameters, ended_one_by_one(statuses)) == (verdict, number)
            return
