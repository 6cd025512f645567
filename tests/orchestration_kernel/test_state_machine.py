"""Any sequence of calls on a tenant's catalog and runs answers as a small model of the rules predicts."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from kernel.store.engine import Database
from load.audit import CHECKS, audit
from load.audit.check import Check
from tests.faults.scale import TORTURE, scaled
from tests.kit import ADMIN_TOKEN, ALL_SCOPES

SCOPES = ("a", "b", "c", "d", "e")
AGENTS = ("one", "two", "three")
KEYS = ("a", "b", "c", "d", "k:0", "l:1")
TAG = "tagged"
TERMINAL = ("completed", "failed", "cancelled")
CHAIN = 20

# What must have come up, or the sequences were too tame to tell anything.
OUTCOMES = {
    *("granted", "repeat", "conflict", "collision", "caller_not_active", "run_cancelled"),
    *("surface_disabled", "allowlist_empty", "target_not_allowlisted", "target_not_published"),
    *("scope_required", "scope_exceeds_caller", "scope_exceeds_policy"),
    *("max_depth_exceeded", "max_fanout_exceeded", "max_children_total_exceeded"),
    *("report lease_lost", "report illegal_transition", "report running", "report paused"),
}
# So many of them may be missing from a tenth of the sequences.
RARE = 6

scope_sets = st.sets(st.sampled_from(SCOPES)).map(sorted)
# Most spawns are to get as far as the limits, so most subsets are small and most limits above nothing.
few_scopes = st.sampled_from([["a"]] * 6 + [["b"], ["a", "b"], ["c"], ["d", "e"], []])
EVERYBODY = [("slug", "one"), ("slug", "two"), ("tag", TAG)]
agents = st.sampled_from(AGENTS)


@dataclass
class Agent:
    """An agent as the model has it."""

    agent_id: str
    tagged: bool
    published: bool = True
    max_depth: int = 3
    max_fanout: int = 8
    max_children_total: int = 32
    enforce_published_only: bool = True
    allowed: Sequence[str] = ()
    allowlist: Sequence[tuple[str, str]] = ()


@dataclass
class Run:
    """A run as the model has it. `shape` is what its key was used with."""

    run_id: str
    agent: str
    root: "Run | None"
    depth: int
    scopes: frozenset[str]
    background: bool
    status: str
    keys: dict[str, tuple[object, list[str]]] = field(default_factory=dict)
    prefixes: dict[str, tuple[object, list[str]]] = field(default_factory=dict)
    children: int = 0
    total: int = 0

    @property
    def tree(self) -> "Run":
        return self.root or self


class Client:
    """The HTTP API, called from the thread that Hypothesis runs in."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=120.0, verify=False)
        self._token = ADMIN_TOKEN
        self.tenant_ids: list[str] = []

    def become_tenant(self) -> str:
        """Make a tenant, and act for it from now on."""
        self._token = ADMIN_TOKEN
        slug = f"t-{uuid.uuid4().hex[:12]}"
        tenant_id: str = self.call("POST", "/tenants", {"slug": slug, "name": slug}).json()["tenant_id"]
        answer = self.call("POST", f"/tenants/{tenant_id}/tokens", {"scopes": ALL_SCOPES})
        self._token = answer.json()["token"]
        self.tenant_ids.append(tenant_id)
        return tenant_id

    def call(self, method: str, path: str, body: object = None, *, expect: int | None = None) -> httpx2.Response:
        answer = self._http.request(method, path, json=body, headers={"Authorization": f"Bearer {self._token}"})
        assert answer.is_success if expect is None else answer.status_code == expect, f"{expect}: {answer.text}"
        return answer

    def try_(self, path: str, body: object) -> httpx2.Response:
        return self._http.post(path, json=body, headers={"Authorization": f"Bearer {self._token}"})

    def close(self) -> None:
        self._http.close()


