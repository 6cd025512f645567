"""Decides groups whose timeout has passed while they were undecided."""

from collections.abc import Sequence
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.commands.joining import decide_groups
from kernel.domain.joins import expire
from kernel.reconcilers.sweep import Sweep
from kernel.store import groups
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups


class OverdueGroups:
    """A group past its timeout is decided `timed_out`, and the members that still run are cancelled."""

    name = "time_out_joins"

    async def find(
        self, session: ReadSession, *, limit: int, passing_over: Sequence[UUID], elsewhere_than: Sequence[UUID]
    ) -> list[tuple[TreeKey, UUID]]:
        return await groups.due(session, limit=limit, passing_over=passing_over, elsewhere_than=elsewhere_than)

    async def settle(self, session: WriteSession, tree: LockedTree, row_ids: Sequence[UUID]) -> tuple[int, Aftermath]:
        due = await groups.still_due(session, tree.tenant_id, row_ids)
        # The timeout is an input of its own: the number of its event is the one that decides.
        aftermath = await decide_groups(session, tree, [(group, expire(group.tally)) for group in due], seq=None)
        return len(due), aftermath


def time_out_joins(database: Database, wakeups: Wakeups | None = None) -> Sweep:
    """The pass that times joins out."""
    return Sweep(database, OverdueGroups(), wakeups)
