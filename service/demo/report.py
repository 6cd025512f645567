"""How the demo's findings look on a terminal."""

import shlex
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from service.demo.archive import name_of
from service.demo.cancellation import CancellationProof, SlowRun
from service.demo.cast import Role, Tool
from service.demo.catalog import Catalog, Limits
from service.demo.count import ODD_KINDS, FileKind, Survey, Totals
from service.demo.findings import Findings
from service.demo.graph import survey_graph
from service.demo.refusals import Refusal
from service.demo.survey import FolderRun, SurveyResult
from service.demo.tasks import KeptReport
from service.demo.wire import Called

_FOLDERS_SHOWN = 12
_ODD_SHOWN = 12
_PROBLEMS_SHOWN = 20


def show_orchestrator(console: Console, *, as_graph: bool) -> None:
    """Say by which of the two ways the survey is orchestrated."""
    if not as_graph:
        said = "The survey's orchestrator calls the primitives; with --graph it is a graph instead."
        console.print(said, style="dim")
        return
    nodes = survey_graph("")["nodes"]
    assert isinstance(nodes, list)
    words = [str(node["type"]) for node in nodes if isinstance(node, dict)]
    console.print(Text.assemble("The survey's orchestrator is a graph: ", (" → ".join(words), "dim")))


def show_limits(console: Console, folders: dict[str, int], limits: dict[Role, Limits]) -> None:
    """State the limits before they are needed."""
    console.print(f"{sum(folders.values()):,} files in {len(folders):,} folders; so the policies allow, and no more:")
    table = Table("agent", "max_depth", "max_fanout", "max_children_total", box=None, padding=(0, 2))
    for role, limit in limits.items():
        table.add_row(
            role, f"{limit.max_depth:,}", f"{limit.max_fanout:,}", f"{limit.max_children_total:,}", style="dim"
        )
    console.print(table)


def show_findings(console: Console, findings: Findings) -> None:
    """Print everything that was found, and at last whether it is as it must be."""
    for part in (
        _survey_table(findings.result.survey),
        _longest_functions(findings.result.survey),
        _odd_files(findings.result.survey),
        _run_tree(findings.result, findings.runs_by_status),
        _archive(findings),
        _refusals_table(findings.refusals),
        _proof(findings.proof),
    ):
        if part is not None:
            console.print()
            console.print(part)
    console.print()
    if not findings.problems:
        console.print(
            Text.assemble(
                ("All as expected: ", "bold green"),
                f"figures and answers equal a direct count, {len(findings.refusals)} spawns refused, nothing ran past"
                " the fence. ",
                (f"{findings.seconds:.1f} s", "dim"),
            )
        )
        return
    console.print(Text(f"Not as expected ({len(findings.problems)}):", style="bold red"))
    for problem in findings.problems[:_PROBLEMS_SHOWN]:
        console.print(Text(f"  {problem}", style="red"))


def show_where_to_look(console: Console, url: str, catalog: Catalog, findings: Findings) -> None:
    """Print what a person needs to look around in the service while it is kept up."""
    lines = Table.grid(padding=(0, 2))
    for name, value in (
        ("API", url),
        ("docs", f"{url}/docs"),
        ("metrics", f"{url}/metrics"),
        ("tenant", catalog.tenant_id),
        ("survey run", findings.result.root_run_id),
        ("cancelled branch", findings.proof.branch_run_id),
        ("tree", f"{url}/agents/runs/{findings.result.root_run_id}/tree"),
        ("events", f"{url}/agents/runs/{findings.proof.root_run_id}/events"),
    ):
        lines.add_row(Text(name, style="bold"), Text(value))
    console.print()
    console.print(Panel(lines, title="Still up, until Ctrl-C", expand=False))
    # On a line of its own and unwrapped, so that it can be copied.
    console.print("tenant token (Authorization: Bearer …):")
    console.print(catalog.operator_token, soft_wrap=True, highlight=False, markup=False)


