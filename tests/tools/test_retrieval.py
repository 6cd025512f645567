"""Pipelines, their documents, and what a search of them finds."""

import asyncio
import math
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.domain.errors import InvalidRequestError
from kernel.store import retrieval
from kernel.store.engine import Database
from kernel.tools.fusion import fuse
from kernel.tools.pipelines import unit
from tests.kit import Kit, Run, done, reason_codes, refused
from tests.orchestration_runtime_primitives.work.crew import fence
from tests.tools.workshop import invoke, library, make_pipeline, make_tool, names, put, search

TEXTS = {
    "cats": "Cats sleep all day. A cat that dreams is a happy cat.",
    "dogs": "Dogs run all day and bark at cats.",
    "fish": "Fish swim. They neither run nor bark.",
}


async def test_a_pipeline_is_made_and_read(kit: Kit) -> None:
    response = await kit.api.post("/retrieval/pipelines", {"name": "Handbook"})
    assert response.status_code == 201
    made = response.json()
    assert made == {
        "pipeline_id": made["pipeline_id"],
        "name": "Handbook",
        "language": "english",
        "embedding_dim": None,
        "chunk": {"size": 1000, "overlap": 100},
        "is_active": True,
        "modes": ["text"],
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    path = f"/retrieval/pipelines/{made['pipeline_id']}"
    assert done(await kit.api.get(path)) == made
    changed = done(await kit.api.call("PATCH", path, {"is_active": False}))
    assert not changed["is_active"]
    assert done(await kit.api.get(path)) == changed


async def test_pipelines_are_listed_in_pages(kit: Kit) -> None:
    made = [await make_pipeline(kit, str(n)) for n in range(3)]
    page = done(await kit.api.get("/retrieval/pipelines?limit=2"))
    last = done(await kit.api.get(f"/retrieval/pipelines?limit=2&cursor={page['next_cursor']}"))
    assert [item["pipeline_id"] for item in (*page["items"], *last["items"])] == made
    assert last["next_cursor"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "p", "language": "klingon"}, "language"),
        ({"name": "p", "language": "pg_catalog.english'; --"}, "language"),
        ({"name": "p", "embedding_dim": 0}, "embedding_dim"),
        ({"name": "p", "embedding_dim": 4097}, "embedding_dim"),
        ({"name": "p", "chunk": {"size": 99}}, "chunk.size"),
        ({"name": "p", "chunk": {"size": 8001}}, "chunk.size"),
        ({"name": "p", "chunk": {"size": 100, "overlap": 26}}, "chunk.overlap"),
        ({"name": "p", "surplus": 1}, "surplus"),
    ],
)
async def test_what_is_wrong_with_a_pipeline_is_told_by_field(kit: Kit, body: dict[str, Any], field: str) -> None:
    problem = refused(await kit.api.post("/retrieval/pipelines", body), 400, "invalid_request")
    assert field in [error["field"] for error in problem["errors"]], problem


async def test_a_document_is_written_read_and_taken_away(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {})
    name = "guides/cats and dogs?.md"
    path = f"/retrieval/pipelines/{pipeline_id}/documents/guides%2Fcats%20and%20dogs%3F.md"
    written = await kit.api.put(path, {"text": TEXTS["cats"], "metadata": {"kind": "pet"}})
    assert done(written) == {"document_id": name, "chunks": 1}
    read = done(await kit.api.get(path))
    assert read["document_id"] == name
    assert read["metadata"] == {"kind": "pet"}
    assert read["chunks"] == [{"chunk": 0, "text": TEXTS["cats"], "embedded": False}]
    assert names(await search(kit, root, "cats")) == [name]
    assert done(await kit.api.call("DELETE", path)) == {"document_id": name, "chunks": 1}
    assert await search(kit, root, "cats") == []
    refused(await kit.api.call("DELETE", path), 404, "not_found")
    refused(await kit.api.get(path), 404, "not_found")


