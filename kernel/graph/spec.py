"""GraphSpec v2 as it is written: nodes with their configurations, and edges.

What only concerns a picture (positions, labels, fields of an editor) is passed over; what means something is held to a
model, and an unknown field of a configuration is a mistake.

Expressions are JMESPath: pure functions of a document, without side effects or evaluation of code. The document is
`{"input": the run's input, "context": its context, "nodes": {node id: its last output}, "latest": the latest output of
an orchestration node, "mapped": what the node's own input_mappings give}`.

`input_mappings` are expressions by name. A spawn adds what they give to the payload of each child, a tool_call to its
input; join takes `orchestration_group_id` from them, replan `run_id`, cancel_subtree `run_id` and `reason`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.lexer import Lexer
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import models_json_schema

from kernel.domain.joins import FailurePolicy, JoinMode
from kernel.domain.scopes import SCOPE_PATTERN, normalise

VERSION_1 = "1.0"
VERSION_2 = "2.0"
VERSIONS = (VERSION_1, VERSION_2)

MAX_NODES = 1_000
MAX_EDGES = 5_000
MAX_GROUP = 10_000
MAX_TOKENS = 200
MAX_REASON = 200
MAX_BRACKETS = 100

# A node that does not branch has one way out, under this name; editors know it by others.
NEXT = "next"
NAMES_OF_NEXT = frozenset({None, "", NEXT, "default", "out", "output", "source"})
DEFAULT_ROUTE = "default"
ELSE = "else"


class NodeType(StrEnum):
    """What a node does."""

    START = "start"
    END = "end"
    TRANSFORM = "transform"
    TOOL_CALL = "tool_call"
    IF_ELSE = "if_else"
    PARALLEL = "parallel"
    SPAWN_RUN = "spawn_run"
    SPAWN_GROUP = "spawn_group"
    JOIN = "join"
    ROUTER = "router"
    JUDGE = "judge"
    REPLAN = "replan"
    CANCEL_SUBTREE = "cancel_subtree"


TYPE_NAMES: Mapping[str, NodeType] = {
    **{node_type.value: node_type for node_type in NodeType},
    "input": NodeType.START,
    "output": NodeType.END,
}
SPAWNS = frozenset({NodeType.SPAWN_RUN, NodeType.SPAWN_GROUP})
ORCHESTRATION = SPAWNS | {
    NodeType.JOIN,
    NodeType.ROUTER,
    NodeType.JUDGE,
    NodeType.REPLAN,
    NodeType.CANCEL_SUBTREE,
}
# What the mappings of these nodes may name; those of other nodes are free.
MAPPED_FIELDS: Mapping[NodeType, frozenset[str]] = {
    NodeType.JOIN: frozenset({"orchestration_group_id"}),
    NodeType.REPLAN: frozenset({"run_id"}),
    NodeType.CANCEL_SUBTREE: frozenset({"run_id", "reason"}),
}

JOIN_HANDLES = ("completed", "completed_with_errors", "failed", "timed_out", "pending")
REPLAN_HANDLES = ("replan", "continue")


def _without_nul(value: str) -> str:
    # PostgreSQL's text holds any character but this one.
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    return value


def _parsed(expression: str) -> str:
    # Parsing and searching recurse. What is bounded here does so far from Python's limit wherever it is done, so that
    # an expression which compiles can be evaluated too.
    if sum(expression.count(bracket) for bracket in "([{") > MAX_BRACKETS:
        raise ValueError(f"has more than {MAX_BRACKETS} brackets")
    try:
        if sum(1 for _ in Lexer().tokenize(expression)) > MAX_TOKENS:
            raise ValueError(f"has more than {MAX_TOKENS} words and signs")
        jmespath.compile(expression)
    except JMESPathError as error:
        raise ValueError(f"is no JMESPath expression: {str(error).splitlines()[0].rstrip(':')}") from error
    return expression


Text = Annotated[str, AfterValidator(_without_nul)]
NodeId = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
Handle = Annotated[Text, StringConstraints(min_length=1, max_length=100)]
Key = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
WaitSeconds = Annotated[float, Field(ge=0, le=31_536_000)]
Scopes = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=SCOPE_PATTERN)], ...],
    Field(max_length=256),
    AfterValidator(normalise),
]
Expression = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1_000),
    AfterValidator(_parsed),
    Field(description="A JMESPath expression."),
]
Expressions = Annotated[dict[Text, Expression], Field(max_length=256)]
JsonObject = dict[str, JsonValue]


class Config(BaseModel):
    """The base of configurations. They are read from JSON, strictly: an unknown field is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StartConfig(Config):
    """Where a run of the graph begins; the output is the run's input."""


