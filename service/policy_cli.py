"""`remit policy`: what a policy author does at the terminal. It needs an `opa`, and only `explain` needs a service."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, NoReturn, TextIO
from uuid import UUID

import httpx2
import typer
from pydantic import BaseModel, JsonValue, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

import policies
from kernel.policy.bundle import CAPABILITIES, ENTRYPOINTS, MANIFEST, TEST_TIMEOUT, BundleError, revision_of
from kernel.policy.contract import Decision, DecisionInput
from service.embedded.errors import EmbeddedError
from service.embedded.opa import find_or_build_opa

POLICIES = Path(policies.__file__).parent
SCHEMAS = "schemas"
_ENTRYPOINT = "data.orchestration.main.decision"
_RUN_LIMIT_S = 120.0
_REQUEST_LIMIT_S = 10.0

app = typer.Typer(name="policy", help="Test, check and try out policies.", no_args_is_help=True)
out = Console()
err = Console(stderr=True)

PolicyDir = Annotated[
    Path,
    typer.Option(
        "--policies",
        envvar="REMIT_POLICY_DIR",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="The directory with the bundle's manifest and Rego.",
        show_default="those that come with Remit",
    ),
]
OpaBinary = Annotated[
    Path | None,
    typer.Option("--opa", envvar="REMIT_OPA_BINARY", help="The opa to use.", show_default="found, or built once"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")]


@app.command("test")
def run_policy_tests(
    policy_dir: PolicyDir = POLICIES,
    opa: OpaBinary = None,
    run: Annotated[str | None, typer.Option(help="Only the tests whose full name matches this expression.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=100, help="Fail below this coverage, in percent.")] = 0,
) -> None:
    """Run the tests beside the policies, and show which lines they cover."""
    tool = _Opa.find(opa, policy_dir)
    selection = ["--run", run] if run is not None else []
    results = tool.run("test", "--bundle", ".", "--timeout", TEST_TIMEOUT, "--format", "pretty", *selection)
    if results.code != 0:
        err.print(Text(results.text), soft_wrap=True)
        raise typer.Exit(1)
    out.print(Text(results.text), soft_wrap=True)

    measured = tool.run(
        "test", "--bundle", ".", "--timeout", TEST_TIMEOUT, "--coverage", "--format", "json", *selection
    )
    report = _Coverage.model_validate_json(measured.output)
    table = Table(Column("file", overflow="fold"), "covered", "lines not covered", title="Coverage")
    for name, file in sorted(report.files.items()):
        if not name.endswith("_test.rego"):
            table.add_row(
                name,
                f"{file.coverage if file.missed else 100:.0f} %",
                file.missed,
                style="red" if file.missed else None,
            )
    out.print(table)
    out.print(f"{report.coverage:.1f} % of all lines are covered.")
    if report.coverage < threshold:
        err.print(f"[red]That is less than {threshold:g} %.")
        raise typer.Exit(1)


@app.command("check")
def check_policies(
    policy_dir: PolicyDir = POLICIES,
    opa: OpaBinary = None,
    schemas: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, resolve_path=True, show_default="schemas, in the directory of the policies"
        ),
    ] = None,
) -> None:
    """Check formatting, types against the input's schemas, built-ins, and that every public rule has metadata.

    A rule is public if it is an entrypoint or another package uses it.
    """
    tool = _Opa.find(opa, policy_dir)
    checks: dict[str, Callable[[], str]] = {
        "formatting": lambda: _unformatted(tool),
        "types, names and built-ins": lambda: _compile_errors(tool, schemas or policy_dir / SCHEMAS),
        "metadata": lambda: "\n".join(_unannotated(tool)),
    }
    failed = False
    for name, check in checks.items():
        finding = check()
        failed = failed or bool(finding)
        out.print(f"[red]✗[/red] {name}" if finding else f"[green]✓[/green] {name}")
        if finding:
            out.print(Text(finding), soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command("eval")
def evaluate_question(
    question: Annotated[
        typer.FileText, typer.Option("--input", help="The question, as JSON: what the kernel would send; - for stdin.")
    ],
    policy_dir: PolicyDir = POLICIES,
    opa: OpaBinary = None,
    as_json: AsJson = False,
) -> None:
    """Ask the policies one question, without a server: would this be allowed, and why not?"""
    decision = _evaluate(_Opa.find(opa, policy_dir), _read_question(question))
    if as_json:
        out.print_json(decision.model_dump_json(exclude_none=True))
    else:
        _show(decision)


@app.command("explain")
def explain_decision(
    decision_id: Annotated[UUID, typer.Argument(help="The id in the answer, the event or the record.")],
    url: Annotated[str, typer.Option(envvar="REMIT_URL", help="The running service.")] = "http://127.0.0.1:8080",
    token: Annotated[
        str, typer.Option(envvar="REMIT_TOKEN", help="A token with the scope policy.read.", show_default=False)
    ] = "",
    tenant: Annotated[
        UUID | None, typer.Option(envvar="REMIT_TENANT_ID", help="The tenant, where the token is the admin's.")
    ] = None,
    policy_dir: PolicyDir = POLICIES,
    opa: OpaBinary = None,
) -> None:
    """Tell why a decision was made, and whether the policies at hand would make it again."""
    record = _fetch(decision_id, url, token, tenant)
    try:
        question = DecisionInput.model_validate_json(json.dumps(record["input"]))
        recorded = Decision.model_validate(record["result"])
        revision = str(record["revision"])
    except (KeyError, ValidationError) as error:
        _fail(f"The record of {decision_id} cannot be evaluated again: {error}")
    out.print(f"Decision [bold]{decision_id}[/bold]: {question.action}, {record.get('created_at', 'time unknown')}")
    _show(recorded)

    tool = _Opa.find(opa, policy_dir)
    now = _evaluate(tool, question)
    local = _revision(policy_dir)
    same_rules = "the same as" if local == revision else "not those of"
    out.print(
        f"\nThe policies in {escape(str(policy_dir))} ({local[:12]}) are {same_rules} the record's ({revision[:12]}).",
        soft_wrap=True,
    )
    changes = _changes(recorded, now)
    if not changes:
        out.print("[green]They make the same decision.")
        return
    table = Table("", "recorded", "now", title="What they would decide otherwise")
    for name, before, after in changes:
        table.add_row(name, Text(before), Text(after))
    out.print(table)


class _Position(BaseModel):
    row: int


class _Extent(BaseModel):
    start: _Position
    end: _Position


class _CoveredFile(BaseModel):
    coverage: float = 0
    not_covered: list[_Extent] = []

    @property
    def missed(self) -> str:
        """The lines that no test reached, ranges joined."""
        rows = sorted({row for extent in self.not_covered for row in range(extent.start.row, extent.end.row + 1)})
        starts = [row for row in rows if row - 1 not in rows]
        ends = [row for row in rows if row + 1 not in rows]
        return ", ".join(
            str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)
        )


class _Coverage(BaseModel):
    files: dict[str, _CoveredFile] = {}
    coverage: float = 0


@dataclass(frozen=True, slots=True)
class _Finished:
    code: int
    output: str
    text: str


@dataclass(frozen=True, slots=True)
class _Opa:
    """An `opa` that is run in the directory of the policies, with an empty environment."""

    binary: Path
    directory: Path

    @classmethod
    def find(cls, binary: Path | None, directory: Path) -> "_Opa":
        if not (directory / MANIFEST).is_file():
            _fail(f"{directory} holds no bundle of policies: there is no {MANIFEST}.")
        try:
            return cls(asyncio.run(find_or_build_opa(binary)), directory)
        except EmbeddedError as error:
            _fail(str(error))

    @property
    def limits(self) -> list[str]:
        """The built-ins that policies may use."""
        return ["--capabilities", CAPABILITIES] if (self.directory / CAPABILITIES).is_file() else []

    def run(self, command: str, *arguments: str, given: str | None = None) -> _Finished:
        try:
            finished = subprocess.run(  # noqa: S603  # the binary is the operator's own choice
                [self.binary, command, *arguments],
                cwd=self.directory,
                env={},
                input=given or "",
                capture_output=True,
                text=True,
                timeout=_RUN_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _fail(f"opa {command} could not be run: {error}")
        return _Finished(finished.returncode, finished.stdout, f"{finished.stdout}{finished.stderr}".strip())


def _fail(message: str) -> NoReturn:
    err.print(Text(message, style="red"), soft_wrap=True)
    raise typer.Exit(2)


def _unformatted(tool: _Opa) -> str:
    finished = tool.run("fmt", "--list", "--fail", ".")
    if finished.code == 0:
        return ""
    # What it lists it can write anew; what it cannot parse it only tells.
    return f"{finished.text}\nRun `{tool.binary} fmt --write` on these." if finished.output.strip() else finished.text


def _compile_errors(tool: _Opa, schemas: Path) -> str:
    if not schemas.is_dir():
        return f"There is no directory {schemas}: without schemas a misspelt fact is not noticed."
    if not tool.limits:
        return f"There is no {CAPABILITIES}: without it a policy could use the network or the environment."
    finished = tool.run("check", "--strict", "--bundle", ".", "--schema", str(schemas), *tool.limits)
    return finished.text if finished.code != 0 else ""


class _Annotation(BaseModel):
    scope: str
    title: str = ""


class _Ref(BaseModel):
    value: list[dict[str, JsonValue]]

    @property
    def names(self) -> tuple[str, ...]:
        """The path, as far as it is constant."""
        return tuple(str(term["value"]) for term in takewhile(lambda term: isinstance(term["value"], str), self.value))


class _Import(BaseModel):
    path: _Ref
    alias: str = ""


class _Package(BaseModel):
    path: list[dict[str, JsonValue]]


class _Head(BaseModel):
    ref: list[dict[str, JsonValue]]


class _Rule(BaseModel):
    head: _Head
    annotations: list[_Annotation] = []

    @property
    def name(self) -> str:
        return str(self.head.ref[0]["value"])


class _Module(BaseModel):
    package: _Package
    imports: list[_Import] = []
    annotations: list[_Annotation] = []
    rules: list[_Rule] = []

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(str(term["value"]) for term in self.package.path)


def _unannotated(tool: _Opa) -> Iterator[str]:
    """Name the packages and public rules without a title.

    One annotation with `scope: document` speaks for all rules of its name in the package, wherever they are.
    """
    modules: dict[Path, _Module] = {}
    public = {tuple(f"data/{entrypoint}".split("/")) for entrypoint in ENTRYPOINTS}
    for path in sorted(tool.directory.rglob("*.rego")):
        if path.name.endswith("_test.rego"):
            continue
        where = path.relative_to(tool.directory)
        finished = tool.run("parse", "--format", "json", str(where))
        if finished.code != 0:
            yield finished.text
            continue
        document = json.loads(finished.output)
        modules[where] = _Module.model_validate(document)
        public |= set(_used(document.get("rules", []), modules[where]))
    documented = {
        (*module.path, rule.name)
        for module in modules.values()
        for rule in module.rules
        if _has_title(rule.annotations, {"document"})
    }
    titled = {module.path for module in modules.values() if _has_title(module.annotations, {"package", "subpackages"})}
    for where, module in modules.items():
        if module.path not in titled:
            yield f"{where}: the package has no METADATA with a title"
        for name in dict.fromkeys(
            rule.name for rule in module.rules if not _has_title(rule.annotations, {"rule", "document"})
        ):
            if (*module.path, name) in public - documented:
                yield f"{where}: {name} has no METADATA with a title"


def _used(tree: JsonValue, module: _Module) -> Iterator[tuple[str, ...]]:
    """Name the rules of other packages that a part of a module refers to."""
    if isinstance(tree, list):
        for branch in tree:
            yield from _used(branch, module)
    if isinstance(tree, dict):
        for branch in tree.values():
            yield from _used(branch, module)
        if tree.get("type") == "ref":
            imported = {each.alias or each.path.names[-1]: each.path.names for each in module.imports}
            head, *rest = _Ref.model_validate(tree).names or ("",)
            names = (*imported.get(head, (head,)), *rest)
            # The rule may be named in full or followed by members of its value.
            yield from (names[:length] for length in range(2, len(names) + 1) if names[: length - 1] != module.path)


def _has_title(annotations: list[_Annotation], scopes: set[str]) -> bool:
    return any(annotation.scope in scopes and annotation.title for annotation in annotations)


def _read_question(file: TextIO) -> DecisionInput:
    try:
        document = json.load(file)
    except ValueError as error:
        _fail(f"The question is not JSON: {error}")
    if isinstance(document, dict) and set(document) == {"input"}:
        document = document["input"]
    try:
        return DecisionInput.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, each['loc'])) or 'question'}: {each['msg']}" for each in error.errors()]
        _fail("The kernel would never ask this:\n" + "\n".join(problems))


class _Expression(BaseModel):
    value: JsonValue


class _Result(BaseModel):
    expressions: list[_Expression]


class _Evaluation(BaseModel):
    result: list[_Result] = []


def _evaluate(tool: _Opa, question: DecisionInput) -> Decision:
    finished = tool.run(
        "eval", "--bundle", ".", "--format", "json", *tool.limits, "--stdin-input", _ENTRYPOINT,
        given=question.model_dump_json(exclude_none=True),
    )  # fmt: skip
    if finished.code != 0:
        _fail(finished.text)
    evaluation = _Evaluation.model_validate_json(finished.output)
    if not evaluation.result:
        _fail("The answer is undefined: no rule answers this question, so the kernel would refuse.")
    try:
        return Decision.model_validate(evaluation.result[0].expressions[0].value)
    except ValidationError as error:
        _fail(f"The answer is malformed, so the kernel would refuse: {error}")


def _fetch(decision_id: UUID, url: str, token: str, tenant: UUID | None) -> Mapping[str, JsonValue]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if tenant is not None:
        headers["X-Tenant-ID"] = str(tenant)
    address = f"{url.rstrip('/')}/policies/decisions/{decision_id}"
    try:
        response = httpx2.get(address, headers=headers, timeout=_REQUEST_LIMIT_S)
        body = response.json()
    except (httpx2.HTTPError, ValueError) as error:
        _fail(f"{address} could not be read: {error}")
    if not response.is_success or not isinstance(body, dict):
        detail = body.get("detail", "") if isinstance(body, dict) else ""
        if not token:
            detail += ". Name one with --token or REMIT_TOKEN."
        elif tenant is None and "X-Tenant-ID" in detail:
            detail += ". Name the tenant with --tenant or REMIT_TENANT_ID."
        _fail(f"{address} answered {response.status_code}. {detail}".strip())
    return body


def _revision(policy_dir: Path) -> str:
    try:
        return revision_of(policy_dir)
    except BundleError as error:
        _fail(str(error))


def _show(decision: Decision) -> None:
    out.print("[bold green]allowed" if decision.allow else "[bold red]denied")
    if decision.reasons:
        table = Table(Column("reason", no_wrap=True), "why", "limit", "observed", "requested", "about")
        for reason in decision.reasons:
            numbers = [
                "" if number is None else str(number) for number in (reason.limit, reason.observed, reason.requested)
            ]
            about = [reason.target, *(reason.scopes or []), reason.node_id]
            table.add_row(reason.code, Text(reason.message), *numbers, Text(", ".join(filter(None, about))))
        out.print(table)
    if decision.effective_scopes:
        out.print(Text(f"scopes: {', '.join(decision.effective_scopes)}"))
    for name in ("limits", "headroom"):
        numbers_of: BaseModel | None = getattr(decision, name)
        if numbers_of is not None:
            out.print(f"{name}: " + ", ".join(f"{field} {value}" for field, value in numbers_of))
    if decision.verdict is not None:
        out.print(f"verdict: {decision.verdict.suggested_action}")


def _changes(before: Decision, after: Decision) -> list[tuple[str, str, str]]:
    """Every member of a decision that differs, reasons one by one."""
    old, new = _flat(before), _flat(after)
    return [
        (name, old.get(name, "-"), new.get(name, "-"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(decision: Decision) -> dict[str, str]:
    document = decision.model_dump(mode="json", exclude_none=True)
    reasons = {
        f"reason {reason['code']} {reason.get('node_id', reason.get('target', ''))}".strip(): json.dumps(reason)
        for reason in document.pop("reasons")
    }
    # What policy refuses because of a surface, the reasons tell; older records have nothing else of it.
    document.pop("surface_enabled", None)
    return reasons | {name: json.dumps(value) for name, value in document.items()}
