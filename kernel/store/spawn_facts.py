"""The facts of a spawn, for a batch of them, in one round trip.

The same query serves the question to policy and, where the tree has changed in between, the re-check under its lock of
what the answer rests on. All that is read of a tree changes with its `seq`: where that is the same, only the catalog is
looked at again, by its revisions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from kernel.identifiers import stored_id
from kernel.policy.contract import (
    AllowlistEntryFacts,
    CallerFacts,
    OrchestratorPolicyFacts,
    SurfaceFlags,
    TargetFacts,
    TenantFacts,
    TreeFacts,
)
from kernel.store.engine import ReadSession

# A row as it comes out of a JSON document: its shape is the query's, a few lines above.
Row = Mapping[str, Any]
NO_DECISION = "00000000-0000-0000-0000-000000000000"

Key = tuple[UUID, UUID]
NamedKey = tuple[UUID, str]
SpawnKey = tuple[UUID, UUID, str]


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as a target, with the revision that a decision about it rests on."""

    facts: TargetFacts
    revision: int


@dataclass(frozen=True, slots=True)
class Version:
    """What tells whether the catalog is still what it was: an agent's revision, and the flags of its tenant."""

    revision: int
    flags: tuple[bool | None, bool | None]


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """The agent of a caller, with all that its permissions rest on; `revision` covers policy and allowlist too."""

    agent_id: UUID
    slug: str
    tenant: TenantFacts
    revision: int
    policy: OrchestratorPolicyFacts | None
    allowlist: tuple[AllowlistEntryFacts, ...]

    @property
    def version(self) -> Version:
        """Its version when it was loaded."""
        flags = self.tenant.flags
        return Version(self.revision, (flags.option_a_graphspec_v2, flags.option_b_runtime_primitives))


