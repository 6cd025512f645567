"""`remit doctor`: what is wrong with the set-up, and how to mend it."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.resources import as_file, files

import httpx2
import typer
from pydantic import BaseModel
from rich.console import Console

from kernel.domain.errors import DatabaseUnavailableError
from kernel.policy.bundle import BundleError, revision_of
from kernel.store import migrate
from kernel.store.engine import Database
from service.embedded.errors import EmbeddedError
from service.embedded.opa import OPA_VERSION, find_or_build_opa
from service.embedded.postgres_software import installed_software
from service.settings import Settings

# Tokens are good for their seconds on every machine only while the clocks agree.
MAX_CLOCK_DIFFERENCE_S = 2.0
TIMEOUT_S = 5.0
# Its name in the configuration of every OPA that we set up.
BUNDLE = "orchestration"

Finding = tuple[bool, str, str]


class _Labels(BaseModel):
    version: str = ""


class _ActiveBundle(BaseModel):
    active_revision: str = ""


class _OpaStatus(BaseModel):
    """Of what OPA says about itself, what is looked at here."""

    labels: _Labels = _Labels()
    bundles: dict[str, _ActiveBundle] = {}


async def examine(settings: Settings, console: Console) -> None:
    """Print a line for each part; ends with status 1 when one of them is not well."""
    healthy = True
    async for well, part, says in _findings(settings):
        healthy = healthy and well
        console.print(f"[{'green' if well else 'red'}]{'ok   ' if well else 'wrong'}[/] {part:<12} {says}")
    if not healthy:
        raise typer.Exit(1)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    is_new = not (settings.data_dir / "service.json").exists()
    told = ", and holds nothing of a service yet" if is_new else ""
    yield True, "data", f"{settings.data_dir.absolute()} can be written{told}"
    revision, bundle = _bundle(settings)
    yield bundle
    if settings.opa_url is not None:
        yield await _opa(settings, settings.opa_url, revision)
    else:
        yield await _embedded_opa(settings)
    if settings.database_url is not None:
        async for finding in _database(settings.database_url):
            yield finding
    else:
        yield _embedded_database()
    yield await _service(settings)


def _bundle(settings: Settings) -> tuple[str | None, Finding]:
    """The revision that the sources make, if they do."""
    with as_file(files("policies")) as packaged:
        source = settings.policy_dir or packaged
        try:
            revision = revision_of(source)
        except BundleError as error:
            return None, (False, "bundle", str(error))
    return revision, (True, "bundle", f"{source}: revision {revision}")


async def _opa(settings: Settings, url: str, revision: str | None) -> Finding:
    headers = {"Authorization": f"Bearer {settings.opa_token.get_secret_value()}"} if settings.opa_token else {}
    try:
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = await client.get("/v1/status")
    except httpx2.HTTPError as error:
        return False, "opa", f"REMIT_OPA_URL {url} does not answer: {error}"
    if answer.status_code in {401, 403}:
        token = "does not accept REMIT_OPA_TOKEN" if settings.opa_token else "wants a token: set REMIT_OPA_TOKEN"
        return False, "opa", f"{url} {token}"
    try:
        status = _OpaStatus.model_validate(answer.json()["result"])
    except (KeyError, TypeError, ValueError):
        return False, "opa", f"{url} answers {answer.status_code} when asked for its status: is it an OPA?"
    wrong = _wrong_with(status, revision)
    return wrong is None, "opa", f"{url} {wrong or f'is OPA {OPA_VERSION} and has this revision active'}"


def _wrong_with(status: _OpaStatus, revision: str | None) -> str | None:
    active, version = status.bundles.get(BUNDLE, _ActiveBundle()).active_revision, status.labels.version
    if not active:
        return "has no bundle active; its log says why"
    if revision is not None and active != revision:
        return f"decides by revision {active}, which is not that of the sources here"
    if version != OPA_VERSION:
        return f"is OPA {version or 'of an unknown version'}; Remit is made for {OPA_VERSION}"
    return None


async def _embedded_opa(settings: Settings) -> Finding:
    try:
        binary = await find_or_build_opa(settings.opa_binary, progress=lambda _line: None)
    except EmbeddedError as error:
        return False, "opa", str(error)
    return True, "opa", f"{binary} is OPA {OPA_VERSION}"


async def _database(url: str) -> AsyncIterator[Finding]:
    database = Database(url, pool_size=2)
    try:
        async with database.read() as session:
            version = await session.driver.fetchval("SHOW server_version")
            number = int(await session.driver.fetchval("SHOW server_version_num"))
            now: datetime = await session.driver.fetchval("SELECT clock_timestamp()")
        enough = number >= migrate.MINIMUM_SERVER_VERSION
        yield enough, "database", f"PostgreSQL {version}" + ("" if enough else " is too old")
        difference = abs((datetime.now(UTC) - now).total_seconds())
        yield (
            difference <= MAX_CLOCK_DIFFERENCE_S,
            "clock",
            f"{difference:.3f} s from the database's" + ("" if difference <= MAX_CLOCK_DIFFERENCE_S else ": run NTP"),
        )
        current, head = await migrate.current_revision(url), migrate.head_revision()
        yield (
            current == head,
            "migrations",
            f"at {current or 'nothing'}, this code needs {head}" + ("" if current == head else ": run `remit migrate`"),
        )
    except DatabaseUnavailableError as error:
        yield False, "database", error.detail
    finally:
        await database.close()


async def _service(settings: Settings) -> Finding:
    path = settings.data_dir / "service.json"
    if not path.exists():
        return True, "service", "not running from this data directory"
    url = json.loads(path.read_text(encoding="utf-8"))["url"]
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = (await client.get(f"{url}/readyz")).json()
    except (httpx2.HTTPError, ValueError) as error:
        return False, "service", f"{url} does not answer ({error}); if it was killed, start it again"
    says = "; ".join(f"{part}: {problem}" for part, problem in answer["problems"].items())
    return answer["ready"], "service", f"{url} is ready" if answer["ready"] else f"{url}: {says}"


def _embedded_database() -> Finding:
    try:
        software = installed_software()
    except EmbeddedError as error:
        return False, "database", str(error)
    return True, "database", f"REMIT_DATABASE_URL is not set: `remit up` runs PostgreSQL {software.version} of its own"
