"""Whether a graph may run, and in which form: every finding at once.

The compiler reads (`reading`), checks the form (`structure`, `orchestration`), and hears what policy says
(`policy_checks`); policy itself is asked by a command. The codes of the findings are in `diagnostics`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from kernel.graph import ir, orchestration, policy_checks, structure
from kernel.graph.diagnostics import Diagnostic, Severity, ordered
from kernel.graph.flow import Flow
from kernel.graph.ir import Graph
from kernel.graph.reading import read_spec
from kernel.graph.spec import GraphSpec


@dataclass(frozen=True, slots=True)
class Examined:
    """A graph as far as it could be read, and what was found without asking policy."""

    spec: GraphSpec
    findings: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """The findings, and, where none of them is an error, the form that runs."""

    diagnostics: tuple[Diagnostic, ...]
    graph: Graph | None

    @property
    def valid(self) -> bool:
        """Whether the graph may run."""
        return self.graph is not None


def examine(document: JsonValue) -> Examined:
    """Read a graph and check its form."""
    spec, findings = read_spec(document)
    if spec.nodes:
        flow = Flow.of(spec)
        findings.extend(structure.check(spec, flow))
        findings.extend(orchestration.check(spec, flow))
    elif not findings:
        findings.extend(structure.check(spec, Flow({})))
    return Examined(spec, tuple(findings))


def conclude(examined: Examined, more: Iterable[Diagnostic]) -> Compiled:
    """Put all findings together; what two of them say of one node is told once."""
    own = {(finding.code, finding.node_id) for finding in examined.findings}
    found = ordered([*examined.findings, *(finding for finding in more if (finding.code, finding.node_id) not in own)])
    invalid = any(finding.severity is Severity.ERROR for finding in found)
    return Compiled(found, None if invalid else ir.build(examined.spec))


def compile_alone(document: JsonValue) -> Compiled:
    """Compile without a service: what policy would be asked is deferred."""
    examined = examine(document)
    return conclude(examined, policy_checks.deferred(examined.spec, orchestrator=False, tenant=False))
