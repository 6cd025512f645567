"""The platform's flags: they are data of the bundle, and hold for tenants that have set none."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import JsonValue

from kernel import metrics
from kernel.commands.compile_graph import CompileGraph, CompileGraphCommand
from kernel.commands.read_flags import ReadFlagsCommand
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.policy.bundle import SigningKey
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database
from service.policy_delivery import BundlePublisher
from tests.kit import Kit, done
from tests.policy.engine.conftest import POLICIES
from tests.policy.engine.opa_process import running_opa
from tests.policy.engine.policy_server import PolicyServer, policy_server

A, B = Surface.GRAPHSPEC_V2, Surface.RUNTIME_PRIMITIVES
GRAPH: JsonValue = {
    "spec_version": "2.0",
    "nodes": [{"id": "start", "type": "start"}, {"id": "end", "type": "end"}],
    "edges": [{"id": "e", "source": "start", "target": "end"}],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The repository's policies, but that the platform has graphs off."""
    source = tmp_path / "policies"
    shutil.copytree(POLICIES, source)
    write_flags(source, graphs="false")
    return source


def write_flags(source: Path, *, graphs: str) -> None:
    flags = f"option_a_graphspec_v2: {graphs}\noption_b_runtime_primitives: true\n"
    (source / "orchestration/surfaces/data.yaml").write_text(flags)


@pytest.fixture
async def server(opa_binary: Path, source: Path, signing_key: SigningKey) -> AsyncIterator[PolicyServer]:
    publisher = BundlePublisher(opa_binary, source, signing_key)
    await publisher.start()
    async with policy_server(publisher) as server:
        yield server
    await publisher.stop()


@pytest.fixture
async def engine(
    opa_binary: Path, server: PolicyServer, signing_key: SigningKey, tmp_path: Path
) -> AsyncIterator[OpaEngine]:
    async with running_opa(opa_binary, server.opa_config(signing_key), tmp_path) as opa:
        known = server.publisher.known_revisions
        async with OpaEngine(opa.address, known_revisions=known, timeout_s=5, max_in_flight=16) as engine:
            yield engine


async def test_a_tenant_without_flags_goes_by_the_platforms(
    kit: Kit, database: Database, engine: OpaEngine, server: PolicyServer, source: Path
) -> None:
    tenant_id = UUID(kit.tenant_id)
    principal = Principal(kind="tenant", tenant_id=tenant_id, scopes=frozenset({"policy.write"}))
    flags, compiling = ReadFlagsCommand(database, engine), CompileGraphCommand(database, engine)

    async def found() -> list[str]:
        judged = await compiling.execute(principal, CompileGraph(GRAPH))
        return [finding.code for finding in judged.compiled.diagnostics]

    off, on = _requests(kit, "false"), _requests(kit, "true")
    assert await flags.execute(principal, tenant_id) == {A: False, B: True}
    assert await found() == ["surface_disabled"]
    assert _requests(kit, "false") == off + 1

    # Its own flags go before them.
    path = f"/tenants/{tenant_id}/flags"
    done(await kit.admin.put(path, {A.value: True, B.value: False}))
    assert await flags.execute(principal, tenant_id) == {A: True, B: False}
    assert await found() == []
    assert _requests(kit, "true") == on + 1

    # A platform's flag is switched as any rule is changed: without a restart.
    other = await Kit.make(kit.admin)
    write_flags(source, graphs="true")
    await server.publisher.refresh()
    await server.until_reported(server.publisher.active.revision)
    principal = Principal(kind="tenant", tenant_id=UUID(other.tenant_id), scopes=frozenset({"policy.write"}))
    assert await flags.execute(principal, UUID(other.tenant_id)) == {A: True, B: True}
    assert await found() == []


def _requests(kit: Kit, enabled: str) -> float:
    # Where many tests have shared the process, the tenant is one of those that share a label.
    count: float = metrics.SURFACE_REQUESTS.labels(metrics.tenant_label(kit.slug), A.value, enabled)._value.get()
    return count
