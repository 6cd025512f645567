"""What tests of joins say in a line: a group whose members end as wanted, the join, and the recorded history."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx2

from kernel.domain.joins import (
    FailurePolicy,
    JoinMode,
    JoinParameters,
    MemberEnded,
    Reparameterised,
    SequencedInput,
    TimedOut,
)
from kernel.domain.run import RunStatus
from kernel.store.engine import Database
from tests.kit import Kit, Run, done


@dataclass(frozen=True)
class Group:
    """A group whose members the test itself executes."""

    kit: Kit
    root: Run
    group_id: str
    members: list[str] = field(default_factory=list)

    async def end(self, member: int, status: str = "completed") -> httpx2.Response:
        return await self.kit.api.post(f"/agents/runs/{self.members[member]}/status", {"status": status})

    async def join(self, **more: object) -> httpx2.Response:
        body = {"caller_run_id": self.root.run_id, "orchestration_group_id": self.group_id, **more}
        return await self.kit.api.post("/internal/orchestration/join", body)

    async def read(self, **more: object) -> dict[str, Any]:
        return done(await self.join(**more))


async def group_of(kit: Kit, size: int, root: Run | None = None, prefix: str = "g", **more: object) -> Group:
    """A group of running members; the usual team's root spawns it."""
    if root is None:
        root, _ = await kit.team(max_fanout=10_000, max_children_total=10_000)
    answer = done(await kit.spawn_group(root, prefix, size, **{"start_background": False, **more}))
    return Group(kit, root, answer["orchestration_group_id"], answer["spawned_run_ids"])


async def let_time_out(database: Database, group: Group) -> None:
    """Move the group's deadline into the past."""
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE orchestration_groups SET deadline = clock_timestamp() - interval '1 second' WHERE group_id = $1",
            UUID(group.group_id),
        )


async def history(database: Database, group_id: UUID, made: JoinParameters) -> list[SequencedInput]:
    """The inputs of a group, from what is recorded: members' ends, changes of parameters, its timeout."""
    async with database.read() as session:
        ends = await session.driver.fetch(
            "SELECT finalized_seq, ordinal, status FROM agent_runs"
            " WHERE orchestration_group_id = $1 AND finalized_seq IS NOT NULL ORDER BY finalized_seq, ordinal",
            group_id,
        )
        told = await session.driver.fetch(
            "SELECT e.seq, e.data FROM run_events e JOIN orchestration_groups g USING (tenant_id, root_run_id)"
            " WHERE g.group_id = $1 AND e.type = 'orchestration.join_decision'",
            group_id,
        )
    inputs: list[SequencedInput] = [MemberEnded(row["finalized_seq"], RunStatus(row["status"])) for row in ends]
    for row in told:
        data = row["data"]
        if data["group_id"] != str(group_id):
            continue
        if not data["complete"]:
            changed = JoinParameters(
                made.size, JoinMode(data["mode"]), made.failure_policy, data.get("quorum_threshold")
            )
            inputs.append(Reparameterised(row["seq"], changed))
        elif data["status"] == "timed_out":
            inputs.append(TimedOut(row["seq"]))
    return sorted(inputs, key=lambda item: item.seq)


def parameters(
    size: int, mode: str = "all", failure_policy: str = "best_effort", quorum_threshold: int | None = None
) -> JoinParameters:
    return JoinParameters(size, JoinMode(mode), FailurePolicy(failure_policy), quorum_threshold)
