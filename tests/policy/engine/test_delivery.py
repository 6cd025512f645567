"""The way of a bundle: built, watched, served, pulled and verified by a real OPA, and reported back."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

import aiohttp
import pytest
from prometheus_client import REGISTRY

from kernel.domain.errors import PolicyUnavailableError
from kernel.policy.bundle import SCOPE, BundleError, SigningKey
from kernel.policy.opa import OpaEngine, from_url
from service.embedded.opa import BundleService, EmbeddedOpa
from service.policy_delivery import BundlePublisher, OpaStatuses, StatusUpdate
from service.routers.bundles import BUNDLE_MEDIA_TYPE
from tests.policy.engine.conftest import write_rule
from tests.policy.engine.opa_process import OpaProcess, running_opa
from tests.policy.engine.policy_server import BUNDLE_TOKEN, PolicyServer, policy_server
from tests.policy.engine.questions import spawn

BUNDLE = "/policies/bundles/orchestration.tar.gz"
AUTHORIZED = {"Authorization": f"Bearer {BUNDLE_TOKEN}"}
NEVER = "0001-01-01T00:00:00Z"


@pytest.fixture
async def publisher(opa_binary: Path, small_source: Path, signing_key: SigningKey) -> AsyncIterator[BundlePublisher]:
    publisher = BundlePublisher(opa_binary, small_source, signing_key)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def server(publisher: BundlePublisher) -> AsyncIterator[PolicyServer]:
    async with policy_server(publisher) as server:
        yield server


@pytest.fixture
async def client(server: PolicyServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, headers=AUTHORIZED) as client:
        yield client


async def until_superseded(publisher: BundlePublisher) -> None:
    async with asyncio.timeout(20):
        await publisher.superseded(publisher.active.etag)


def problem_of(publisher: BundlePublisher) -> str:
    return publisher.problem or ""


async def test_sources_that_do_not_compile_stop_the_start(
    opa_binary: Path, small_source: Path, signing_key: SigningKey
) -> None:
    (small_source / "orchestration/main/main.rego").write_text("package orchestration.main\n\ndecision := {")
    with pytest.raises(BundleError, match="rego_parse_error"):
        await BundlePublisher(opa_binary, small_source, signing_key).start()


async def test_an_edit_is_published_and_the_revision_before_still_counts(
    publisher: BundlePublisher, small_source: Path
) -> None:
    first = publisher.active.revision
    assert publisher.known_revisions() == {first}
    write_rule(small_source, "second")
    await until_superseded(publisher)
    second = publisher.active.revision
    assert publisher.known_revisions() == {first, second}
    assert REGISTRY.get_sample_value("remit_policy_bundle_info", {"revision": second}) == 1
    assert REGISTRY.get_sample_value("remit_policy_bundle_info", {"revision": first}) is None


async def test_a_revision_is_unknown_when_its_grace_has_ended(
    opa_binary: Path, small_source: Path, signing_key: SigningKey
) -> None:
    publisher = BundlePublisher(opa_binary, small_source, signing_key, grace_s=0)
    await publisher.start()
    write_rule(small_source, "second")
    await until_superseded(publisher)
    assert publisher.known_revisions() == {publisher.active.revision}
    await publisher.stop()


async def test_an_edit_that_does_not_compile_is_refused_until_it_is_mended(
    publisher: BundlePublisher, small_source: Path
) -> None:
    first = publisher.active
    (small_source / "orchestration/main/main.rego").write_text("package orchestration.main\n\ndecision := {")
    await publisher.refresh()
    assert "rego_parse_error" in problem_of(publisher)
    assert publisher.active is first
    assert REGISTRY.get_sample_value("remit_policy_bundle_refused") == 1
    write_rule(small_source, "mended")
    await until_superseded(publisher)
    assert not problem_of(publisher)
    assert REGISTRY.get_sample_value("remit_policy_bundle_refused") == 0


async def test_an_edit_that_fails_its_tests_is_refused_until_the_test_is_mended(
    publisher: BundlePublisher, small_source: Path
) -> None:
    first = publisher.active
    tests = small_source / "orchestration/main/main_test.rego"
    tests.write_text(
        'package orchestration.main_test\n\ntest_code if data.orchestration.main.decision.reasons[0].code == "first"\n'
    )
    write_rule(small_source, "second")
    await publisher.refresh()
    assert "test_code: FAIL" in problem_of(publisher)
    assert publisher.active is first
    tests.write_text(tests.read_text().replace("first", "second"))
    await until_superseded(publisher)
    assert not problem_of(publisher)


async def test_an_edit_that_is_taken_back_ends_the_problem(publisher: BundlePublisher, small_source: Path) -> None:
    first = publisher.active
    rule = small_source / "orchestration/main/main.rego"
    before = rule.read_text()
    rule.write_text("package")
    await publisher.refresh()
    assert problem_of(publisher)
    rule.write_text(before)
    await publisher.refresh()
    assert not problem_of(publisher)
    assert publisher.active.revision == first.revision


async def test_a_bundle_is_served_once_and_then_not_modified(
    client: aiohttp.ClientSession, publisher: BundlePublisher
) -> None:
    async with client.get(BUNDLE) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == BUNDLE_MEDIA_TYPE
        etag = response.headers["ETag"]
        assert await response.read() == publisher.active.data
    for held in (etag, f'"older", {etag}', f"W/{etag}"):
        async with client.get(BUNDLE, headers={"If-None-Match": held}) as response:
            assert (response.status, response.headers["ETag"]) == (304, etag)


async def test_a_long_poll_waits_as_long_as_preferred(
    client: aiohttp.ClientSession, publisher: BundlePublisher
) -> None:
    started = perf_counter()
    headers = {"If-None-Match": publisher.active.etag, "Prefer": "modes=snapshot,delta;wait=1"}
    async with client.get(BUNDLE, headers=headers) as response:
        assert response.status == 304
    assert 1 <= perf_counter() - started < 10


async def test_a_long_poll_gets_the_new_bundle_at_once(
    client: aiohttp.ClientSession, publisher: BundlePublisher, small_source: Path
) -> None:
    headers = {"If-None-Match": publisher.active.etag, "Prefer": "wait=30"}
    poll = asyncio.create_task(client.get(BUNDLE, headers=headers).__aenter__())
    write_rule(small_source, "second")
    async with asyncio.timeout(10):
        response = await poll
        assert response.status == 200
        assert response.headers["ETag"] == publisher.active.etag
        assert await response.read() == publisher.active.data


async def test_long_polls_end_at_once_on_shutdown(
    client: aiohttp.ClientSession, server: PolicyServer, publisher: BundlePublisher
) -> None:
    headers = {"If-None-Match": publisher.active.etag, "Prefer": "wait=60"}
    polls = [asyncio.create_task(client.get(BUNDLE, headers=headers).__aenter__()) for _ in range(5)]
    async with asyncio.timeout(10), server.traffic:
        await server.traffic.wait_for(lambda: len(server.polls) == 5)
    started = perf_counter()
    server.stopping.set()
    for response in await asyncio.gather(*polls):
        assert response.status == 304
        assert response.headers["Connection"] == "close"
    assert perf_counter() - started < 10


@pytest.mark.parametrize("token", [None, "", "another", BUNDLE_TOKEN + "x", "é"])
async def test_only_the_bundle_token_opens_the_routes(server: PolicyServer, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as client:
        async with client.get(BUNDLE) as response:
            assert response.status == 401
        async with client.post("/policies/status/", json={}) as response:
            assert response.status == 401
    assert server.statuses.all() == []


async def test_an_opa_pulls_verifies_follows_and_reports(
    opa_binary: Path,
    server: PolicyServer,
    signing_key: SigningKey,
    small_source: Path,
    tmp_path: Path,
) -> None:
    publisher = server.publisher
    async with (
        running_opa(opa_binary, server.opa_config(signing_key), tmp_path) as opa,
        OpaEngine(opa.address, known_revisions=publisher.known_revisions) as engine,
    ):
        first = await engine.decide(spawn())
        assert first.decision.reasons[0].code == "first"
        write_rule(small_source, "second")
        await until_superseded(publisher)
        await server.until_reported(publisher.active.revision)
        second = await engine.decide(spawn())
        assert second.decision.reasons[0].code == "second"
        assert first.revision != second.revision == publisher.active.revision
        assert all("wait=10" in poll for poll in server.polls)
        age_s = server.statuses.bundle_age_s()
        assert age_s is not None
        assert age_s < 10
        assert [status.bundle.active_revision for status in server.statuses.all()] == [publisher.active.revision]


async def test_an_opa_refuses_a_bundle_that_another_key_signed(
    opa_binary: Path, server: PolicyServer, signing_key: SigningKey, tmp_path: Path
) -> None:
    config = server.opa_config(signing_key)
    stranger = SigningKey.load_or_create(tmp_path / "stranger.pem")
    config["keys"] = {signing_key.keyid: {"algorithm": "ES256", "key": stranger.public_pem, "scope": "write"}}
    opa = OpaProcess(opa_binary, config, tmp_path)
    await opa.start()
    try:
        async with asyncio.timeout(20), server.traffic:
            await server.traffic.wait_for(lambda: any(status.bundle.code for status in server.statuses.all()))
        assert server.statuses.all()[0].bundle.active_revision == ""
        assert server.statuses.bundle_age_s() is None or server.statuses.all()[0].bundle.code == "bundle_error"
        async with OpaEngine(opa.address) as engine:
            assert not await engine.is_ready()
    finally:
        await opa.kill()


def report(instance: str, *, last: str, success: str, revision: str = "r1", code: str = "") -> StatusUpdate:
    return StatusUpdate.model_validate_json(
        json.dumps(
            {
                "labels": {"id": instance, "version": "1.22.2"},
                "bundles": {
                    "orchestration": {
                        "name": "orchestration",
                        "active_revision": revision,
                        "last_request": last,
                        "last_successful_request": success,
                        "last_successful_activation": success,
                        "code": code,
                        "metrics": {"timer_rego_load_bundles_ns": 1},
                    }
                },
                "plugins": {"bundle": {"state": "OK"}},
            }
        )
    )


def test_the_age_is_that_of_the_last_success_by_the_opas_own_clock() -> None:
    statuses = OpaStatuses()
    assert statuses.bundle_age_s() is None
    statuses.report(
        report("a", last="2001-01-01T00:00:40.123456789Z", success="2001-01-01T00:00:00Z", code="bundle_error")
    )
    age_s = statuses.bundle_age_s()
    assert age_s is not None
    assert 40 <= age_s < 45


def test_a_report_without_a_new_success_does_not_freshen() -> None:
    statuses = OpaStatuses()
    statuses.report(report("a", last="2001-01-01T00:01:00Z", success="2001-01-01T00:00:00Z"))
    statuses.report(report("a", last="2001-01-01T00:00:00Z", success="2001-01-01T00:00:00Z"))
    age_s = statuses.bundle_age_s()
    assert age_s is not None
    assert age_s >= 60
    statuses.report(report("a", last="2001-01-01T00:02:00Z", success="2001-01-01T00:02:00Z"))
    age_s = statuses.bundle_age_s()
    assert age_s is not None
    assert age_s < 5


def test_an_opa_that_never_succeeded_has_no_age_and_the_freshest_counts() -> None:
    statuses = OpaStatuses()
    statuses.report(report("a", last="2001-01-01T00:00:00Z", success=NEVER, code="bundle_error"))
    assert statuses.bundle_age_s() is None
    statuses.report(report("b", last="2001-01-01T00:01:00Z", success="2001-01-01T00:00:00Z"))
    statuses.report(report("c", last="2001-01-01T00:01:00Z", success="2001-01-01T00:01:00Z"))
    age_s = statuses.bundle_age_s()
    assert age_s is not None
    assert age_s < 5
    assert [status.instance for status in statuses.all()] == ["c", "b", "a"]


def test_an_opa_that_falls_silent_is_forgotten() -> None:
    statuses = OpaStatuses(forget_after_s=0)
    statuses.report(report("a", last="2001-01-01T00:00:00Z", success="2001-01-01T00:00:00Z"))
    assert statuses.all() == []


def test_a_report_about_another_bundle_is_not_kept() -> None:
    statuses = OpaStatuses(bundle="another")
    statuses.report(report("a", last="2001-01-01T00:00:00Z", success="2001-01-01T00:00:00Z"))
    assert statuses.all() == []


async def test_the_embedded_opa_pulls_and_answers_to_its_token_only(
    opa_binary: Path, server: PolicyServer, signing_key: SigningKey, tmp_path: Path
) -> None:
    service = BundleService(
        url=f"{server.url}/policies",
        token=BUNDLE_TOKEN,
        public_key_pem=signing_key.public_pem,
        key_id=signing_key.keyid,
        scope=SCOPE,
    )
    opa = EmbeddedOpa(opa_binary, tmp_path / "data", bundle_service=service)
    await opa.start()
    try:
        await server.until_reported(server.publisher.active.revision)
        known = server.publisher.known_revisions
        async with OpaEngine(from_url(opa.url), token=opa.token, known_revisions=known) as engine:
            assert await engine.is_ready()
            assert (await engine.decide(spawn())).revision == server.publisher.active.revision
            assert len(await engine.decide_all([spawn(), spawn()])) == 2
        async with OpaEngine(from_url(opa.url), token="another") as engine:
            with pytest.raises(PolicyUnavailableError, match="status 40"):
                await engine.decide(spawn())
            assert not await engine.is_ready()
    finally:
        await opa.stop()
