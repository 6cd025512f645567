"""Decisions without anything around them: our adapter, Kite Logik's gate and `opa bench`, with one build of OPA."""

import asyncio
import importlib.resources
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from kitelogik import OPAClient, PolicyGate, SessionContext
from kitelogik.tether.models import GovernanceEvent

import policies
from kernel.policy.bundle import SigningKey, build_bundle
from kernel.policy.contract import DecisionInput
from kernel.policy.opa import OpaEngine
from load.bench_decision import a_spawn, an_opa
from load.peers.comparison import Contender, Measurements, Work
from load.peers.verification import Verified, expect
from service.embedded.opa import ENVIRONMENT

Ask = Callable[[], Awaitable[object]]

WARM_UPS = 200
ALONE = 1_000
TOGETHER = 3_000
CONCURRENT = 32
EQUIVALENT = Path(__file__).with_name("kite_logik.rego")
QUERY = "data.orchestration.main.decision"
READY_TIMEOUT_S = 20


class Decisions:
    """The engines and the one question, ready to be asked again and again."""

    def __init__(
        self, opa: Path, question: DecisionInput, adapter: OpaEngine, gates: dict[Contender, PolicyGate]
    ) -> None:
        """Take what has been started."""
        self._opa = opa
        self._question = question
        self._adapter = adapter
        self._gates = gates

    async def measure(self, measurements: Measurements, verified: Verified) -> None:
        """Take one run's figures."""
        asks: dict[Contender, Ask] = {Contender.REMIT: lambda: self._adapter.decide(self._question)}
        answer = await self._adapter.decide(self._question)
        expect("Remit's decision allows the spawn", answer.decision.allow, True, verified)
        for contender, gate in self._gates.items():
            event = as_event(self._question)
            decision = await gate.evaluate(event)
            expect(f"{contender}: the decision allows the spawn", decision.allow, True, verified)
            if contender is Contender.KITE_LOGIK:
                beyond = await gate.evaluate(event.model_copy(update={"delegation_target": "somebody-else"}))
                expect(f"{contender}: the decision denies another target", beyond.deny, True, verified)
            asks[contender] = lambda gate=gate, event=event: gate.evaluate(event)  # type: ignore[misc]
        for contender, ask in asks.items():
            measurements.add(Work.DECISION, contender, *await alone(ask))
            measurements.add(Work.DECISIONS, contender, await together(ask))
        measurements.add(Work.DECISION, Contender.OPA_BENCH, await self._bench())
        measurements.add(Work.DECISION, Contender.OPA_BENCH_SERVER, await self._bench("--e2e"))

    async def _bench(self, *more: str) -> float:
        """Milliseconds a decision in `opa bench`, with the bundle's sources and the question that ours is asked."""
        process = await asyncio.create_subprocess_exec(
            *(self._opa, "bench", QUERY, "--bundle", Path(policies.__file__).parent, "--stdin-input"),
            *("--format", "json", "--benchmem=false", "--metrics=false", *more),
            env=ENVIRONMENT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        asked = json.dumps(self._question.model_dump(mode="json", exclude_none=True))
        out, errors = await process.communicate(asked.encode())
        if process.returncode:
            raise RuntimeError(f"opa bench: {errors.decode()[-2000:]}")
        result = json.loads(out)
        return float(result["T"] / result["N"] / 1e6)


def as_event(question: DecisionInput) -> GovernanceEvent:
    """The same question, as Kite Logik's gate takes it."""
    caller, policy = question.caller, question.orchestrator_policy
    assert caller is not None
    assert policy is not None
    assert question.request is not None
    assert question.tree is not None
    (target,) = question.targets or ()
    return GovernanceEvent(
        event_type="agent.spawn",
        session_id=str(caller.run_id),
        action="spawn_run",
        requested_capabilities=list(question.request.scopes),
        delegation_target=target.slug,
        context=SessionContext(
            session_id=str(caller.run_id),
            user_role=caller.agent_slug,
            session_scopes=list(caller.effective_scopes),
            delegation_depth=caller.depth,
            tenant_id=str(question.tenant.tenant_id),
        ),
        args={
            "surface_enabled": True,
            "caller_status": caller.status,
            "children_count": caller.children_count,
            "children_total": question.tree.children_total,
            "count": question.request.count,
            "allowlist": [entry.target_agent_slug for entry in question.allowlist or ()],
            "target_status": target.status,
            "policy": policy.model_dump(mode="json"),
        },
    )


async def alone(ask: Ask) -> list[float]:
    """Milliseconds of each of many questions, one after the other."""
    for _ in range(WARM_UPS):
        await ask()
    took = []
    for _ in range(ALONE):
        started = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - started) * 1000)
    return took


async def together(ask: Ask) -> float:
    """Answers per second to several that ask without a pause."""

    async def some() -> None:
        for _ in range(TOGETHER // CONCURRENT):
            await ask()

    started = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(CONCURRENT)))
    return TOGETHER // CONCURRENT * CONCURRENT / (time.perf_counter() - started)


def shipped() -> list[Path]:
    """The policies that come with Kite Logik, as it has them loaded."""
    directory = Path(str(importlib.resources.files("kitelogik.policies")))
    return [file for file in directory.glob("*.rego") if not file.stem.endswith("_test")]


@asynccontextmanager
async def deciding(opa: Path) -> AsyncIterator[Decisions]:
    """Start an OPA for each, with the same binary, and ask them until they answer."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key = SigningKey.load_or_create(directory / "key.pem")
        built = await build_bundle(opa, Path(policies.__file__).parent, signing_key=key)
        address = stack.enter_context(an_opa(opa, built.data, key))
        adapter = await stack.enter_async_context(OpaEngine(address, timeout_s=5))
        gates, clients = {}, []
        for contender, files in ((Contender.KITE_LOGIK, [EQUIVALENT]), (Contender.KITE_LOGIK_SHIPPED, shipped())):
            url = await stack.enter_async_context(_serving(opa, files))
            clients.append(await stack.enter_async_context(OPAClient(url)))
            gates[contender] = PolicyGate(opa_client=clients[-1])
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not (  # noqa: ASYNC110  # another process cannot set an event
                await adapter.is_ready() and all([await client.health() for client in clients])
            ):
                await asyncio.sleep(0.05)
        yield Decisions(opa, a_spawn(), adapter, gates)


@asynccontextmanager
async def _serving(opa: Path, files: Sequence[Path]) -> AsyncIterator[str]:
    """An OPA with these policies, as Kite Logik's manual has it started."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(str(opa), "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level", "error", *map(str, files)),
        env=ENVIRONMENT,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
