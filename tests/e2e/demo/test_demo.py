"""The demo with a real service and real worker processes."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import service
from service.demo.archive import QUESTIONS, expected_answer
from service.demo.cast import KEEP_SCOPE, SPAWN_SCOPE, Role
from service.demo.catalog import TOOL_RUNS
from service.demo.count import Totals, count_directory
from service.demo.findings import Findings
from service.demo.main import demonstrate
from tests.e2e.demo.odd_directory import FIGURES, write_odd_directory

pytestmark = pytest.mark.xdist_group("demo")

REPOSITORY = Path(service.__file__).parent.parent
RUN = """
import sys
from pathlib import Path
from service.demo.main import run_demo
sys.exit(run_demo(Path(sys.argv[1]), "--serve" in sys.argv))
"""


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration of a directory found and printed."""

    directory: Path
    findings: Findings
    printed: str


@pytest.fixture(scope="module")
async def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    directory = write_odd_directory(tmp_path_factory.mktemp("odd"))
    output = StringIO()
    findings = await demonstrate(directory, Console(file=output, width=120))
    return Demonstration(directory, findings, output.getvalue())


@pytest.fixture(scope="module")
async def demonstration_by_graph(demonstration: Demonstration) -> Demonstration:
    """The same directory, surveyed by a graph."""
    output = StringIO()
    findings = await demonstrate(demonstration.directory, Console(file=output, width=120), graph=True)
    return Demonstration(demonstration.directory, findings, output.getvalue())


@pytest.fixture
def temporary_files() -> Iterator[Path]:
    """Where a demo in a process of its own puts its files; short, for a socket's path is."""
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def start(directory: Path, temporary_files: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env={**os.environ, "TMPDIR": str(temporary_files), "COLUMNS": "120", **environment},
    )


