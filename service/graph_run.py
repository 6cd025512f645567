"""`remit graph run`: a graph from a file, run by a service to its end."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import httpx2
import orjson
import typer
from rich.console import Console
from rich.text import Text

REQUEST_LIMIT_S = 30.0
# The stream has a heartbeat every 15 seconds.
STREAM_LIMIT_S = 60.0
NOT_OF_SLUGS = re.compile(r"[^a-z0-9._-]+")
COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow"}

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def run_graph(
    file: Annotated[Path, typer.Argument(help="The graph, as JSON; - for stdin.", allow_dash=True)],
    run_input: Annotated[str, typer.Option("--input", help="The run's input, a JSON object.")] = "{}",
    slug: Annotated[
        str | None, typer.Option(help="The agent that runs it, made where there is none. [default: the file's name]")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope of the run, to hand down to its children; may be repeated.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="An agent that it may spawn, by slug; sets the allowlist. May be repeated.")
    ] = None,
    url: Annotated[str, typer.Option(envvar="REMIT_URL", help="The service.")] = "http://127.0.0.1:8080",
    token: Annotated[
        str,
        typer.Option(
            envvar="REMIT_TOKEN", help="A token with the scopes catalog.write and agents.execute.", show_default=False
        ),
    ] = "",
    tenant: Annotated[
        UUID | None, typer.Option(envvar="REMIT_TENANT_ID", help="The tenant, where the token is the admin's.")
    ] = None,
) -> None:
    """Publish a graph as an agent, start a run of it and follow its events. Exits 0 when the run has completed."""
    document, given = _read(file), _object(run_input)
    if not token:
        _fail("a token is needed: name it with --token or REMIT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Tenant-ID": str(tenant)} if tenant else {})
    name = slug or NOT_OF_SLUGS.sub("-", file.stem.lower()).strip("-._") or "graph"
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=REQUEST_LIMIT_S, trust_env=False) as client:
            service = _Service(client)
            run_id = service.start(service.agent(name, document, allow), scope or [], given)
            out.print(f"run {run_id} of agent {name}")
            for event in service.events(run_id):
                out.print(_line(event))
            _tell(service.call("GET", f"/agents/runs/{run_id}"))
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        _fail(f"{url} does not answer: {error}")


class _Service:
    """The service, as this command uses it."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        response = self._client.request(method, path, json=body)
        if not response.is_success:
            _refused(response)
        answer: dict[str, Any] = response.json()
        return answer

    def agent(self, slug: str, document: object, allow: list[str] | None) -> str:
        """The agent with this graph, published."""
        found = self._find(slug)
        if found is None:
            body = {"slug": slug, "name": slug, "kind": "graph", "graph_definition": document}
            found = self.call("POST", "/agents", body)
        elif found["kind"] != "graph":
            _fail(f"agent {slug} is {found['kind']}: name another with --slug")
        else:
            self.call("PATCH", f"/agents/{found['agent_id']}", {"graph_definition": document})
        agent_id: str = found["agent_id"]
        if allow is not None:
            entries = [{"target_agent_slug": target} for target in allow]
            self.call("PUT", f"/agents/{agent_id}/allowlist", {"entries": entries})
        self.call("POST", f"/agents/{agent_id}/publish")
        return agent_id

    def start(self, agent_id: str, scopes: list[str], given: dict[str, Any]) -> str:
        """A root run of the agent."""
        started = self.call("POST", f"/agents/{agent_id}/runs", {"requested_scopes": scopes, "input": given})
        run_id: str = started["run_id"]
        return run_id

    def events(self, run_id: str) -> Iterator[dict[str, Any]]:
        """The events of the run and all below it, until all has ended."""
        path, kind = f"/agents/runs/{run_id}/events", ""
        headers = {"Accept": "text/event-stream"}
        with self._client.stream("GET", path, headers=headers, timeout=STREAM_LIMIT_S) as response:
            if not response.is_success:
                response.read()
                _refused(response)
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data" and kind != "end":
                    yield orjson.loads(value)
                if kind == "end":
                    return

    def _find(self, slug: str) -> dict[str, Any] | None:
        cursor = ""
        while True:
            page = self.call("GET", f"/agents?limit=200{cursor}")
            for agent in page["items"]:
                if agent["slug"] == slug:
                    found: dict[str, Any] = agent
                    return found
            if page["next_cursor"] is None:
                return None
            cursor = f"&cursor={page['next_cursor']}"


def _read(file: Path) -> object:
    try:
        return orjson.loads(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}")
    except orjson.JSONDecodeError as error:
        _fail(f"{file} is not JSON: {error}")


def _object(text: str) -> dict[str, Any]:
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        _fail(f"--input is not JSON: {error}")
    if not isinstance(given, dict):
        _fail("--input: a run's input is a JSON object")
    return given


def _line(event: dict[str, Any]) -> str:
    data = event["data"]
    told = {name: data[name] for name in ("node_id", "status", "mode", "reason", "count") if data.get(name) is not None}
    said = "  ".join(f"{name}={value}" for name, value in told.items())
    return f"{event['id']:>8}  {event['type'].removeprefix('orchestration.'):<24}  {event['subject']}  {said}"


def _tell(run: dict[str, Any]) -> None:
    status = run["status"]
    out.print(Text.assemble((status, COLOURS.get(status, ""))))
    given = run["output"] if status == "completed" else run["error"]
    if given is not None:
        out.print(Text(orjson.dumps(given, option=orjson.OPT_INDENT_2).decode()))
    raise typer.Exit(0 if status == "completed" else 1)


def _refused(response: httpx2.Response) -> NoReturn:
    try:
        problem = response.json()
    except ValueError:
        problem = {"detail": response.text[:500]}
    found = problem.get("diagnostics") or problem.get("reasons") or ()
    # The detail repeats what is found, in one line.
    said = "" if found else f": {problem.get('detail', '')}"
    lines = [f"{response.status_code} {problem.get('code', '')}{said}"]
    lines.extend(f"  {one['code']}: {one['message']}" for one in found)
    _fail("\n".join(lines))


def _fail(message: str) -> NoReturn:
    err.print(Text(message, style="red"))
    raise typer.Exit(2)
