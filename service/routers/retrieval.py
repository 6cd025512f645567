"""Retrieval pipelines, and the documents in them."""

from typing import Annotated, Self
from uuid import UUID

from fastapi import Path, Query
from pydantic import Field, StrictBool, StringConstraints, model_validator

from kernel.tools.chunking import DEFAULT_OVERLAP, DEFAULT_SIZE, MAX_SIZE, MIN_SIZE
from kernel.tools.configs import MAX_DIMENSION, Embedding
from kernel.tools.pipelines import NewDocument, NewPipeline, Pipeline, Pipelines
from service.dependencies import CatalogDep, DocumentsDep, ServicesDep
from service.wire import Answer, Body, Json, JsonObject, Name, Text, make_router

router = make_router("retrieval")

MAX_DOCUMENTS = 1_000

DocumentId = Annotated[Text, StringConstraints(min_length=1, max_length=500)]
DocumentPath = Annotated[DocumentId, Path(description="The caller's own id; it may have slashes.")]
Dimension = Annotated[int, Field(ge=1, le=MAX_DIMENSION)]


class Chunking(Body):
    """How documents are cut, in characters: pieces of at most `size`, each repeating up to `overlap` of the last."""

    size: int = Field(DEFAULT_SIZE, ge=MIN_SIZE, le=MAX_SIZE)
    overlap: int | None = Field(None, ge=0, description="At most a quarter of the size; by default a tenth.")


class NewPipelineBody(Body):
    """A pipeline to be made. `language` is a text search configuration; without `embedding_dim` it takes no vectors."""

    name: Name
    language: Annotated[Text, StringConstraints(min_length=1, max_length=63)] = "english"
    embedding_dim: Dimension | None = None
    chunk: Chunking = Chunking()


class PipelineChange(Body):
    """Whether the pipeline can be searched."""

    is_active: StrictBool


class ChunkingAnswer(Answer):
    """How documents are cut."""

    size: int
    overlap: int


class PipelineAnswer(Answer):
    """A pipeline. `modes` are the ways to search it: `text`, and with pgvector and a dimension `vector`, `hybrid`."""

    pipeline_id: UUID
    name: str
    language: str
    embedding_dim: int | None
    chunk: ChunkingAnswer
    is_active: bool
    modes: list[str]
    created_at: str
    updated_at: str


class PipelinePage(Answer):
    """A page of pipelines; `next_cursor` goes on after it, null at the end."""

    items: list[PipelineAnswer]
    next_cursor: str | None


