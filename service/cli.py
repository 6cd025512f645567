"""The command line: `remit`.

What a command needs is imported when it is called: help, and what was mistyped, are answered at once.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.graph_cli import app as graph_app
from service.policy_cli import app as policy_app

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

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where keys and the embedded parts are kept. [default: .remit]", show_default=False)
]


@app.command()
def up(host: Host = "127.0.0.1", port: Port = 8080, data_dir: DataDir = None) -> None:
    """Run everything in one: PostgreSQL, OPA, migrations, the API and the reconcilers. Needs nothing installed."""
    with _importing():
        from service import commands
    commands.up(commands.read_settings(data_dir), host, port)


@app.command()
def serve(host: Host = "127.0.0.1", port: Port = 8080, data_dir: DataDir = None) -> None:
    """Run the API alone, against REMIT_DATABASE_URL (and REMIT_OPA_URL, or an OPA as its child)."""
    with _importing():
        from service import commands
    commands.serve(commands.read_settings(data_dir), host, port)


@app.command()
def reconcile(data_dir: DataDir = None) -> None:
    """Run the loops alone (drains, expiries, timeouts), against REMIT_DATABASE_URL. Several may run at once."""
    with _importing():
        from service import commands
    commands.reconcile(commands.read_settings(data_dir))


@app.command()
def work(data_dir: DataDir = None) -> None:
    """Execute graphs, against REMIT_DATABASE_URL. Several may run at once; each takes what is queued."""
    with _importing():
        from service import commands
    commands.work(commands.read_settings(data_dir))


@app.command()
def migrate(
    revision: Annotated[str, typer.Option(help="The revision to bring the schema to.")] = "head",
    down_to: Annotated[str | None, typer.Option(help="Take the schema down to this revision (`base`: none).")] = None,
) -> None:
    """Bring the schema of REMIT_DATABASE_URL up to date, or down."""
    with _importing():
        from service import commands
    commands.migrate(commands.read_settings(None), revision, down_to)


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Say what is wrong with the set-up, and how to mend it."""
    with _importing():
        from service import commands
    commands.doctor(commands.read_settings(data_dir))


@app.command()
def demo(
    path: Annotated[Path | None, typer.Argument(help="A directory of source code. [default: this one]")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the service up afterwards.")] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Orchestrate by a graph, instead of by calls of the primitives.")
    ] = False,
) -> None:
    """Let agents survey source code under policy: spawn, refuse, cancel, report. The whole of Remit in a minute."""
    with _importing():
        from service.demo.main import run_demo
    raise typer.Exit(run_demo(path, serve=serve, graph=graph))


def main() -> None:
    """The console script."""
    app()


@contextmanager
def _importing() -> Iterator[None]:
    """Import without the garbage collector, which would look through all that stays again and again.

    That took a third of a start. What was imported is left out of the collector's rounds from then on.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    main()