def show_next_step(console: Console, path: str, *, as_graph: bool) -> None:
    """Say how to look around, when the service has ended with the demo."""
    console.print(Text("To look around in it (API, docs, metrics, events):", style="dim"))
    console.print(
        Text(f"  python3 -m uv run remit demo {shlex.quote(path)} {'--graph ' if as_graph else ''}--serve"),
        soft_wrap=True,
    )


def _survey_table(survey: Survey) -> Table:
    table = _table("What the agents report")
    table.add_column("folder", overflow="fold")
    for heading in ("files", "lines", "code", "functions", "classes", "TODOs", "odd"):
        table.add_column(heading, justify="right", no_wrap=True)
    for folder in survey.folders:
        table.add_row(Text(folder.folder), *_cells(folder.totals))
    table.add_section()
    table.add_row(Text("in all"), *_cells(survey.total), style="bold")
    return table


def _cells(totals: Totals) -> Iterable[str]:
    odd = sum(totals.kinds.get(kind, 0) for kind in ODD_KINDS)
    figures = (totals.files, totals.lines, totals.code_lines, totals.functions, totals.classes, totals.todos, odd)
    return (f"{figure:,}" for figure in figures)


def _longest_functions(survey: Survey) -> RenderableType | None:
    longest = [f.totals.longest_function for f in survey.folders if f.totals.longest_function is not None]
    if not longest:
        return None
    longest.sort(key=lambda function: -function.lines)
    lines = [Text("The longest function of each folder", style="bold")]
    lines += [Text(f"  {f.lines:>5,} lines  {f.name}  {f.path}:{f.first_line}") for f in longest[:_FOLDERS_SHOWN]]
    return Group(*lines)


def _odd_files(survey: Survey) -> RenderableType | None:
    odd = [file for folder in survey.folders for file in folder.odd]
    count = sum(survey.total.kinds.get(kind, 0) for kind in ODD_KINDS)
    if not count:
        return None
    kinds = ", ".join(f"{n:,} {kind}" for kind in FileKind if kind in ODD_KINDS and (n := survey.total.kinds.get(kind)))
    lines = [Text(f"Not parsed: {kinds}", style="bold")]
    lines += [Text(f"  {file.kind:<12} {file.path}  {file.note or ''}".rstrip()) for file in odd[:_ODD_SHOWN]]
    if count > _ODD_SHOWN:
        lines.append(Text(f"  … and {count - _ODD_SHOWN:,} more", style="dim"))
    return Group(*lines)


def _run_tree(result: SurveyResult, by_status: dict[str, int]) -> Tree:
    statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(by_status.items()))
    tree = Tree(Text.assemble(("The run tree: ", "bold"), statuses, (f", through {result.surface}", "dim")))
    root = tree.add(_run_label(Role.SURVEY, "completed", "", result.root_run_id))
    for run in result.runs[:_FOLDERS_SHOWN]:
        _add_folder(root, run)
    if (hidden := len(result.runs) - _FOLDERS_SHOWN) > 0:
        root.add(Text(f"… and {hidden:,} more folders", style="dim"))
    for tool, called in [(Tool.KEEP, result.kept), *((Tool.ASK, answer) for answer in result.answers)]:
        if called is not None:
            root.add(_run_label(called.target_agent_slug, called.status, f"called by {tool}", called.run_id))
    return tree


def _add_folder(root: Tree, run: FolderRun) -> None:
    branch = root.add(_run_label(run.folder, run.status, f"{run.files:,} files", run.run_id))
    for shown in run.shown:
        branch.add(_run_label(shown.path, shown.status, ""))
    if (hidden := run.files - len(run.shown)) > 0:
        branch.add(Text(f"… and {hidden:,} more", style="dim"))


def _run_label(subject: str, status: str, size: str, run_id: str = "") -> Text:
    words = ((subject, "cyan"), (status, "green" if status == "completed" else "red"), (size, ""), (run_id, "dim"))
    return Text(" ").join(Text(word, style=style) for word, style in words if word)


