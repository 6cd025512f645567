import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import policies
from kernel.policy.bundle import CAPABILITIES, SigningKey
from service.embedded.opa import find_or_build_opa
from service.policy_delivery import BundlePublisher
from tests.policy.engine.opa_process import OpaProcess, running_opa
from tests.policy.engine.policy_server import PolicyServer, policy_server

POLICIES = Path(policies.__file__).parent


@pytest.fixture(scope="session")
async def opa_binary() -> Path:
    chosen = os.environ.get("REMIT_OPA_BINARY")
    return await find_or_build_opa(Path(chosen) if chosen else None)


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("keys") / "bundle.pem")


@pytest.fixture
def small_source(tmp_path: Path) -> Path:
    """A policy of three lines, for tests about the way of a bundle rather than about rules."""
    source = tmp_path / "policies"
    (source / "orchestration/main").mkdir(parents=True)
    shutil.copy(POLICIES / CAPABILITIES, source)
    (source / ".manifest").write_text('{"roots": ["orchestration"], "rego_version": 1}')
    write_rule(source, "first")
    return source


def write_rule(source: Path, code: str) -> None:
    """Let the small policy deny with this code."""
    (source / "orchestration/main/main.rego").write_text(
        f"""package orchestration.main

decision := {{"allow": false, "reasons": [{{"code": "{code}", "message": "no"}}]}}

decisions := [answer | some question in input.requests; answer := decision with input as question]
"""
    )


@pytest.fixture(scope="session")
async def served_policies(opa_binary: Path, signing_key: SigningKey) -> AsyncIterator[PolicyServer]:
    """The repository's policies, served."""
    publisher = BundlePublisher(opa_binary, POLICIES, signing_key)
    await publisher.start()
    async with policy_server(publisher) as server:
        yield server
    await publisher.stop()


@pytest.fixture(scope="session")
async def opa(
    opa_binary: Path, served_policies: PolicyServer, signing_key: SigningKey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OpaProcess]:
    """An OPA that pulled the repository's policies."""
    config = served_policies.opa_config(signing_key)
    async with running_opa(opa_binary, config, tmp_path_factory.mktemp("opa")) as process:
        yield process
