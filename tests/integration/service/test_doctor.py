"""`remit doctor` finds what is wrong with a set-up, and nothing where all is well."""

import shutil
from pathlib import Path

import policies
from service.doctor import Finding, _findings
from service.settings import Settings
from tests.conftest import Servers

NOBODY = "http://127.0.0.1:1"


async def findings(tmp_path: Path, **settings: object) -> dict[str, Finding]:
    examined = Settings.model_validate({"data_dir": tmp_path, **settings})
    return {finding[1]: finding async for finding in _findings(examined)}


async def test_it_finds_nothing_wrong_with_a_deployment_that_is_well(
    servers: Servers, database_url: str, tmp_path: Path
) -> None:
    found = await findings(tmp_path, database_url=database_url, opa_url=servers.opa_url, opa_token=servers.opa_token)
    assert [finding for finding in found.values() if not finding[0]] == []
    assert set(found) == {"data", "bundle", "opa", "database", "clock", "migrations", "service"}


async def test_it_tells_a_token_that_opa_does_not_take_from_a_bundle_that_is_not_active(
    servers: Servers, tmp_path: Path
) -> None:
    for token, says in ((None, "wants a token: set REMIT_OPA_TOKEN"), ("another", "does not accept REMIT_OPA_TOKEN")):
        well, _, told = (await findings(tmp_path, opa_url=servers.opa_url, opa_token=token))["opa"]
        assert not well
        assert told == f"{servers.opa_url} {says}"


async def test_it_says_where_nobody_answers(tmp_path: Path) -> None:
    found = await findings(tmp_path, opa_url=NOBODY, database_url="postgresql://nobody@127.0.0.1:1/none")
    assert found["opa"][2].startswith(f"REMIT_OPA_URL {NOBODY} does not answer")
    assert not found["opa"][0]
    assert not found["database"][0]


async def test_it_says_that_opa_decides_by_another_revision(servers: Servers, tmp_path: Path) -> None:
    own = tmp_path / "policies"
    shutil.copytree(Path(policies.__file__).parent, own, ignore=shutil.ignore_patterns("*.py*"))
    with (own / "orchestration" / "main" / "main.rego").open("a") as source:
        source.write("\n# another revision\n")
    found = await findings(tmp_path, opa_url=servers.opa_url, opa_token=servers.opa_token, policy_dir=own)
    well, _, told = found["opa"]
    assert not well
    assert told.endswith(f"decides by revision {servers.revision}, which is not that of the sources here")
