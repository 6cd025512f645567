"""What the demo reads of Remit's answers. Fields that it has no use for are left unread."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class Answer(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(Answer):
    """One reason of a denial."""

    code: str
    message: str = ""


class Problem(Answer):
    """An RFC 9457 problem; a denial by policy has `decision_id` and `reasons`."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = ""
    decision_id: str | None = None
    reasons: tuple[Reason, ...] = ()


class Tenant(Answer):
    """A tenant that was made."""

    tenant_id: str


class Token(Answer):
    """A token that was issued."""

    token: str


class Agent(Answer):
    """An agent of the catalog."""

    agent_id: str
    status: str


class Pipeline(Answer):
    """A pipeline of documents that was made."""

    pipeline_id: str


class MadeTool(Answer):
    """A tool that was made."""

    tool_id: str


class Passage(Answer):
    """A piece of a document that a search found."""

    document_id: str
    text: str
    score: float
    metadata: dict[str, JsonValue]


class Retrieved(Answer):
    """What a search found, the best first."""

    results: tuple[Passage, ...]
    took_ms: float


class Called(Answer):
    """What calling an agent by a tool brought."""

    run_id: str
    target_agent_slug: str
    status: str
    output: JsonValue = None
    error: JsonValue = None
    context: dict[str, JsonValue] = {}

    @property
    def scopes(self) -> tuple[str, ...]:
        """What the agent was permitted."""
        scopes = self.context.get("requested_scopes")
        return tuple(str(scope) for scope in scopes) if isinstance(scopes, list) else ()


class Decision(Answer):
    """A decision on record."""

    caller_run_id: str | None
    surface: str


class DecisionPage(Answer):
    """A page of decisions."""

    items: tuple[Decision, ...]


class Run(Answer):
    """A run, as anybody may read it."""

    run_id: str
    status: str
    output: JsonValue = None
    error: JsonValue = None


class StartedRun(Answer):
    """A root run, with the token to act as it."""

    run_id: str
    status: str
    run_token: str


class Claimed(Answer):
    """A run that this worker has leased."""

    run_id: str
    agent_slug: str
    input: dict[str, JsonValue]
    run_token: str
    lease: str
    attempt: int


class Claim(Answer):
    """What a claim brought; nothing when there was no work in time."""

    runs: tuple[Claimed, ...]


class LeaseVerdict(Answer):
    """What a heartbeat hears of one lease."""

    run_id: str
    status: Literal["continue", "cancel", "lost"]
    reason: str | None = None
    run_token: str | None = None


class Heartbeat(Answer):
    """What a heartbeat hears."""

    leases: tuple[LeaseVerdict, ...]


class SpawnedRun(Answer):
    """What `spawn-run` made."""

    spawned_run_ids: tuple[str, ...]
    run_tokens: dict[str, str] = {}


class SpawnedGroup(Answer):
    """What `spawn-group` made; the ids are in the order of the targets."""

    orchestration_group_id: str
    spawned_run_ids: tuple[str, ...]


class Join(Answer):
    """How a group stands."""

    status: str
    complete: bool
    success_count: int
    failure_count: int
    running_count: int
    member_run_ids: tuple[str, ...]


class Cancellation(Answer):
    """What a fence has done so far."""

    cancellation_id: str
    cancelled_count: int
    cancelled_run_ids: tuple[str, ...] = ()
    state: Literal["drained", "draining"]
    fence_seq: int


class Rollup(Answer):
    """A tree's runs, counted."""

    total: int
    by_status: dict[str, int]


class TreeNode(Answer):
    """A run in a tree, with the tree's sequence numbers of its transitions."""

    run_id: str
    status: str
    spawned_seq: int
    started_seq: int | None


class TreePage(Answer):
    """A page of a tree; with the counts of all of it where they were asked for."""

    nodes: tuple[TreeNode, ...]
    next_cursor: str | None = None
    rollup: Rollup | None = None
