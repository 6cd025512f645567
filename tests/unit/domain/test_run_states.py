"""The state machine of a run: an enum, a table of transitions, and (in the migration) a CHECK that say the same."""

import re
from pathlib import Path

import pytest

import kernel.store.migrations.versions
from kernel.domain.errors import IllegalTransitionError
from kernel.domain.run import ACTIVE, REPORTABLE, TERMINAL, TRANSITIONS, RunStatus, check_transition


@pytest.mark.parametrize("current", list(RunStatus))
@pytest.mark.parametrize("target", list(RunStatus))
def test_a_step_is_taken_exactly_when_the_table_has_it(current: RunStatus, target: RunStatus) -> None:
    if target in TRANSITIONS[current]:
        check_transition(current, target)
        return
    with pytest.raises(IllegalTransitionError) as refusal:
        check_transition(current, target)
    assert refusal.value.members == {"current": current, "requested": target}


def test_every_status_is_active_or_terminal_and_never_both() -> None:
    assert set(RunStatus) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL


def test_nothing_leaves_a_terminal_status() -> None:
    assert all(not TRANSITIONS[status] for status in TERMINAL)


def test_every_active_run_can_be_cancelled_and_can_fail() -> None:
    assert all({RunStatus.CANCELLED, RunStatus.FAILED} <= TRANSITIONS[status] for status in ACTIVE)


def test_what_was_never_started_cannot_have_completed() -> None:
    assert RunStatus.COMPLETED not in TRANSITIONS[RunStatus.QUEUED]


def test_nobody_reports_a_run_back_to_the_queue() -> None:
    assert RunStatus.QUEUED not in REPORTABLE


def test_the_database_knows_the_same_statuses() -> None:
    (directory,) = kernel.store.migrations.versions.__path__
    schema = (Path(directory) / "0001_lineage.sql").read_text()
    runs = schema.split("CREATE TABLE agent_runs")[1]
    listed = re.search(r"status\s+text NOT NULL CHECK \(status IN \(([^)]*)\)\)", runs)
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == set(RunStatus)