class DocumentBody(Body):
    """A document. Of the embeddings at most one of the two: `embedding` where the text makes one chunk."""

    text: Annotated[Text, StringConstraints(min_length=1)]
    metadata: JsonObject = Field(default_factory=dict)
    embedding: Embedding | None = None
    embeddings: Annotated[tuple[Embedding, ...], Field(min_length=1)] | None = Field(
        None, description="One for each chunk, in order; reading the document shows its chunks."
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if self.embedding is not None and self.embeddings is not None:
            raise ValueError("at most one of embedding and embeddings is taken")
        return self

    def document(self, document_id: str, place: str = "") -> NewDocument:
        """The document as the kernel knows it."""
        embeddings = self.embeddings if self.embedding is None else (self.embedding,)
        alone = self.embedding is not None
        return NewDocument(document_id, self.text, self.metadata, embeddings, alone=alone, place=place)


class NamedDocumentBody(DocumentBody):
    """A document, with its id."""

    document_id: DocumentId


class DocumentsBody(Body):
    """Documents to be written, all of them or none."""

    documents: Annotated[tuple[NamedDocumentBody, ...], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class DocumentAnswer(Answer):
    """A document that was written, or taken away, with how many chunks."""

    document_id: str
    chunks: int


class DocumentsAnswer(Answer):
    """The documents that were written."""

    documents: list[DocumentAnswer]


class ChunkAnswer(Answer):
    """A piece of a document, and whether it has an embedding."""

    chunk: int
    text: str
    embedded: bool


class DocumentWithChunks(Answer):
    """A document as it is searched."""

    document_id: str
    metadata: dict[str, object]
    chunks: list[ChunkAnswer]
    created_at: str
    updated_at: str


@router.post("/retrieval/pipelines", status_code=201, response_model=PipelineAnswer)
async def make_pipeline(body: NewPipelineBody, principal: CatalogDep, services: ServicesDep) -> Json:
    """Make a pipeline."""
    overlap = body.chunk.overlap
    made = await Pipelines(services.database).make(
        principal.tenant,
        NewPipeline(
            name=body.name,
            language=body.language,
            embedding_dim=body.embedding_dim,
            chunk_size=body.chunk.size,
            chunk_overlap=overlap if overlap is not None else body.chunk.size * DEFAULT_OVERLAP // DEFAULT_SIZE,
        ),
    )
    return Json(_render(made), 201)


@router.get("/retrieval/pipelines", response_model=PipelinePage)
async def list_pipelines(
    principal: CatalogDep,
    services: ServicesDep,
    cursor: Annotated[UUID | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Json:
    """The tenant's pipelines, oldest first."""
    pipelines, following = await Pipelines(services.database).page(principal.tenant, cursor, limit)
    return Json({"items": [_render(pipeline) for pipeline in pipelines], "next_cursor": following})


@router.get("/retrieval/pipelines/{pipeline_id}", response_model=PipelineAnswer)
async def read_pipeline(pipeline_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """A pipeline."""
    return Json(_render(await Pipelines(services.database).get(principal.tenant, pipeline_id)))


@router.patch("/retrieval/pipelines/{pipeline_id}", response_model=PipelineAnswer)
async def change_pipeline(
    pipeline_id: UUID, body: PipelineChange, principal: CatalogDep, services: ServicesDep
) -> Json:
    """Switch a pipeline on or off. One that is off is not searched; documents can be put into it."""
    pipelines = Pipelines(services.database)
    return Json(_render(await pipelines.set_active(principal.tenant, pipeline_id, is_active=body.is_active)))


@router.put("/retrieval/pipelines/{pipeline_id}/documents", response_model=DocumentsAnswer)
async def put_documents(pipeline_id: UUID, body: DocumentsBody, principal: DocumentsDep, services: ServicesDep) -> Json:
    """Write up to 1,000 documents, each in place of what it was, all of them or none."""
    documents = [item.document(item.document_id, f"documents[{n}].") for n, item in enumerate(body.documents)]
    written = await Pipelines(services.database).put(principal.tenant, pipeline_id, documents)
    return Json({"documents": [{"document_id": name, "chunks": count} for name, count in written.items()]})


@router.put("/retrieval/pipelines/{pipeline_id}/documents/{document_id:path}", response_model=DocumentAnswer)
async def put_document(
    pipeline_id: UUID, document_id: DocumentPath, body: DocumentBody, principal: DocumentsDep, services: ServicesDep
) -> Json:
    """Write a document in place of what it was; every search sees either the one or the other."""
    document = body.document(document_id)
    written = await Pipelines(services.database).put(principal.tenant, pipeline_id, [document])
    return Json({"document_id": document_id, "chunks": written[document_id]})


@router.get("/retrieval/pipelines/{pipeline_id}/documents/{document_id:path}", response_model=DocumentWithChunks)
async def read_document(
    pipeline_id: UUID, document_id: DocumentPath, principal: DocumentsDep, services: ServicesDep
) -> Json:
    """A document with its chunks, as embeddings are made of them."""
    row = await Pipelines(services.database).get_document(principal.tenant, pipeline_id, document_id)
    return Json({name: row[name] for name in DocumentWithChunks.model_fields})


@router.delete("/retrieval/pipelines/{pipeline_id}/documents/{document_id:path}", response_model=DocumentAnswer)
async def delete_document(
    pipeline_id: UUID, document_id: DocumentPath, principal: DocumentsDep, services: ServicesDep
) -> Json:
    """Take a document away. No search finds it from now on."""
    count = await Pipelines(services.database).delete(principal.tenant, pipeline_id, document_id)
    return Json({"document_id": document_id, "chunks": count})


def _render(pipeline: Pipeline) -> dict[str, object]:
    row = pipeline.row
    own = {name: row[name] for name in PipelineAnswer.model_fields if name not in {"chunk", "modes"}}
    return {
        **own,
        "chunk": {"size": row["chunk_size"], "overlap": row["chunk_overlap"]},
        "modes": list(pipeline.modes),
    }
