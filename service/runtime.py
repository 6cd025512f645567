"""The parts of a process: what is started, in which order, and how it all ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import get_args

import structlog
from prometheus_client import REGISTRY

from kernel import metrics
from kernel.commands.run_graph import RunGraphCommand
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.domain.errors import DatabaseUnavailableError
from kernel.policy.bundle import SCOPE, SigningKey
from kernel.policy.opa import Cause, OpaEngine, from_url
from kernel.reconcilers.loop import Pass
from kernel.store import migrate
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.dependencies import RequestSpans, Services
from service.embedded.opa import BundleService, EmbeddedOpa, find_or_build_opa
from service.embedded.postgres import EmbeddedPostgres
from service.opa_metrics import OpaCollector
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.settings import Settings
from service.tokens import KeyRing, Tokens, read_or_make_secret

WATCH_INTERVAL_S = 1.0
# What PostgreSQL accepts in all: this process's pool, and room for psql, audits and a second process.
SPARE_CONNECTIONS = 40

Progress = Callable[[str], None]

log = structlog.get_logger()


class NoDatabaseError(Exception):
    """A production command was started without a database."""


class NoTracingError(Exception):
    """Traces are wanted, and what makes them is not installed."""


def _as_it_is(_name: str, body: Pass) -> Pass:
    return body


@dataclass(frozen=True, slots=True)
class Instruments:
    """What the parts are made of: as they are, or in the forms that are traced."""

    database: type[Database] = Database
    engine: type[OpaEngine] = OpaEngine
    pipeline: type[SpawnPipeline] = SpawnPipeline
    request_span: RequestSpans | None = None
    run_graph: type[RunGraphCommand] = RunGraphCommand
    loop_body: Callable[[str, Pass], Pass] = _as_it_is


UNTRACED = Instruments()


@asynccontextmanager
async def instruments_of(settings: Settings) -> AsyncIterator[Instruments]:
    """The instruments that the settings ask for; at the end, the last spans are sent.

    Raises:
        NoTracingError: without the extra `otel`.
    """
    if not settings.tracing:
        yield UNTRACED
        return
    try:
        from service import tracing  # noqa: PLC0415 - its packages are an extra
    except ModuleNotFoundError as error:
        raise NoTracingError(f"REMIT_TRACING needs the extra `otel`: there is no {error.name}") from error
    provider = tracing.export_spans()
    try:
        yield Instruments(
            database=tracing.TracedDatabase,
            engine=tracing.TracedEngine,
            pipeline=tracing.TracedPipeline,
            request_span=tracing.request_span,
            run_graph=tracing.TracedRunGraph,
            loop_body=tracing.TracedPass,
        )
    finally:
        await tracing.flush(provider)


@dataclass(slots=True)
class PolicyDelivery:
    """What OPAs need of this process."""

    publisher: BundlePublisher
    statuses: OpaStatuses
    bundle_token: str


@asynccontextmanager
async def database_of(settings: Settings, progress: Progress, *, embedded: bool) -> AsyncIterator[str]:
    """The URL of the database: the one that is set, or (`embedded`) that of a PostgreSQL of our own.

    Raises:
        NoDatabaseError: when there is neither.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    if not embedded:
        raise NoDatabaseError(
            "REMIT_DATABASE_URL is not set: this command works on a PostgreSQL of yours; `remit up` brings its own"
        )
    postgres = EmbeddedPostgres(
        settings.data_dir, progress=progress, max_connections=settings.database_pool_size + SPARE_CONNECTIONS
    )
    await postgres.start()
    try:
        yield postgres.dsn
    finally:
        await postgres.stop()


@asynccontextmanager
async def policy_of(settings: Settings, progress: Progress) -> AsyncIterator[PolicyDelivery]:
    """Build the bundle and keep it up to date with its sources."""
    opa = await find_or_build_opa(settings.opa_binary, progress=progress)
    if settings.bundle_key_file is not None:
        key = SigningKey.load(settings.bundle_key_file)
    else:
        key = SigningKey.load_or_create(settings.data_dir / "bundle-signing.pem")
    token = settings.bundle_token.get_secret_value() if settings.bundle_token else None
    with as_file(files("policies")) as packaged:
        publisher = BundlePublisher(opa, settings.policy_dir or packaged, key)
        await publisher.start()
        statuses = OpaStatuses()
        collector = OpaCollector(statuses)
        REGISTRY.register(collector)
        try:
            yield PolicyDelivery(publisher, statuses, read_or_make_secret(settings.data_dir / "bundle-token", token))
        finally:
            REGISTRY.unregister(collector)
            await publisher.stop()


