"""The chart: Helm lints and renders it, and what it renders is hardened, holds no secret, and fits together."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.embedded.opa import ENVIRONMENT
from tests.operations.deploy import wheel_programs
from tests.operations.deploy.go_programs import HELM, find_or_build
from tests.operations.deploy.settings_names import known_settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "remit"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"

# Helm takes minutes to build, once.
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("helm")]

Manifest = dict[str, Any]


async def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = await find_or_build(HELM)
    command = [str(program), *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)


async def render(*arguments: str) -> list[Manifest]:
    rendered = await helm("template", "remit", str(CHART), "--namespace", "agents", *arguments)
    assert rendered.returncode == 0, rendered.stderr
    return [manifest for manifest in yaml.safe_load_all(rendered.stdout) if manifest]


@pytest.fixture(scope="module")
async def manifests() -> list[Manifest]:
    """All that the chart can make."""
    return await render("--set", "monitoring.enabled=true", "--set", "tracing.endpoint=http://collector:4318")


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {
        name: manifest["spec"]["template"]["spec"]
        for kind in ("Deployment", "Job")
        for name, manifest in of_kind(manifests, kind).items()
    }


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for name, spec in pod_specs(manifests).items():
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield f"{name}/{container['name']}", container


async def test_helm_finds_nothing_to_say_of_it() -> None:
    linted = await helm("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout


async def validated(path: Path, manifests: list[Manifest]) -> subprocess.CompletedProcess[str]:
    await asyncio.to_thread(path.write_text, yaml.safe_dump_all(manifests))
    return await wheel_programs.run(wheel_programs.KUBERNETES_VALIDATE, "--strict", str(path))


async def test_what_is_rendered_is_what_kubernetes_knows(manifests: list[Manifest], tmp_path: Path) -> None:
    """By the schemas of Kubernetes itself, strictly; those of the Prometheus operator are not among them."""
    theirs = [manifest for manifest in manifests if manifest["apiVersion"] == OPERATOR]
    assert {manifest["kind"] for manifest in theirs} == {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    ours = [manifest for manifest in manifests if manifest not in theirs]
    checked = await validated(tmp_path / "manifests.yaml", ours)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (checked.stdout + checked.stderr).count(" passed ") == len(ours)


async def test_the_schemas_of_kubernetes_would_find_a_mistake(manifests: list[Manifest], tmp_path: Path) -> None:
    text = yaml.safe_dump(of_kind(manifests, "Deployment")["remit-api"])
    for was, mistake in (("readinessProbe:", "readynessProbe:"), ("replicas: 2", "replicas: two")):
        assert was in text
        checked = await validated(tmp_path / "broken.yaml", [yaml.safe_load(text.replace(was, mistake))])
        assert checked.returncode != 0, mistake


# What the operator's own schemas want and know, as far as it is used here.
OPERATOR = "monitoring.coreos.com/v1"
OPERATORS_FIELDS = {
    "ServiceMonitor": ({"selector", "endpoints"}, {"selector", "endpoints", "namespaceSelector", "jobLabel"}),
    "PodMonitor": (
        {"selector", "podMetricsEndpoints"},
        {"selector", "podMetricsEndpoints", "namespaceSelector", "jobLabel"},
    ),
    "PrometheusRule": ({"groups"}, {"groups"}),
}
RULE_FIELDS = {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}


def test_what_the_prometheus_operator_is_given_is_what_it_knows(manifests: list[Manifest]) -> None:
    for kind, (wanted, known) in OPERATORS_FIELDS.items():
        for name, manifest in of_kind(manifests, kind).items():
            assert manifest["apiVersion"] == OPERATOR, name
            assert wanted <= set(manifest["spec"]) <= known, name
            for endpoint in manifest["spec"].get("endpoints", manifest["spec"].get("podMetricsEndpoints", ())):
                assert {"port"} <= set(endpoint) <= {"port", "path", "interval", "scrapeTimeout", "scheme"}, name
    for group in of_kind(manifests, "PrometheusRule")["remit"]["spec"]["groups"]:
        assert {"name", "rules"} <= set(group) <= {"name", "interval", "rules"}
        for rule in group["rules"]:
            assert set(rule) <= RULE_FIELDS
            assert ("alert" in rule) != ("record" in rule)


def test_the_parts_are_there(manifests: list[Manifest]) -> None:
    assert set(of_kind(manifests, "Deployment")) == {"remit-api", "remit-reconciler", "remit-worker"}
    job = of_kind(manifests, "Job")["remit-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert of_kind(manifests, kind), kind


def test_no_process_is_root_nor_can_become_it_nor_write_to_its_image(manifests: list[Manifest]) -> None:
    for name, spec in pod_specs(manifests).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
    for name, container in containers(manifests):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name
        assert re.search(r":\d+\.\d+\.\d+$", container["image"]), name


def test_the_api_is_probed_where_it_says_that_it_lives_and_is_ready(manifests: list[Manifest]) -> None:
    spec = pod_specs(manifests)["remit-api"]
    (api,) = spec["containers"]
    ports = {port["name"] for port in api["ports"]}
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert api[probe]["httpGet"]["path"] == path
        assert api[probe]["httpGet"]["port"] in ports
    # Time to be taken out of the service, and then the ten seconds in which a process drains.
    assert spec["terminationGracePeriodSeconds"] >= 5 + 10


def test_secrets_are_named_and_never_told(manifests: list[Manifest]) -> None:
    assert of_kind(manifests, "Secret") == {}
    for name, container in containers(manifests):
        for variable in container.get("env", ()):
            secret = re.search(r"TOKEN$|DATABASE_URL$|PASSWORD", variable["name"])
            assert ("valueFrom" in variable) == bool(secret), f"{name}: {variable['name']}"
            if secret:
                assert variable["valueFrom"]["secretKeyRef"]["name"] == "remit"


def test_settings_are_ones_that_remit_reads(manifests: list[Manifest]) -> None:
    known = known_settings()
    for name, container in containers(manifests):
        named = {variable["name"] for variable in container.get("env", ())}
        if container["name"] == "opa":
            wanted = set(re.findall(r"\$\{(\w+)\}", (ROOT / "deploy/opa/config.yaml").read_text()))
            assert named == wanted | set(ENVIRONMENT)
            given = {variable["name"]: variable.get("value") for variable in container["env"]}
            assert ENVIRONMENT.items() <= given.items()
        else:
            assert {variable for variable in named if not variable.startswith("OTEL_")} <= known, name
    schema = json.loads((CHART / "values.schema.json").read_text())
    (pattern,) = schema["properties"]["settings"]["patternProperties"]
    (words,) = re.findall(r"\((.+)\)", pattern)
    assert {f"REMIT_{word}" for word in words.split("|")} <= known


def test_each_process_that_asks_policy_has_an_opa_that_only_it_reaches(manifests: list[Manifest]) -> None:
    service = of_kind(manifests, "Service")["remit"]
    urls = {"remit-api": "http://127.0.0.1:8080", "remit-worker": f"http://remit:{service['spec']['ports'][0]['port']}"}
    for name, url in urls.items():
        spec = pod_specs(manifests)[name]
        (opa,) = spec["initContainers"]
        assert opa["restartPolicy"] == "Always", "a sidecar, and no step before the start"
        assert "--addr=127.0.0.1:8181" in opa["command"]
        assert {"--authentication=token", "--authorization=basic"} <= set(opa["args"])
        environment = {variable["name"]: variable.get("value") for variable in opa["env"]}
        assert environment["REMIT_URL"] == url
        assert {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}[
            "REMIT_OPA_URL"
        ] == "http://127.0.0.1:8181"
        items = {
            item["key"]
            for volume in spec["volumes"]
            if volume["name"] == "opa-secrets"
            for item in volume["secret"]["items"]
        }
        assert items == {"bundle-public.pem", "bundle-token", "opa-credentials.json"}


def test_the_opa_verifies_and_permits_what_the_repository_says(manifests: list[Manifest]) -> None:
    data = of_kind(manifests, "ConfigMap")["remit-opa"]["data"]
    assert data["authz.rego"].strip() == (ROOT / "service/embedded/authz.rego").read_text().strip()
    configuration = yaml.safe_load(data["config.yaml"])
    assert configuration == yaml.safe_load((ROOT / "deploy/opa/config.yaml").read_text())
    assert configuration["keys"]["remit"] == {"algorithm": "ES256"}
    assert configuration["bundles"]["orchestration"]["signing"] == {"keyid": "remit", "scope": "write"}


def test_whatever_is_mounted_is_a_volume_and_whatever_is_a_volume_is_mounted(manifests: list[Manifest]) -> None:
    for name, spec in pod_specs(manifests).items():
        mounted = {
            mount["name"]
            for container in (*spec.get("initContainers", ()), *spec["containers"])
            for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in spec["volumes"]}, name
        paths = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/var/lib/remit"} <= paths, name


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def test_selectors_select_what_they_are_for(manifests: list[Manifest]) -> None:
    labels = {
        name: deployment["spec"]["template"]["metadata"]["labels"]
        for name, deployment in of_kind(manifests, "Deployment").items()
    }
    labels["remit-migrate"] = of_kind(manifests, "Job")["remit-migrate"]["spec"]["template"]["metadata"]["labels"]
    for name, deployment in of_kind(manifests, "Deployment").items():
        assert [other for other in labels if selects(deployment["spec"]["selector"], labels[other])] == [name]
    service = of_kind(manifests, "Service")["remit"]
    expected = {
        "Service/remit": ({"matchLabels": service["spec"]["selector"]}, {"remit-api"}),
        "budget": (of_kind(manifests, "PodDisruptionBudget")["remit-api"]["spec"]["selector"], {"remit-api"}),
        "scrape": (
            of_kind(manifests, "PodMonitor")["remit-loops"]["spec"]["selector"],
            {"remit-reconciler", "remit-worker"},
        ),
        "policy": (of_kind(manifests, "NetworkPolicy")["remit"]["spec"]["podSelector"], set(labels)),
        "policy-api": (of_kind(manifests, "NetworkPolicy")["remit-api"]["spec"]["podSelector"], {"remit-api"}),
        "policy-loops": (
            of_kind(manifests, "NetworkPolicy")["remit-loops"]["spec"]["podSelector"],
            {"remit-reconciler", "remit-worker"},
        ),
    }
    for what, (selector, wanted) in expected.items():
        assert {name for name in labels if selects(selector, labels[name])} == wanted, what
    monitored = of_kind(manifests, "ServiceMonitor")["remit-api"]["spec"]["selector"]
    assert selects(monitored, service["metadata"]["labels"])


def ports_of(rules: list[Manifest]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_the_network_lets_through_what_is_needed_and_no_more(manifests: list[Manifest]) -> None:
    policies = {name: policy["spec"] for name, policy in of_kind(manifests, "NetworkPolicy").items()}
    for name, policy in policies.items():
        assert policy["policyTypes"] == ["Ingress", "Egress"], name
    assert "ingress" not in policies["remit"]
    assert ports_of(policies["remit"]["egress"]) == {53, 5432}
    assert ports_of(policies["remit-api"]["ingress"]) == {8080}
    assert ports_of(policies["remit-api"]["egress"]) == {4318}
    assert ports_of(policies["remit-loops"]["ingress"]) == {9464}
    assert ports_of(policies["remit-loops"]["egress"]) == {8080, 4318}
    # What is let through is what listens.
    listening = {
        (name.split("/")[0], port["containerPort"])
        for name, container in containers(manifests)
        for port in container.get("ports", ())
    }
    assert listening == {("remit-api", 8080), ("remit-reconciler", 9464), ("remit-worker", 9464)}
    for rule in (*policies["remit-api"]["ingress"], *policies["remit-loops"]["ingress"]):
        assert rule["from"], "from everywhere"


async def test_callers_and_the_database_can_be_narrowed_down() -> None:
    values: dict[str, Any] = {
        "networkPolicy": {
            "callers": [{"namespaceSelector": {"matchLabels": {"team": "agents"}}}],
            "scrapers": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}],
            "database": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
        },
        "tracing": {"endpoint": "https://collector.example"},
    }
    manifests = await render("--set-json", f"networkPolicy={json.dumps(values['networkPolicy'])}",
                             "--set-json", f"tracing={json.dumps(values['tracing'])}")  # fmt: skip
    policies = {name: policy["spec"] for name, policy in of_kind(manifests, "NetworkPolicy").items()}
    assert policies["remit"]["egress"][1]["to"] == values["networkPolicy"]["database"]
    peers = policies["remit-api"]["ingress"][0]["from"]
    assert peers[:2] == [*values["networkPolicy"]["callers"], *values["networkPolicy"]["scrapers"]]
    assert "podSelector" in peers[2]
    assert len(peers) == 3
    assert policies["remit-loops"]["ingress"][0]["from"] == values["networkPolicy"]["scrapers"]
    assert ports_of(policies["remit-api"]["egress"]) == {443}
    assert ports_of(policies["remit-loops"]["egress"]) == {8080, 443}


def test_every_process_that_makes_spans_is_told_where_to_send_them(manifests: list[Manifest]) -> None:
    for name, spec in pod_specs(manifests).items():
        environment = {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}
        wanted = ("1", "http://collector:4318") if name != "remit-migrate" else (None, None)
        told = (environment.get("REMIT_TRACING"), environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
        assert told == wanted, name


def test_the_alerts_are_those_of_the_repository(manifests: list[Manifest]) -> None:
    assert of_kind(manifests, "PrometheusRule")["remit"]["spec"] == yaml.safe_load(RULES.read_text())


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"tag": "latest"}},
        {"image": {"digest": "sha256:abc"}},
        {"api": {"replicas": 0}},
        {"api": {"policyMaxAgeS": 5}},
        {"settings": {"REMIT_ADMIN_TOKEN": "told"}},
        {"settings": {"REMIT_SPAWN_LANE": 3}},
        {"networkpolicy": {"enabled": False}},
        {"secrets": {"shared": ""}},
    ],
    ids=json.dumps,
)
async def test_values_that_are_mistakes_are_refused(values: Manifest) -> None:
    (name,) = values
    refused = await helm("template", "remit", str(CHART), "--set-json", f"{name}={json.dumps(values[name])}")
    assert refused.returncode != 0
    assert "values don't meet the specifications of the schema" in refused.stderr


async def test_settings_are_passed_on_to_every_process() -> None:
    manifests = await render("--set", "settings.REMIT_SPAWN_LANES=5")
    for name, spec in pod_specs(manifests).items():
        environment = {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}
        assert environment.get("REMIT_SPAWN_LANES") == (None if name == "remit-migrate" else "5")