class Tenant(RuleBasedStateMachine):
    """Calls at random, each with the answer that the model predicts."""

    client: Client
    seen: Counter[str]

    @initialize()
    def begin(self) -> None:
        self.tenant_id = self.client.become_tenant()
        self.surface_on = True
        self.agents: dict[str, Agent] = {}
        self.runs: list[Run] = []
        self.granted: list[tuple[str, object, list[str]]] = []
        for slug in AGENTS:
            tags = [TAG] if slug == "three" else []
            made = self.client.call(
                "POST", "/agents", {"slug": slug, "name": slug, "kind": "external", "capability_tags": tags}
            ).json()
            self.client.call("POST", f"/agents/{made['agent_id']}/publish")
            self.agents[slug] = Agent(made["agent_id"], tagged=bool(tags))
            self._allow(slug, EVERYBODY)
        self.start("one", list(SCOPES))

    # ------------------------------------------------------------------ the catalog

    @rule(slug=agents, published=st.booleans())
    def publish(self, slug: str, published: bool) -> None:
        agent = self.agents[slug]
        self.client.call("POST", f"/agents/{agent.agent_id}/{'publish' if published else 'unpublish'}")
        agent.published = published

    @rule(
        slug=agents,
        depth=st.integers(0, 4),
        fanout=st.integers(0, 9),
        total=st.integers(0, 20),
        allowed=st.one_of(st.just([]), st.just(["a", "b"]), scope_sets),
        enforce=st.booleans(),
        active=st.sampled_from([True, True, True, False]),
    )
    def set_policy(
        self, slug: str, depth: int, fanout: int, total: int, allowed: list[str], enforce: bool, active: bool
    ) -> None:
        agent = self.agents[slug]
        policy = {
            "max_depth": depth,
            "max_fanout": fanout,
            "max_children_total": total,
            "allowed_scope_subset": allowed,
            "enforce_published_only": enforce,
        }
        self.client.call("PUT", f"/agents/{agent.agent_id}/orchestrator-policy", policy | {"is_active": active})
        if active:
            agent.max_depth, agent.max_fanout, agent.max_children_total = depth, fanout, total
            agent.allowed, agent.enforce_published_only = allowed, enforce
        else:
            agent.max_depth, agent.max_fanout, agent.max_children_total = 3, 8, 32
            agent.allowed, agent.enforce_published_only = (), True

    @rule(
        slug=agents,
        entries=st.one_of(
            st.just(EVERYBODY),
            st.lists(st.one_of(st.tuples(st.sampled_from(["slug", "id"]), agents), st.just(("tag", TAG))), max_size=3),
        ),
    )
    def set_allowlist(self, slug: str, entries: list[tuple[str, str]]) -> None:
        self._allow(slug, entries)

    @rule(on=st.sampled_from([True, True, True, False]))
    def switch_surface(self, on: bool) -> None:
        self.client.call("PUT", f"/tenants/{self.tenant_id}/flags", {"option_b_runtime_primitives": on})
        self.surface_on = on

    def _allow(self, slug: str, entries: Sequence[tuple[str, str]]) -> None:
        names = {"slug": "target_agent_slug", "id": "target_agent_id", "tag": "capability_tag"}
        wire = [{names[kind]: self.agents[v].agent_id if kind == "id" else v} for kind, v in entries]
        self.client.call("PUT", f"/agents/{self.agents[slug].agent_id}/allowlist", {"entries": wire})
        self.agents[slug].allowlist = entries

    # ------------------------------------------------------------------ runs

    @rule(slug=agents, scopes=st.one_of(st.just(list(SCOPES)), scope_sets))
    def start(self, slug: str, scopes: list[str]) -> None:
        agent = self.agents[slug]
        body = {"requested_scopes": scopes}
        if not agent.published:
            answer = self.client.call("POST", f"/agents/{agent.agent_id}/runs", body, expect=403)
            assert codes_of(answer) == ["target_not_published"]
            return
        made = self.client.call("POST", f"/agents/{agent.agent_id}/runs", body, expect=201).json()
        assert made["effective_scopes"] == scopes
        self.runs.append(Run(made["run_id"], slug, None, 0, frozenset(scopes), False, "running"))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), key=st.sampled_from(KEYS), wanted=agents, scopes=few_scopes, background=st.booleans())
    def spawn(self, data: st.DataObject, key: str, wanted: str, scopes: list[str], background: bool) -> None:
        self._spawn(self._caller(data), key, wanted, scopes, background)

    def _spawn(self, caller: Run, key: str, wanted: str, scopes: list[str], background: bool) -> None:
        body = {
            "caller_run_id": caller.run_id,
            "target_agent_slug": wanted,
            "scope_subset": scopes,
            "idempotency_key": key,
            "start_background": background,
        }
        answer = self.client.try_("/internal/orchestration/spawn-run", body)
        shape = ("run", wanted, tuple(scopes), background)
        if key in caller.keys:
            self._check_repeat(answer, caller.keys[key], shape)
            return
        made = self._settle(answer, caller, [wanted], scopes)
        if made is not None:
            self.granted.append(("spawn-run", body, made))
            self._add(caller, key, shape, wanted, scopes, background, made)

    @precondition(lambda self: self.runs)
    @rule(
        data=st.data(),
        prefix=st.sampled_from(("k", "l")),
        members=st.lists(agents, max_size=3),
        scopes=few_scopes,
        background=st.booleans(),
    )
    def spawn_group(
        self, data: st.DataObject, prefix: str, members: list[str], scopes: list[str], background: bool
    ) -> None:
        self._spawn_group(self._caller(data), prefix, members, scopes, background)

    def _spawn_group(self, caller: Run, prefix: str, members: list[str], scopes: list[str], background: bool) -> None:
        body = {
            "caller_run_id": caller.run_id,
            "targets": [{"target_agent_slug": target} for target in members],
            "scope_subset": scopes,
            "idempotency_key_prefix": prefix,
            "failure_policy": "best_effort",
            "start_background": background,
        }
        answer = self.client.try_("/internal/orchestration/spawn-group", body)
        shape = ("group", tuple(members), tuple(scopes), background)
        if prefix in caller.prefixes:
            self._check_repeat(answer, caller.prefixes[prefix], shape)
            return
        keys = [f"{prefix}:{number}" for number in range(len(members))]
        if self._may_spawn(caller, members, scopes) and any(key in caller.keys for key in keys):
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "spawn_key_conflict"
            self.seen["collision"] += 1
            return
        made = self._settle(answer, caller, members, scopes)
        if made is not None:
            caller.prefixes[prefix] = (shape, made)
            self.granted.append(("spawn-group", body, made))
            for key, target, run_id in zip(keys, members, made, strict=True):
                self._add(caller, key, None, target, scopes, background, [run_id])

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), members=st.lists(agents, min_size=1, max_size=3), position=st.integers(0, 2))
    def collide(self, data: st.DataObject, members: list[str], position: int) -> None:
        caller, prefix = self._caller(data), f"x{len(self.runs)}"
        self._spawn(caller, f"{prefix}:{position}", members[0], ["a"], background=True)
        self._spawn_group(caller, prefix, members, ["a"], background=True)

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        path, body, run_ids = self.granted[data.draw(st.integers(0, len(self.granted) - 1))]
        answer = self.client.call("POST", f"/internal/orchestration/{path}", body).json()
        assert (answer["spawned_run_ids"], answer["idempotent"]) == (run_ids, True)
        self.seen["repeat"] += 1

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), status=st.sampled_from(("running", "paused", *TERMINAL)))
    def report(self, data: st.DataObject, status: str) -> None:
        self._report(self.runs[data.draw(st.integers(0, len(self.runs) - 1))], status)

    @rule(status=st.sampled_from(TERMINAL))
    def outlive(self, status: str) -> None:
        self.start("one", ["a"])
        run = self.runs[-1]
        if run.status == "running":
            self._spawn(run, "before", "two", ["a"], background=False)
            self._report(run, status)
            self._spawn(run, "before", "two", ["a"], background=False)
            self._spawn(run, "after", "two", ["a"], background=False)

    def _report(self, run: Run, status: str) -> None:
        answer = self.client.try_(f"/agents/runs/{run.run_id}/status", {"status": status})
        expected = self._expected_report(run, status)
        assert (answer.status_code, answer.json().get("code")) == expected, answer.text
        self.seen[f"report {expected[1] or run.status}"] += 1
        if expected == (200, None):
            run.status = status

    # ------------------------------------------------------------------ the model

    def _caller(self, data: st.DataObject) -> Run:
        # The first root often, so that its keys and counters are used up.
        return self.runs[data.draw(st.one_of(st.just(0), st.integers(0, len(self.runs) - 1)))]

    def _expected_report(self, run: Run, status: str) -> tuple[int, str | None]:
        if run.status == status and (run.status in TERMINAL or not run.background):
            return 200, None
        if run.status == "cancelled":
            return 409, "run_cancelled"
        if run.status in TERMINAL:
            return 409, "illegal_transition"
        if run.background:
            return 409, "lease_lost"
        return 200, None

    def _denials(self, caller: Run, targets: Sequence[str], scopes: Sequence[str]) -> list[str]:
        agent, count = self.agents[caller.agent], len(targets)
        wrong = {
            "surface_disabled": not self.surface_on,
            "scope_required": not scopes,
            "scope_exceeds_caller": not caller.scopes.issuperset(scopes),
            "scope_exceeds_policy": bool(agent.allowed) and not set(agent.allowed).issuperset(scopes),
            "max_depth_exceeded": caller.depth + 1 > agent.max_depth,
            "max_fanout_exceeded": caller.children + count > agent.max_fanout,
            "max_children_total_exceeded": caller.tree.total + count > agent.max_children_total,
            "allowlist_empty": not agent.allowlist,
        }
        found = [code for code, holds in wrong.items() if holds]
        for target in set(targets):
            if agent.allowlist and not self._listed(agent, target):
                found.append("target_not_allowlisted")
            if agent.enforce_published_only and not self.agents[target].published:
                found.append("target_not_published")
        return sorted(found)

    def _listed(self, agent: Agent, target: str) -> bool:
        tagged = self.agents[target].tagged
        return any(value == target if kind != "tag" else tagged for kind, value in agent.allowlist)

    def _may_spawn(self, caller: Run, targets: Sequence[str], scopes: Sequence[str]) -> bool:
        return caller.status not in TERMINAL and not self._denials(caller, targets, scopes)

    def _settle(
        self, answer: httpx2.Response, caller: Run, targets: Sequence[str], scopes: Sequence[str]
    ) -> list[str] | None:
        """Hold the answer to a new spawn against the model; the new runs where it is granted."""
        if caller.status in TERMINAL:
            assert answer.status_code == 409, answer.text
            expected = "run_cancelled" if caller.status == "cancelled" else "caller_not_active"
            assert answer.json()["code"] == expected
            self.seen[expected] += 1
            return None
        denials = self._denials(caller, targets, scopes)
        if denials:
            assert answer.status_code == 403, f"{denials}: {answer.text}"
            assert codes_of(answer) == denials
            self.seen.update(denials)
            return None
        assert answer.status_code == 200, answer.text
        spawned = answer.json()
        assert spawned["idempotent"] is False
        assert spawned["effective_scope_subset"] == sorted(scopes)
        assert spawned["lineage"]["depth"] == caller.depth + 1
        run_ids: list[str] = spawned["spawned_run_ids"]
        assert len(run_ids) == len(targets)
        self.seen["granted"] += 1
        return run_ids

    def _check_repeat(self, answer: httpx2.Response, first: tuple[object, list[str]], shape: object) -> None:
        first_shape, run_ids = first
        if first_shape != shape:
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "spawn_key_conflict"
            self.seen["conflict"] += 1
            return
        self.seen["repeat"] += 1
        assert answer.status_code == 200, answer.text
        assert answer.json()["spawned_run_ids"] == run_ids
        assert answer.json()["idempotent"] is True

    def _add(
        self,
        caller: Run,
        key: str,
        shape: object,
        target: str,
        scopes: Sequence[str],
        background: bool,
        run_ids: list[str],
    ) -> None:
        caller.keys[key] = (shape, run_ids)
        caller.children += 1
        caller.tree.total += 1
        status = "queued" if background else "running"
        run = Run(run_ids[0], target, caller.tree, caller.depth + 1, frozenset(scopes), background, status)
        assert run.scopes <= caller.scopes
        self.runs.append(run)


