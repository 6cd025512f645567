"""The compose file: the Compose Specification's own loader takes it, and it fits what Remit reads and needs."""

import asyncio
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kernel.policy.bundle import SigningKey
from service.embedded.opa import ENVIRONMENT
from service.embedded.postgres_software import installed_software
from service.tokens import KeyRing
from tests.operations.deploy.go_programs import COMPOSE, find_or_build
from tests.operations.deploy.settings_names import known_settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
APIS = ("api-1", "api-2")
OPAS = {"opa-1": "api-1", "opa-2": "api-2", "opa-worker": "worker"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what compose reads, with secrets made."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DEPLOY, root / "deploy", ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(ROOT / "service" / "embedded", root / "service" / "embedded")
    subprocess.run([root / "deploy" / "make-secrets"], check=True, capture_output=True)
    return root


async def load(path: Path) -> subprocess.CompletedProcess[str]:
    program = await find_or_build(COMPOSE)
    return await asyncio.to_thread(
        subprocess.run, [program, path], cwd=path.parent, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def services(checkout: Path) -> dict[str, Any]:
    """The services, with anchors and merges resolved."""
    found: dict[str, Any] = yaml.safe_load((checkout / "deploy" / "compose.yaml").read_text())["services"]
    return found


async def test_the_specifications_loader_takes_it(checkout: Path, services: dict[str, Any]) -> None:
    loaded = await load(checkout / "deploy" / "compose.yaml")
    assert loaded.returncode == 0, loaded.stderr
    assert set(yaml.safe_load(loaded.stdout)["services"]) == set(services)


async def test_the_loader_would_find_a_mistake(checkout: Path) -> None:
    broken = checkout / "deploy" / "broken.yaml"
    text = (checkout / "deploy" / "compose.yaml").read_text()
    for was, mistake in (
        ("healthcheck:", "health_check:"),
        ("service_started", "service_begun"),
        ("cap_drop: [ALL]", "cap_drop: ALL"),
    ):
        broken.write_text(text.replace(was, mistake, 1))
        assert (await load(broken)).returncode != 0, mistake


def test_the_parts_are_there(services: dict[str, Any]) -> None:
    commands = {name: service.get("command") for name, service in services.items()}
    assert all(commands[name][0] == "serve" for name in APIS)
    assert commands["migrate"] == ["migrate"]
    assert commands["reconciler"] == ["reconcile"]
    assert commands["worker"] == ["work"]
    assert {"postgres", "prometheus", "grafana"} <= set(services)


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), name
    assert services["postgres"]["image"].startswith(f"postgres:{installed_software().release}-")
    assert [name for name, service in services.items() if "build" in service] == ["migrate"]


def test_settings_are_ones_that_remit_reads(services: dict[str, Any], checkout: Path) -> None:
    known = known_settings()
    for name, service in services.items():
        if not service["image"].startswith("remit:") or name in OPAS:
            continue
        assert set(service.get("environment", {})) <= known, name
        assert service["env_file"] == ["secrets/remit.env"]
    lines = (checkout / "deploy" / "secrets" / "remit.env").read_text().splitlines()
    assert {line.split("=", 1)[0] for line in lines} <= known


def test_an_opa_is_given_what_its_configuration_names_and_nothing_more(services: dict[str, Any]) -> None:
    named = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "opa" / "config.yaml").read_text()))
    for name, owner in OPAS.items():
        opa = services[name]
        assert set(opa["environment"]) == named | set(ENVIRONMENT)
        assert ENVIRONMENT.items() <= opa["environment"].items()
        assert opa["network_mode"] == f"service:{owner}"
        assert services[owner]["environment"]["REMIT_OPA_URL"] == "http://127.0.0.1:8181"
        assert opa["entrypoint"][-1] == "127.0.0.1:8181"
        assert "ports" not in opa
        mounted = {volume.split(":")[1] for volume in opa["volumes"]}
        for word in opa["command"]:
            path = word.rpartition("=")[2]
            assert not path.startswith("/") or path in mounted, (name, word)


def test_whoever_waits_waits_for_what_reports_and_what_serves_is_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, (name, other)
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], (name, other)
            if how["condition"] == "service_completed_successfully":
                assert services[other]["restart"] == "no", (name, other)
    for name in (*APIS, "postgres", "prometheus", "grafana"):
        assert services[name]["healthcheck"]["test"][0] == "CMD", name
    assert "/readyz" in services["api-1"]["healthcheck"]["test"][-1]


def test_only_loopback_is_listened_on_and_no_port_twice(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    hosts, outside, _ = zip(*(port.split(":") for port in ports), strict=True)
    assert set(hosts) == {"127.0.0.1"}
    assert len(set(outside)) == len(outside)


def test_whatever_is_mounted_from_here_exists_and_cannot_be_written(services: dict[str, Any], checkout: Path) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source, *rest = volume.split(":")
            if source.startswith("."):
                assert (checkout / "deploy" / source).exists(), (name, source)
                assert rest[-1] == "ro", (name, source)


def test_our_processes_cannot_change_their_image_nor_gain_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if service["image"].startswith("remit:"):
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name


def test_prometheus_scrapes_each_process_where_it_serves_metrics(services: dict[str, Any]) -> None:
    scrapes = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for scrape in scrapes for static in scrape["static_configs"] for target in static["targets"]}
    expected = {f"{name}:8080" for name in APIS}
    for name in ("reconciler", "worker"):
        environment = services[name]["environment"]
        assert environment["REMIT_METRICS_HOST"] == "0.0.0.0"
        expected.add(f"{name}:{environment['REMIT_METRICS_PORT']}")
    assert targets == expected


async def test_secrets_are_made_once_and_are_what_remit_takes(checkout: Path, tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    script = checkout / "deploy" / "make-secrets"

    def make() -> dict[str, bytes]:
        subprocess.run([script, directory], check=True, capture_output=True)
        return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    made = await asyncio.to_thread(make)
    assert await asyncio.to_thread(make) == made
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert SigningKey.load(directory / "bundle-signing.pem").public_pem.encode() == made["bundle-public.pem"]
    ring = KeyRing.mounted(directory / "tokens")
    assert ring.verifying_key(ring.signing_kid) is not None
    tokens = [made[name] for name in ("admin-token", "bundle-token", "opa-token", "postgres-password")]
    assert len(set(tokens)) == len(tokens)
    assert all(re.fullmatch(rb"[0-9a-f]{64}", token) for token in tokens)
