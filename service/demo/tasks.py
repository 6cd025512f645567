"""What the demo's agents do with a run: survey a folder or a file, keep a report, answer a question, work slowly."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, JsonValue

from service.demo.archive import documents_of
from service.demo.cast import READ_SCOPE, Role, Tool
from service.demo.client import Client
from service.demo.count import FileFacts, FolderFacts, Survey, analyse_file, list_files
from service.demo.groups import Orchestrator, read_runs, spawn_and_join
from service.demo.journal import Journal
from service.demo.wire import Passage, Retrieved

_FILES_SHOWN = 3
# Below the number that one call may carry, and half of the largest body that the service takes.
_DOCUMENTS_AT_ONCE = 250
_ROUNDS = 20_000
# A slow agent mostly waits for a model or a tool; this is that wait.
_TOOL_LATENCY_S = 0.05


class Subject(BaseModel):
    """What a run of the survey is about: a folder or a file, by its wire name."""

    subject: str


class SlowWork(BaseModel):
    """How long a slow run works if nobody stops it."""

    steps: int


class Report(BaseModel):
    """What is to be kept: the report that the runs of folders have brought, and where."""

    pipeline_id: str
    runs: tuple[str, ...]


class KeptReport(BaseModel):
    """How many documents were written."""

    documents: int


class Asked(BaseModel):
    """A question, and the words to look for."""

    question: str
    query: str


class Answered(BaseModel):
    """What was found, the best first, and how long the search took."""

    query: str
    passages: tuple[Passage, ...]
    took_ms: float


class Shown(BaseModel):
    """A file's run, for the abbreviated tree."""

    run_id: str
    path: str
    status: str


class FolderOutput(BaseModel):
    """What a folder's run reports: the sums, a few of its children, and the children that brought nothing."""

    facts: FolderFacts
    shown: tuple[Shown, ...]
    missing: tuple[str, ...]


class Assignment(Protocol):
    """A run in a worker's hands."""

    @property
    def run_id(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def input(self) -> dict[str, JsonValue]: ...

    async def complete_late(self) -> tuple[int, str]:
        """Try to complete a run although it was told to stop; the HTTP status and code of the answer."""


Task = Callable[[Assignment], Awaitable[JsonValue]]


@dataclass(frozen=True)
class Workplace:
    """What the tasks of one worker process share; parsing has one thread, beside the loop that sends heartbeats."""

    client: Client
    root: Path
    journals: Path
    parsing: Executor


def tasks_at(workplace: Workplace) -> dict[Role, Task]:
    """The agents that a worker can be."""

    async def survey_folder(assignment: Assignment) -> JsonValue:
        return await _survey_folder(workplace, assignment)

    async def analyse(assignment: Assignment) -> JsonValue:
        return await _analyse(workplace, assignment)

    async def keep_report(assignment: Assignment) -> JsonValue:
        return await _keep_report(workplace, assignment)

    async def answer(assignment: Assignment) -> JsonValue:
        return await _answer(workplace, assignment)

    async def work_slowly(assignment: Assignment) -> JsonValue:
        return await _work_slowly(workplace, assignment)

    return {
        Role.FOLDER: survey_folder,
        Role.FILE: analyse,
        Role.LIBRARIAN: keep_report,
        Role.ANALYST: answer,
        Role.SLOW: work_slowly,
    }


async def _survey_folder(workplace: Workplace, assignment: Assignment) -> JsonValue:
    folder = Subject.model_validate(assignment.input).subject
    loop = asyncio.get_running_loop()
    files = await loop.run_in_executor(workplace.parsing, lambda: list(list_files(workplace.root, folder)))
    caller = Orchestrator(workplace.client, assignment.run_id, assignment.token)
    run_ids = await spawn_and_join(caller, Role.FILE, "files", files, [READ_SCOPE])
    children = list(zip(files, await read_runs(caller.client, run_ids, token=caller.token), strict=True))
    output = FolderOutput(
        facts=FolderFacts.of(
            folder, (FileFacts.model_validate(run.output) for _, run in children if run.status == "completed")
        ),
        shown=tuple(Shown(run_id=run.run_id, path=path, status=run.status) for path, run in children[:_FILES_SHOWN]),
        missing=tuple(path for path, run in children if run.status != "completed")[:_FILES_SHOWN],
    )
    return output.model_dump(mode="json")


async def _keep_report(workplace: Workplace, assignment: Assignment) -> JsonValue:
    """Write the report into a pipeline, with the run's own token: it holds the scope for that, and no other."""
    report = Report.model_validate(assignment.input)
    # The runs of folders are not below this one; its worker may read any run that it could have worked on.
    runs = await read_runs(workplace.client, report.runs)
    survey = Survey.of(FolderOutput.model_validate(run.output).facts for run in runs if run.status == "completed")
    documents = documents_of(survey)
    for start in range(0, len(documents), _DOCUMENTS_AT_ONCE):
        written: list[JsonValue] = [
            one.model_dump(mode="json") for one in documents[start : start + _DOCUMENTS_AT_ONCE]
        ]
        path = f"/retrieval/pipelines/{report.pipeline_id}/documents"
        await workplace.client.put(path, {"documents": written}, token=assignment.token)
    return KeptReport(documents=len(documents)).model_dump(mode="json")


async def _answer(workplace: Workplace, assignment: Assignment) -> JsonValue:
    """Look up what was asked, by a tool that is called as this run."""
    asked = Asked.model_validate(assignment.input)
    found = await workplace.client.post(
        f"/tools/{Tool.SEARCH}/invoke",
        {"caller_run_id": assignment.run_id, "input": {"query": asked.query}},
        Retrieved,
        token=assignment.token,
    )
    answered = Answered(query=asked.query, passages=found.results, took_ms=found.took_ms)
    return answered.model_dump(mode="json")


async def _analyse(workplace: Workplace, assignment: Assignment) -> JsonValue:
    path = Subject.model_validate(assignment.input).subject
    loop = asyncio.get_running_loop()
    facts = await loop.run_in_executor(workplace.parsing, analyse_file, workplace.root, path)
    return facts.model_dump(mode="json")


async def _work_slowly(workplace: Workplace, assignment: Assignment) -> JsonValue:
    """Work step by step, writing each down; told to stop, stop, and then try to complete all the same.

    A well-behaved agent would not try. This one does, so that the refusal can be seen.
    """
    steps = SlowWork.model_validate(assignment.input).steps
    journal = Journal(workplace.journals, assignment.run_id)
    loop = asyncio.get_running_loop()
    digest = assignment.run_id.encode()
    try:
        for _ in range(steps):
            digest = await loop.run_in_executor(
                workplace.parsing, hashlib.pbkdf2_hmac, "sha256", digest, b"slow", _ROUNDS
            )
            await asyncio.sleep(_TOOL_LATENCY_S)
            journal.step()
    except asyncio.CancelledError:
        journal.told()
        journal.late(*await assignment.complete_late())
        raise
    return {"steps": steps, "digest": digest.hex()}
