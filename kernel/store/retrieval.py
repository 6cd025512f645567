"""Pipelines, their documents, and searching them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession, WriteSession

Row = Mapping[str, Any]

COLUMNS = """
p.pipeline_id, p.name, p.language, p.embedding_dim, p.chunk_size, p.chunk_overlap, p.is_active, p.created_at,
p.updated_at
"""

INSERT = f"""
INSERT INTO retrieval_pipelines AS p (tenant_id, pipeline_id, name, language, embedding_dim, chunk_size, chunk_overlap)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {COLUMNS}
"""
ONE = f"SELECT {COLUMNS} FROM retrieval_pipelines p WHERE p.tenant_id = $1 AND p.pipeline_id = $2"
PAGE = f"""
SELECT {COLUMNS} FROM retrieval_pipelines p
WHERE p.tenant_id = $1 AND ($2::uuid IS NULL OR p.pipeline_id > $2) ORDER BY p.pipeline_id LIMIT $3
"""
SET_ACTIVE = f"""
UPDATE retrieval_pipelines p SET is_active = $3, updated_at = now()
WHERE p.tenant_id = $1 AND p.pipeline_id = $2 RETURNING {COLUMNS}
"""
LANGUAGES = "SELECT cfgname::text AS language FROM pg_ts_config WHERE pg_ts_config_is_visible(oid) ORDER BY cfgname"

# In one order for everybody, so that two calls which put the same documents wait for each other in no ring.
PUT_DOCUMENTS = """
INSERT INTO retrieval_documents AS d (tenant_id, pipeline_id, document_id, metadata, chunk_count)
SELECT $1, $2, q.document_id, q.metadata::jsonb, q.chunk_count
FROM unnest($3::text[], $4::text[], $5::int[]) AS q (document_id, metadata, chunk_count)
ORDER BY q.document_id COLLATE "C"
ON CONFLICT (tenant_id, pipeline_id, document_id)
  DO UPDATE SET metadata = excluded.metadata, chunk_count = excluded.chunk_count, updated_at = now()
"""
DELETE_CHUNKS = """
DELETE FROM retrieval_chunks WHERE tenant_id = $1 AND pipeline_id = $2 AND document_id = ANY ($3::text[])
"""
# An embedding travels as its text, since arrays of different lengths make no array.
PUT_CHUNKS = """
INSERT INTO retrieval_chunks (tenant_id, pipeline_id, document_id, ordinal, body, words, embedding)
SELECT $1, $2, q.document_id, q.ordinal, q.body,
  to_tsvector($3::text::regconfig, q.body) || array_to_tsvector(ARRAY[$4::text]), q.embedding::real[]
FROM unnest($5::text[], $6::int[], $7::text[], $8::text[]) AS q (document_id, ordinal, body, embedding)
"""
DELETE_DOCUMENT = """
DELETE FROM retrieval_documents WHERE tenant_id = $1 AND pipeline_id = $2 AND document_id = $3 RETURNING chunk_count
"""
DOCUMENT = """
SELECT d.document_id, d.metadata, d.created_at, d.updated_at,
  (SELECT json_agg(json_build_object('chunk', c.ordinal, 'text', c.body, 'embedded', c.embedding IS NOT NULL)
     ORDER BY c.ordinal)
   FROM retrieval_chunks c
   WHERE c.tenant_id = d.tenant_id AND c.pipeline_id = d.pipeline_id AND c.document_id = d.document_id) AS chunks
