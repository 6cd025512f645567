"""Which surfaces a tenant has on: by its own flags, or by the platform's, which only policy knows."""

from datetime import UTC, datetime
from uuid import UUID

from kernel.commands.catalog import Tenants
from kernel.commands.spawning.question import principal_facts
from kernel.domain.errors import PolicyUnavailableError
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.policy.contract import Action, DecisionInput, GraphFacts, RequestFacts
from kernel.policy.engine import PolicyEngine
from kernel.store.engine import Database
from kernel.store.spawn_facts import tenant_facts


class ReadFlagsCommand:
    """Reads the flags in force."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, tenant_id: UUID) -> dict[Surface, bool]:
        """Whether each surface is on.

        Raises:
            NotFoundError: when there is no such tenant within reach.
            PolicyUnavailableError: when the tenant has set no flags and policy does not say.
        """
        row = await Tenants(self._database).get(principal, tenant_id)
        if row["option_a"] is not None:
            return {Surface.GRAPHSPEC_V2: row["option_a"], Surface.RUNTIME_PRIMITIVES: row["option_b"]}
        # Nothing is done by it, so nothing is recorded: an answer to any question tells of its surface.
        questions = [
            DecisionInput(
                action=Action.COMPILE_GRAPH,
                surface=surface,
                now=datetime.now(UTC),
                tenant=tenant_facts({**row, "tenant_slug": row["slug"]}, tenant_id),
                principal=principal_facts(principal),
                request=RequestFacts(),
                graph=GraphFacts(spawns=()),
            )
            for surface in Surface
        ]
        found = [evaluated.decision.surface_enabled for evaluated in await self._engine.decide_all(questions)]
        if None in found:
            raise PolicyUnavailableError("policy does not say which surfaces are on")
        return {surface: on is True for surface, on in zip(Surface, found, strict=True)}