async def test_a_search_by_words_ranks_what_it_finds(kit: Kit) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    answer = done(await invoke(kit, root, "search", {"query": "cat"}))
    assert set(answer) == {"results", "pipeline_id", "took_ms"}
    assert answer["pipeline_id"] == pipeline_id
    assert answer["took_ms"] >= 0
    assert names(answer["results"]) == ["cats", "dogs"]
    first = answer["results"][0]
    assert first == {
        "document_id": "cats",
        "chunk": 0,
        "text": TEXTS["cats"],
        "score": first["score"],
        "metadata": {},
    }
    assert first["score"] > answer["results"][1]["score"] > 0
    assert names(await search(kit, root, "run bark")) == ["fish", "dogs"]
    assert names(await search(kit, root, "bark -fish")) == ["dogs"]
    assert names(await search(kit, root, '"run nor bark"')) == ["fish"]
    assert sorted(names(await search(kit, root, "dreams OR swim"))) == ["cats", "fish"]
    assert sorted(names(await search(kit, root, "-dreams"))) == ["dogs", "fish"]


@pytest.mark.parametrize("query", ["the and of", "?!", "'\\:*&|<->", "pipeline", "   "])
async def test_a_query_without_words_finds_nothing(kit: Kit, query: str) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    assert await search(kit, root, query) == []
    assert await search(kit, root, f'"pipeline:{pipeline_id}"') == []


async def test_a_search_answers_with_as_many_as_are_wanted(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {f"d{n:02}": "the same words" for n in range(12)})
    assert names(await search(kit, root, "words")) == [f"d{n:02}" for n in range(5)]
    assert len(await search(kit, root, "words", top_k=12)) == 12
    done(await make_tool(kit, "search", kind="rag_retrieval", config={"pipeline_id": pipeline_id, "top_k": 2}))
    assert len(await search(kit, root, "words")) == 2


async def test_a_search_is_narrowed_by_metadata(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {})
    for n in range(3):
        metadata = {"year": 2020 + n, "tags": ["a", f"t{n}"]}
        done(await put(kit, pipeline_id, f"d{n}", "words", metadata=metadata))
    assert names(await search(kit, root, "words", filter={"year": 2021})) == ["d1"]
    assert names(await search(kit, root, "words", filter={"tags": ["t2"]})) == ["d2"]
    assert len(await search(kit, root, "words", filter={})) == 3
    assert await search(kit, root, "words", filter={"none": 1}) == []


async def test_a_long_document_is_found_by_its_chunk(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {}, chunk={"size": 200, "overlap": 20})
    text = "\n\n".join(f"Paragraph {n} speaks of {word}. " + "It is filled up. " * 6 for n, word in enumerate(WORDS))
    written = done(await put(kit, pipeline_id, "long", text))
    assert written["chunks"] >= len(WORDS)
    chunks = done(await kit.api.get(f"/retrieval/pipelines/{pipeline_id}/documents/long"))["chunks"]
    for word in WORDS:
        (result,) = await search(kit, root, word)
        assert word in result["text"]
        assert chunks[result["chunk"]]["text"] == result["text"]


WORDS = ["aardvark", "badger", "cormorant", "dormouse"]


async def test_the_language_of_a_pipeline_stems_its_words(kit: Kit) -> None:
    _, root = await library(kit, {"a": "Die Häuser stehen"}, language="german")
    assert names(await search(kit, root, "Haus")) == ["a"]
    pipeline_id = await make_pipeline(kit, language="simple")
    done(await put(kit, pipeline_id, "a", "the cats"))
    done(await make_tool(kit, "search", kind="rag_retrieval", config={"pipeline_id": pipeline_id}))
    assert await search(kit, root, "cat") == []
    assert names(await search(kit, root, "the")) == ["a"]


