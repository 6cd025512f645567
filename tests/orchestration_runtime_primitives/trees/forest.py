"""Trees that would take long to spawn one by one, written straight into the database, as spawns would have."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from kernel.commands.fencing import set_fence
from kernel.commands.lifecycle import Change, lifecycle_event
from kernel.domain.events import EventType, Surface
from kernel.domain.fences import Fence, FenceScope
from kernel.domain.run import RunStatus
from kernel.identifiers import new_id
from kernel.store import events, trees
from kernel.store.engine import Database
from kernel.store.events import Event
from tests.kit import Kit

GROW = """
INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, depth, spawn_key, agent_id, surface, status,
  background, effective_scopes, failure_policy, spawned_seq, children_count)
SELECT $1, q.run_id, $2, q.parent_id, q.depth, 'grown:' || q.seq, $3, 'option_b_runtime_primitives', 'queued', true,
  '{}', 'best_effort', q.seq, q.children
FROM unnest($4::uuid[], $5::uuid[], $6::int[], $7::bigint[], $8::int[]) AS q (run_id, parent_id, depth, seq, children)
"""


class Forest:
    """Grows and fences the trees of one tenant."""

    def __init__(self, database: Database, kit: Kit) -> None:
        self._database = database
        self._tenant_id = UUID(kit.tenant_id)

    async def grow(self, root_run_id: str, agent_id: str, *, parents: Sequence[int]) -> list[UUID]:
        """Put queued runs below a root that is alone: for each the number of its parent, -1 for the root."""
        root = UUID(root_run_id)
        made = [new_id() for _ in parents]
        depths: list[int] = []
        for parent in parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        children = Counter(parents)
        async with self._database.write() as session:
            tree = await trees.lock_one(session, self._tenant_id, root)
            seqs = [tree.next_seq() for _ in parents]
            parent_ids = [root if parent < 0 else made[parent] for parent in parents]
            await session.driver.execute(
                GROW,
                self._tenant_id,
                root,
                UUID(agent_id),
                made,
                parent_ids,
                depths,
                seqs,
                [children[number] for number in range(len(parents))],
            )
            await session.driver.execute(
                "UPDATE agent_runs SET children_count = children_count + $3 WHERE tenant_id = $1 AND run_id = $2",
                self._tenant_id,
                root,
                children[-1],
            )
            await session.driver.execute(
                "INSERT INTO run_payloads (tenant_id, run_id, input) SELECT $1, unnest($2::uuid[]), '{}'",
                self._tenant_id,
                made,
            )
            await events.append(
                session,
                *(
                    Event(
                        tenant_id=self._tenant_id,
                        root_run_id=root,
                        seq=seq,
                        type=EventType.SPAWN_DECISION,
                        surface=Surface.RUNTIME_PRIMITIVES,
                        run_id=parent_id,
                        subjects=[parent_id, run_id],
                        data={"spawned_run_ids": [str(run_id)]},
                    )
                    for run_id, parent_id, seq in zip(made, parent_ids, seqs, strict=True)
                ),
            )
            tree.added_children += len(made)
            tree.moved(None, "queued", len(made))
            await trees.advance(session, tree)
        return made

    async def fence(self, run_id: str, scope: str, *, grace_s: int = 0) -> Fence:
        """Set a fence that nobody drains."""
        async with self._database.write() as session:
            root = await session.driver.fetchval(
                "SELECT root_run_id FROM agent_runs WHERE tenant_id = $1 AND run_id = $2", self._tenant_id, UUID(run_id)
            )
            tree = await trees.lock_one(session, self._tenant_id, root)
            fence = await set_fence(
                session,
                tree,
                run_id=UUID(run_id),
                scope=FenceScope(scope),
                reason="fenced by a test",
                surface=Surface.RUNTIME_PRIMITIVES,
                grace_s=grace_s,
            )
            await trees.advance(session, tree)
        return fence

    async def stored_statuses(self, root_run_id: str) -> Counter[str]:
        """The runs of a tree by what is stored of them."""
        async with self._database.read() as session:
            rows = await session.driver.fetch(
                "SELECT status, count(*) AS n FROM agent_runs WHERE tenant_id = $1 AND root_run_id = $2 GROUP BY 1",
                self._tenant_id,
                UUID(root_run_id),
            )
        return Counter({row["status"]: row["n"] for row in rows})

    async def tell_together(self, root_run_id: str, run_ids: Sequence[UUID]) -> None:
        """Write one event that tells of several runs, as the end of a batch does."""
        async with self._database.write() as session:
            tree = await trees.lock_one(session, self._tenant_id, UUID(root_run_id))
            changes = [Change(run_id, RunStatus.QUEUED, None) for run_id in run_ids]
            await events.append(session, lifecycle_event(tree, tree.next_seq(), changes, Surface.RUNTIME_PRIMITIVES))
            await trees.advance(session, tree)
