"""A tenant's retrieval pipelines, and the documents in them."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson
from asyncpg import exceptions as pg

from kernel.domain.errors import InvalidRequestError, NotFoundError
from kernel.identifiers import new_id
from kernel.store import retrieval
from kernel.store.engine import Database
from kernel.store.retrieval import Chunk
from kernel.tools.chunking import MAX_OVERLAP_PART, cut

Row = Mapping[str, Any]

MAX_CHUNKS = 2_000
MAX_CHUNKS_AT_ONCE = 20_000
# Each passage of an answer has its document's metadata with it.
MAX_METADATA_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class NewPipeline:
    """A pipeline. `language` is a text search configuration of the database; without `embedding_dim`, words only."""

    name: str
    language: str
    embedding_dim: int | None
    chunk_size: int
    chunk_overlap: int


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document, with no embeddings or one for each of its chunks.

    Args:
        alone: whether the embedding was given as the only one there can be.
        place: where the document stands in the request.
    """

    document_id: str
    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    embeddings: Sequence[Sequence[float]] | None = None
    alone: bool = False
    place: str = ""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as it stands; `modes` are the ways in which it can be searched in this database."""

    row: Row
    modes: Sequence[str]


class Pipelines:
    """Pipelines and their documents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, tenant_id: UUID, new: NewPipeline) -> Pipeline:
        """Make a pipeline.

        Raises:
            InvalidRequestError: for a language that the database does not know, or an overlap that is too large.
        """
        most = new.chunk_size // MAX_OVERLAP_PART
        if new.chunk_overlap > most:
            raise InvalidRequestError(
                f"chunk.overlap: at most a quarter of chunk.size: limit {most}, observed {new.chunk_overlap}",
                field="chunk.overlap",
            )
        try:
            async with self._database.write() as session:
                known = await retrieval.languages(session)
                if new.language not in known:
                    raise InvalidRequestError(
                        f"language: {new.language!r} is none of {', '.join(known)}", field="language"
                    )
                row = await retrieval.insert_pipeline(
                    session,
                    tenant_id,
                    new_id(),
                    name=new.name,
                    language=new.language,
                    embedding_dim=new.embedding_dim,
                    chunk_size=new.chunk_size,
                    chunk_overlap=new.chunk_overlap,
                )
                return Pipeline(row, _modes(row, vectors=await retrieval.has_vectors(session)))
        except pg.ForeignKeyViolationError as error:
            raise NotFoundError(f"X-Tenant-ID: there is no tenant {tenant_id}") from error

    async def set_active(self, tenant_id: UUID, pipeline_id: UUID, *, is_active: bool | None) -> Pipeline:
        """Switch a pipeline on or off (None leaves it as it is). One that is off is not searched."""
        async with self._database.write() as session:
            if is_active is None:
                row = await retrieval.find_pipeline(session, tenant_id, pipeline_id)
            else:
                row = await retrieval.set_pipeline_active(session, tenant_id, pipeline_id, is_active=is_active)
            found = _found(row, pipeline_id)
            return Pipeline(found, _modes(found, vectors=await retrieval.has_vectors(session)))

    async def get(self, tenant_id: UUID, pipeline_id: UUID) -> Pipeline:
        """A pipeline."""
        return await self.set_active(tenant_id, pipeline_id, is_active=None)

    async def page(self, tenant_id: UUID, after: UUID | None, limit: int) -> tuple[Sequence[Pipeline], UUID | None]:
        """A page of pipelines, and the id to go on after."""
        async with self._database.read() as session:
            rows = await retrieval.page_of_pipelines(session, tenant_id, after, limit + 1)
            vectors = await retrieval.has_vectors(session)
        pipelines = [Pipeline(row, _modes(row, vectors=vectors)) for row in rows[:limit]]
        return pipelines, rows[limit - 1]["pipeline_id"] if len(rows) > limit else None

    async def put(self, tenant_id: UUID, pipeline_id: UUID, documents: Sequence[NewDocument]) -> Mapping[str, int]:
        """Write documents, each with all its chunks in place of what there was, all of them or none.

        Returns:
            How many chunks each has.

        Raises:
            NotFoundError: when the tenant has no such pipeline.
            InvalidRequestError: for a text without content or of too many chunks, metadata that are too large, or
                embeddings that do not fit.
        """
        async with self._database.read() as session:
            pipeline = _found(await retrieval.find_pipeline(session, tenant_id, pipeline_id), pipeline_id)
        chunks: list[Chunk] = []
        written: dict[str, tuple[str, int]] = {}
        for document in documents:
            if document.document_id in written:
                raise InvalidRequestError(
                    f"{document.place}document_id: {document.document_id!r} is there twice",
                    field=f"{document.place}document_id",
                )
            made = _chunks(document, pipeline)
            written[document.document_id] = (_metadata(document), len(made))
            chunks.extend(made)
        if len(chunks) > MAX_CHUNKS_AT_ONCE:
            raise InvalidRequestError(
                f"documents: at most {MAX_CHUNKS_AT_ONCE} chunks at once; observed {len(chunks)}", field="documents"
            )
        async with self._database.write() as session:
            await retrieval.replace_documents(session, tenant_id, pipeline, written, chunks)
        return {document_id: count for document_id, (_, count) in written.items()}

    async def get_document(self, tenant_id: UUID, pipeline_id: UUID, document_id: str) -> Row:
        """A document with its chunks."""
        async with self._database.read() as session:
            _found(await retrieval.find_pipeline(session, tenant_id, pipeline_id), pipeline_id)
            row = await retrieval.find_document(session, tenant_id, pipeline_id, document_id)
        if row is None:
            raise NotFoundError(f"there is no document {document_id!r} in pipeline {pipeline_id}")
        return row

    async def delete(self, tenant_id: UUID, pipeline_id: UUID, document_id: str) -> int:
        """Take a document away; no search that begins after this finds it.

        Returns:
            How many chunks it had.
        """
        async with self._database.write() as session:
            _found(await retrieval.find_pipeline(session, tenant_id, pipeline_id), pipeline_id)
            count = await retrieval.delete_document(session, tenant_id, pipeline_id, document_id)
        if count is None:
            raise NotFoundError(f"there is no document {document_id!r} in pipeline {pipeline_id}")
        return count


