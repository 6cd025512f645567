"""Labels are bounded: of tenants, and of the OPAs that report."""

from time import monotonic

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from kernel import metrics
from service import opa_metrics
from service.opa_metrics import MAX_OPAS, SILENT_AFTER_S, OpaCollector
from service.policy_delivery import OpaStatuses, StatusUpdate

NOW = "2026-05-01T12:00:00Z"


def report(instance: str, revision: str, *, succeeded: str = NOW) -> StatusUpdate:
    """What an OPA posts after it asked for its bundle."""
    times = {"last_request": NOW, "last_successful_request": succeeded, "last_successful_activation": succeeded}
    return StatusUpdate.model_validate(
        {"labels": {"id": instance}, "bundles": {"orchestration": {"active_revision": revision, **times}}}
    )


def scrape(statuses: OpaStatuses) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(OpaCollector(statuses))
    return registry


def test_the_first_200_tenants_have_a_label_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_tenant_labels", set())
    labels = [metrics.tenant_label(f"tenant-{number}") for number in range(250)]
    assert labels[:200] == [f"tenant-{number}" for number in range(200)]
    assert set(labels[200:]) == {metrics.OTHER_TENANTS}
    assert metrics.tenant_label("tenant-7") == "tenant-7"


def test_five_thousand_tenants_make_no_more_series_than_two_hundred_and_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_tenant_labels", set())
    registry = CollectorRegistry()
    spawned = Counter("spawned", "Runs spawned.", ["tenant"], registry=registry)
    for number in range(5_000):
        spawned.labels(metrics.tenant_label(f"tenant-{number}")).inc()
    assert generate_latest(registry).decode().count("spawned_total{") == metrics.MAX_TENANT_LABELS + 1
    assert registry.get_sample_value("spawned_total", {"tenant": metrics.OTHER_TENANTS}) == 4_800


def test_each_opa_shows_its_revision_and_how_long_ago_it_heard() -> None:
    statuses = OpaStatuses()
    statuses.report(report("one", "new"))
    statuses.report(report("two", "old", succeeded="2026-05-01T11:50:00Z"))
    statuses.report(report("three", "", succeeded="0001-01-01T00:00:00Z"))
    registry = scrape(statuses)
    assert registry.get_sample_value("remit_opa_bundle_info", {"opa": "one", "revision": "new"}) == 1
    assert registry.get_sample_value("remit_opa_bundle_info", {"opa": "two", "revision": "old"}) == 1
    assert registry.get_sample_value("remit_opa_bundle_age_seconds", {"opa": "one"}) == pytest.approx(0, abs=5)
    assert registry.get_sample_value("remit_opa_bundle_age_seconds", {"opa": "two"}) == pytest.approx(600, abs=5)
    assert registry.get_sample_value("remit_opa_bundle_age_seconds", {"opa": "three"}) is None


def test_an_opa_that_has_fallen_silent_has_no_revision_any_more_and_an_age_that_rises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses = OpaStatuses()
    statuses.report(report("gone", "old"))
    later = monotonic() + SILENT_AFTER_S + 1
    monkeypatch.setattr(opa_metrics, "monotonic", lambda: later)
    registry = scrape(statuses)
    assert registry.get_sample_value("remit_opa_bundle_info", {"opa": "gone", "revision": "old"}) is None
    assert registry.get_sample_value("remit_opa_bundle_age_seconds", {"opa": "gone"}) == pytest.approx(301, abs=5)


def test_so_many_opas_are_shown_and_no_more() -> None:
    statuses = OpaStatuses()
    for number in range(MAX_OPAS + 20):
        statuses.report(report(f"opa-{number}", "new"))
    shown = generate_latest(scrape(statuses)).decode()
    assert shown.count("remit_opa_bundle_info{") == MAX_OPAS
