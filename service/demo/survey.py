"""The survey: the root run spawns a child for each folder, each of those one for each file, and the sums come back."""

from dataclasses import dataclass

from service.demo.catalog import READ_SCOPE, SPAWN_SCOPE, Catalog, Role
from service.demo.client import Client
from service.demo.count import FolderFacts, Survey
from service.demo.groups import Orchestrator, spawn_and_join
from service.demo.tasks import FolderOutput, Shown
from service.demo.wire import Run, StartedRun

SURVEY_SCOPES = (SPAWN_SCOPE, READ_SCOPE)


@dataclass(frozen=True)
class FolderRun:
    """A folder's run, with the first of the files' runs below it."""

    run_id: str
    folder: str
    status: str
    files: int
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class SurveyResult:
    """What the agents found, by which runs; `missing` names what brought nothing."""

    root_run_id: str
    survey: Survey
    runs: tuple[FolderRun, ...]
    missing: tuple[str, ...]


async def start_root(client: Client, catalog: Catalog, role: Role, scopes: tuple[str, ...]) -> Orchestrator:
    """Start a root run of an agent, and return the means to act as it."""
    run = await client.post(
        f"/agents/{catalog.agents[role]}/runs", {"requested_scopes": list(scopes), "input": {}}, StartedRun
    )
    return Orchestrator(client, run.run_id, run.run_token)


async def finish_run(run: Orchestrator) -> None:
    """Report a run that this process executes as completed."""
    await run.client.post(f"/agents/runs/{run.run_id}/status", {"status": "completed"}, Run, token=run.token)


async def survey_folders(root: Orchestrator, folders: dict[str, int]) -> SurveyResult:
    """Be the orchestrator: spawn, wait, add up."""
    children = await spawn_and_join(root, Role.FOLDER, "folders", sorted(folders), list(SURVEY_SCOPES))
    runs: list[FolderRun] = []
    facts: list[FolderFacts] = []
    missing: list[str] = []
    for child in children:
        if child.run.status != "completed":
            missing.append(f"{child.subject} ({child.run.status}: {child.run.error})")
            continue
        output = FolderOutput.model_validate(child.run.output)
        facts.append(output.facts)
        missing.extend(output.missing)
        runs.append(
            FolderRun(child.run.run_id, child.subject, child.run.status, output.facts.totals.files, output.shown)
        )
    await finish_run(root)
    return SurveyResult(root.run_id, Survey.of(facts), tuple(runs), tuple(missing))


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
