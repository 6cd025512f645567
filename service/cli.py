"""The command line: `remit`."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

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
from service import logs, serving
from service.demo.main import run_demo
from service.dependencies import Services
from service.doctor import examine
from service.embedded.errors import EmbeddedError
from service.graph_cli import app as graph_app
from service.policy_cli import app as policy_app
from service.reconciling import reconcile as run_loops
from service.runtime import NoDatabaseError, NoTracingError, working_directory
from service.settings import Settings
from service.tokens import TokenKeyError
from service.working import NoPolicyError
from service.working import work as run_graphs

app = typer.Typer(
    name="remit",
    help="Remit decides by policy, and enforces, what agents may spawn: whom, with which scopes, how deep, how wide,"
    " how many, until when.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(policy_app, name="policy")
app.add_typer(graph_app, name="graph")

# What a command can be told and the operator can mend: shown in a sentence, without a traceback.
MENDABLE = (
    EmbeddedError,
    BundleError,
    NoDatabaseError,
    NoPolicyError,
    NoTracingError,
    RemitError,
    migrations.UnsupportedServerError,
    serving.PortInUseError,
    TokenKeyError,
)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where keys and the embedded parts are kept. [default: .remit]", show_default=False)
]


@app.command()
def up(host: Host = "127.0.0.1", port: Port = 8080, data_dir: DataDir = None) -> None:
    """Run everything in one: PostgreSQL, OPA, migrations, the API and the reconcilers. Needs nothing installed."""
    settings = read_settings(data_dir)
    _run(_serve(settings, host, port, embedded=True, reconcile=True))


@app.command()
def serve(host: Host = "127.0.0.1", port: Port = 8080, data_dir: DataDir = None) -> None:
    """Run the API alone, against REMIT_DATABASE_URL (and REMIT_OPA_URL, or an OPA as its child)."""
    settings = read_settings(data_dir)
    _run(_serve(settings, host, port, embedded=False, reconcile=False))


@app.command()
def reconcile(data_dir: DataDir = None) -> None:
    """Run the loops alone (drains, expiries, timeouts), against REMIT_DATABASE_URL. Several may run at once."""
    settings = read_settings(data_dir)
    _run(run_loops(settings, _say))


@app.command()
def work(data_dir: DataDir = None) -> None:
    """Execute graphs, against REMIT_DATABASE_URL. Several may run at once; each takes what is queued."""
    settings = read_settings(data_dir)
    _run(run_graphs(settings, _say))


@app.command()
def migrate(
    revision: Annotated[str, typer.Option(help="The revision to bring the schema to.")] = "head",
    down_to: Annotated[str | None, typer.Option(help="Take the schema down to this revision (`base`: none).")] = None,
) -> None:
    """Bring the schema of REMIT_DATABASE_URL up to date, or down."""
    _run(_migrate(read_settings(None), revision, down_to))


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Say what is wrong with the set-up, and how to mend it."""
    settings = read_settings(data_dir)
    _run(examine(settings, out))


@app.command()
def demo(
    path: Annotated[Path | None, typer.Argument(help="A directory of source code. [default: this one]")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the service up afterwards.")] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Orchestrate by a graph, instead of by calls of the primitives.")
    ] = False,
) -> None:
    """Let agents survey source code under policy: spawn, refuse, cancel, report. The whole of Remit in a minute."""
    raise typer.Exit(run_demo(path, serve=serve, graph=graph))


def main() -> None:
    """The console script."""
    app()


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


def _run(work: Coroutine[object, object, None], runner: Callable[..., None] = uvloop.run) -> None:
    """Run a command to its end; what the operator can mend is said in a sentence."""
    try:
        runner(work)
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


if __name__ == "__main__":
    main()
