"""What another tenant has is answered as if it did not exist: by every route, in every ranking and every count."""

from uuid import UUID

import pytest

from kernel.store.engine import Database
from tests.kit import Api, Kit, Run, done, refused
from tests.tools.workshop import invoke, library, make_pipeline, make_tool, names, put, search


@pytest.fixture
async def other(api: Api) -> Kit:
    """Another tenant, with all that there is to find."""
    return await Kit.make(api)


async def test_anothers_tools_are_not_found(kit: Kit, other: Kit) -> None:
    await other.agent("worker")
    done(await make_tool(other))
    root, _ = await kit.team()
    refused(await kit.api.get("/tools/ask"), 404, "not_found")
    refused(await kit.api.call("PATCH", "/tools/ask", {"is_active": False}), 404, "not_found")
    refused(await invoke(kit, root), 404, "not_found")
    assert done(await kit.api.get("/tools"))["items"] == []
    # A slug of one's own begins at 1, and is no version of the other's.
    mine = done(await make_tool(kit))
    assert mine["version"] == 1
    theirs = done(await other.api.get("/tools/ask"))
    assert theirs["is_active"]
    assert theirs["version"] == 1
    assert theirs["tool_id"] != mine["tool_id"]


async def test_anothers_agents_are_not_called(kit: Kit, other: Kit) -> None:
    theirs = await other.agent("theirs")
    refused(await make_tool(kit, config={"target_agent_id": theirs}), 404, "not_found")
    refused(await make_tool(kit, config={"target_agent_slug": "theirs"}), 404, "not_found")


async def test_anothers_runs_call_nothing(kit: Kit, other: Kit) -> None:
    root, _ = await other.team()
    done(await make_tool(other))
    _, mine = await library(kit, {"a": "cats"})
    done(await make_tool(kit))
    refused(await invoke(kit, root.run_id), 404, "not_found")
    refused(await invoke(kit, root.run_id, "search", {"query": "cats"}), 404, "not_found")
    refused(await invoke(other, mine.run_id), 404, "not_found")


async def test_anothers_pipelines_and_documents_are_not_found(kit: Kit, other: Kit) -> None:
    pipeline_id, theirs = await library(other, {"a": "cats"})
    path = f"/retrieval/pipelines/{pipeline_id}"
    for response in (
        await kit.api.get(path),
        await kit.api.call("PATCH", path, {"is_active": False}),
        await kit.api.put(f"{path}/documents", {"documents": [{"document_id": "b", "text": "cats"}]}),
        await put(kit, pipeline_id, "a", "overwritten"),
        await kit.api.get(f"{path}/documents/a"),
        await kit.api.call("DELETE", f"{path}/documents/a"),
        await make_tool(kit, "search", kind="rag_retrieval", config={"pipeline_id": pipeline_id}),
    ):
        refused(response, 404, "not_found")
    assert done(await kit.api.get("/retrieval/pipelines"))["items"] == []
    assert names(await search(other, theirs, "cats")) == ["a"]


async def test_anothers_pipeline_is_not_searched_even_where_a_tool_names_it(
    kit: Kit, other: Kit, database: Database
) -> None:
    theirs, _ = await library(other, {"a": "cats"})
    _, root = await library(kit, {"b": "cats"})
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE tool_versions SET config = json_build_object('pipeline_id', $2::text) WHERE tenant_id = $1",
            UUID(kit.tenant_id),
            theirs,
        )
    refused(await invoke(kit, root, "search", {"query": "cats"}), 404, "not_found")


async def test_no_ranking_or_count_knows_anothers_documents(kit: Kit, other: Kit) -> None:
    async def ranked(mine: Kit, root: Run) -> list[tuple[str, float]]:
        found = await search(mine, root, "cats", top_k=100)
        found += await search(mine, root, embedding=[1, 0], top_k=100)
        found += await search(mine, root, "cats", embedding=[1, 0], top_k=100)
        return [(result["document_id"], result["score"]) for result in found]

    pipeline_id, root = await library(kit, {"b": "dogs and cats"}, embedding_dim=2)
    done(await put(kit, pipeline_id, "a", "a cat, the cats", embedding=[1, 1]))
    alone = await ranked(kit, root)
    assert len(alone) == 2 + 1 + 2
    elsewhere, theirs = await library(other, {}, embedding_dim=2)
    for n in range(20):
        done(await put(other, elsewhere, f"a{n}", "cats " * (n + 1), embedding=[1, n / 100]))
    # The same id in another tenant, and in another pipeline of the same one.
    done(await put(other, elsewhere, "a", "cats", embedding=[1, 0]))
    beside = await make_pipeline(kit, "beside", embedding_dim=2)
    done(await put(kit, beside, "a", "cats", embedding=[1, 0]))
    assert await ranked(kit, root) == alone
    assert len(await ranked(other, theirs)) == 3 * 21