class EndConfig(Config):
    """Where it ends. The run's output is made of these expressions; without any it is the output before."""

    output: Expressions = Field(default_factory=dict)


class TransformConfig(Config):
    """A document made of expressions, by field."""

    expressions: Expressions = Field(default_factory=dict)


class ToolCallConfig(Config):
    """A call of one of the tenant's tools."""

    tool_slug: Slug
    input: JsonObject = Field(default_factory=dict)


class Condition(Config):
    """A way out that is taken when the expression gives anything but null, false and what is empty."""

    name: Handle
    expression: Expression


class IfElseConfig(Config):
    """Takes the first condition that holds, or `else`."""

    conditions: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _check_names("conditions", [condition.name for condition in self.conditions], ELSE)
        return self


class ParallelConfig(Config):
    """Goes on to all its targets at once."""


class Target(Config):
    """An agent, by its id or by its slug. Which of them is missing, the compiler says."""

    target_agent_id: UUID | None = None
    target_agent_slug: Slug | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.target_agent_id is not None and self.target_agent_slug is not None:
            raise ValueError("exactly one of target_agent_id and target_agent_slug is needed; observed: both")
        return self

    @property
    def is_named(self) -> bool:
        """Whether it says which agent."""
        return self.target_agent_id is not None or self.target_agent_slug is not None


class SpawnRunConfig(Target):
    """One child; the fields are those of the primitive. Without a key one is derived."""

    mapped_input_payload: JsonObject = Field(default_factory=dict)
    scope_subset: Scopes = ()
    idempotency_key: Key | None = None
    failure_policy: FailurePolicy | None = None
    timeout_s: Seconds | None = None
    start_background: bool = True


class GroupTarget(Target):
    """One member of a group."""

    mapped_input_payload: JsonObject = Field(default_factory=dict)


class SpawnGroupConfig(Config):
    """A group of children; the fields are those of the primitive.

    With `for_each` there is one target, and a child of it for each item of the list that the expression gives: an item
    that is an object is added to the payload, any other is its field `item`.
    """

    targets: Annotated[tuple[GroupTarget, ...], Field(max_length=MAX_GROUP)] = ()
    for_each: Expression | None = None
    scope_subset: Scopes = ()
    idempotency_key_prefix: Key | None = None
    failure_policy: FailurePolicy | None = None
    join_mode: JoinMode = JoinMode.ALL
    quorum_threshold: int | None = None
    timeout_s: Seconds | None = None
    start_background: bool = True

    @model_validator(mode="after")
    def _one_target_for_each(self) -> Self:
        if self.for_each is not None and len(self.targets) > 1:
            raise ValueError(f"for_each makes children of one target; observed: {len(self.targets)} targets")
        return self

    @property
    def size(self) -> int | None:
        """How many children it makes; None where that is known only when it runs."""
        return None if self.for_each is not None else len(self.targets)


class JoinConfig(Config):
    """Waits for a group: the one that is named, or the latest. What is left out stays as the group was made.

    It waits until the group is decided, or for `wait_s` seconds at most where that is given: one that is undecided
    then goes on by `pending`.
    """

    mode: JoinMode | None = None
    quorum_threshold: int | None = None
    timeout_s: Seconds | None = None
    orchestration_group_id: UUID | None = None
    wait_s: WaitSeconds | None = None


