"""What a decision costs, beside a bare POST of the same bytes to the same OPA.

Run `python -m load.bench_decision [POLICY_DIR]`. It builds the bundle, starts an OPA on it (as Remit's own, but for its
authorization), and asks one question at a time, then lists of them, then many at once. Absolute times depend on the
machine; the ratio says what the adapter adds.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import orjson
import psutil
import uvloop

import policies
from kernel.domain.events import Surface
from kernel.identifiers import new_id
from kernel.policy.bundle import ALGORITHM, SCOPE, SigningKey, build_bundle
from kernel.policy.contract import (
    Action,
    AllowlistEntryFacts,
    CallerFacts,
    DecisionInput,
    OrchestratorPolicyFacts,
    PrincipalFacts,
    RequestFacts,
    SurfaceFlags,
    TargetFacts,
    TenantFacts,
    TreeFacts,
)
from kernel.policy.opa import OpaAddress, OpaEngine
from kernel.policy.records import record
from load.subject import run_measurement
from service.embedded.opa import ENVIRONMENT, find_or_build_opa

ROUNDS = 5
PER_ROUND = 1_000
BATCHES = (1, 16, 64)
PER_BATCH_SIZE = 4_096
MEDIAN_LIMIT_MS = 1.0
P99_LIMIT_MS = 3.0


def a_spawn() -> DecisionInput:
    run, worker = new_id(), new_id()
    return DecisionInput(
        action=Action.SPAWN_RUN,
        surface=Surface.RUNTIME_PRIMITIVES,
        now=datetime.now(UTC),
        tenant=TenantFacts(tenant_id=new_id(), slug="acme", flags=SurfaceFlags()),
        principal=PrincipalFacts(kind="tenant", delegable_scopes=("*",)),
        request=RequestFacts(scopes=("read", "write"), count=1),
        caller=CallerFacts(
            run_id=run,
            agent_id=new_id(),
            agent_slug="planner",
            status="running",
            depth=1,
            effective_scopes=("read", "write", "search"),
            children_count=2,
        ),
        tree=TreeFacts(root_run_id=run, children_total=4),
        orchestrator_policy=OrchestratorPolicyFacts(
            max_depth=3,
            max_fanout=8,
            max_children_total=32,
            join_timeout_s=60,
            default_failure_policy="best_effort",
            enforce_published_only=True,
            allowed_scope_subset=(),
            parent_close_policy="continue",
            is_active=True,
        ),
        allowlist=tuple(AllowlistEntryFacts(target_agent_slug=f"worker-{number}") for number in range(5)),
        targets=(TargetFacts(agent_id=worker, slug="worker-1", kind="external", status="published"),),
    )


@dataclass(frozen=True)
class Figures:
    median_ms: float
    p99_ms: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"median {self.median_ms:.3f} ms, p99 {self.p99_ms:.3f} ms, Python CPU {self.cpu_ms:.3f} ms"


async def measure(ask: Callable[[], Awaitable[object]]) -> Figures:
    times = []
    cpu = time.process_time()
    for _ in range(PER_ROUND):
        started = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    times.sort()
    return Figures(times[PER_ROUND // 2] * 1e3, times[PER_ROUND * 99 // 100] * 1e3, cpu / PER_ROUND * 1e3)


def best(rounds: list[Figures]) -> Figures:
    """The round that was least disturbed by whatever else the machine was doing."""
    return min(rounds, key=lambda figures: figures.median_ms)


@contextmanager
def an_opa(binary: Path, bundle: bytes, key: SigningKey) -> Iterator[OpaAddress]:
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        file, config = Path(directory, "bundle.tar.gz"), Path(directory, "opa.json")
        file.write_bytes(bundle)
        configuration = {
            "keys": {key.keyid: {"algorithm": ALGORITHM, "key": key.public_pem, "scope": SCOPE}},
            "bundles": {"orchestration": {"resource": file.as_uri(), "signing": {"keyid": key.keyid, "scope": SCOPE}}},
        }
        config.write_text(json.dumps(configuration))
        process = subprocess.Popen(
            [binary, "run", "--server", "--addr", f"127.0.0.1:{port}", "--config-file", config, "--log-level", "error"],
            env=ENVIRONMENT,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield OpaAddress("127.0.0.1", port, tls=False)
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Cost:
    """What one of many decisions takes, in microseconds."""

    elapsed_us: float
    opa_us: float
    python_us: float

    def __str__(self) -> str:
        return f"{self.elapsed_us:.0f} µs each, OPA's CPU {self.opa_us:.0f} µs, Python's {self.python_us:.0f} µs"


async def cost(engine: OpaEngine, question: DecisionInput, batch: int) -> Cost:
    """Ask in lists of so many, one list after the other; as a spawn does, and with its record."""
    (opa,) = psutil.Process().children()
    before, python, started = opa.cpu_times(), time.process_time(), time.perf_counter()
    for _ in range(PER_BATCH_SIZE // batch):
        if batch == 1:
            answers = [await engine.decide(question)]
        else:
            answers = await engine.decide_all([question] * batch)
        for answer in answers:
            record(question, answer)
    elapsed, python, after = time.perf_counter() - started, time.process_time() - python, opa.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Cost(*(seconds / PER_BATCH_SIZE * 1e6 for seconds in (elapsed, spent, python)))


async def bench(source: Path) -> bool:
    chosen = os.environ.get("REMIT_OPA_BINARY")
    binary = await find_or_build_opa(Path(chosen) if chosen else None)
    with tempfile.TemporaryDirectory() as directory:
        key = SigningKey.load_or_create(Path(directory, "key.pem"))
        built = await build_bundle(binary, source, signing_key=key)

    question = a_spawn()
    body = orjson.dumps({"input": question.model_dump(mode="json", exclude_none=True)})
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    with an_opa(binary, built.data, key) as address:
        url = f"{address}/v1/data/orchestration/main/decision?provenance=True"
        async with OpaEngine(address, timeout_s=5) as engine, aiohttp.ClientSession() as session:
            async with asyncio.timeout(20):
                while not await engine.is_ready():  # noqa: ASYNC110  # another process cannot set an event
                    await asyncio.sleep(0.05)
            answer = await engine.decide(question)

            async def post() -> None:
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()

            bare, decided = [], []
            for _ in range(ROUNDS):
                bare.append(await measure(post))
                decided.append(await measure(lambda: engine.decide(question)))
            raw, single = best(bare), best(decided)

            costs = {batch: await cost(engine, question, batch) for batch in BATCHES}

            started = time.perf_counter()
            for _ in range(10):
                await asyncio.gather(*(engine.decide(question) for _ in range(200)))
            rate = 2_000 / (time.perf_counter() - started)

    within = single.median_ms <= MEDIAN_LIMIT_MS and single.p99_ms <= P99_LIMIT_MS
    print(f"bare POST            {raw}")
    print(f"decision             {single} ({'allowed' if answer.decision.allow else 'denied'})")
    print(f"decision / bare POST median {single.median_ms / raw.median_ms:.2f}, CPU {single.cpu_ms / raw.cpu_ms:.2f}")
    for batch, each in costs.items():
        print(f"{f'in lists of {batch}':<20} {each}, the record included")
    print(f"at once              {rate:.0f} decisions/s")
    print(f"{'within' if within else 'BEYOND'} {MEDIAN_LIMIT_MS:g} ms at the median and {P99_LIMIT_MS:g} ms at p99")
    return within


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, unless there is nothing to be measured."""
    parser = argparse.ArgumentParser(prog="python -m load.bench_decision", description=__doc__)
    parser.add_argument(
        "policies", type=Path, nargs="?", default=Path(policies.__file__).parent, help="default: those of Remit"
    )
    source: Path = parser.parse_args(arguments).policies
    if not source.is_dir():
        parser.error(f"{source}: there is no such directory")
    return 0 if run_measurement(bench(source), loop_factory=uvloop.new_event_loop) else 1


if __name__ == "__main__":
    sys.exit(main())