FROM retrieval_documents d WHERE d.tenant_id = $1 AND d.pipeline_id = $2 AND d.document_id = $3
"""

HAS_VECTORS = "SELECT to_regtype('vector') IS NOT NULL"

# The best chunks by words, in one statement with those by meaning, so that both see the same documents. A query of
# nothing but stop words finds nothing: without the guard it would be the pipeline's word alone, and find everything.
# By the index of words first, whatever is searched for (OFFSET 0): of the pipeline's chunks there may be many.
BY_WORDS = """
SELECT 'words' AS ranking, f.* FROM (
  SELECT c.document_id, c.ordinal, c.body, ts_rank_cd(c.words, a.query)::float8 AS score, d.metadata
  FROM (SELECT websearch_to_tsquery($3::text::regconfig, $4::text) AS query) a
  CROSS JOIN LATERAL (
    SELECT * FROM retrieval_chunks c WHERE c.words @@ (a.query && quote_literal($5::text)::tsquery) OFFSET 0
  ) c
  JOIN retrieval_documents d
    ON d.tenant_id = c.tenant_id AND d.pipeline_id = c.pipeline_id AND d.document_id = c.document_id
  WHERE c.tenant_id = $1 AND c.pipeline_id = $2 AND numnode(a.query) > 0
    AND ($6::jsonb IS NULL OR d.metadata @> $6::jsonb)
  ORDER BY score DESC, c.document_id, c.ordinal LIMIT $7
) f
"""
# Exact: the chunks of one pipeline are compared one by one. An approximate index over all tenants would be asked for
# the nearest of anybody's, and could leave a small tenant with none.
BY_MEANING = """
SELECT 'meaning' AS ranking, f.* FROM (
  SELECT c.document_id, c.ordinal, c.body, -(c.embedding::vector <#> $8::real[]::vector)::float8 AS score, d.metadata
  FROM retrieval_chunks c
  JOIN retrieval_documents d
    ON d.tenant_id = c.tenant_id AND d.pipeline_id = c.pipeline_id AND d.document_id = c.document_id
  WHERE c.tenant_id = $1 AND c.pipeline_id = $2 AND c.embedding IS NOT NULL
    AND ($6::jsonb IS NULL OR d.metadata @> $6::jsonb)
  ORDER BY score DESC, c.document_id, c.ordinal LIMIT $7
) f
"""
# Without a query the ranking by words is empty.
BY_BOTH = f"({BY_WORDS}) UNION ALL ({BY_MEANING})"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, with its embedding (of length 1) where it has one."""

    document_id: str
    ordinal: int
    body: str
    embedding: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search has found."""

    document_id: str
    ordinal: int
    body: str
    score: float
    metadata: Mapping[str, object]


async def insert_pipeline(
    session: WriteSession,
    tenant_id: UUID,
    pipeline_id: UUID,
    *,
    name: str,
    language: str,
    embedding_dim: int | None,
    chunk_size: int,
    chunk_overlap: int,
) -> Row:
    """A new pipeline."""
    row: Row = await session.driver.fetchrow(
        INSERT, tenant_id, pipeline_id, name, language, embedding_dim, chunk_size, chunk_overlap
    )
    return row


async def find_pipeline(session: ReadSession, tenant_id: UUID, pipeline_id: UUID) -> Row | None:
    """A pipeline of the tenant."""
    row: Row | None = await session.driver.fetchrow(ONE, tenant_id, pipeline_id)
    return row


async def page_of_pipelines(session: ReadSession, tenant_id: UUID, after: UUID | None, limit: int) -> Sequence[Row]:
    """Pipelines in the order in which they were made, beyond `after`."""
    rows: Sequence[Row] = await session.driver.fetch(PAGE, tenant_id, after, limit)
    return rows


async def set_pipeline_active(
    session: WriteSession, tenant_id: UUID, pipeline_id: UUID, *, is_active: bool
) -> Row | None:
    """Switch a pipeline on or off."""
    row: Row | None = await session.driver.fetchrow(SET_ACTIVE, tenant_id, pipeline_id, is_active)
    return row


async def languages(session: ReadSession) -> list[str]:
    """The languages whose words the database knows how to stem."""
    return [row["language"] for row in await session.driver.fetch(LANGUAGES)]


async def has_vectors(session: ReadSession) -> bool:
    """Whether the database can compare embeddings: whether pgvector is installed."""
    found: bool = await session.driver.fetchval(HAS_VECTORS)
    return found


async def replace_documents(
    session: WriteSession,
    tenant_id: UUID,
    pipeline: Row,
    documents: Mapping[str, tuple[str, int]],
    chunks: Sequence[Chunk],
) -> None:
    """Write documents with all their chunks in place of what there was.

    Args:
        documents: metadata (a JSON text) and the number of chunks, by id.
        chunks: of all of them.
    """
    pipeline_id = pipeline["pipeline_id"]
    metadata = [value for value, _ in documents.values()]
    counts = [count for _, count in documents.values()]
    await session.driver.execute(PUT_DOCUMENTS, tenant_id, pipeline_id, list(documents), metadata, counts)
    # Statements of their own, after the documents' rows are locked: they see what another call has just written.
    await session.driver.execute(DELETE_CHUNKS, tenant_id, pipeline_id, list(documents))
    await session.driver.execute(
        PUT_CHUNKS,
        tenant_id,
        pipeline_id,
        pipeline["language"],
        word_of(pipeline_id),
        [chunk.document_id for chunk in chunks],
        [chunk.ordinal for chunk in chunks],
        [chunk.body for chunk in chunks],
        [f"{{{','.join(map(repr, chunk.embedding))}}}" if chunk.embedding is not None else None for chunk in chunks],
    )


async def delete_document(session: WriteSession, tenant_id: UUID, pipeline_id: UUID, document_id: str) -> int | None:
    """Take a document away: how many chunks it had; None when there was none."""
    count: int | None = await session.driver.fetchval(DELETE_DOCUMENT, tenant_id, pipeline_id, document_id)
    return count


async def find_document(session: ReadSession, tenant_id: UUID, pipeline_id: UUID, document_id: str) -> Row | None:
    """A document with its chunks, in order."""
    row: Row | None = await session.driver.fetchrow(DOCUMENT, tenant_id, pipeline_id, document_id)
    return row


async def search(
    session: ReadSession,
    tenant_id: UUID,
    pipeline: Row,
    *,
    query: str | None,
    embedding: Sequence[float] | None,
    metadata: str | None,
    limit: int,
) -> list[list[Hit]]:
    """The best chunks of a pipeline, the best first: one ranking by words, one by meaning, of those that are asked for.

    Args:
        query: words, in the syntax of web searches.
        embedding: of length 1; needs pgvector.
        metadata: what a document's metadata must contain, as a JSON text.
        limit: how many of each ranking.
    """
    asked = [tenant_id, pipeline["pipeline_id"], pipeline["language"], query, word_of(pipeline["pipeline_id"])]
    if embedding is None:
        rows = await session.driver.fetch(BY_WORDS, *asked, metadata, limit)
    else:
        rows = await session.driver.fetch(BY_BOTH, *asked, metadata, limit, embedding)
    rankings: dict[str, list[Hit]] = {}
    for row in rows:
        hit = Hit(row["document_id"], row["ordinal"], row["body"], row["score"], row["metadata"])
        rankings.setdefault(row["ranking"], []).append(hit)
    for ranking in rankings.values():
        ranking.sort(key=lambda hit: (-hit.score, hit.document_id, hit.ordinal))
    return list(rankings.values())


def word_of(pipeline_id: UUID) -> str:
    """The word that stands for a pipeline in its chunks; no text has one with a colon in it."""
    return f"pipeline:{pipeline_id}"