async def test_a_key_does_not_keep_what_has_been_taken_away(kit: Kit) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    first = await invoke(kit, root, "search", {"query": "cats"}, idempotency_key="k")
    assert names(done(first)["results"]) == ["cats", "dogs"]
    done(await kit.api.call("DELETE", f"/retrieval/pipelines/{pipeline_id}/documents/cats"))
    # A search changes nothing that a repeat could do twice, so it is made anew.
    again = await invoke(kit, root, "search", {"query": "cats"}, idempotency_key="k")
    assert names(done(again)["results"]) == ["dogs"]
    assert "x-idempotency-reused" not in again.headers
    other = await invoke(kit, root, "search", {"query": "swim"}, idempotency_key="k")
    assert names(done(other)["results"]) == ["fish"]
    refused(await invoke(kit, root, "search", {"query": "cats"}, idempotency_key=""), 400, "invalid_request")


async def test_documents_are_written_together_or_not_at_all(kit: Kit) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    path = f"/retrieval/pipelines/{pipeline_id}/documents"
    good = {"document_id": "new", "text": "cats again"}
    for bad, field in (
        ({"document_id": "new", "text": "twice"}, "documents[1].document_id"),
        ({"document_id": "b", "text": " \n "}, "documents[1].text"),
        ({"document_id": "b", "text": "b", "embedding": [1.0]}, "documents[1].embedding"),
        ({"document_id": "b"}, "documents[1].text"),
        ({"document_id": "", "text": "b"}, "documents[1].document_id"),
        ({"document_id": "b", "text": "a\x00b"}, "documents[1].text"),
        ({"document_id": "b", "text": "b", "metadata": {"a": "\x00"}}, "documents[1].metadata"),
        ({"document_id": "b", "text": "b", "metadata": []}, "documents[1].metadata"),
    ):
        problem = refused(await kit.api.put(path, {"documents": [good, bad]}), 400, "invalid_request")
        assert field in [error["field"] for error in problem["errors"]], problem
    assert "new" not in names(await search(kit, root, "cats"))
    written = done(await kit.api.put(path, {"documents": [good, {"document_id": "cats", "text": "nothing"}]}))
    assert written == {"documents": [{"document_id": "new", "chunks": 1}, {"document_id": "cats", "chunks": 1}]}
    assert names(await search(kit, root, "cats")) == ["dogs", "new"]


async def test_what_is_too_much_is_told_with_its_limit(kit: Kit) -> None:
    pipeline_id = await make_pipeline(kit, chunk={"size": 100, "overlap": 0})
    path = f"/retrieval/pipelines/{pipeline_id}/documents"
    many = [{"document_id": str(n), "text": "a"} for n in range(1001)]
    assert "1000" in refused(await kit.api.put(path, {"documents": many}), 400, "invalid_request")["detail"]
    problem = refused(await put(kit, pipeline_id, "long", "x" * 200_001), 400, "invalid_request")
    assert "at most 2000 chunks a document; observed 2001" in problem["detail"]
    assert done(await put(kit, pipeline_id, "long", "x" * 200_000))["chunks"] == 2000
    refused(await put(kit, pipeline_id, "x" * 501, "a"), 400, "invalid_request")
    # Each passage brings them along.
    problem = refused(await put(kit, pipeline_id, "m", "a", metadata={"m": "x" * 16_377}), 400, "invalid_request")
    assert problem["detail"] == "metadata: at most 16384 bytes; observed 16385"
    done(await put(kit, pipeline_id, "m", "a", metadata={"m": "x" * 16_376}))
    assert len(done(await kit.api.put(path, {"documents": many[:1000]}))["documents"]) == 1000


async def test_a_document_is_replaced_as_a_whole(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {}, chunk={"size": 100, "overlap": 0})

    def text(version: int) -> str:
        # As many chunks as the version says, each of which names it.
        return "".join(f"version{version} chunk".ljust(99) + "\n" for _ in range(1 + version % 5))

    async def write() -> None:
        for version in range(20):
            done(await put(kit, pipeline_id, "a", text(version)))

    done(await put(kit, pipeline_id, "a", text(0)))
    writing = [asyncio.create_task(write()) for _ in range(3)]
    seen = 0
    while not all(task.done() for task in writing):
        results = await search(kit, root, "chunk", top_k=50)
        versions = {result["text"].split()[0] for result in results}
        assert len(versions) == 1
        assert len(results) == 1 + int(versions.pop().removeprefix("version")) % 5
        seen += 1
    await asyncio.gather(*writing)
    assert seen > 3