def wait_for_descendant(process: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """All descendants, once one of them has the word in its command line."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        descendants = psutil.Process(process.pid).children(recursive=True)
        if any(word in command_line(one) for one in descendants):
            return descendants
        time.sleep(0.05)
    pytest.fail(f"no process with {word}: {process.communicate()[0]}")


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_the_agents_report_equals_a_direct_count(demonstration: Demonstration) -> None:
    survey = demonstration.findings.result.survey
    assert survey == count_directory(demonstration.directory)
    assert {folder.folder: folder.totals.files for folder in survey.folders} == {f: n[0] for f, n in FIGURES.items()}
    runs = 1 + len(survey.folders) + survey.total.files + TOOL_RUNS
    assert demonstration.findings.runs_by_status == {"completed": runs}
    assert demonstration.findings.problems == []


async def test_the_report_is_kept_by_one_agent_and_asked_about_by_another_through_tools(
    demonstration: Demonstration,
) -> None:
    found = demonstration.findings
    survey, kept, answers = found.result.survey, found.result.kept, found.result.answers
    assert kept is not None
    assert (kept.target_agent_slug, kept.status, kept.scopes) == (Role.LIBRARIAN, "completed", (KEEP_SCOPE,))
    assert kept.output == {"documents": len(survey.folders) + 1}
    assert len({kept.run_id, *(answer.run_id for answer in answers if answer is not None)}) == TOOL_RUNS
    for answer in answers:
        assert answer is not None
        assert (answer.target_agent_slug, answer.scopes) == (Role.ANALYST, (SPAWN_SCOPE,))
    for question, answered in found.answered:
        assert answered is not None
        passages = {passage.document_id: passage.metadata for passage in answered.passages}
        assert passages == expected_answer(question, survey)
        assert passages, question.text


async def test_a_graph_orchestrates_to_the_same_outcome(
    demonstration: Demonstration, demonstration_by_graph: Demonstration
) -> None:
    one, other = demonstration.findings, demonstration_by_graph.findings
    assert (one.result.surface, other.result.surface) == ("option_b_runtime_primitives", "option_a_graphspec_v2")
    assert other.problems == []
    assert other.result.survey == one.result.survey
    assert other.runs_by_status == one.runs_by_status
    assert told(other) == told(one)
    assert "is a graph: start → spawn_group → join → tool_call" in demonstration_by_graph.printed


async def test_every_refusal_has_its_one_reason_and_a_decision(demonstration: Demonstration) -> None:
    refusals = demonstration.findings.refusals
    assert [refusal.codes for refusal in refusals] == [
        ("target_not_published",),
        ("target_not_allowlisted",),
        ("scope_exceeds_caller",),
        ("max_depth_exceeded",),
        ("max_fanout_exceeded",),
    ]
    assert len({refusal.decision_id for refusal in refusals}) == len(refusals)
    assert demonstration.findings.runs_beside_refusals == 0


async def test_nothing_below_the_fence_runs_on(demonstration: Demonstration) -> None:
    proof = demonstration.findings.proof
    assert proof.cancellation.cancelled_count == 1 + len(proof.runs)
    assert {run.status for run in proof.runs} == {"cancelled"}
    assert any(run.steps_when_told for run in proof.runs)
    assert any(not run.steps_when_told for run in proof.runs)
    assert all(run.steps_when_told == run.steps_after_watch for run in proof.runs)
    assert {run.late_answer for run in proof.runs if run.steps_when_told} <= {"409 run_cancelled", "409 lease_lost"}
    assert proof.spawn_under_fence == "409 run_cancelled"
    assert proof.bystander.status == "completed"
    assert proof.bystander_steps[1] > proof.bystander_steps[0]


async def test_what_was_found_is_printed(demonstration: Demonstration) -> None:
    for folder in FIGURES:
        assert folder in demonstration.printed
    for refusal in demonstration.findings.refusals:
        assert refusal.expected in demonstration.printed
        assert refusal.decision_id is not None
        assert refusal.decision_id in demonstration.printed
    for question in QUESTIONS:
        assert question.text in demonstration.printed
    assert "keep-report (agent_call)" in demonstration.printed
    assert "search-report (rag_retrieval)" in demonstration.printed
    assert "All as expected" in demonstration.printed


async def test_what_is_not_as_expected_is_a_problem(demonstration: Demonstration) -> None:
    found = demonstration.findings
    other_sum = found.counted.model_copy(update={"total": Totals(files=1)})
    assert replace(found, counted=other_sum).problems
    assert replace(found, runs_by_status={"completed": 1}).problems
    assert replace(found, runs_beside_refusals=1).problems
    assert replace(found, refusals=[replace(found.refusals[0], status=200)]).problems
    assert replace(found, refusals=[replace(found.refusals[0], codes=("other",))]).problems
    assert replace(found, refusals=[replace(found.refusals[0], decision_id=None)]).problems
    assert replace(found, proof=replace(found.proof, problems=("a run went on",))).problems
    result, kept, answers = found.result, found.result.kept, found.result.answers
    assert kept is not None
    assert replace(found, result=replace(result, kept=None)).problems
    assert replace(found, result=replace(result, kept=kept.model_copy(update={"status": "failed"}))).problems
    assert replace(found, result=replace(result, kept=kept.model_copy(update={"output": {"documents": 1}}))).problems
    assert replace(found, result=replace(result, answers=(None, *answers[1:]))).problems
    assert replace(found, result=replace(result, answers=answers[1:])).problems
    assert replace(found, result=replace(result, answers=(answers[1], answers[0], *answers[2:]))).problems


async def test_the_repository_is_surveyed_and_nothing_stays_behind(tmp_path: Path, temporary_files: Path) -> None:
    # A copy, because the original may be worked on meanwhile.
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(REPOSITORY, tmp_path / "repository", symlinks=True, ignore=ignored)
    process = start(tmp_path / "repository", temporary_files)
    descendants = await asyncio.to_thread(wait_for_descendant, process, "service.demo.worker")
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, output
    assert f"{count_directory(tmp_path / 'repository').total.lines:,}" in output
    assert_gone(descendants, temporary_files)


@pytest.mark.parametrize("word", ["service.cli", "service.demo.worker"])
async def test_an_interrupted_demo_leaves_nothing_behind(word: str, tmp_path: Path, temporary_files: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    process = start(tmp_path, temporary_files)
    descendants = await asyncio.to_thread(wait_for_descendant, process, word)
    process.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 128 + signal.SIGINT, output
    assert_gone(descendants, temporary_files)


async def test_a_served_demo_stays_up_until_it_is_ended(tmp_path: Path, temporary_files: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    process = start(tmp_path, temporary_files, "--serve", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    lines: list[str] = []
    while "tenant token" not in (line := await asyncio.to_thread(process.stdout.readline)):
        assert line, "".join(lines)
        lines.append(line)
    descendants = psutil.Process(process.pid).children(recursive=True)
    assert any("service.cli" in command_line(one) for one in descendants)
    process.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, output
    assert_gone(descendants, temporary_files)


async def test_a_service_that_does_not_start_is_reported_with_its_log(tmp_path: Path, temporary_files: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    process = start(tmp_path, temporary_files, REMIT_OPA_BINARY="/nonexistent/opa")
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1
    assert "the service ended with status" in output
    assert "/nonexistent/opa" in output
    assert_gone([], temporary_files)


async def test_a_path_that_is_no_directory_is_refused(tmp_path: Path, temporary_files: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    process = subprocess.run(  # noqa: ASYNC221 - it ends at once
        [sys.executable, "-c", RUN, str(file)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "is not a directory" in process.stdout


def told(findings: Findings) -> object:
    """What a survey has found and by which ways, without ids and times."""
    result = findings.result
    return (
        [(run.folder, run.status, run.files, [(one.path, one.status) for one in run.shown]) for run in result.runs],
        [
            (called.target_agent_slug, called.status, called.scopes)
            for called in (result.kept, *result.answers)
            if called
        ],
        [[passage.model_dump() for passage in found.passages] for _, found in findings.answered if found],
        [(refusal.attempt, refusal.codes) for refusal in findings.refusals],
    )


def assert_gone(descendants: list[psutil.Process], temporary_files: Path) -> None:
    _, alive = psutil.wait_procs(descendants, timeout=5)
    assert [command_line(one) for one in alive] == []
    assert list(temporary_files.iterdir()) == []
