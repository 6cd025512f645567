"""What the demo's agents do with a run: survey a folder, analyse a file, work slowly."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, JsonValue

from service.demo.catalog import READ_SCOPE, Role
from service.demo.client import Client
from service.demo.count import FileFacts, FolderFacts, analyse_file, list_files
from service.demo.groups import Orchestrator, spawn_and_join
from service.demo.journal import Journal

_FILES_SHOWN = 3
_ROUNDS = 20_000
# A slow agent mostly waits for a model or a tool; this is that wait.
_TOOL_LATENCY_S = 0.05


class Subject(BaseModel):
    """What a run of the survey is about: a folder or a file, by its wire name."""

    subject: str


class SlowWork(BaseModel):
    """How long a slow run works if nobody stops it."""

    steps: int


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

    async def work_slowly(assignment: Assignment) -> JsonValue:
        return await _work_slowly(workplace, assignment)

    return {Role.FOLDER: survey_folder, Role.FILE: analyse, Role.SLOW: work_slowly}


async def _survey_folder(workplace: Workplace, assignment: Assignment) -> JsonValue:
    folder = Subject.model_validate(assignment.input).subject
    loop = asyncio.get_running_loop()
    files = await loop.run_in_executor(workplace.parsing, lambda: list(list_files(workplace.root, folder)))
    caller = Orchestrator(workplace.client, assignment.run_id, assignment.token)
    children = await spawn_and_join(caller, Role.FILE, "files", files, [READ_SCOPE])
    done = [child for child in children if child.run.status == "completed"]
    output = FolderOutput(
        facts=FolderFacts.of(folder, (FileFacts.model_validate(child.run.output) for child in done)),
        shown=tuple(
            Shown(run_id=child.run.run_id, path=child.subject, status=child.run.status)
            for child in children[:_FILES_SHOWN]
        ),
        missing=tuple(child.subject for child in children if child not in done)[:_FILES_SHOWN],
    )
    return output.model_dump(mode="json")


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