async def test_writers_of_the_same_documents_wait_for_each_other_in_no_ring(kit: Kit) -> None:
    pipeline_id = await make_pipeline(kit)
    path = f"/retrieval/pipelines/{pipeline_id}/documents"
    documents = [{"document_id": f"d{n}", "text": "a"} for n in range(30)]
    calls = [kit.api.put(path, {"documents": documents[:: (-1) ** n]}) for n in range(12)]
    for response in await asyncio.gather(*calls):
        done(response)


async def test_a_pipeline_that_is_not_active_is_not_searched(kit: Kit) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    path = f"/retrieval/pipelines/{pipeline_id}"
    done(await kit.api.call("PATCH", path, {"is_active": False}))
    problem = refused(await invoke(kit, root, "search", {"query": "cats"}), 403, "policy_denied")
    assert reason_codes(problem) == ["pipeline_inactive"]
    record = done(await kit.api.get(f"/policies/decisions/{problem['decision_id']}"))
    assert (record["action"], record["outcome"], record["caller_run_id"]) == ("retrieve", "deny", root.run_id)
    assert record["input"]["retrieval"] == {"pipeline_id": pipeline_id, "is_active": False}
    done(await put(kit, pipeline_id, "more", "more cats"))
    done(await kit.api.call("PATCH", path, {"is_active": True}))
    assert "more" in names(await search(kit, root, "cats"))


async def test_a_tool_that_is_not_active_does_not_search(kit: Kit) -> None:
    _, root = await library(kit, TEXTS)
    done(await kit.api.call("PATCH", "/tools/search", {"is_active": False}))
    refused(await invoke(kit, root, "search", {"query": "cats"}), 409, "conflict")


async def test_every_search_is_on_record(kit: Kit) -> None:
    _, root = await library(kit, TEXTS)
    await search(kit, root, "cats")
    items = done(await kit.api.get(f"/policies/decisions?action=retrieve&run={root.run_id}"))["items"]
    assert [(item["outcome"], item["caller_run_id"]) for item in items] == [("allow", root.run_id)]


async def test_a_run_that_has_ended_does_not_search(kit: Kit, database: Database) -> None:
    _, root = await library(kit, TEXTS)
    other = await kit.root(root.agent_id)
    await fence(database, kit, other.run_id, other.run_id)
    refused(await invoke(kit, other, "search", {"query": "cats"}), 409, "run_cancelled")
    done(await kit.api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))
    refused(await invoke(kit, root.run_id, "search", {"query": "cats"}), 409, "caller_not_active")
    refused(await invoke(kit, str(uuid4()), "search", {"query": "cats"}), 404, "not_found")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "input"),
        ({"query": ""}, "input.query"),
        ({"query": "x" * 10_001}, "input.query"),
        ({"query": 7}, "input.query"),
        ({"query": "a", "mode": "magic"}, "input.mode"),
        ({"query": "a", "mode": "vector"}, "input"),
        ({"embedding": [1, 0, 0], "mode": "hybrid"}, "input"),
        ({"query": "a", "top_k": 0}, "input.top_k"),
        ({"query": "a", "top_k": 101}, "input.top_k"),
        ({"query": "a", "filter": []}, "input.filter"),
        ({"query": "a", "sort": "date"}, "input.sort"),
        ({"embedding": []}, "input.embedding"),
        ({"embedding": [1, 0]}, "input.embedding"),
        ({"embedding": [0, 0, 0]}, "input.embedding"),
        ({"embedding": ["NaN", 0, 0]}, "input.embedding[0]"),
        ({"embedding": [1, 0, "Infinity"]}, "input.embedding[2]"),
    ],
)
async def test_what_is_wrong_with_a_search_is_told_by_field(kit: Kit, given: dict[str, Any], field: str) -> None:
    _, root = await library(kit, {}, embedding_dim=3)
    problem = refused(await invoke(kit, root, "search", given), 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field], problem


