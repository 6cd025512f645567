"""`remit graph`: what an author of graphs does at the terminal."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import httpx2
import orjson
import typer
from pydantic import BaseModel, JsonValue, ValidationError
from rich.console import Console
from rich.text import Text

from kernel.graph.compiler import compile_alone
from service.graph_run import run_graph

_REQUEST_LIMIT_S = 30.0

app = typer.Typer(name="graph", help="Check graphs, and run them.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def graphs() -> None:
    """Check graphs, and run them."""


@app.command("check")
def check_graph(
    file: Annotated[Path, typer.Argument(help="The graph, as JSON; - for stdin.", allow_dash=True)],
    url: Annotated[
        str | None, typer.Option(envvar="REMIT_URL", help="A running service, to ask policy and the catalog too.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="REMIT_TOKEN", help="A token with the scope catalog.write or agents.execute.", show_default=False
        ),
    ] = "",
    tenant: Annotated[
        UUID | None, typer.Option(envvar="REMIT_TENANT_ID", help="The tenant, where the token is the admin's.")
    ] = None,
    agent_id: Annotated[
        UUID | None, typer.Option(help="The agent that would run it: its policy and allowlist then hold.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")] = False,
) -> None:
    """Compile a graph and show all that is wrong with it; without a service, its form alone. Exits 1 on an error."""
    document = _read(file)
    if url is None:
        if agent_id is not None:
            _fail("--agent-id needs a service: name it with --url or REMIT_URL.")
        compiled = compile_alone(document)
        answer = _Answer.model_validate(
            {
                "valid": compiled.valid,
                "diagnostics": [finding.render() for finding in compiled.diagnostics],
                "ir": compiled.graph.document() if compiled.graph is not None else None,
            }
        )
    else:
        if not token:
            _fail("a token is needed: name it with --token or REMIT_TOKEN")
        answer = _ask(url, token, tenant, {"graph": document, "agent_id": str(agent_id) if agent_id else None})
    if as_json:
        out.print(Text(orjson.dumps(answer.model_dump(exclude_unset=True), option=orjson.OPT_INDENT_2).decode()))
    else:
        _show(answer, with_agent=agent_id is not None)
    raise typer.Exit(0 if answer.valid else 1)


app.command("run")(run_graph)


class _Finding(BaseModel, extra="allow"):
    code: str
    message: str
    severity: str
    node_id: str | None


class _Answer(BaseModel, extra="allow"):
    valid: bool
    diagnostics: list[_Finding]
    ir: dict[str, JsonValue] | None


def _read(file: Path) -> JsonValue:
    try:
        written = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        document: JsonValue = orjson.loads(written)
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}")
    except orjson.JSONDecodeError as error:
        _fail(f"{file} is not JSON: {error}")
    return document


def _ask(url: str, token: str, tenant: UUID | None, body: JsonValue) -> _Answer:
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Tenant-ID": str(tenant)} if tenant else {})
    try:
        response = httpx2.post(f"{url}/graphs/compile", json=body, headers=headers, timeout=_REQUEST_LIMIT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        _fail(f"{url} does not answer: {error}")
    if not response.is_success:
        _fail(f"{url} refuses: {response.status_code} {_detail(response)}")
    try:
        return _Answer.model_validate_json(response.content)
    except ValidationError as error:
        _fail(f"{url} gives no answer of this version: {error}")


def _detail(response: httpx2.Response) -> str:
    try:
        problem = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return response.text[:500]
    return str(problem.get("detail")) if isinstance(problem, dict) else response.text[:500]


def _show(answer: _Answer, *, with_agent: bool) -> None:
    errors = [finding for finding in answer.diagnostics if finding.severity == "error"]
    later = [finding for finding in answer.diagnostics if finding.severity != "error"]
    for finding in errors:
        out.print(Text.assemble(("✗ ", "red"), f"{finding.code}  {finding.message}"))
    left: dict[str, list[str]] = {}
    for finding in later:
        left.setdefault(f"node {finding.node_id!r}" if finding.node_id is not None else "the graph", []).append(
            finding.code
        )
    for where, codes in left.items():
        out.print(Text.assemble(("… ", "yellow"), f"{where}: to be checked for {', '.join(codes)}"))
    if answer.ir is not None:
        said = f"; {len(later)} checks need to know more" if later else ""
        if later and not with_agent:
            said += " (name the agent that would run it with --agent-id)"
        out.print(Text.assemble(("✓ ", "green"), f"the graph compiles{said}: {answer.ir['digest']}"))
    else:
        out.print(f"the graph does not compile: {len(errors)} error{'s' if len(errors) != 1 else ''}")


def _fail(message: str) -> NoReturn:
    err.print(Text(message, style="red"))
    raise typer.Exit(2)
