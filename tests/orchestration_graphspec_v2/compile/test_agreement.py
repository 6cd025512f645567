"""What is refused when a graph is compiled is what would be refused when it runs: the same rules are asked."""

from collections import Counter
from itertools import product
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.kit import Kit, Run, done, reason_codes, refused
from tests.orchestration_graphspec_v2.compile.drafts import Document, line, node

SCOPES = ("read", "search", "write")
TARGETS = ("worker", "helper", "draft", "stranger")
POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"max_depth": 0},
    {"max_fanout": 2, "max_children_total": 3},
    {"allowed_scope_subset": ["read"], "enforce_published_only": False},
    {"max_fanout": 0, "allowed_scope_subset": ["write"], "is_active": False},
    {"max_children_total": 0, "allowed_scope_subset": ["search", "write"]},
)
ALLOWLISTS: tuple[list[dict[str, str]], ...] = (
    [],
    [{"target_agent_slug": "worker"}, {"target_agent_slug": "draft"}],
    [{"capability_tag": "fast"}],
)

scopes = st.lists(st.sampled_from(SCOPES), max_size=3)
spawns = st.one_of(
    st.builds(lambda target, wanted: ("spawn_run", [target], wanted), st.sampled_from(TARGETS), scopes),
    st.builds(
        lambda targets, wanted: ("spawn_group", targets, wanted),
        st.lists(st.sampled_from(TARGETS), min_size=1, max_size=5),
        scopes,
    ),
)
Spawn = tuple[str, list[str], list[str]]


def drawn(spawn: Spawn) -> Document:
    kind, targets, wanted = spawn
    if kind == "spawn_run":
        return line(node(kind, target_agent_slug=targets[0], scope_subset=wanted))
    return line(node(kind, targets=[{"target_agent_slug": target} for target in targets], scope_subset=wanted))


async def compile_codes(kit: Kit, agent_id: str, spawn: Spawn) -> set[str]:
    answer = done(await kit.api.post("/graphs/compile", {"graph": drawn(spawn), "agent_id": agent_id}))
    assert answer["valid"] == (answer["diagnostics"] == [])
    return {item["code"] for item in answer["diagnostics"]}


async def run_codes(kit: Kit, root: Run, spawn: Spawn) -> set[str]:
    kind, targets, wanted = spawn
    if kind == "spawn_run":
        response = await kit.spawn(root, "key", targets[0], scope_subset=wanted)
    else:
        members = [{"target_agent_slug": target} for target in targets]
        response = await kit.spawn_group(root, "key", 0, targets=members, scope_subset=wanted)
    return set() if response.is_success else set(reason_codes(refused(response, 403, "policy_denied")))


def cases_of(number: int) -> list[Spawn]:
    """Spawns of one node each, other ones for each number."""
    cases: list[Spawn] = []

    @seed(number)
    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(spawns)
    def collect(spawn: Spawn) -> None:
        cases.append(spawn)

    collect()
    return cases


async def test_compiling_refuses_what_running_refuses(kit: Kit) -> None:
    for slug in ("worker", "helper", "stranger"):
        await kit.agent(slug, tags=["fast"] if slug == "helper" else [])
    await kit.agent("draft", publish=False)
    seen: Counter[str] = Counter()
    for number, (policy, allowlist) in enumerate(product(POLICIES, ALLOWLISTS)):
        agent_id = await kit.orchestrator(f"orchestrator-{number}", **policy)
        done(await kit.api.put(f"/agents/{agent_id}/allowlist", {"entries": allowlist}))
        for spawn in cases_of(number):
            # A fresh tree: what is static is asked about with nothing spawned yet.
            root = await kit.root(agent_id, scopes=["agents.execute", *SCOPES])
            codes = await compile_codes(kit, agent_id, spawn)
            assert codes == await run_codes(kit, root, spawn), (policy, allowlist, spawn)
            seen.update(codes or {"allow"})
    assert seen.keys() == {
        "allow",
        "allowlist_empty",
        "max_children_total_exceeded",
        "max_depth_exceeded",
        "max_fanout_exceeded",
        "scope_exceeds_policy",
        "scope_required",
        "target_not_allowlisted",
        "target_not_published",
    }
