"""`remit doctor`: what is wrong with the set-up, and how to mend it."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.resources import as_file, files

import httpx2
import typer
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

Finding = tuple[bool, str, str]


async def examine(settings: Settings, console: Console) -> None:
    """Print a line for each part; ends with status 1 when one of them is not well."""
    healthy = True
    async for well, part, says in _findings(settings):
        healthy = healthy and well
        console.print(f"[{'green' if well else 'red'}]{'ok   ' if well else 'wrong'}[/] {part:<12} {says}")
    if not healthy:
        raise typer.Exit(1)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    yield True, "data", f"{settings.data_dir.absolute()} can be written"
    yield await _bundle(settings)
    yield await _opa(settings)
    if settings.database_url is not None:
        async for finding in _database(settings.database_url):
            yield finding
    else:
        yield _embedded_database()
    yield await _service(settings)


async def _bundle(settings: Settings) -> Finding:
    with as_file(files("policies")) as packaged:
        source = settings.policy_dir or packaged
        try:
            return True, "bundle", f"{source}: revision {revision_of(source)}"
        except BundleError as error:
            return False, "bundle", str(error)


async def _opa(settings: Settings) -> Finding:
    if settings.opa_url is not None:
        try:
            async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
                answer = await client.get(f"{settings.opa_url.rstrip('/')}/health", params={"bundles": "true"})
        except httpx2.HTTPError as error:
            return False, "opa", f"REMIT_OPA_URL {settings.opa_url} does not answer: {error}"
        if answer.is_success:
            return True, "opa", f"{settings.opa_url} answers and has its bundle"
        return False, "opa", f"{settings.opa_url} answers {answer.status_code}: its bundle is not active"
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
        async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
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