def codes_of(answer: httpx2.Response) -> list[str]:
    return [reason["code"] for reason in answer.json()["reasons"]]


PROFILE = settings(
    deadline=None,
    derandomize=not TORTURE,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_every_answer_is_as_the_model_predicts(
    api_url: str, database: Database, record_property: Callable[[str, object], None]
) -> None:
    client = Client(api_url)
    machine = type("BoundTenant", (Tenant,), {"client": client, "seen": (seen := Counter[str]())})
    profile = settings(PROFILE, max_examples=scaled(250), stateful_step_count=50)
    try:
        await asyncio.to_thread(run_state_machine_as_test, machine, settings=profile)
    finally:
        client.close()
    assert len(OUTCOMES - set(seen)) <= (0 if TORTURE else RARE), seen
    # Of its own tenants: other tests leave in the database what no kernel would write.
    theirs = ", ".join(f"'{tenant_id}'" for tenant_id in client.tenant_ids)
    checks = [Check(c.name, f"SELECT * FROM ({c.sql}) found WHERE tenant_id IN ({theirs})") for c in CHECKS]
    async with database.read() as session:
        assert await audit(session.driver, checks=checks) == []
    record_property("answers predicted", sum(seen.values()))


def delegator(client: Client) -> tuple[str, str]:
    """A tenant with an agent that may spawn itself, as deep as a chain may get."""
    tenant_id = client.become_tenant()
    agent_id = client.call("POST", "/agents", {"slug": "one", "name": "one", "kind": "external"}).json()["agent_id"]
    client.call("POST", f"/agents/{agent_id}/publish")
    limits = {"max_depth": CHAIN, "max_fanout": 1_000_000, "max_children_total": 1_000_000}
    client.call("PUT", f"/agents/{agent_id}/orchestrator-policy", limits)
    client.call("PUT", f"/agents/{agent_id}/allowlist", {"entries": [{"target_agent_slug": "one"}]})
    return tenant_id, agent_id


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_scopes_only_shrink_along_any_chain_of_delegations(
    api_url: str, database: Database, record_property: Callable[[str, object], None]
) -> None:
    client = Client(api_url)
    tenant_id, agent_id = await asyncio.to_thread(delegator, client)
    wide = st.sets(st.sampled_from(SCOPES), min_size=2).map(sorted)
    reached: Counter[int] = Counter()

    @settings(PROFILE, max_examples=scaled(200))
    @given(asked=st.lists(st.one_of(wide, scope_sets), min_size=CHAIN, max_size=2 * CHAIN))
    def descend(asked: list[list[str]]) -> None:
        made = client.call("POST", f"/agents/{agent_id}/runs", {"requested_scopes": list(SCOPES)}, expect=201).json()
        caller, held, depth = made["run_id"], set(SCOPES), 0
        for number, scopes in enumerate(asked):
            body = {
                "caller_run_id": caller,
                "target_agent_slug": "one",
                "scope_subset": scopes,
                "idempotency_key": str(number),
            }
            answer = client.try_("/internal/orchestration/spawn-run", body)
            expected = [
                code
                for code, wrong in (
                    ("max_depth_exceeded", depth == CHAIN),
                    ("scope_exceeds_caller", not held.issuperset(scopes)),
                    ("scope_required", not scopes),
                )
                if wrong
            ]
            if expected:
                assert codes_of(answer) == expected
                # What is held is handed on whole, so that chains get deep.
                scopes, number = sorted(held), number + 1_000  # noqa: PLW2901
                body |= {"scope_subset": scopes, "idempotency_key": str(number)}
                answer = client.try_("/internal/orchestration/spawn-run", body)
                if depth == CHAIN:
                    assert codes_of(answer) == ["max_depth_exceeded"]
                    break
            assert answer.status_code == 200, answer.text
            assert answer.json()["effective_scope_subset"] == scopes
            caller, held, depth = answer.json()["spawned_run_ids"][0], set(scopes), depth + 1
        reached[depth] += 1

    try:
        await asyncio.to_thread(descend)
    finally:
        client.close()
    assert reached[CHAIN] > 0
    async with database.read() as session:
        assert await audit(session.driver, tenant_id=tenant_id) == []
    record_property("chains", sum(reached.values()))