@dataclass(frozen=True, slots=True)
class Caller:
    """A calling run and its tree; put into the contract's models only where policy is asked."""

    run_id: UUID
    root_run_id: UUID
    status: str
    depth: int
    effective_scopes: tuple[str, ...]
    children_count: int
    children_total: int
    open_fences: int
    tree_seq: int
    orchestrator: Orchestrator

    @property
    def tenant(self) -> TenantFacts:
        """Its tenant."""
        return self.orchestrator.tenant

    @property
    def tree_key(self) -> tuple[UUID, UUID]:
        """Its tree."""
        return self.orchestrator.tenant.tenant_id, self.root_run_id

    def facts(self) -> CallerFacts:
        """The run as policy is told of it."""
        return CallerFacts.known(
            run_id=self.run_id,
            agent_id=self.orchestrator.agent_id,
            agent_slug=self.orchestrator.slug,
            status=self.status,
            depth=self.depth,
            effective_scopes=self.effective_scopes,
            children_count=self.children_count,
        )

    def tree_facts(self) -> TreeFacts:
        """The tree as policy is told of it."""
        return TreeFacts.known(root_run_id=self.root_run_id, children_total=self.children_total)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What was spawned before under a key: one run, or a group with its members in order."""

    run_ids: tuple[UUID, ...]
    group_id: UUID | None
    agent_ids: tuple[UUID, ...]
    digests: Mapping[str, str] | None
    snapshot: Mapping[str, object]
    effective_scopes: tuple[str, ...]
    failure_policy: str
    decision_id: UUID
    root_run_id: UUID
    parent_node_id: str | None
    depth: int


@dataclass(slots=True)
class Wanted:
    """The keys of the facts that a batch needs, each once. Every key leads with its tenant."""

    callers: set[Key] = field(default_factory=set)
    agents: set[Key] = field(default_factory=set)
    slugs: set[NamedKey] = field(default_factory=set)
    keys: set[SpawnKey] = field(default_factory=set)
    prefixes: set[SpawnKey] = field(default_factory=set)


@dataclass(slots=True)
class SpawnFacts:
    """What the database knows, by the keys it was asked for. What is absent does not exist in that tenant."""

    callers: dict[Key, Caller] = field(default_factory=dict)
    agents: dict[Key, Agent] = field(default_factory=dict)
    agents_by_slug: dict[NamedKey, Agent] = field(default_factory=dict)
    earlier_runs: dict[SpawnKey, Earlier] = field(default_factory=dict)
    earlier_groups: dict[SpawnKey, Earlier] = field(default_factory=dict)


# What belongs to a run is read for each caller; what belongs to its agent once, however many callers run it.
LOAD = """
WITH callers AS MATERIALIZED (
  SELECT r.tenant_id, r.run_id, r.agent_id, r.status, r.depth, r.effective_scopes, r.children_count, r.root_run_id,
    t.children_total, t.open_fences, t.seq AS tree_seq
  FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, run_id)
  JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.run_id = q.run_id
  JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
)
SELECT json_build_object(
  'callers', (SELECT json_agg(row_to_json(c)) FROM callers c),
  'orchestrators', (
    SELECT json_agg(json_build_object(
      'tenant_id', a.tenant_id, 'agent_id', a.agent_id, 'slug', a.slug, 'revision', a.revision,
      'tenant_slug', n.slug, 'time_zone', n.time_zone,
      'option_a', f.option_a_graphspec_v2, 'option_b', f.option_b_runtime_primitives,
      'policy', CASE WHEN p.agent_id IS NOT NULL THEN json_build_object(
        'max_depth', p.max_depth, 'max_fanout', p.max_fanout, 'max_children_total', p.max_children_total,
        'join_timeout_s', p.join_timeout_s, 'default_failure_policy', p.default_failure_policy,
        'enforce_published_only', p.enforce_published_only, 'allowed_scope_subset', p.allowed_scope_subset,
        'parent_close_policy', p.parent_close_policy, 'is_active', p.is_active) END,
      'allowlist', (
        SELECT json_agg(json_build_object('target_agent_id', w.target_agent_id,
          'target_agent_slug', w.target_agent_slug, 'capability_tag', w.capability_tag) ORDER BY w.ordinal)
        FROM orchestrator_allowlist w WHERE w.tenant_id = a.tenant_id AND w.agent_id = a.agent_id)))
    FROM (SELECT DISTINCT tenant_id, agent_id FROM callers) c
    JOIN agents a ON a.tenant_id = c.tenant_id AND a.agent_id = c.agent_id
    JOIN tenants n ON n.tenant_id = a.tenant_id
    LEFT JOIN tenant_flags f ON f.tenant_id = a.tenant_id
    LEFT JOIN orchestrator_policies p ON p.tenant_id = a.tenant_id AND p.agent_id = a.agent_id),
  'agents', (
    SELECT json_agg(json_build_object('tenant_id', a.tenant_id, 'agent_id', a.agent_id, 'slug', a.slug,
      'kind', a.kind, 'status', a.status, 'capability_tags', a.capability_tags, 'revision', a.revision))
    FROM (
      SELECT a.* FROM unnest($3::uuid[], $4::uuid[]) AS q (tenant_id, agent_id)
      JOIN agents a ON a.tenant_id = q.tenant_id AND a.agent_id = q.agent_id
      UNION ALL
      SELECT a.* FROM unnest($5::uuid[], $6::text[]) AS q (tenant_id, slug)
      JOIN agents a ON a.tenant_id = q.tenant_id AND a.slug = q.slug) a),
  'runs', (
    SELECT json_agg(json_build_object('tenant_id', r.tenant_id, 'parent_run_id', r.parent_run_id,
      'key', r.spawn_key, 'run_ids', json_build_array(r.run_id), 'group_id', r.orchestration_group_id,
      'agent_ids', json_build_array(r.agent_id), 'digests', l.request_digests, 'snapshot', l.policy_snapshot,
      'effective_scopes', r.effective_scopes, 'failure_policy', r.failure_policy,
      'decision_id', l.decision_id, 'root_run_id', r.root_run_id, 'parent_node_id', r.parent_node_id,
      'depth', r.depth))
    FROM unnest($7::uuid[], $8::uuid[], $9::text[]) AS q (tenant_id, parent_run_id, spawn_key)
    JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.parent_run_id = q.parent_run_id
      AND r.spawn_key = q.spawn_key
    JOIN run_payloads l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id),
  'groups', (
    SELECT json_agg(json_build_object('tenant_id', g.tenant_id, 'parent_run_id', g.orchestrator_run_id,
      'key', g.spawn_key_prefix, 'group_id', g.group_id, 'digests', g.request_digests,
      'snapshot', g.policy_snapshot, 'effective_scopes', g.effective_scopes,
      'failure_policy', g.failure_policy, 'decision_id', g.decision_id, 'root_run_id', g.root_run_id,
      'parent_node_id', g.parent_node_id, 'depth', o.depth + 1, 'run_ids', m.run_ids, 'agent_ids', m.agent_ids))
    FROM unnest($10::uuid[], $11::uuid[], $12::text[]) AS q (tenant_id, parent_run_id, prefix)
    JOIN orchestration_groups g ON g.tenant_id = q.tenant_id AND g.orchestrator_run_id = q.parent_run_id
      AND g.spawn_key_prefix = q.prefix
    JOIN agent_runs o ON o.tenant_id = g.tenant_id AND o.run_id = g.orchestrator_run_id
    CROSS JOIN LATERAL (
      SELECT coalesce(json_agg(r.run_id ORDER BY r.ordinal), '[]') AS run_ids,
        coalesce(json_agg(r.agent_id ORDER BY r.ordinal), '[]') AS agent_ids
      FROM agent_runs r
      WHERE r.tenant_id = g.tenant_id AND r.root_run_id = g.root_run_id AND r.spawned_seq = g.spawned_seq
        AND r.orchestration_group_id = g.group_id) m))
