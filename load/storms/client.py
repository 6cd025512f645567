"""The calls of a storm: sent, counted, written down when they were acknowledged."""

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from locust.event import EventHook

from load.storms.ledger import Ledger
from load.storms.tally import Tally

TIMEOUT_S = 30.0
PRIMITIVES = "/internal/orchestration"
# What a call in a tree that others cancel may hear, and be right to.
CANCELLED = frozenset({"run_cancelled", "caller_not_active"})
# What a worker may hear of a run that was cancelled, or ended, under its hands.
OVERTAKEN = frozenset({"run_cancelled", "lease_lost", "illegal_transition"})
# A tenant that asks for too much at once is told to wait; the verdict sees to it that few are.
ALWAYS_RIGHT = frozenset({"tenant_saturated"})
REUSED = "X-Idempotency-Reused"
SERVER_ERROR = 500


class UnexpectedAnswerError(Exception):
    """An answer that this call should not have got in this storm."""


@dataclass(frozen=True)
class Tenant:
    """A tenant of the storm; its agent `orchestrator` may spawn itself and `worker`."""

    tenant_id: str
    token: str
    orchestrator: str


@dataclass(frozen=True)
class Answer:
    """An answer; of a refusal, `code` says which. Without one (timeout, connection lost) the status is 0.

    `reused`: a repeat, which tells of what was there before.
    """

    status: int
    body: Mapping[str, Any]
    reused: bool = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def code(self) -> str:
        return str(self.body.get("code") or self.status)