def unit(embedding: Sequence[float], dimension: int | None, *, where: str) -> list[float]:
    """An embedding at length 1, in single precision.

    Raises:
        InvalidRequestError: when it is not of the pipeline's dimension, or has no direction.
    """
    if dimension is None:
        raise InvalidRequestError(f"{where}: the pipeline was made without embedding_dim, and takes none", field=where)
    if len(embedding) != dimension:
        raise InvalidRequestError(
            f"{where}: the pipeline's embedding_dim is {dimension}; observed {len(embedding)}", field=where
        )
    # By the largest first, so that neither what is huge nor what is tiny leaves the range of numbers.
    largest = max(map(abs, embedding))
    if not largest:
        raise InvalidRequestError(f"{where}: it has no direction; its length is 0", field=where)
    scaled = [value / largest for value in embedding]
    length = math.hypot(*scaled)
    return list(array("f", (value / length for value in scaled)))


def _chunks(document: NewDocument, pipeline: Row) -> list[Chunk]:
    at = document.place
    if not document.text.strip():
        raise InvalidRequestError(f"{at}text: it has no content", field=f"{at}text")
    bodies = cut(document.text, size=pipeline["chunk_size"], overlap=pipeline["chunk_overlap"])
    if len(bodies) > MAX_CHUNKS:
        raise InvalidRequestError(
            f"{at}text: at most {MAX_CHUNKS} chunks a document; observed {len(bodies)}", field=f"{at}text"
        )
    given = document.embeddings
    field = f"{at}embedding" if document.alone else f"{at}embeddings"
    if given is not None and len(given) != len(bodies):
        raise InvalidRequestError(
            f"{field}: one for each chunk; the text makes {len(bodies)}, observed {len(given)}", field=field
        )
    return [
        Chunk(
            document.document_id,
            ordinal,
            body,
            unit(given[ordinal], pipeline["embedding_dim"], where=field if document.alone else f"{field}[{ordinal}]")
            if given
            else None,
        )
        for ordinal, body in enumerate(bodies)
    ]


def _metadata(document: NewDocument) -> str:
    written = orjson.dumps(document.metadata)
    if len(written) > MAX_METADATA_BYTES:
        field = f"{document.place}metadata"
        raise InvalidRequestError(f"{field}: at most {MAX_METADATA_BYTES} bytes; observed {len(written)}", field=field)
    return written.decode()


def _modes(row: Row, *, vectors: bool) -> Sequence[str]:
    return ("text", "vector", "hybrid") if vectors and row["embedding_dim"] is not None else ("text",)


def _found(row: Row | None, pipeline_id: UUID) -> Row:
    if row is None:
        raise NotFoundError(f"there is no pipeline {pipeline_id}")
    return row