def _archive(findings: Findings) -> Group:
    table = _table("The report, kept by one agent and asked about by another")
    table.show_lines = True
    table.add_column("asked", ratio=2)
    table.add_column("found by words, the best first", ratio=3, overflow="fold")
    for question, answered in findings.answered:
        if answered is None:
            table.add_row(question.text, Text("no answer", style="red"))
            continue
        names = [name_of(passage.document_id) for passage in answered.passages]
        shown = ", ".join(names[:_FOLDERS_SHOWN]) or "nothing"
        more = f" and {len(names) - _FOLDERS_SHOWN:,} more" if len(names) > _FOLDERS_SHOWN else ""
        first = [Text(answered.passages[0].text, style="dim")] if answered.passages else []
        asked = Group(Text(question.text), Text(answered.query, style="dim"))
        table.add_row(asked, Group(Text(f"{shown}{more}", style="green"), *first))
    kept, answers = findings.result.kept, [answer for answer in findings.result.answers if answer is not None]
    lines = []
    if kept is not None and kept.status == "completed":
        count = KeptReport.model_validate(kept.output).documents
        lines.append(f"{Tool.KEEP} (agent_call) ran {_with_scopes(kept)}: {_counted(count, 'document')} in a pipeline.")
    if answers:
        lines.append(
            f"{Tool.ASK} (agent_call) ran {_with_scopes(answers[0])}, {len(answers)} times; each searched by"
            f" {Tool.SEARCH} (rag_retrieval)."
        )
    return Group(table, *(Text(line) for line in lines))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _with_scopes(called: Called) -> str:
    return f"the {called.target_agent_slug} as a child with the scope {', '.join(called.scopes)} alone"


def _refusals_table(refusals: Iterable[Refusal]) -> Table:
    table = _table("What policy refuses")
    table.show_lines = True
    table.add_column("tried", ratio=2)
    table.add_column("reason, and its decision", ratio=3, overflow="fold")
    for refusal in refusals:
        reasons = Text(", ".join(refusal.codes) or f"{refusal.status}", style="green" if refusal.as_expected else "red")
        decision = Text(refusal.decision_id or "no decision", style="dim")
        table.add_row(refusal.attempt, Group(reasons, Text(refusal.message), decision))
    return table


def _proof(proof: CancellationProof) -> Group:
    started = [run for run in proof.runs if run.steps_when_told]
    table = _table("A branch cancelled midway")
    table.add_column("slow run", no_wrap=True)
    for heading in ("steps", "a second later", "told after", "late"):
        table.add_column(heading, justify="right")
    for run in started:
        table.add_row(*_slow_cells(run))
    queued = len(proof.runs) - len(started)
    table.add_row(f"{queued} more, queued, never started", "0", "0", "-", "-")
    told = [run.told_after_ms for run in started if run.told_after_ms is not None]
    late = ", ".join(sorted({run.late_answer or "not at all" for run in started}))
    done = proof.cancellation
    return Group(
        table,
        Text(
            f"One call set a fence at seq {done.fence_seq} and cancelled {done.cancelled_count} runs "
            f"in {proof.fence_ms:.0f} ms."
        ),
        Text(f"Workers heard of it with a heartbeat, the last of them {max(told, default=0):.0f} ms later."),
        Text(f"Completions that came after that were answered {late}."),
        Text(f"A spawn by the cancelled branch, with its own token, was answered {proof.spawn_under_fence}."),
        Text(
            f"The run beside the branch went on from step {proof.bystander_steps[0]} to {proof.bystander_steps[1]} "
            f"and is {proof.bystander.status}."
        ),
    )


def _slow_cells(run: SlowRun) -> Iterable[str]:
    told = "-" if run.told_after_ms is None else f"{run.told_after_ms:.0f} ms"
    late = (run.late_answer or "-").partition(" ")[0]
    return run.run_id, f"{run.steps_when_told}", f"{run.steps_after_watch}", told, late


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
