"""What the kernel needs of whoever signs the tokens of runs: keys are no business of the domain's."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from kernel.commands.spawning.order import Spawned
from kernel.store import actors
from kernel.store.engine import Database
from kernel.store.leases import Described

# A signature takes a tenth of a millisecond: between so many, whoever else waits has a turn.
SIGNED_AT_ONCE = 50


class Issued(Protocol):
    """A token that was signed."""

    @property
    def token(self) -> str: ...

    @property
    def expires_at(self) -> datetime: ...


class RunTokens(Protocol):
    """Signs the tokens of runs."""

    def issue_run(
        self,
        *,
        tenant_id: UUID,
        run_id: UUID,
        root_run_id: UUID,
        agent_id: UUID,
        scopes: Sequence[str],
        depth: int,
        actors: Sequence[UUID] = (),
    ) -> Issued:
        """A token with which to act as a run."""
        ...


def token_of(tokens: RunTokens, tenant_id: UUID, run: Described) -> Issued:
    """A fresh token of a run that a worker holds."""
    return tokens.issue_run(
        tenant_id=tenant_id,
        run_id=run.run_id,
        root_run_id=run.root_run_id,
        agent_id=run.agent_id,
        scopes=run.effective_scopes,
        depth=run.depth,
        actors=run.actors,
    )


async def tokens_of_children(
    database: Database, tokens: RunTokens, tenant_id: UUID, spawned: Spawned
) -> dict[UUID, Issued]:
    """The tokens of children that their caller executes itself."""
    async with database.read() as session:
        chain = await actors.chain(session, tenant_id, spawned.parent_run_id)
    issued: dict[UUID, Issued] = {}
    for run_id, agent_id in zip(spawned.run_ids, spawned.agent_ids, strict=True):
        issued[run_id] = tokens.issue_run(
            tenant_id=tenant_id,
            run_id=run_id,
            root_run_id=spawned.root_run_id,
            agent_id=agent_id,
            scopes=spawned.effective_scopes,
            depth=spawned.depth,
            actors=chain,
        )
        if not len(issued) % SIGNED_AT_ONCE:
            await asyncio.sleep(0)
    return issued