@asynccontextmanager
async def engine_of(
    settings: Settings,
    delivery: PolicyDelivery,
    url: str,
    progress: Progress,
    instruments: Instruments = UNTRACED,
) -> AsyncIterator[OpaEngine]:
    """The OPA that decides: the one that is set, or a child of ours that pulls its bundle from `url`."""
    for cause in get_args(Cause):
        # A cause that has not happened is told as 0, not by its absence.
        metrics.POLICY_FAILURES.labels(cause)
    async with AsyncExitStack() as stack:
        if settings.opa_url is not None:
            address, token = settings.opa_url, settings.opa_token.get_secret_value() if settings.opa_token else None
            max_age = settings.policy_max_age_s
        else:
            key = delivery.publisher.signing_key
            opa = EmbeddedOpa(
                await find_or_build_opa(settings.opa_binary, progress=progress),
                settings.data_dir,
                bundle_service=BundleService(
                    url=f"{url}/policies",
                    token=delivery.bundle_token,
                    public_key_pem=key.public_pem,
                    key_id=key.keyid,
                    scope=SCOPE,
                ),
                progress=progress,
            )
            await opa.start()
            stack.push_async_callback(opa.stop)
            address, token, max_age = opa.url, opa.token, settings.policy_max_age_s
        yield await stack.enter_async_context(
            instruments.engine(
                from_url(address),
                token=token,
                timeout_s=settings.opa_timeout_s,
                known_revisions=delivery.publisher.known_revisions,
                bundle_age_s=delivery.statuses.bundle_age_s,
                max_bundle_age_s=max_age,
                on_failure=lambda cause: metrics.POLICY_FAILURES.labels(cause).inc(),
            )
        )


def tokens_of(settings: Settings) -> Tokens:
    """The keys and the admin's token, made in the data directory where they are not given."""
    given = settings.admin_token.get_secret_value() if settings.admin_token else None
    ring = KeyRing.mounted(settings.token_key_file) if settings.token_key_file else KeyRing(settings.data_dir / "keys")
    return Tokens(
        ring,
        admin_token=read_or_make_secret(settings.data_dir / "admin-token", given),
        run_token_ttl_s=settings.run_token_ttl_s,
    )


@asynccontextmanager
async def services_of(
    settings: Settings,
    database_url: str,
    engine: OpaEngine,
    stopping: asyncio.Event,
    instruments: Instruments = UNTRACED,
) -> AsyncIterator[Services]:
    """The parts that handlers use; at the end, what was taken is finished."""
    database = instruments.database(database_url, pool_size=settings.database_pool_size)
    pipeline = instruments.pipeline(database, engine)
    active_runs = ActiveRuns(database, default_bound=settings.tenant_max_active_runs)
    combiner = SpawnCombiner(
        pipeline,
        lanes=settings.spawn_lanes,
        max_waiting_per_tenant=settings.tenant_max_in_flight,
        active_runs=active_runs,
    )
    wakeups = Wakeups(database, stopping)
    watching = asyncio.create_task(_keep_watch(database, engine, active_runs))
    try:
        yield Services(
            settings=settings,
            database=database,
            engine=engine,
            tokens=tokens_of(settings),
            pipeline=pipeline,
            combiner=combiner,
            wakeups=wakeups,
            active_runs=active_runs,
            stopping=stopping,
            request_span=instruments.request_span,
            run_graph=instruments.run_graph,
        )
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await wakeups.stop()
        await combiner.drain()
        await database.close()


async def _keep_watch(database: Database, engine: OpaEngine, active_runs: ActiveRuns) -> None:
    """Refresh what is shown and bounded by the second."""
    while True:
        try:
            metrics.POLICY_ENGINE_UP.set(1 if await engine.is_ready() else 0)
            metrics.DB_POOL_IN_USE.set(database.in_use())
            # An outage is told by readiness and by every request; the totals wait for its end.
            with suppress(DatabaseUnavailableError):
                await active_runs.refresh()
        except Exception:
            # Whatever it was, gauges and bounds that stand still would be worse.
            log.exception("the totals could not be refreshed")
        await asyncio.sleep(WATCH_INTERVAL_S)


async def problems(services: Services) -> dict[str, str]:
    """What keeps this process from being ready, by part; empty when it is."""
    found: dict[str, str] = {}
    try:
        async with services.database.read() as session:
            version = await session.driver.fetchval(f"SELECT version_num FROM {migrate.VERSION_TABLE}")
        # A schema that is ahead is of a version that is being rolled out: this process serves until it is replaced.
        if version != migrate.head_revision() and (version is None or version in migrate.known_revisions()):
            found["migrations"] = (
                f"the schema is at {version}, this code needs {migrate.head_revision()}: remit migrate"
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, the database is not ready
        found["database"] = str(error)
    if not await services.engine.is_ready():
        found["policy_engine"] = "OPA does not answer, or has not activated the bundle yet"
    if services.stopping.is_set():
        found["service"] = "it is shutting down"
    return found


def working_directory(path: Path) -> Path:
    """The data directory, made if need be.

    Raises:
        OSError: when it cannot be made or written.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = path / ".writable"
    probe.touch()
    probe.unlink()
    return path
