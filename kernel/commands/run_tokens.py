"""What the kernel needs of whoever signs the tokens of runs: keys are no business of the domain's."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from kernel.store.leases import Described


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
        actors=(run.parent_run_id,) if run.parent_run_id is not None else (),
    )