def _as_route(value: object) -> object:
    """A route by its name alone, or with what its value is held against: by default its name, of a list any item."""
    route = {"name": value} if isinstance(value, str) else value
    if not isinstance(route, dict):
        return value
    route = dict(route)
    if "match" in route and "equals" not in route:
        route["equals"] = route.pop("match")
    expected = route.get("equals", route.get("name"))
    route["equals"] = expected if isinstance(expected, list) else [expected]
    return route


class Route(Config):
    """A way out that is taken when the value is one of these."""

    name: Handle
    # What was put into its form above is no longer JSON, where a list is a tuple.
    equals: Annotated[tuple[JsonValue, ...], Field(max_length=256, strict=False)] = ()


class RouterConfig(Config):
    """Takes the first route that the value of `route_key`, in the latest orchestration output, is one of; or `default`.

    A spawn that policy refused gives an output whose status is `denied`.
    """

    routes: Annotated[tuple[Annotated[Route, BeforeValidator(_as_route)], ...], Field(min_length=1, max_length=100)]
    route_key: Expression = "status"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _check_names("routes", [route.name for route in self.routes], DEFAULT_ROUTE)
        return self


class JudgeConfig(Config):
    """Takes the outcome that is named like the latest suggested action or status; else the one for pass or for fail."""

    outcomes: Annotated[tuple[Handle, ...], Field(min_length=1, max_length=100)] = ("pass", "fail")
    pass_outcome: Handle | None = None
    fail_outcome: Handle | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_names("outcomes", list(self.outcomes), None)
        for field in ("pass_outcome", "fail_outcome"):
            outcome = getattr(self, field)
            if outcome is not None and outcome not in self.outcomes:
                raise ValueError(f"{field} is none of the outcomes; observed: {outcome!r}")
        return self

    @property
    def passing(self) -> str:
        """The outcome of what passes."""
        return self.pass_outcome or ("pass" if "pass" in self.outcomes else self.outcomes[0])

    @property
    def failing(self) -> str:
        """The outcome of what fails."""
        return self.fail_outcome or ("fail" if "fail" in self.outcomes else self.outcomes[-1])


class ReplanConfig(Config):
    """Asks for a verdict on the children of a run: the one that is named, or the one that is mapped or latest."""

    run_id: UUID | None = None


class CancelSubtreeConfig(Config):
    """Cancels a run and what is below it: the one that is named, or what was mapped or spawned last.

    It goes on when nothing more can happen below it; with `wait_s` it waits, for so many seconds at most, until
    everything below it is written down as cancelled.
    """

    run_id: UUID | None = None
    include_root: bool = True
    reason: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_REASON)] | None = None
    grace_s: Annotated[int, Field(ge=0, le=3_600)] = 0
    wait_s: Annotated[int, Field(ge=0, le=3_600)] = 0


CONFIGS: Mapping[NodeType, type[Config]] = {
    NodeType.START: StartConfig,
    NodeType.END: EndConfig,
    NodeType.TRANSFORM: TransformConfig,
    NodeType.TOOL_CALL: ToolCallConfig,
    NodeType.IF_ELSE: IfElseConfig,
    NodeType.PARALLEL: ParallelConfig,
    NodeType.SPAWN_RUN: SpawnRunConfig,
    NodeType.SPAWN_GROUP: SpawnGroupConfig,
    NodeType.JOIN: JoinConfig,
    NodeType.ROUTER: RouterConfig,
    NodeType.JUDGE: JudgeConfig,
    NodeType.REPLAN: ReplanConfig,
    NodeType.CANCEL_SUBTREE: CancelSubtreeConfig,
}