class Client:
    """The connections of one user."""

    def __init__(self, environment: Environment, host: str, tally: Tally, ledger: Ledger, *, connections: int) -> None:
        # A session reports what it sends by its own clock; here latency counts from when a call was due.
        self._session = FastHttpSession(
            host,
            EventHook(),
            None,
            concurrency=connections,
            connection_timeout=TIMEOUT_S,
            network_timeout=TIMEOUT_S,
            max_retries=0,
        )
        self._environment = environment
        self._tally = tally
        self._ledger = ledger

    def call(
        self,
        name: str,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str,
        due: float | None = None,
        stream: str | None = None,
        expect: Collection[str] = (),
        sought: str | None = None,
    ) -> Answer:
        """Send one call and count its answer.

        Args:
            due: when it should have been sent; of the first call of an arrival.
            stream: the stream of that arrival.
            expect: the codes of the refusals that are right here.
            sought: the code of the refusal that the call is sent for; it is done when it hears that.
        """
        sent = time.perf_counter()
        headers = {"Authorization": f"Bearer {token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        response = self._session.request(
            method, path, data=orjson.dumps(body).decode() if body is not None else None, headers=headers
        )
        ended = time.perf_counter()
        content = response.content or b""
        reused = response.headers is not None and response.headers.get(REUSED) == "true"
        answer = Answer(response.status_code or 0, _document(content), reused)
        due = sent if due is None else due
        if stream is not None:
            self._tally.of(stream).heard(
                done=answer.ok if sought is None else answer.code == sought,
                from_due_ms=(ended - due) * 1000,
                from_sent_ms=(ended - sent) * 1000,
            )
        what = "done" if answer.ok else answer.code
        self._tally.answers[name, what] += 1
        exception = None
        if not answer.ok and answer.code not in ALWAYS_RIGHT and answer.code not in {*expect, sought}:
            detail = answer.body.get("detail") or getattr(response, "error", "")
            exception = UnexpectedAnswerError(f"{answer.status} {answer.code}: {detail}")
            self._tally.errors[f"{name}: {answer.status} {answer.code}: {_told(str(detail))}"] += 1
        self._environment.events.request.fire(
            request_type=method,
            name=name if answer.ok else f"{name}: {what}",
            response_time=(ended - due) * 1000,
            response_length=len(content),
            exception=exception,
            context={},
            response=response,
        )
        return answer

    def start(self, tenant: Tenant, scopes: Sequence[str] = ("agents.execute", "read"), **more: Any) -> str | None:
        """A root run of the orchestrator."""
        key = uuid.uuid4().hex
        body = {"requested_scopes": list(scopes), "idempotency_key": key}
        answer = self.call("start", "POST", f"/agents/{tenant.orchestrator}/runs", body, token=tenant.token, **more)
        if not answer.ok:
            return None
        run_id: str = answer.body["run_id"]
        self._ledger.wrote("start", tenant.tenant_id, run=run_id)
        return run_id

    def spawn(
        self,
        tenant: Tenant,
        caller: str,
        target: str = "worker",
        *,
        key: str | None = None,
        payload: Mapping[str, object] | None = None,
        **more: Any,
    ) -> Answer:
        """One child; `child_of` names it."""
        key = key or uuid.uuid4().hex
        body = {
            "caller_run_id": caller,
            "target_agent_slug": target,
            "mapped_input_payload": payload or {},
            "scope_subset": more.pop("scopes", ["agents.execute", "read"]),
            "idempotency_key": key,
            "start_background": target == "worker",
        }
        answer = self.call("spawn-run", "POST", f"{PRIMITIVES}/spawn-run", body, token=tenant.token, **more)
        if answer.ok:
            self._ledger.wrote("spawn", tenant.tenant_id, run=answer.body["spawned_run_ids"][0], caller=caller, key=key)
        elif answer.code == "policy_denied":
            self._ledger.wrote("deny", tenant.tenant_id, decision=answer.body["decision_id"])
        return answer

    def spawn_group(
        self, tenant: Tenant, caller: str, size: int, *, prefix: str | None = None, terms: Any = None, **more: Any
    ) -> Answer:
        """A group of workers; `terms` are its join's."""
        prefix = prefix or uuid.uuid4().hex
        body = {
            "caller_run_id": caller,
            "targets": [{"target_agent_slug": "worker", "mapped_input_payload": {"n": n}} for n in range(size)],
            "scope_subset": ["read"],
            "idempotency_key_prefix": prefix,
            "timeout_s": 3600,
            **(terms or {}),
        }
        answer = self.call("spawn-group", "POST", f"{PRIMITIVES}/spawn-group", body, token=tenant.token, **more)
        if answer.ok:
            group_id, run_ids = answer.body["orchestration_group_id"], answer.body["spawned_run_ids"]
            if len(run_ids) != size:
                self._tally.find("group size", f"group {group_id} of {size} was acknowledged with {len(run_ids)} runs")
            self._ledger.wrote("group", tenant.tenant_id, group=group_id, caller=caller, key=prefix, runs=run_ids)
        return answer

    def cancel(self, tenant: Tenant, caller: str, run_id: str, *, terms: Any = None, **more: Any) -> Answer:
        """A fence; `terms` are `include_root` and `grace_s`."""
        body = {"caller_run_id": caller, "run_id": run_id, **(terms or {})}
        answer = self.call("cancel-subtree", "POST", f"{PRIMITIVES}/cancel-subtree", body, token=tenant.token, **more)
        if answer.ok:
            self._ledger.wrote(
                "cancel",
                tenant.tenant_id,
                cancellation=answer.body["cancellation_id"],
                run=run_id,
                fence_seq=answer.body["fence_seq"],
                include_root=answer.body["include_root"],
                reused=answer.reused,
            )
        return answer

    def join(self, tenant: Tenant, caller: str, group_id: str, *, wait_s: float = 0.0, **more: Any) -> Answer:
        """How a group stands. `wait_s` waits for its decision: that latency says nothing, and has a name of its own."""
        body = {"caller_run_id": caller, "orchestration_group_id": group_id, "wait_s": wait_s}
        name = "join (waiting)" if wait_s else "join"
        answer = self.call(name, "POST", f"{PRIMITIVES}/join", body, token=tenant.token, **more)
        if answer.ok and answer.body["complete"]:
            self._ledger.wrote(
                "join",
                tenant.tenant_id,
                group=group_id,
                status=answer.body["status"],
                decided_seq=answer.body["decided_seq"],
            )
        return answer

    def claim(
        self, tenant: Tenant, *, at_most: int, lease_s: int = 120, wait_s: float = 0.0, **more: Any
    ) -> list[Mapping[str, Any]]:
        """Runs for a worker."""
        body = {"agent_slugs": ["worker"], "max_runs": at_most, "lease_s": lease_s, "wait_s": wait_s}
        name = "claim (waiting)" if wait_s else "claim"
        answer = self.call(name, "POST", "/work/claim", body, token=tenant.token, **more)
        runs: list[Mapping[str, Any]] = answer.body["runs"] if answer.ok else []
        if runs:
            ids, attempts = [run["run_id"] for run in runs], [run["attempt"] for run in runs]
            self._ledger.wrote("claim", tenant.tenant_id, runs=ids, attempts=attempts)
        return runs

    def heartbeat(self, tenant: Tenant, runs: Sequence[Mapping[str, Any]], *, extend_s: int) -> Mapping[str, str]:
        """What a worker is told of the runs that it holds, by their ids."""
        body = {"leases": [{"run_id": run["run_id"], "lease": run["lease"]} for run in runs], "extend_s": extend_s}
        answer = self.call("heartbeat", "POST", "/work/heartbeat", body, token=tenant.token)
        return {lease["run_id"]: lease["status"] for lease in answer.body["leases"]} if answer.ok else {}

    def complete(
        self, tenant: Tenant, run: Mapping[str, Any], status: str, *, expect: Collection[str] = OVERTAKEN, **more: Any
    ) -> Answer:
        """The end of a claimed run."""
        body = {"run_id": run["run_id"], "lease": run["lease"], "status": status, "output": {"ok": True}}
        answer = self.call("complete", "POST", "/work/complete", body, token=tenant.token, expect=expect, **more)
        return self._ended(tenant, run["run_id"], answer)

    def report(
        self, tenant: Tenant, run_id: str, status: str, *, expect: Collection[str] = OVERTAKEN, **more: Any
    ) -> Answer:
        """The end of a run that its caller executes."""
        path = f"/agents/runs/{run_id}/status"
        answer = self.call("report", "POST", path, {"status": status}, token=tenant.token, expect=expect, **more)
        return self._ended(tenant, run_id, answer)

    def run(self, tenant: Tenant, run_id: str, **more: Any) -> Answer:
        """A run as it reads."""
        return self.call("read run", "GET", f"/agents/runs/{run_id}", token=tenant.token, **more)

    def query(self, tenant: Tenant, run_id: str, *, terms: Any = None, **more: Any) -> Answer:
        """A page of the tree below a run."""
        body = {"run_id": run_id, **(terms or {})}
        return self.call("query-tree", "POST", f"{PRIMITIVES}/query-tree", body, token=tenant.token, **more)

    def replan(self, tenant: Tenant, run_id: str, **more: Any) -> Answer:
        """Whether a run's failed children call for another plan."""
        body = {"caller_run_id": run_id, "run_id": run_id}
        path = f"{PRIMITIVES}/evaluate-and-replan"
        return self.call("evaluate-and-replan", "POST", path, body, token=tenant.token, **more)

    def _ended(self, tenant: Tenant, run_id: str, answer: Answer) -> Answer:
        if answer.ok:
            self._ledger.wrote("end", tenant.tenant_id, run=run_id, status=answer.body["status"])
        return answer


def child_of(answer: Answer) -> str:
    """The one child of a spawn that was answered."""
    run_id: str = answer.body["spawned_run_ids"][0]
    return run_id


def _document(content: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _told(detail: str) -> str:
    """The start of a detail, with the ids cut that would make each a kind of its own."""
    return " ".join("…" if len(word) >= 36 and word.count("-") >= 4 else word for word in detail.split())[:200]
