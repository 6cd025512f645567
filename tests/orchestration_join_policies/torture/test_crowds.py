"""Members end, clients change the terms and time runs out, all at once: one decision, the same for whoever asks."""

import asyncio
import random
from collections.abc import Callable
from uuid import UUID

import pytest

from kernel.domain.joins import JoinMode
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.time_out_joins import time_out_joins
from kernel.store.engine import Database
from load.audit import audit
from tests.faults.scale import TORTURE
from tests.kit import Kit, done
from tests.orchestration_join_policies.join_calls import Group, group_of, let_time_out
from tests.orchestration_join_policies.test_recorded_decisions import verify

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600 if TORTURE else 300)]

GROUPS = 1_000 if TORTURE else 60
SIZE = 8
MODES = [mode.value for mode in JoinMode]


async def stir(group: Group, database: Database, dice: random.Random) -> None:
    """End the members in any order, from several clients, while others change the terms, and perhaps time runs out."""
    left = dice.sample(range(SIZE), SIZE)

    async def end() -> None:
        while left:
            status = dice.choice(["completed", "completed", "failed", "cancelled"])
            answer = await group.end(left.pop(), status)
            assert answer.is_success or answer.json()["code"] in {"run_cancelled", "illegal_transition"}, answer.text

    async def change() -> None:
        for _ in range(2):
            done(await group.join(mode=dice.choice(MODES), quorum_threshold=dice.randint(1, SIZE)))

    async def time_out() -> None:
        await let_time_out(database, group)
        await asyncio.gather(*(time_out_joins(database).run_once() for _ in range(2)))

    busy = [end(), end(), end(), change()]
    if dice.random() < 0.3:
        busy.append(time_out())
    await asyncio.gather(*busy)


async def test_a_group_is_decided_once_by_its_inputs_and_alike_for_all(
    kit: Kit, database: Database, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(6)
    root, _ = await kit.team(max_fanout=100_000, max_children_total=100_000)
    for number in range(GROUPS):
        mode = dice.choice(MODES)
        made = {"join_mode": mode, "failure_policy": dice.choice(["best_effort", "fail_fast"])}
        terms: dict[str, object] = {**made, "quorum_threshold": dice.randint(1, SIZE)} if mode == "quorum" else {**made}
        group = await group_of(kit, SIZE, root=root, prefix=f"g{number}", **terms)
        waiting = [asyncio.create_task(group.read(wait_s=30)) for _ in range(3)]
        await stir(group, database, dice)
        answers = [await task for task in waiting]
        await DrainCancellations(database).run_once()
        answers.append(await group.read())
        decisions = {(answer["status"], answer["decided_seq"], answer["complete"]) for answer in answers}
        assert len(decisions) == 1, decisions
        await verify(database, group, terms)
    async with database.read() as session:
        assert await audit(session.driver, tenant_id=UUID(kit.tenant_id)) == []
    record_property("groups", GROUPS)
