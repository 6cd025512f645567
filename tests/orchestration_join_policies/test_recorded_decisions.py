"""Whatever happens to a group, the decision on record is the one that its recorded inputs make."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.commands.ending import Ending, end_runs
from kernel.commands.join import JoinCommand, JoinGroup
from kernel.commands.report_run import ReportRun, ReportRunCommand
from kernel.domain.errors import IllegalTransitionError, RunCancelledError
from kernel.domain.joins import Decided, GroupStatus, JoinMode, decide
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.time_out_joins import time_out_joins
from kernel.store import groups, trees
from kernel.store.engine import Database
from service.dependencies import Services
from tests.kit import Api, Kit, Run
from tests.orchestration_join_policies.join_calls import Group, group_of, history, let_time_out, parameters

MODES = [mode.value for mode in JoinMode]


@dataclass(frozen=True)
class End:
    """One member, or several with one transition."""

    members: tuple[tuple[int, RunStatus], ...]


@dataclass(frozen=True)
class Change:
    mode: str
    quorum_threshold: int | None


@dataclass(frozen=True)
class TimeOut:
    pass


@dataclass(frozen=True)
class Drain:
    pass


@dataclass(frozen=True)
class Stage:
    """One root run whose groups the stories are played in."""

    kit: Kit
    root: Run
    numbers: Iterator[int]


Step = End | Change | TimeOut | Drain
ends = st.sampled_from([RunStatus.COMPLETED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])


@st.composite
def stories(draw: st.DrawFn) -> tuple[int, dict[str, Any], list[Step]]:
    """A group, and what happens to it in which order."""
    size = draw(st.integers(1, 5))

    def terms() -> tuple[str, int | None]:
        mode = draw(st.sampled_from(MODES))
        return mode, draw(st.integers(1, size)) if mode == "quorum" else None

    mode, quorum = terms()
    made: dict[str, Any] = {"join_mode": mode, "failure_policy": draw(st.sampled_from(["best_effort", "fail_fast"]))}
    if quorum is not None:
        made["quorum_threshold"] = quorum
    steps: list[Step] = []
    waiting = list(draw(st.permutations(range(size))))
    while waiting:
        together = draw(st.sampled_from([1, 1, 1, 2, 3]))
        taken, waiting = waiting[:together], waiting[together:]
        steps.append(End(tuple((member, draw(ends)) for member in sorted(taken))))
        extra = draw(st.sampled_from(["nothing", "nothing", "nothing", "change", "time out", "drain"]))
        if extra == "change":
            steps.append(Change(*terms()))
        elif extra == "time out":
            steps.append(TimeOut())
        elif extra == "drain":
            steps.append(Drain())
    return size, made, steps


async def take(step: Step, group: Group, services: Services, principal: Principal) -> None:
    database = services.database
    match step:
        case End(members=((member, status),)):
            request = ReportRun(UUID(group.members[member]), status)
            await ReportRunCommand(database).execute(principal, request)
        case End(members=members):
            async with database.write() as session:
                tree = await trees.lock_one(session, principal.tenant, UUID(group.root.run_id))
                if not tree.open_fences:
                    endings = [Ending(UUID(group.members[member]), status) for member, status in members]
                    await end_runs(session, tree, endings)
                    await trees.advance(session, tree)
        case Change(mode=mode, quorum_threshold=threshold):
            command = JoinCommand(database, services.engine, services.wakeups)
            await command.execute(
                principal,
                JoinGroup(UUID(group.root.run_id), UUID(group.group_id), JoinMode(mode), threshold),
            )
        case TimeOut():
            await let_time_out(database, group)
            await time_out_joins(database).run_once()
        case Drain():
            await DrainCancellations(database).run_once()


@pytest.fixture(scope="module")
async def stage(api: Api) -> Stage:
    kit = await Kit.make(api)
    root, _ = await kit.team(max_fanout=100_000, max_children_total=100_000)
    return Stage(kit, root, count())


@settings(max_examples=60, deadline=None)
@given(story=stories())
async def test_the_decision_on_record_follows_from_the_inputs_on_record(
    stage: Stage, services: Services, story: tuple[int, dict[str, Any], list[Step]]
) -> None:
    size, made, steps = story
    principal = Principal(kind="tenant", tenant_id=UUID(stage.kit.tenant_id), scopes=frozenset({"agents.execute"}))
    group = await group_of(stage.kit, size, root=stage.root, prefix=f"g{next(stage.numbers)}", **made)
    for step in steps:
        # A loser's report comes too late.
        with suppress(RunCancelledError, IllegalTransitionError):
            await take(step, group, services, principal)
    await verify(services.database, group, made)


async def verify(database: Database, group: Group, made: Mapping[str, Any]) -> None:
    initial = parameters(
        len(group.members),
        str(made["join_mode"]),
        str(made["failure_policy"]),
        int(str(made["quorum_threshold"])) if "quorum_threshold" in made else None,
    )
    inputs = await history(database, UUID(group.group_id), initial)
    verdict, seq = decide(initial, inputs)
    async with database.read() as session:
        tenant_id = UUID(group.kit.tenant_id)
        stored = (await groups.load(session, tenant_id, [UUID(group.group_id)]))[UUID(group.group_id)]
    if isinstance(verdict, Decided):
        assert (stored.status, stored.decided_seq) == (verdict.status, seq)
    else:
        assert (stored.status, stored.decided_seq) == (GroupStatus.RUNNING, None)