async def test_a_search_and_its_answer_are_held_against_the_tools_schemas(kit: Kit) -> None:
    pipeline_id, root = await library(kit, TEXTS)
    schemas = {
        "input_schema": {"properties": {"query": {"maxLength": 5}}},
        "output_schema": {"properties": {"results": {"items": {"properties": {"text": {"maxLength": 40}}}}}},
    }
    done(await make_tool(kit, "search", kind="rag_retrieval", config={"pipeline_id": pipeline_id}, **schemas))
    problem = refused(await invoke(kit, root, "search", {"query": "too long"}), 400, "invalid_request")
    assert problem["errors"][0]["field"] == "input.query"
    assert names(await search(kit, root, "swim")) == ["fish"]
    problem = refused(await invoke(kit, root, "search", {"query": "cats"}), 400, "invalid_request")
    assert problem["errors"][0]["field"] == "output.results[0].text"


async def vectors(kit: Kit) -> tuple[str, Run]:
    pipeline_id, root = await library(kit, {}, embedding_dim=3)
    for name, embedding in (("x", [5, 0, 0]), ("y", [0, 0.1, 0]), ("xy", [1, 1, 0]), ("-x", [-1, 0, 0])):
        done(await put(kit, pipeline_id, name, f"the axis {name} of space", embedding=embedding))
    done(await put(kit, pipeline_id, "none", "an axis without a direction"))
    return pipeline_id, root


async def test_a_search_by_meaning_ranks_by_direction(kit: Kit) -> None:
    pipeline_id, root = await vectors(kit)
    assert done(await kit.api.get(f"/retrieval/pipelines/{pipeline_id}"))["modes"] == ["text", "vector", "hybrid"]
    results = await search(kit, root, embedding=[1e30, 0, 0])
    assert names(results) == ["x", "xy", "y", "-x"]
    assert [result["score"] for result in results] == pytest.approx([1, math.sqrt(0.5), 0, -1], abs=1e-6)
    assert names(await search(kit, root, embedding=[0, 1, 0], top_k=1)) == ["y"]
    # The words are not asked for.
    assert names(await search(kit, root, "nothing", embedding=[0, 1, 0], mode="vector", top_k=1)) == ["y"]
    assert names(await search(kit, root, "direction", embedding=[0, 1, 0], mode="text")) == ["none"]


async def test_a_search_by_both_merges_the_rankings(kit: Kit) -> None:
    _, root = await vectors(kit)
    results = await search(kit, root, "direction OR space", embedding=[1, 0, 0])
    assert {"x", "y", "xy", "-x", "none"} == set(names(results))
    by_name = {result["document_id"]: result["score"] for result in results}
    words = names(await search(kit, root, "direction OR space", top_k=10))
    meaning = names(await search(kit, root, embedding=[1, 0, 0], top_k=10))
    for name, score in by_name.items():
        expected = sum(1 / (60 + ranking.index(name) + 1) for ranking in (words, meaning) if name in ranking)
        assert score == pytest.approx(expected)
    assert [result["score"] for result in results] == sorted(by_name.values(), reverse=True)
    assert names(await search(kit, root, "swim", embedding=[1, 0, 0], top_k=2)) == ["x", "xy"]


