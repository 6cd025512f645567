"""`OpaEngine` on a real OPA: what any engine must do, and what happens when the OPA dies or freezes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernel.domain.errors import PolicyUnavailableError
from kernel.policy.bundle import SigningKey
from kernel.policy.opa import OpaEngine, from_url
from tests.policy.engine.conformance import PolicyEngineConformance
from tests.policy.engine.opa_process import OpaProcess, running_opa
from tests.policy.engine.policy_server import PolicyServer
from tests.policy.engine.questions import spawn


class TestOpaEngine(PolicyEngineConformance):
    @pytest.fixture
    async def engine(self, opa: OpaProcess, served_policies: PolicyServer) -> AsyncIterator[OpaEngine]:
        known = served_policies.publisher.known_revisions
        async with OpaEngine(opa.address, known_revisions=known, timeout_s=5, max_in_flight=16) as engine:
            yield engine

    @pytest.fixture
    def revision(self, served_policies: PolicyServer) -> str:
        return served_policies.publisher.active.revision


@pytest.fixture
async def own_opa(
    opa_binary: Path, served_policies: PolicyServer, signing_key: SigningKey, tmp_path: Path
) -> AsyncIterator[OpaProcess]:
    """An OPA for a test to mistreat."""
    async with running_opa(opa_binary, served_policies.opa_config(signing_key), tmp_path) as process:
        yield process


async def test_a_frozen_opa_is_refused_in_time_and_used_again_when_it_thaws(own_opa: OpaProcess) -> None:
    causes: list[str] = []
    async with OpaEngine(own_opa.address, timeout_s=1, on_failure=causes.append) as engine:
        assert (await engine.decide(spawn())).decision.allow
        own_opa.signal(signal.SIGSTOP)
        try:
            # Together, in about a second; one after the other, or one batch of turns after the other, it would be many.
            async with asyncio.timeout(15):
                answers = await asyncio.gather(*(engine.decide(spawn()) for _ in range(100)), return_exceptions=True)
            assert all(isinstance(answer, PolicyUnavailableError) for answer in answers)
            assert len(causes) == 100
            assert set(causes) <= {"timeout", "saturated"}
        finally:
            own_opa.signal(signal.SIGCONT)
        await own_opa.until_ready()
        assert (await engine.decide(spawn())).decision.allow


async def test_a_killed_opa_is_refused_at_once_and_used_again_when_it_is_back(own_opa: OpaProcess) -> None:
    causes: list[str] = []
    async with OpaEngine(own_opa.address, timeout_s=1, on_failure=causes.append) as engine:
        assert (await engine.decide(spawn())).decision.allow
        assert await engine.is_ready()
        await own_opa.kill()
        with pytest.raises(PolicyUnavailableError, match=str(own_opa.address.port)):
            await engine.decide(spawn())
        # At once: not one whose time ran out.
        assert causes == ["unreachable"]
        assert not await engine.is_ready()
        await own_opa.start()
        await own_opa.until_ready()
        assert (await engine.decide(spawn())).decision.allow


async def test_a_revision_that_is_not_known_is_refused(opa: OpaProcess) -> None:
    async with OpaEngine(opa.address, known_revisions=lambda: {"another"}) as engine:
        with pytest.raises(PolicyUnavailableError, match="unknown here"):
            await engine.decide(spawn())


async def test_a_bundle_under_another_name_is_refused(opa: OpaProcess) -> None:
    async with OpaEngine(opa.address, bundle="another") as engine:
        with pytest.raises(PolicyUnavailableError, match="names no revision of bundle 'another'"):
            await engine.decide(spawn())


@pytest.mark.parametrize(("age_s", "message"), [(None, "not yet reported"), (11.0, "11 s ago")])
async def test_a_stale_bundle_is_refused_without_asking(opa: OpaProcess, age_s: float | None, message: str) -> None:
    async with OpaEngine(opa.address, bundle_age_s=lambda: age_s, max_bundle_age_s=10) as engine:
        with pytest.raises(PolicyUnavailableError, match=message):
            await engine.decide(spawn())


async def test_a_fresh_bundle_is_asked(opa: OpaProcess, served_policies: PolicyServer) -> None:
    await served_policies.until_reported(served_policies.publisher.active.revision)
    age_s = served_policies.statuses.bundle_age_s
    async with OpaEngine(opa.address, bundle_age_s=age_s, max_bundle_age_s=300) as engine:
        assert (await engine.decide(spawn())).decision.allow


async def test_an_engine_that_is_closed_refuses(opa: OpaProcess) -> None:
    engine = OpaEngine(opa.address)
    await engine.start()
    await engine.close()
    with pytest.raises(PolicyUnavailableError, match="closed"):
        await engine.decide(spawn())
    assert not await engine.is_ready()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8181", "http://127.0.0.1:8181"),
        ("https://opa.example.com/", "https://opa.example.com:443"),
        ("http://opa", "http://opa:80"),
        ("http://[::1]:8181", "http://[::1]:8181"),
    ],
)
def test_a_url_names_an_address(url: str, address: str) -> None:
    assert str(from_url(url)) == address


@pytest.mark.parametrize(
    "url", ["", "opa:8181", "unix:///run/opa.sock", "http://", "http://user:pw@opa", "http://opa/v1", "http://opa:x"]
)
def test_a_url_that_would_be_misread_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        from_url(url)
