"""Each alert fires for its cause and for no other: a deployment under a storm, and what may happen to it."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import URL, make_url

from tests.conftest import Servers
from tests.kit import Api, Kit, Run, done, refused
from tests.operations.conftest import Prometheus, free_port, scraping
from tests.operations.processes.conftest import connect
from tests.operations.processes.fleet import Fleet, Part, assemble, run
from tests.operations.processes.haste import hasten
from tests.operations.processes.traffic import flowing

pytestmark = [pytest.mark.xdist_group("fleet"), pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[3]
# As long as the longest window of a rule with its `for`, in quick motion, and room for a busy machine.
FIRES_S = 90.0
CALM_S = 20.0
PAUSE_S = 0.1
WIDE = {"max_fanout": 100_000, "max_children_total": 100_000}

Fired = frozenset[tuple[str, str]]
"""Alerts by name, each with the tenant, process or loop that it is about."""


@dataclass(frozen=True)
class Deployment:
    """Two API processes, each with an OPA of its own and one with policies of its own, and a reconciler."""

    fleet: Fleet
    opas: list[Part]
    policies: Path
    api: Api
    prometheus: Prometheus

    @property
    def urls(self) -> list[str]:
        return [part.url for part in self.fleet.apis if part.url is not None]

    async def firing(self) -> Fired:
        return _told(await self.prometheus.ask('ALERTS{alertstate="firing"}'))

    async def fired_within(self, seconds: float) -> Fired:
        return _told(
            await self.prometheus.ask(f'max_over_time(ALERTS{{alertstate="firing"}}[{int(seconds * 1000)}ms])')
        )

    async def quiet(self) -> None:
        """Wait until no alert is left, nor one on its way."""
        async with asyncio.timeout(FIRES_S):
            while await self.prometheus.ask("ALERTS"):  # noqa: ASYNC110 - it is another process that evaluates
                await asyncio.sleep(PAUSE_S)

    @asynccontextmanager
    async def expecting(self, *alerts: tuple[str, str], also: tuple[str, ...] = ()) -> AsyncIterator[None]:
        """What is done in the block makes these alerts fire and no others, apart from the names in `also`."""
        loop = asyncio.get_running_loop()
        started, wanted, seen = loop.time(), frozenset(alerts), Fired()
        try:
            async with asyncio.timeout(FIRES_S):
                yield
                while not wanted <= seen:
                    await asyncio.sleep(PAUSE_S)
                    seen = await self.fired_within(loop.time() - started)
        except TimeoutError:
            pytest.fail(f"not fired: {sorted(wanted - seen)}; pending: {await self.prometheus.ask('ALERTS')}")
        seen = await self.fired_within(loop.time() - started)
        others = {alert for alert in seen - wanted if alert[0] not in also}
        assert others == set(), f"not expected of {sorted(wanted)}"


def _told(series: list[dict[str, dict[str, str]]]) -> Fired:
    labels = [one["metric"] for one in series]
    return frozenset(
        (one["alertname"], next((one[name] for name in ("tenant", "loop", "instance") if name in one), ""))
        for one in labels
    )


def _with_an_opa_each(fleet: Fleet, policies: Path) -> list[Part]:
    """As deployments have it: the second API has an OPA of its own beside it, and here policies of its own, too."""
    first, second = fleet.opa, fleet.apis[1]
    assert first.url is not None
    assert second.url is not None
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        url.removeprefix("http://") if word == first.url.removeprefix("http://") else word for word in first.command
    ]
    environment = {**first.environment, "REMIT_URL": second.url}
    output = first.output.with_name("opa-1.log")
    own = {"REMIT_OPA_URL": url, "REMIT_POLICY_DIR": str(policies)}
    fleet.apis[1] = replace(second, environment={**second.environment, **own})
    return [first, replace(first, command=command, environment=environment, output=output, url=url)]


@pytest.fixture
async def deployment(empty_database: URL, servers: Servers, tmp_path: Path) -> AsyncIterator[Deployment]:
    fleet = assemble(tmp_path, empty_database.render_as_string(hide_password=False), servers.opa_binary)
    policies = tmp_path / "policies"
    await asyncio.to_thread(shutil.copytree, ROOT / "policies", policies, ignore=shutil.ignore_patterns("*.py*"))
    opas = _with_an_opa_each(fleet, policies)
    metrics = free_port()
    watched = {**fleet.reconciler.environment, "REMIT_METRICS_PORT": str(metrics)}
    fleet.reconciler = replace(
        fleet.reconciler, environment=watched, url=f"http://127.0.0.1:{metrics}", probe="/metrics"
    )
    fleet.parts = [*fleet.apis, fleet.reconciler, *opas]
    await run(fleet.reconciler.environment, "migrate")
    try:
        await asyncio.gather(*(part.start() for part in fleet.parts))
        for api in fleet.apis:
            api.probe = "/readyz"
            await api.answers()
        targets = [part.url.removeprefix("http://") for part in (*fleet.apis, fleet.reconciler) if part.url is not None]
        async with (
            scraping(tmp_path, *targets, rules=hasten) as prometheus,
            httpx2.AsyncClient(base_url=fleet.apis[0].url or "", timeout=30.0, trust_env=False) as client,
        ):
            deployed = Deployment(fleet, opas, policies, Api(client, fleet.secret("admin-token")), prometheus)
            async with asyncio.timeout(FIRES_S):
                while len(await prometheus.ask("up == 1")) < len(targets):  # noqa: ASYNC110 - another process scrapes
                    await asyncio.sleep(PAUSE_S)
            await deployed.quiet()
            yield deployed
    finally:
        await fleet.stop()


@asynccontextmanager
async def again_and_again(act: Callable[[int], Awaitable[None]], pause_s: float) -> AsyncIterator[None]:
    """Something that goes on for as long as the block lasts."""

    async def keep_on() -> None:
        turn = 0
        while True:
            turn += 1
            await act(turn)
            await asyncio.sleep(pause_s)

    doing = asyncio.create_task(keep_on())
    try:
        yield
    finally:
        doing.cancel()
        with suppress(asyncio.CancelledError):
            await doing


@asynccontextmanager
async def held_up(part: Part) -> AsyncIterator[None]:
    """A process that does nothing for a while."""
    os.kill(part.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(part.pid, signal.SIGCONT)


@asynccontextmanager
async def locked(database_url: str, root: Run) -> AsyncIterator[None]:
    """Somebody's session holds the lock of a tree, and forgets it."""
    connection = await connect(make_url(database_url))
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM run_trees WHERE root_run_id = $1 FOR UPDATE", UUID(root.run_id))
            yield
    finally:
        await connection.close()


