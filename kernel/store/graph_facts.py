"""The facts that a graph is compiled on, in one round trip: the tenant, the agent that would run it, whom it names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kernel.policy.contract import AllowlistEntryFacts, OrchestratorPolicyFacts, TargetFacts, TenantFacts
from kernel.store.engine import ReadSession
from kernel.store.spawn_facts import tenant_facts

Row = Mapping[str, Any]

LOAD = """
SELECT n.slug AS tenant_slug, n.time_zone, f.option_a_graphspec_v2 AS option_a,
  f.option_b_runtime_primitives AS option_b,
  (SELECT a.revision FROM agents a WHERE a.tenant_id = n.tenant_id AND a.agent_id = $2) AS revision,
  (SELECT row_to_json(p) FROM orchestrator_policies p WHERE p.tenant_id = n.tenant_id AND p.agent_id = $2) AS policy,
  (SELECT json_agg(json_build_object('target_agent_id', w.target_agent_id,
     'target_agent_slug', w.target_agent_slug, 'capability_tag', w.capability_tag) ORDER BY w.ordinal)
   FROM orchestrator_allowlist w WHERE w.tenant_id = n.tenant_id AND w.agent_id = $2) AS allowlist,
  (SELECT json_agg(json_build_object('agent_id', a.agent_id, 'slug', a.slug, 'kind', a.kind, 'status', a.status,
     'capability_tags', a.capability_tags))
   FROM (
     SELECT a.* FROM unnest($3::uuid[]) AS q (agent_id)
     JOIN agents a ON a.tenant_id = n.tenant_id AND a.agent_id = q.agent_id
     UNION ALL
     SELECT a.* FROM unnest($4::text[]) AS q (slug)
     JOIN agents a ON a.tenant_id = n.tenant_id AND a.slug = q.slug) a) AS agents
FROM tenants n
LEFT JOIN tenant_flags f ON f.tenant_id = n.tenant_id
WHERE n.tenant_id = $1
"""


@dataclass(frozen=True, slots=True)
class Runner:
    """The agent that would run a graph, with all that its spawns would be decided on."""

    revision: int
    policy: OrchestratorPolicyFacts | None
    allowlist: tuple[AllowlistEntryFacts, ...]


@dataclass(frozen=True, slots=True)
class CompileFacts:
    """What the database knows. `runner` is None where no such agent was found; `agents` are by id and by slug."""

    tenant: TenantFacts
    runner: Runner | None
    agents: Mapping[UUID | str, TargetFacts]


async def load(
    session: ReadSession, tenant_id: UUID, agent_id: UUID | None, agent_ids: Collection[UUID], slugs: Collection[str]
) -> CompileFacts | None:
    """Load what is known; None where there is no such tenant."""
    row: Row | None = await session.driver.fetchrow(LOAD, tenant_id, agent_id, list(agent_ids), list(slugs))
    if row is None:
        return None
    agents: dict[UUID | str, TargetFacts] = {}
    for found in row["agents"] or ():
        facts = TargetFacts.model_validate({**found, "capability_tags": tuple(found["capability_tags"])})
        agents[facts.agent_id] = agents[facts.slug] = facts
    return CompileFacts(tenant_facts(row, tenant_id), _runner(row), agents)


def _runner(row: Row) -> Runner | None:
    if row["revision"] is None:
        return None
    policy = None
    if row["policy"] is not None:
        stored = {name: row["policy"][name] for name in OrchestratorPolicyFacts.model_fields}
        policy = OrchestratorPolicyFacts.model_validate(stored)
    entries = tuple(AllowlistEntryFacts.model_validate(entry) for entry in row["allowlist"] or ())
    return Runner(row["revision"], policy, entries)
