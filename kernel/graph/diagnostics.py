"""What is found wrong with a graph, and what cannot be known yet.

| code | what is wrong | says where |
| --- | --- | --- |
| `graph_missing` | there is no graph | |
| `graph_malformed` | it is no object with lists of nodes and edges | field |
| `graph_too_large` | more nodes or edges than a graph may have | limit, observed |
| `unsupported_spec_version` | neither 1.0 nor 2.0 | |
| `orchestration_node_requires_v2` | a node that needs 2.0 in a graph of 1.0 | node |
| `node_invalid` `edge_invalid` | no id, or a field of the wrong type | node or edge, field |
| `unknown_node_type` | no such type | node |
| `node_config_invalid` | a field of the configuration, or of the mappings | node, field |
| `duplicate_node_id` `duplicate_edge_id` | an id that is used twice | node or edge |
| `dangling_edge` | from or to a node that is not there | edge |
| `missing_branch_handle` | a way out without an edge | node |
| `invalid_branch_handle` | an edge from a way out that the node does not have | node, edge |
| `duplicate_branch_handle` | several edges from one way out of a node that branches | node, edge |
| `no_start` `several_starts` | not exactly one start | node |
| `no_end` | no end, or a cycle that nothing leaves | node |
| `unreachable_node` | no way leads to it | node |
| `spawn_in_cycle` | a spawn that could be repeated without bound | node |
| `spawn_without_target` | no target, or one that names no agent | node |
| `unknown_join_mode` | no such mode | node, field |
| `quorum_missing` `quorum_below_one` `quorum_above_group` | a quorum that cannot be | node |
| `join_without_group` | no group is named, mapped or spawned before | node |
| `judge_without_source` | neither join nor replan before | node |
| `replan_without_source` `cancel_without_source` | no run is named, mapped or spawned before | node |
| `target_not_found` | the tenant has no such agent | node, target |
| `policy_denied` | policy refuses, without a reason | |

Policy adds its own: `surface_disabled scope_required scope_exceeds_policy allowlist_empty target_not_allowlisted
target_not_published max_depth_exceeded max_fanout_exceeded max_children_total_exceeded`, and whatever its authors add.
What it could not be asked is `deferred` under the same code, and does not make a graph invalid.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum


class Severity(StrEnum):
    """What follows from a finding: `error` makes a graph invalid, `deferred` is checked when more is known."""

    ERROR = "error"
    DEFERRED = "deferred"


class Code(StrEnum):
    """The codes of what the compiler itself finds; see the table above."""

    GRAPH_MISSING = "graph_missing"
    GRAPH_MALFORMED = "graph_malformed"
    GRAPH_TOO_LARGE = "graph_too_large"
    UNSUPPORTED_SPEC_VERSION = "unsupported_spec_version"
    ORCHESTRATION_NODE_REQUIRES_V2 = "orchestration_node_requires_v2"
    NODE_INVALID = "node_invalid"
    EDGE_INVALID = "edge_invalid"
    UNKNOWN_NODE_TYPE = "unknown_node_type"
    NODE_CONFIG_INVALID = "node_config_invalid"
    DUPLICATE_NODE_ID = "duplicate_node_id"
    DUPLICATE_EDGE_ID = "duplicate_edge_id"
    DANGLING_EDGE = "dangling_edge"
    MISSING_BRANCH_HANDLE = "missing_branch_handle"
    INVALID_BRANCH_HANDLE = "invalid_branch_handle"
    DUPLICATE_BRANCH_HANDLE = "duplicate_branch_handle"
    NO_START = "no_start"
    SEVERAL_STARTS = "several_starts"
    NO_END = "no_end"
    UNREACHABLE_NODE = "unreachable_node"
    SPAWN_IN_CYCLE = "spawn_in_cycle"
    SPAWN_WITHOUT_TARGET = "spawn_without_target"
    SCOPE_REQUIRED = "scope_required"
    UNKNOWN_JOIN_MODE = "unknown_join_mode"
    QUORUM_MISSING = "quorum_missing"
    QUORUM_BELOW_ONE = "quorum_below_one"
    QUORUM_ABOVE_GROUP = "quorum_above_group"
    JOIN_WITHOUT_GROUP = "join_without_group"
    JUDGE_WITHOUT_SOURCE = "judge_without_source"
    REPLAN_WITHOUT_SOURCE = "replan_without_source"
    CANCEL_WITHOUT_SOURCE = "cancel_without_source"
    TARGET_NOT_FOUND = "target_not_found"
    POLICY_DENIED = "policy_denied"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `field` is a path in the node or edge, `handle` a way out; the numbers are those of a limit."""

    code: str
    message: str
    node_id: str | None = None
    edge_id: str | None = None
    severity: Severity = Severity.ERROR
    field: str | None = None
    handle: str | None = None
    limit: int | None = None
    observed: int | None = None
    requested: int | None = None
    target: str | None = None
    scopes: tuple[str, ...] | None = None

    def render(self) -> dict[str, object]:
        """The finding as the wire shows it: where it is always, what does not apply left out."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        always = ("code", "message", "severity", "node_id", "edge_id")
        return {name: value for name, value in shown.items() if name in always or value is not None}


def ordered(findings: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The findings, errors first, then by place and code, and each once."""

    def order(finding: Diagnostic) -> tuple[bool, str, str, str, str, str]:
        deferred = finding.severity is Severity.DEFERRED
        return (
            deferred,
            finding.node_id or "",
            finding.edge_id or "",
            finding.code,
            finding.field or finding.handle or "",
            finding.message,
        )

    return tuple(sorted(set(findings), key=order))
