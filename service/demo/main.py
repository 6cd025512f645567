"""The entry of `remit demo`."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.demo import report
from service.demo.cancellation import SLOW_HEARTBEAT_S, SLOW_SLOTS, SLOW_WORKERS, CancellationProof, cancel_midway
from service.demo.cast import ORCHESTRATOR_SCOPES, SURVEY_SCOPES, Role
from service.demo.catalog import PLANNER_LIMITS, TOOL_RUNS, Catalog, limits_for, set_up
from service.demo.client import Client, RefusedError
from service.demo.count import count_directory, list_folders, stamp_files
from service.demo.findings import Findings
from service.demo.processes import (
    ProcessError,
    Service,
    Staff,
    journals_in,
    log_tail,
    running_service,
    running_workers,
    temporary_directory,
)
from service.demo.refusals import Refusal, provoke_refusals
from service.demo.survey import (
    SurveyResult,
    finish_run,
    orchestrate,
    read_result,
    start_root,
    subjects_of,
    wait_for_end,
)
from service.demo.wire import TreePage

_BAD_USAGE = 2
_PROGRESS_S = 0.5
_FOLDER_SLOTS = 32
_FILE_SLOTS = 16
_MOST_FILE_WORKERS = 4
_FAILURES = (ProcessError, RefusedError, httpx2.HTTPError, ValidationError, TimeoutError, OSError)


def run_demo(path: Path | None = None, serve: bool = False, graph: bool = False) -> int:
    """Run the demonstration.

    Args:
        path: the directory to survey; by default the repository around the current directory, or that itself.
        serve: keep the service up afterwards, until Ctrl-C.
        graph: have the survey orchestrated by a graph, rather than by calls of the primitives.

    Returns:
        The exit status: 0 when every figure and every refusal is as expected, 1 when not or when something failed,
        2 when `path` is no directory, 128 and the signal's number when interrupted.
    """
    console = Console()
    root = (path or _repository()).resolve()
    if not root.is_dir():
        console.print(Text(f"{root} is not a directory", style="red"), soft_wrap=True)
        return _BAD_USAGE
    return asyncio.run(_until_signalled(root, serve, graph, console))


async def demonstrate(root: Path, console: Console, *, serve: bool = False, graph: bool = False) -> Findings:
    """Start a service and workers, do everything, and show it; nothing is left running afterwards.

    Args:
        root: the directory to survey.
        console: where to print.
        serve: keep the service up until cancelled, and then return as if nothing had happened.
        graph: have the survey orchestrated by a graph.

    Raises:
        ProcessError, RefusedError, httpx2.HTTPError, ValidationError, TimeoutError, OSError: what went wrong on the
            way; the ends of the logs have been printed.
    """
    with temporary_directory() as directory:
        try:
            return await _demonstrate(root, directory, console, serve=serve, graph=graph)
        except _FAILURES as failure:
            _show_failure(console, failure, directory)
            raise


async def _demonstrate(root: Path, directory: Path, console: Console, *, serve: bool, graph: bool) -> Findings:
    console.print(Text.assemble(("Surveying ", "bold"), str(root)), soft_wrap=True)
    folders = await asyncio.to_thread(list_folders, root)
    stamps = await asyncio.to_thread(stamp_files, root)
    report.show_orchestrator(console, as_graph=graph)
    report.show_limits(console, folders, limits_for(folders))
    with _progress(console) as progress:
        step = progress.add_task("starting PostgreSQL, OPA and the API (OPA may have to be built first)", total=1)
        async with running_service(directory) as service:
            progress.update(step, completed=1, description="started PostgreSQL, OPA and the API")
            catalog = await set_up(service.url, service.admin_token, folders, as_graph=graph)
            findings = await _Stage(service, catalog, root, directory, progress, graph).play(folders, stamps)
            progress.stop()
            report.show_findings(console, findings)
            if serve:
                report.show_where_to_look(console, service.url, catalog, findings)
                await _cancelled()
            else:
                report.show_next_step(console, str(root), as_graph=graph)
            return findings


@dataclass(frozen=True)
class _Stage:
    """What the acts of the demonstration play with."""

    service: Service
    catalog: Catalog
    root: Path
    directory: Path
    progress: Progress
    as_graph: bool

    async def play(self, folders: dict[str, int], stamps: dict[str, tuple[int, int]]) -> Findings:
        began = time.monotonic()
        url, catalog = self.service.url, self.catalog
        async with (
            Client(url, catalog.operator_token) as client,
            running_workers(_staff(), root=self.root, directory=self.directory, url=url, token=catalog.worker_token),
        ):
            result = await self._survey(client, folders)
            runs = await _count_runs(client, result.root_run_id)
            refusals, left_behind = await self._provoke(client)
            proof = await self._cancel(client)
        step = self.progress.add_task("counting the directory directly", total=1)
        counted = await asyncio.to_thread(count_directory, self.root)
        now = await asyncio.to_thread(stamp_files, self.root)
        self.progress.update(step, completed=1)
        return Findings(
            result=result,
            counted=counted,
            changed_meanwhile=sorted(path for path in {*stamps, *now} if stamps.get(path) != now.get(path)),
            runs_by_status=runs,
            refusals=refusals,
            runs_beside_refusals=left_behind,
            proof=proof,
            seconds=time.monotonic() - began,
        )

    async def _survey(self, client: Client, folders: dict[str, int]) -> SurveyResult:
        runs = 1 + len(folders) + sum(folders.values()) + TOOL_RUNS
        step = self.progress.add_task("surveying, one agent run a file", total=runs)
        subjects = subjects_of(folders)
        root = await start_root(client, self.catalog, Role.SURVEY, SURVEY_SCOPES, subjects)
        async with _watching(client, root.run_id, self.progress, step):
            if self.as_graph:
                await wait_for_end(root)
            else:
                await orchestrate(root, subjects, self.catalog.pipeline_id)
        result = await read_result(root, subjects)
        self.progress.update(step, completed=runs)
        return result

    async def _provoke(self, client: Client) -> tuple[list[Refusal], int]:
        step = self.progress.add_task("asking for what policy refuses", total=1)
        planner = await start_root(client, self.catalog, Role.PLANNER, ORCHESTRATOR_SCOPES)
        refusals = await provoke_refusals(planner)
        await finish_run(planner)
        # The planner itself and one planner a level are what was permitted.
        left_behind = sum((await _count_runs(client, planner.run_id)).values()) - 1 - PLANNER_LIMITS.max_depth
        self.progress.update(step, completed=1)
        return refusals, left_behind

    async def _cancel(self, client: Client) -> CancellationProof:
        step = self.progress.add_task("cancelling a branch while it works", total=1)
        planner = await start_root(client, self.catalog, Role.PLANNER, ORCHESTRATOR_SCOPES)
        proof = await cancel_midway(planner, journals_in(self.directory))
        self.progress.update(step, completed=1)
        return proof


async def _cancelled() -> None:
    """Wait to be cancelled, which is then no failure but the end that was asked for."""
    waiting = asyncio.current_task()
    assert waiting is not None
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        waiting.uncancel()


def _staff() -> list[Staff]:
    readers = min(os.cpu_count() or 1, _MOST_FILE_WORKERS)
    # Folders wait for files, so they have a process of their own: whatever they hold, files can be worked on. Who keeps
    # the report and who answers have something to do when the folders are done.
    return [
        Staff("folder-worker", (Role.FOLDER, Role.LIBRARIAN, Role.ANALYST), _FOLDER_SLOTS),
        *(Staff(f"file-worker-{number}", (Role.FILE,), _FILE_SLOTS) for number in range(readers)),
        *(Staff(f"slow-worker-{number}", (Role.SLOW,), SLOW_SLOTS, SLOW_HEARTBEAT_S) for number in range(SLOW_WORKERS)),
    ]


async def _count_runs(client: Client, run_id: str) -> dict[str, int]:
    page = await client.post(
        "/internal/orchestration/query-tree", {"run_id": run_id, "limit": 1, "rollup": True}, TreePage
    )
    assert page.rollup is not None
    return page.rollup.by_status


@asynccontextmanager
async def _watching(client: Client, run_id: str, progress: Progress, step: TaskID) -> AsyncIterator[None]:
    async def watch() -> None:
        while True:
            progress.update(step, completed=(await _count_runs(client, run_id)).get("completed", 0))
            await asyncio.sleep(_PROGRESS_S)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _show_failure(console: Console, failure: Exception, directory: Path) -> None:
    console.print()
    console.print(Text(f"{type(failure).__name__}: {failure}", style="red"), soft_wrap=True)
    for log in sorted(directory.glob("*.log")):
        if text := log_tail(log):
            console.print(Text(f"the end of {log.name}:", style="bold"))
            console.print(Text(text, style="dim"), soft_wrap=True)


async def _until_signalled(root: Path, serve: bool, graph: bool, console: Console) -> int:
    """Demonstrate; the first signal ends it in good order, and further ones find that it is being done."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(demonstrate(root, console, serve=serve, graph=graph))
    received: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        if not received:
            received.append(number)
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        return int(bool((await running).problems))
    except _FAILURES:
        return 1
    except asyncio.CancelledError:
        return 128 + received[0]


def _repository() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
