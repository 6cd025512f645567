"""What tests of tools say in a line: tools, pipelines and calls of them over HTTP."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import httpx2

from kernel.store.engine import Database
from tests.kit import Kit, Run, done
from tests.orchestration_runtime_primitives.work.crew import claim, complete

WAIT_S = 10


async def make_tool(
    kit: Kit, slug: str = "ask", *, config: object = None, kind: str = "agent_call", **more: object
) -> httpx2.Response:
    """Make a tool, by default one that calls `worker`."""
    body = {
        "slug": slug,
        "name": slug,
        "implementation_type": kind,
        "config": config if config is not None else {"target_agent_slug": "worker"},
        **more,
    }
    return await kit.api.post("/tools", body)


async def invoke(
    kit: Kit, caller: Run | str, slug: str = "ask", given: object = None, **more: object
) -> httpx2.Response:
    """Call a tool; with a `Run`, by its own token."""
    api = kit.api.acting_with(caller.token) if isinstance(caller, Run) else kit.api
    run_id = caller.run_id if isinstance(caller, Run) else caller
    body = {"caller_run_id": run_id, "input": given if given is not None else {}, **more}
    return await api.post(f"/tools/{slug}/invoke", body)


def calling(kit: Kit, caller: Run | str, slug: str = "ask", given: object = None, **more: object) -> Any:
    """A call that is under way."""
    return asyncio.create_task(invoke(kit, caller, slug, given, **more))


async def take_up(kit: Kit, *slugs: str) -> dict[str, Any]:
    """The run that a worker is given, as soon as there is one."""
    (run,) = await claim(kit, *slugs, wait_s=WAIT_S)
    return run


async def work_off(kit: Kit, output: object = None, **more: Any) -> dict[str, Any]:
    """Take up a run and complete it."""
    run = await take_up(kit)
    done(await complete(kit, run, output=output if output is not None else {}, **more))
    return run


async def make_pipeline(kit: Kit, name: str = "handbook", **more: object) -> str:
    pipeline_id: str = done(await kit.api.post("/retrieval/pipelines", {"name": name, **more}))["pipeline_id"]
    return pipeline_id


async def put(kit: Kit, pipeline_id: str, document_id: str, text: str, **more: object) -> httpx2.Response:
    path = f"/retrieval/pipelines/{pipeline_id}/documents/{document_id}"
    return await kit.api.put(path, {"text": text, **more})


async def library(kit: Kit, texts: dict[str, str], **pipeline: object) -> tuple[str, Run]:
    """A pipeline with documents, the tool `search` on it, and a run that may call it."""
    pipeline_id = await make_pipeline(kit, **pipeline)  # type: ignore[arg-type]
    documents = [{"document_id": name, "text": text} for name, text in texts.items()]
    if documents:
        done(await kit.api.put(f"/retrieval/pipelines/{pipeline_id}/documents", {"documents": documents}))
    done(await make_tool(kit, "search", kind="rag_retrieval", config={"pipeline_id": pipeline_id}))
    root, _ = await kit.team()
    return pipeline_id, root


async def search(kit: Kit, caller: Run, query: str | None = None, **more: object) -> list[dict[str, Any]]:
    given = {**({"query": query} if query is not None else {}), **more}
    results: list[dict[str, Any]] = done(await invoke(kit, caller, "search", given))["results"]
    return results


def names(results: Sequence[dict[str, Any]]) -> list[str]:
    return [result["document_id"] for result in results]


async def statuses(database: Database, kit: Kit) -> dict[str, str]:
    """The stored statuses of all the tenant's runs, by id."""
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT run_id, status FROM agent_runs WHERE tenant_id = $1", UUID(kit.tenant_id)
        )
    return {str(row["run_id"]): row["status"] for row in rows}


async def until(condition: Any, attempts: int = 500) -> None:
    """Look every 10 ms until something that nobody announces has come to pass."""
    for _ in range(attempts):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not come to pass")