class _Drawn(BaseModel):
    """The base of nodes and edges: what an editor adds is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class NodeFrame(_Drawn):
    """A node before its configuration is read."""

    id: NodeId
    type: str
    label: Any = Field(None, description="Display only.")
    position: Any = Field(None, description="Display only.")
    config: JsonObject | None = None
    input_mappings: JsonObject | None = Field(None, validation_alias=AliasChoices("input_mappings", "inputMappings"))


class Edge(_Drawn):
    """From a node's way out to another node. `condition` is another name for `source_handle`."""

    id: NodeId
    source: str
    target: str
    source_handle: str | None = Field(None, validation_alias=AliasChoices("source_handle", "sourceHandle"))
    target_handle: Any = Field(
        None, validation_alias=AliasChoices("target_handle", "targetHandle"), description="Display only."
    )
    label: Any = Field(None, description="Display only.")
    condition: str | None = None

    @property
    def handle(self) -> str | None:
        """The way out of its source, as it is written."""
        return self.source_handle or self.condition


class Mappings(Config):
    """A node's `input_mappings`."""

    input_mappings: Expressions = Field(default_factory=dict)


class Node(BaseModel):
    """A node that has been read. `config` is None where it could not be.

    `unread` names the fields of a configuration that could not be read where the others could: nothing is to be made
    of their defaults.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    type: NodeType
    config: Config | None
    input_mappings: Mapping[str, str] = Field(default_factory=dict)
    unread: frozenset[str] = frozenset()

    def is_read(self, *fields: str) -> bool:
        """Whether some fields could be read, or are not there."""
        return self.unread.isdisjoint(fields)

    @property
    def branch_handles(self) -> tuple[str, ...] | None:
        """Its ways out by name, each of which needs an edge; None where it does not branch, or they are not known."""
        match self.type, self.config:
            case NodeType.JOIN, _:
                return JOIN_HANDLES
            case NodeType.REPLAN, _:
                return REPLAN_HANDLES
            case _, RouterConfig() as router:
                return (*(route.name for route in router.routes), DEFAULT_ROUTE)
            case _, IfElseConfig() as choice:
                return (*(condition.name for condition in choice.conditions), ELSE)
            case _, JudgeConfig() as judge if self.is_read("outcomes"):
                return judge.outcomes
        return None

    @property
    def branches(self) -> bool:
        """Whether its ways out have names."""
        return self.type in {NodeType.JOIN, NodeType.REPLAN, NodeType.ROUTER, NodeType.IF_ELSE, NodeType.JUDGE}


class GraphSpec(BaseModel):
    """What could be read of a graph: all of it, where there were no findings."""

    model_config = ConfigDict(frozen=True)

    spec_version: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def json_schema() -> dict[str, JsonValue]:
    """The JSON schema of a graph, for editors."""
    modes = [(model, "validation") for model in (*CONFIGS.values(), Edge, Mappings)]
    references, definitions = models_json_schema(modes, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    mappings = definitions["$defs"].pop("Mappings")["properties"]["input_mappings"]
    nodes = [
        {
            "type": "object",
            "title": node_type.value,
            "description": CONFIGS[node_type].__doc__,
            "properties": {
                "id": {"type": "string", "minLength": 1, "maxLength": 200},
                "type": {"enum": [name for name, named in TYPE_NAMES.items() if named is node_type]},
                "config": references[(CONFIGS[node_type], "validation")],
                "input_mappings": mappings,
                "inputMappings": mappings,
            },
            "required": ["id", "type"],
        }
        for node_type in NodeType
    ]
    edge = definitions["$defs"]["Edge"]
    for written, other in (("source_handle", "sourceHandle"), ("target_handle", "targetHandle")):
        edge["properties"][other] = edge["properties"][written]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "GraphSpec",
        "type": "object",
        "properties": {
            "spec_version": {"enum": list(VERSIONS)},
            "nodes": {"type": "array", "maxItems": MAX_NODES, "items": {"oneOf": nodes}},
            "edges": {"type": "array", "maxItems": MAX_EDGES, "items": {"$ref": "#/$defs/Edge"}},
        },
        "required": ["spec_version", "nodes", "edges"],
        **definitions,
    }


def _check_names(field: str, names: list[str], reserved: str | None) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the names of {field} must differ; observed twice: {', '.join(repeated)}")
    if reserved is not None and reserved in names:
        raise ValueError(f"{reserved!r} is there without being one of the {field}")