"""


# The tenant's flags have no revision: they are few, and compared as they are.
VERSIONS = """
SELECT a.tenant_id, a.agent_id, a.revision,
  f.option_a_graphspec_v2 AS option_a, f.option_b_runtime_primitives AS option_b
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, agent_id)
JOIN agents a ON a.tenant_id = q.tenant_id AND a.agent_id = q.agent_id
LEFT JOIN tenant_flags f ON f.tenant_id = a.tenant_id
"""

# Of some prefixes, those under which a run that is of no such group has a member's key.
MEMBERS_TAKEN = """
SELECT q.tenant_id, q.parent_run_id, q.prefix
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[]) AS q (tenant_id, parent_run_id, prefix, size)
WHERE EXISTS (
  SELECT FROM generate_series(0, q.size - 1) AS m (ordinal)
  JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.parent_run_id = q.parent_run_id
    AND r.spawn_key = q.prefix || ':' || m.ordinal)
"""


async def members_taken(session: ReadSession, groups: Mapping[SpawnKey, int]) -> set[SpawnKey]:
    """Of groups that are not there yet, given with their sizes, those of whose members one has a key that is taken."""
    if not groups:
        return set()
    rows = await session.driver.fetch(MEMBERS_TAKEN, *columns(((*key, size) for key, size in groups.items()), 4))
    return {(row["tenant_id"], row["parent_run_id"], row["prefix"]) for row in rows}


async def versions(session: ReadSession, agents: Iterable[Key]) -> dict[Key, Version]:
    """The versions of agents at this moment; those that do not exist are absent."""
    rows = await session.driver.fetch(VERSIONS, *columns(set(agents), 2))
    return {
        (row["tenant_id"], row["agent_id"]): Version(row["revision"], (row["option_a"], row["option_b"]))
        for row in rows
    }


async def load(session: ReadSession, wanted: Wanted) -> SpawnFacts:
    """Load what is known; what belongs to another tenant is absent, like what does not exist."""
    document: dict[str, Any] = await session.driver.fetchval(
        LOAD,
        *columns(wanted.callers, 2),
        *columns(wanted.agents, 2),
        *columns(wanted.slugs, 2),
        *columns(wanted.keys, 3),
        *columns(wanted.prefixes, 3),
    )
    facts = SpawnFacts()
    orchestrators = {(row["tenant_id"], row["agent_id"]): _orchestrator(row) for row in document["orchestrators"] or ()}
    for row in document["callers"] or ():
        caller = _caller(row, orchestrators[row["tenant_id"], row["agent_id"]])
        facts.callers[caller.tenant.tenant_id, caller.run_id] = caller
    for row in document["agents"] or ():
        tenant_id = stored_id(row["tenant_id"])
        agent = Agent(
            TargetFacts.known(
                agent_id=stored_id(row["agent_id"]),
                slug=row["slug"],
                kind=row["kind"],
                status=row["status"],
                capability_tags=tuple(row["capability_tags"]),
                count=1,
            ),
            row["revision"],
        )
        facts.agents[tenant_id, agent.facts.agent_id] = agent
        facts.agents_by_slug[tenant_id, agent.facts.slug] = agent
    for name, found in (("runs", facts.earlier_runs), ("groups", facts.earlier_groups)):
        for row in document[name] or ():
            found[stored_id(row["tenant_id"]), stored_id(row["parent_run_id"]), row["key"]] = _earlier(row)
    return facts


def columns(rows: Iterable[Sequence[object]], width: int) -> list[list[object]]:
    """Rows turned into the arrays that `unnest` takes."""
    turned = [list(column) for column in zip(*rows, strict=True)]
    return turned or [[] for _ in range(width)]


def tenant_facts(row: Row, tenant_id: UUID) -> TenantFacts:
    """A tenant from a row with `tenant_slug`, `time_zone` and the two flags (null where none are stored)."""
    flags = SurfaceFlags.known(option_a_graphspec_v2=row["option_a"], option_b_runtime_primitives=row["option_b"])
    return TenantFacts.known(
        tenant_id=tenant_id,
        slug=row["tenant_slug"],
        time_zone=row["time_zone"],
        flags=flags,
        platform_flags=row["option_a"] is None,
    )


def _orchestrator(row: Row) -> Orchestrator:
    # Constructed without validation: the rows come from this database, under its CHECKs, and this is the hot path.
    policy = None
    if row["policy"] is not None:
        stored = {**row["policy"], "allowed_scope_subset": tuple(row["policy"]["allowed_scope_subset"])}
        policy = OrchestratorPolicyFacts.known(**stored)
    return Orchestrator(
        agent_id=stored_id(row["agent_id"]),
        slug=row["slug"],
        tenant=tenant_facts(row, stored_id(row["tenant_id"])),
        revision=row["revision"],
        policy=policy,
        allowlist=tuple(_entry(entry) for entry in row["allowlist"] or ()),
    )


def _entry(row: Row) -> AllowlistEntryFacts:
    target = row["target_agent_id"]
    return AllowlistEntryFacts.known(
        target_agent_id=stored_id(target) if target is not None else None,
        target_agent_slug=row["target_agent_slug"],
        capability_tag=row["capability_tag"],
    )


def _caller(row: Row, orchestrator: Orchestrator) -> Caller:
    return Caller(
        run_id=stored_id(row["run_id"]),
        root_run_id=stored_id(row["root_run_id"]),
        status=row["status"],
        depth=row["depth"],
        effective_scopes=tuple(row["effective_scopes"]),
        children_count=row["children_count"],
        children_total=row["children_total"],
        open_fences=row["open_fences"],
        tree_seq=row["tree_seq"],
        orchestrator=orchestrator,
    )


def _earlier(row: Row) -> Earlier:
    return Earlier(
        run_ids=tuple(stored_id(run_id) for run_id in row["run_ids"]),
        group_id=stored_id(row["group_id"]) if row["group_id"] is not None else None,
        agent_ids=tuple(stored_id(agent_id) for agent_id in row["agent_ids"]),
        digests=row["digests"],
        snapshot=row["snapshot"] or {},
        effective_scopes=tuple(row["effective_scopes"]),
        failure_policy=row["failure_policy"],
        # A member of a group has no decision of its own; it is then found by its key only to be called a conflict.
        decision_id=stored_id(row["decision_id"] or NO_DECISION),
        root_run_id=stored_id(row["root_run_id"]),
        parent_node_id=row["parent_node_id"],
        depth=row["depth"],
    )
