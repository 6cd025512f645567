"""One execution of a node: what it is given, and what comes of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from jmespath.exceptions import JMESPathError

from kernel.commands.cancel_subtree import CancelSubtreeCommand
from kernel.commands.evaluate_and_replan import EvaluateAndReplanCommand
from kernel.commands.join import JoinCommand
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.domain.principal import Principal
from kernel.graph.expressions import BeyondBoundsError, evaluate
from kernel.graph.ir import GraphNode
from kernel.graph.spec import NEXT, Config, NodeType
from kernel.graph.state import GraphState, Lineage, Ways
from kernel.wakeups import Wakeups

ConfigT = TypeVar("ConfigT", bound=Config)


class GraphRunError(Exception):
    """A graph's run that fails; `error` is what the run gives back."""

    def __init__(self, code: str, message: str, node_id: str | None = None, **members: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "node_id": node_id, **members}


class GraphInterruptedError(Exception):
    """The run is not this process's any more, or the process ends: nothing more is to be done about it here."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a graph makes."""

    principal: Principal
    run_id: UUID
    tool_slug: str
    input: dict[str, Any]
    key: str
    node_id: str
    trace_parent: str | None = None


InvokeTool = Callable[[ToolCall], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Commands:
    """The kernel's commands that nodes give. Without `invoke_tool` there are no tools in this process."""

    combiner: SpawnCombiner
    join: JoinCommand
    cancel: CancelSubtreeCommand
    replan: EvaluateAndReplanCommand
    wakeups: Wakeups
    invoke_tool: InvokeTool | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """A node at its turn. `iteration` counts its visits from 0 on; `document` is what expressions are about."""

    commands: Commands
    ways: Ways
    state: GraphState
    lineage: Lineage
    node: GraphNode
    iteration: int
    document: Mapping[str, Any]

    @property
    def principal(self) -> Principal:
        """A graph acts as its run, with its scopes."""
        lineage = self.lineage
        return Principal(
            kind="run",
            tenant_id=lineage.tenant_id,
            scopes=frozenset(lineage.scopes),
            run_id=lineage.run_id,
            root_run_id=lineage.root_run_id,
        )

    @property
    def mapped(self) -> dict[str, Any]:
        """What the node's input mappings give."""
        found: dict[str, Any] = self.document["mapped"]
        return found

    @property
    def latest(self) -> dict[str, Any] | None:
        """The latest orchestration output before the node."""
        found: dict[str, Any] | None = self.document["latest"]
        return found

    def config(self, kind: type[ConfigT]) -> ConfigT:
        """The node's configuration."""
        if not isinstance(self.node.config, kind):
            raise TypeError(f"node {self.node.id!r} has a {type(self.node.config).__name__}, not a {kind.__name__}")
        return self.node.config

    def latest_of(self, *types: NodeType) -> dict[str, Any] | None:
        """The latest output before the node of some types of nodes."""
        found = self.ways.latest(self.state, self.node.id, types)
        return self.state.output(found) if found is not None else None

    def search(self, expression: str) -> Any:
        """The value of an expression.

        Raises:
            GraphRunError: when it cannot be computed of what is there.
        """
        return search(expression, self.document, self.node.id)

    def as_id(self, value: object, field: str) -> UUID:
        """An id that came out of an expression or an earlier output.

        Raises:
            GraphRunError: when it is none.
        """
        try:
            return UUID(str(value))
        except ValueError:
            raise GraphRunError("invalid_request", f"{field}: {value!r} is no id", self.node.id) from None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a node gives, and the way out that is taken."""

    output: Any
    handle: str = NEXT
    denied: bool = False


Executor = Callable[[Visit], Awaitable[Outcome]]


def search(expression: str, document: object, node_id: str) -> Any:
    """The value of an expression of a node."""
    try:
        return evaluate(expression, document)
    except BeyondBoundsError as error:
        raise GraphRunError("expression_beyond_bounds", f"{expression}: {error}", node_id) from error
    except (JMESPathError, TypeError, ValueError) as error:
        raise GraphRunError("expression_failed", f"{expression}: {error}", node_id) from error


def same(one: object, other: object) -> bool:
    """Whether two JSON values are equal; a boolean is no number."""
    return isinstance(one, bool) is isinstance(other, bool) and one == other


def holds(value: object) -> bool:
    """Whether JMESPath calls a value true: anything but null, false and what is empty."""
    return value is not None and value is not False and (not isinstance(value, str | list | dict) or bool(value))
