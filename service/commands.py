"""What the commands of `remit` do that run a part of the service, and how they end."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import structlog
import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console

from kernel.domain.errors import RemitError
from kernel.graph.checkpoints import make_checkpoint_tables
from kernel.policy.bundle import BundleError
from kernel.store import migrate as migrations
from kernel.store import partitions
from service import logs, reconciling, serving, working
from service.dependencies import Services
from service.doctor import examine
from service.embedded.errors import EmbeddedError
from service.runtime import NoDatabaseError, NoTracingError, working_directory
from service.settings import Settings
from service.tokens import TokenKeyError

# What a command can be told and the operator can mend: shown in a sentence, without a traceback.
MENDABLE = (
    EmbeddedError,
    BundleError,
    NoDatabaseError,
    working.NoPolicyError,
    NoTracingError,
    RemitError,
    migrations.UnsupportedServerError,
    serving.PortInUseError,
    TokenKeyError,
)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def read_settings(data_dir: Path | None) -> Settings:
    """The settings of this process, from the environment and the command line; ends with a sentence if one is bad."""
    try:
        settings = Settings()
        if data_dir is not None:
            settings = settings.model_copy(update={"data_dir": data_dir})
        logs.configure(settings)
        working_directory(settings.data_dir)
    except ValidationError as error:
        for finding in error.errors():
            name = "_".join(str(part) for part in finding["loc"]).upper().removeprefix("REMIT_")
            err.print(f"remit: REMIT_{name}: {finding['msg'].removeprefix('Value error, ')}")
        raise typer.Exit(2) from None
    except OSError as error:
        err.print(
            f"remit: the data directory {data_dir or Settings().data_dir} cannot be used: {error.strerror};"
            " choose another with --data-dir or REMIT_DATA_DIR"
        )
        raise typer.Exit(1) from None
    return settings


def up(settings: Settings, host: str, port: int) -> None:
    """Run everything in one."""
    _run(_serve(settings, host, port, embedded=True, reconcile=True))


def serve(settings: Settings, host: str, port: int) -> None:
    """Run the API alone."""
    _run(_serve(settings, host, port, embedded=False, reconcile=False))


def reconcile(settings: Settings) -> None:
    """Run the loops alone."""
    _run(reconciling.reconcile(settings, _say))


def work(settings: Settings) -> None:
    """Execute graphs."""
    _run(working.work(settings, _say))


def migrate(settings: Settings, revision: str, down_to: str | None) -> None:
    """Bring the schema up to date, or down."""
    _run(_migrate(settings, revision, down_to))


def doctor(settings: Settings) -> None:
    """Say what is wrong with the set-up."""
    _run(examine(settings, out))


async def _serve(settings: Settings, host: str, port: int, *, embedded: bool, reconcile: bool) -> None:
    listener = serving.listen(host, port)

    def ready(url: str, services: Services) -> None:
        serving.write_service_file(settings.data_dir, url)
        out.print(f"Remit is ready at {url}")
        out.print(f"  API documentation  {url}/docs")
        out.print(f"  metrics            {url}/metrics")
        if settings.admin_token is None:
            out.print(f"  admin token        {settings.data_dir / 'admin-token'}")
        structlog.get_logger().info("ready", url=url, pool=services.settings.database_pool_size)

    try:
        await serving.serve(settings, listener, embedded=embedded, reconcile=reconcile, progress=_say, on_ready=ready)
    finally:
        serving.remove_service_file(settings.data_dir)


async def _migrate(settings: Settings, revision: str, down_to: str | None) -> None:
    if settings.database_url is None:
        raise NoDatabaseError("REMIT_DATABASE_URL is not set: which database is to be migrated?")
    if down_to is not None:
        await migrations.downgrade(settings.database_url, down_to)
    else:
        await migrations.upgrade(settings.database_url, revision)
        await make_checkpoint_tables(settings.database_url)
        if revision == "head":
            await partitions.ensure_partitions(settings.database_url)
    out.print(f"the schema is at {await migrations.current_revision(settings.database_url) or 'nothing'}")


def _say(line: str) -> None:
    err.print(f"remit: {line}")


def _run(work: Coroutine[object, object, None]) -> None:
    """Run a command to its end; what the operator can mend is said in a sentence."""
    try:
        uvloop.run(work)
    except asyncio.CancelledError:
        _say("stopped before it was done")
    except MENDABLE as error:
        err.print(f"remit: {error}")
        raise typer.Exit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        err.print(
            f"remit: {error.filename} cannot be used: {error.strerror};"
            " mend that, or choose another directory with --data-dir or REMIT_DATA_DIR"
        )
        raise typer.Exit(1) from None