async def test_embeddings_fit_their_pipeline_and_their_chunks(kit: Kit) -> None:
    pipeline_id, root = await library(kit, {}, embedding_dim=2, chunk={"size": 100, "overlap": 0})
    text = "first ".ljust(99) + "\n" + "second"
    for more, field in (
        ({"embedding": [1, 2]}, "embedding"),
        ({"embeddings": [[1, 2]]}, "embeddings"),
        ({"embeddings": [[1, 2], [1, 2, 3]]}, "embeddings[1]"),
        ({"embeddings": [[1, 2], [0, 0]]}, "embeddings[1]"),
        ({"embeddings": [[1, 2], ["a", 2]]}, "embeddings[1][0]"),
        ({"embeddings": [[1, 2], [1, "NaN"]]}, "embeddings[1][1]"),
        ({"embeddings": [[1, 2], [True, 2]]}, "embeddings[1][0]"),
        ({"embedding": [1, 2], "embeddings": [[1, 2]]}, "body"),
    ):
        problem = refused(await put(kit, pipeline_id, "a", text, **more), 400, "invalid_request")
        assert field in [error["field"] for error in problem["errors"]], problem
    done(await put(kit, pipeline_id, "a", text, embeddings=[[1e-320, 0], [1e290, 1.7e308]]))
    (result,) = await search(kit, root, embedding=[0, 1], top_k=1)
    assert (result["chunk"], result["text"]) == (1, "second")
    chunks = done(await kit.api.get(f"/retrieval/pipelines/{pipeline_id}/documents/a"))["chunks"]
    assert all(chunk["embedded"] for chunk in chunks)


async def test_without_pgvector_words_are_searched_and_embeddings_are_refused(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline_id, root = await vectors(kit)
    monkeypatch.setattr(retrieval, "HAS_VECTORS", "SELECT to_regtype('no_such_type') IS NOT NULL")
    assert done(await kit.api.get(f"/retrieval/pipelines/{pipeline_id}"))["modes"] == ["text"]
    problem = refused(await invoke(kit, root, "search", {"embedding": [1, 0, 0]}), 400, "invalid_request")
    assert "pgvector" in problem["detail"]
    assert names(await search(kit, root, "direction")) == ["none"]
    done(await put(kit, pipeline_id, "z", "later", embedding=[0, 0, 1]))


FILL = """
WITH filled AS (
  INSERT INTO retrieval_documents (tenant_id, pipeline_id, document_id, metadata, chunk_count)
  SELECT $1, $2, 'd' || n, '{}', 1 FROM generate_series(1, $4::int) n RETURNING document_id)
INSERT INTO retrieval_chunks (tenant_id, pipeline_id, document_id, ordinal, body, words)
SELECT $1, $2, f.document_id, 0, f.document_id,
  to_tsvector('simple', f.document_id || ' common') || array_to_tsvector(ARRAY[$3::text])
FROM filled f
"""


async def test_a_search_reads_the_index_of_words_and_nobody_elses_documents(kit: Kit, database: Database) -> None:
    tenant_id = UUID(kit.tenant_id)
    ids = [UUID(await make_pipeline(kit, language="simple")) for _ in range(3)]
    async with database.write() as session:
        for pipeline_id in ids:
            await session.driver.execute(FILL, tenant_id, pipeline_id, retrieval.word_of(pipeline_id), 3000)
        await session.driver.execute("ANALYZE retrieval_chunks; ANALYZE retrieval_documents")
        asked = (tenant_id, ids[0], "simple", "d1000", retrieval.word_of(ids[0]), None, 5)
        plan = await session.driver.fetch("EXPLAIN (ANALYZE, COSTS OFF) " + retrieval.BY_WORDS, *asked)
    (line,) = [line[0] for line in plan if "on retrieval_chunks_words" in line[0]]
    assert "rows=1.00" in line
    assert not any("Seq Scan" in line[0] for line in plan)


@given(st.lists(st.lists(st.integers(0, 20), unique=True), max_size=4))
def test_fusion_has_everything_once_by_the_sum_of_its_ranks(rankings: list[list[int]]) -> None:
    fused = fuse(rankings)
    assert sorted(item for item, _ in fused) == sorted({item for ranking in rankings for item in ranking})
    for item, score in fused:
        assert score == pytest.approx(sum(1 / (61 + ranking.index(item)) for ranking in rankings if item in ranking))
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_embeddings_are_brought_to_length_one(embedding: list[float]) -> None:
    try:
        found = unit(embedding, len(embedding), where="embedding")
    except InvalidRequestError:
        assert not any(embedding)
        return
    assert math.hypot(*found) == pytest.approx(1, abs=1e-5)
