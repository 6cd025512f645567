"""rag_retrieval: what a pipeline's documents have to say to a query."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from uuid import UUID

import orjson

from kernel.commands import asking
from kernel.commands.spawning.refusals import count_decisions
from kernel.domain.errors import InvalidRequestError, NotFoundError
from kernel.domain.principal import Principal
from kernel.policy import records
from kernel.policy.contract import Action, RequestFacts, RetrievalFacts
from kernel.store import decisions, retrieval
from kernel.store.retrieval import Hit
from kernel.tools.configs import RagRetrievalConfig, RetrievalInput, check
from kernel.tools.fusion import fuse
from kernel.tools.parts import ToolCall, ToolParts
from kernel.tools.pipelines import unit

Row = Mapping[str, Any]

# How deep each ranking is read before they are merged.
DEPTH = 200


@dataclass(frozen=True, slots=True)
class Found:
    """The best chunks, the best first. `took_ms` is what the search itself took."""

    pipeline_id: UUID
    hits: list[Hit]
    took_ms: float

    def answer(self) -> dict[str, object]:
        """The answer as the wire shows it."""
        results = [
            {
                "document_id": hit.document_id,
                "chunk": hit.ordinal,
                "text": hit.body,
                "score": hit.score,
                "metadata": hit.metadata,
            }
            for hit in self.hits
        ]
        return {"results": results, "pipeline_id": str(self.pipeline_id), "took_ms": self.took_ms}


async def retrieve(parts: ToolParts, principal: Principal, call: ToolCall, config: RagRetrievalConfig) -> Found:
    """Search a pipeline on behalf of a run.

    Raises:
        InvalidRequestError: for an input that asks for nothing, or for what the pipeline cannot do.
        NotFoundError: when the tenant has no such pipeline any more.
        PolicyDeniedError: as for a pipeline that is not active.
        RunCancelledError, CallerNotActiveError: when the caller has ended.
    """
    asked = check(RetrievalInput, call.input, where="input")
    async with parts.database.read() as session:
        standing = await asking.subject_facts(
            session, principal, call.caller_run_id, caller_run_id=call.caller_run_id, field="caller_run_id"
        )
        await asking.check_caller_active(session, standing, Action.RETRIEVE)
        pipeline = await retrieval.find_pipeline(session, principal.tenant, config.pipeline_id)
        vectors = asked.embedding is not None and await retrieval.has_vectors(session)
    if pipeline is None:
        raise NotFoundError(f"config.pipeline_id: there is no pipeline {config.pipeline_id}")
    mode = asked.effective_mode
    embedding = None
    if mode != "text" and asked.embedding is not None:
        embedding = unit(asked.embedding, pipeline["embedding_dim"], where="input.embedding")
        if not vectors:
            raise InvalidRequestError(
                f"input.mode: {mode} needs pgvector, which this database does not have; text works", field="input.mode"
            )
    question = asking.question(
        standing, principal, Action.RETRIEVE, call.surface, request=RequestFacts(count=0)
    ).model_copy(update={"retrieval": RetrievalFacts(pipeline_id=config.pipeline_id, is_active=pipeline["is_active"])})
    evaluated = await asking.ask(parts.database, parts.engine, question)
    if not evaluated.decision.allow:
        raise await asking.refuse(parts.database, question, evaluated)
    record = records.record(question, evaluated)
    async with parts.database.write() as session:
        await decisions.append(session, record)
    count_decisions([record])
    top_k = asked.top_k or config.top_k
    started = perf_counter()
    async with parts.database.read() as session:
        rankings = await retrieval.search(
            session,
            principal.tenant,
            pipeline,
            query=asked.query if mode != "vector" else None,
            embedding=embedding,
            metadata=orjson.dumps(asked.filter).decode() if asked.filter is not None else None,
            limit=max(DEPTH, top_k) if mode == "hybrid" else top_k,
        )
    hits = _merged(rankings) if mode == "hybrid" else [hit for ranking in rankings for hit in ranking]
    return Found(config.pipeline_id, hits[:top_k], round((perf_counter() - started) * 1000, 3))


def _merged(rankings: list[list[Hit]]) -> list[Hit]:
    by_place = {(hit.document_id, hit.ordinal): hit for ranking in rankings for hit in ranking}
    fused = fuse([[(hit.document_id, hit.ordinal) for hit in ranking] for ranking in rankings])
    return [
        Hit(hit.document_id, hit.ordinal, hit.body, score, hit.metadata)
        for place, score in fused
        for hit in (by_place[place],)
    ]
