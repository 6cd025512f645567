"""Orders as the HTTP layer makes them."""

from uuid import UUID

from kernel.commands.spawning.order import ChildOrder, SpawnOrder, TargetRef
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.policy.contract import Action
from tests.kit import Kit, Run


def order(kit: Kit, caller: Run, key: str) -> SpawnOrder:
    """One child of the usual team's worker."""
    tenant_id = UUID(kit.tenant_id)
    return SpawnOrder(
        action=Action.SPAWN_RUN,
        surface=Surface.RUNTIME_PRIMITIVES,
        principal=Principal("tenant", tenant_id, frozenset({"agents.execute"}), ("*",)),
        tenant_id=tenant_id,
        caller_run_id=UUID(caller.run_id),
        key=key,
        children=(ChildOrder(TargetRef(slug="worker"), {}),),
        scopes=("read",),
    )