async def tenant(api: Api, **policy: object) -> tuple[Kit, Run]:
    kit = await Kit.make(api)
    root, _ = await kit.team(**{**WIDE, **policy})
    return kit, root


async def test_each_alert_fires_for_its_cause_and_for_no_other(deployment: Deployment) -> None:
    fleet, api = deployment.fleet, deployment.api
    busy, _ = await tenant(api)
    callers = [await busy.root(await busy.orchestrator("caller", may_spawn=["worker"], **WIDE))]
    (denied, denied_root), (flagged, flagged_root) = await tenant(api), await tenant(api)
    await denied.agent("outsider")
    (losing, losing_root), (stuck, stuck_root) = await tenant(api), await tenant(api)

    async def be_denied(turn: int) -> None:
        refused(await denied.spawn(denied_root, f"no-{turn}", target="outsider"), 403, "policy_denied")

    async def work_as_usual(turn: int) -> None:
        await flagged.spawn(flagged_root, f"flagged-{turn}")
        # A past without denials, against which theirs stand out for as long as it lasted.
        await denied.spawn(denied_root, f"yes-{turn}")

    async def lose_leases(turn: int) -> None:
        done(await losing.spawn_group(losing_root, f"lost-{turn}", 20))
        claim = {"agent_slugs": ["worker"], "max_runs": 20, "lease_s": 1, "wait_s": 1}
        done(await losing.api.post("/work/claim", claim))

    async with flowing(deployment.urls, busy.api.token, callers), again_and_again(work_as_usual, 0.25):
        async with deployment.expecting():
            await asyncio.sleep(CALM_S)  # a storm by itself is no cause

        # A cancellation whose tree somebody holds.
        done(await stuck.spawn_group(stuck_root, "many", 300))
        cancel = {"caller_run_id": stuck_root.run_id, "run_id": stuck_root.run_id}
        async with held_up(fleet.reconciler):
            answer = done(await stuck.api.post("/internal/orchestration/cancel-subtree", cancel))
            assert answer["state"] == "draining"
            holding = locked(fleet.database_url, stuck_root)
            await holding.__aenter__()
        try:
            off = {"option_a_graphspec_v2": True, "option_b_runtime_primitives": False}
            async with (
                again_and_again(be_denied, 0.25),
                again_and_again(lose_leases, 1.0),
                deployment.expecting(
                    ("RemitTenantDenialsJump", denied.slug),
                    ("RemitFlagOffWithTraffic", flagged.slug),
                    ("RemitLeasesExpiring", losing.slug),
                    ("RemitDrainBacklogStuck", ""),
                    ("RemitReconcilerSetAside", "drain_cancellations"),
                    ("RemitBundleRevisionsDiffer", ""),
                ),
            ):
                done(await flagged.admin.put(f"/tenants/{flagged.tenant_id}/flags", off))
                await asyncio.to_thread(_append, deployment.policies, "\n# another revision\n")
        finally:
            await holding.__aexit__(None, None, None)
        on = {"option_a_graphspec_v2": True, "option_b_runtime_primitives": True}
        done(await flagged.admin.put(f"/tenants/{flagged.tenant_id}/flags", on))
        shutil.copy(ROOT / "policies" / SOURCE, deployment.policies / SOURCE)
        await deployment.quiet()

        async with deployment.expecting(
            ("RemitPolicySourcesRefused", deployment.urls[1].removeprefix("http://")), ("RemitReconcilerStalled", "")
        ):
            await asyncio.to_thread(_append, deployment.policies, "\nno rego at all\n")
            os.kill(fleet.reconciler.pid, signal.SIGSTOP)
        os.kill(fleet.reconciler.pid, signal.SIGCONT)
        shutil.copy(ROOT / "policies" / SOURCE, deployment.policies / SOURCE)
        await deployment.quiet()

        # Whoever asks that process is not served: this costs the error budgets, too.
        burns = ("RemitAvailabilityBurnFast", "RemitAvailabilityBurnSlow", "RemitFailClosedBurnSlow")
        async with deployment.expecting(
            ("RemitOpaDown", deployment.urls[0].removeprefix("http://")), ("RemitFailClosedBurnFast", ""), also=burns
        ):
            await deployment.opas[0].kill()
        await deployment.opas[0].start()
        async with asyncio.timeout(FIRES_S):
            while ("RemitOpaDown", deployment.urls[0].removeprefix("http://")) in await deployment.firing():  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)


SOURCE = Path("orchestration/main/main.rego")


def _append(policies: Path, text: str) -> None:
    with (policies / SOURCE).open("a") as source:
        source.write(text)
