"""The survey: the root run spawns a child for each folder, each of those one for each file, and the sums come back.

Then the report is kept by one agent and asked about by another, both called as tools. The root either calls the
primitives itself, here, or is a graph (`graph.py`), which a graph worker executes; what it tells at last is the same.
"""

from dataclasses import dataclass

from pydantic import BaseModel, JsonValue

from service.demo.archive import QUESTIONS
from service.demo.cast import ORCHESTRATOR_SCOPES, Role, Tool
from service.demo.catalog import TOOL_TIMEOUT_S, Catalog
from service.demo.client import PATIENCE_S, Client
from service.demo.count import FolderFacts, Survey
from service.demo.groups import Orchestrator, read_runs, spawn_and_join
from service.demo.tasks import FolderOutput, Shown
from service.demo.wire import Called, DecisionPage, Run, StartedRun


@dataclass(frozen=True)
class FolderRun:
    """A folder's run, with the first of the files' runs below it."""

    run_id: str
    folder: str
    status: str
    files: int
    shown: tuple[Shown, ...]


class SurveyOutput(BaseModel):
    """What the root run gives back: the runs of the folders by name, and what the called agents brought."""

    folders: tuple[str, ...]
    kept: Called | None = None
    answers: tuple[Called | None, ...] = ()


@dataclass(frozen=True)
class SurveyResult:
    """What the agents found, by which runs; `missing` names what brought nothing.

    `surface` is the way by which the root spawned, as the decision about it has it on record.
    """

    root_run_id: str
    surface: str
    survey: Survey
    runs: tuple[FolderRun, ...]
    kept: Called | None
    answers: tuple[Called | None, ...]
    missing: tuple[str, ...]


def subjects_of(folders: dict[str, int]) -> list[str]:
    """The folders in the order in which their runs are spawned."""
    return sorted(folders)


async def start_root(
    client: Client, catalog: Catalog, role: Role, scopes: tuple[str, ...], subjects: list[str] | None = None
) -> Orchestrator:
    """Start a root run of an agent, and return the means to act as it."""
    given: dict[str, JsonValue] = {"folders": [{"subject": subject} for subject in subjects or []]}
    run = await client.post(
        f"/agents/{catalog.agents[role]}/runs", {"requested_scopes": list(scopes), "input": given}, StartedRun
    )
    return Orchestrator(client, run.run_id, run.run_token)


async def finish_run(run: Orchestrator, output: JsonValue = None) -> None:
    """Report a run that this process executes as completed."""
    body: dict[str, JsonValue] = {"status": "completed"}
    if output is not None:
        body["output"] = output
    await run.client.post(f"/agents/runs/{run.run_id}/status", body, Run, token=run.token)


async def orchestrate(root: Orchestrator, subjects: list[str], pipeline_id: str) -> None:
    """Be the orchestrator: spawn, wait, have the report kept, ask about it, and tell."""
    run_ids = await spawn_and_join(root, Role.FOLDER, "folders", subjects, ORCHESTRATOR_SCOPES)
    kept = await call_tool(root, Tool.KEEP, "keep", {"pipeline_id": pipeline_id, "runs": list(run_ids)})
    answers = [
        await call_tool(root, Tool.ASK, f"ask-{number}", {"question": question.text, "query": question.query})
        for number, question in enumerate(QUESTIONS, 1)
    ]
    output = SurveyOutput(folders=tuple(run_ids), kept=kept, answers=tuple(answers))
    await finish_run(root, output.model_dump(mode="json"))


async def call_tool(caller: Orchestrator, tool: Tool, key: str, given: dict[str, JsonValue]) -> Called:
    """Call an agent as a function, and wait for its answer."""
    return await caller.client.post(
        f"/tools/{tool}/invoke",
        {"caller_run_id": caller.run_id, "input": given, "idempotency_key": key},
        Called,
        token=caller.token,
        patience_s=TOOL_TIMEOUT_S + PATIENCE_S,
    )


async def wait_for_end(root: Orchestrator) -> None:
    """Wait for a run that somebody else executes, and all below it."""
    await root.client.follow(f"/agents/runs/{root.run_id}/events", token=root.token)


async def read_result(root: Orchestrator, subjects: list[str]) -> SurveyResult:
    """Read what a survey that has ended has brought, and add it up."""
    run = await root.client.get(f"/agents/runs/{root.run_id}", Run, token=root.token)
    missing: list[str] = []
    if run.status == "completed":
        output = SurveyOutput.model_validate(run.output)
    else:
        output = SurveyOutput(folders=())
        missing.append(f"the survey itself ({run.status}: {run.error})")
    runs: list[FolderRun] = []
    facts: list[FolderFacts] = []
    for folder, child in zip(subjects, await read_runs(root.client, output.folders, token=root.token), strict=False):
        if child.status != "completed":
            missing.append(f"{folder} ({child.status}: {child.error})")
            continue
        found = FolderOutput.model_validate(child.output)
        facts.append(found.facts)
        missing.extend(found.missing)
        runs.append(FolderRun(child.run_id, folder, child.status, found.facts.totals.files, found.shown))
    return SurveyResult(
        root_run_id=root.run_id,
        surface=await _surface_of(root),
        survey=Survey.of(facts),
        runs=tuple(runs),
        kept=output.kept,
        answers=output.answers,
        missing=tuple(missing),
    )


async def _surface_of(root: Orchestrator) -> str:
    """The surface of what the root decided to do, by the records; the tenant's own token reads them."""
    page = await root.client.get(f"/policies/decisions?run={root.run_id}&action=agent_call", DecisionPage)
    return ", ".join(sorted({item.surface for item in page.items if item.caller_run_id == root.run_id}))


def differences(reported: Survey, counted: Survey) -> list[str]:
    """Where the agents' figures are not those of the direct count; empty when all are equal."""
    mine = {f.folder: f for f in reported.folders}
    theirs = {f.folder: f for f in counted.folders}
    found = [
        f"folder {folder}: {_what_differs(mine.get(folder), theirs.get(folder))}"
        for folder in sorted({*mine, *theirs})
        if mine.get(folder) != theirs.get(folder)
    ]
    if reported.total != counted.total and not found:
        found.append("the folders' figures are right, and their sum is not")
    return found


def _what_differs(reported: FolderFacts | None, counted: FolderFacts | None) -> str:
    if reported is None:
        return "the agents report nothing"
    if counted is None:
        return "the direct count finds nothing"
    mine, theirs = reported.totals.model_dump(mode="json"), counted.totals.model_dump(mode="json")
    figures = [f"{name} {mine[name]}, counted {theirs[name]}" for name in mine if mine[name] != theirs[name]]
    return "reported " + ("; ".join(figures) or "other odd files than counted")
