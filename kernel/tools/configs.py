"""What tools are configured with, and what a retrieval is asked: checked when a tool is made and when it is used."""

from typing import Annotated, Literal, Self, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from kernel.domain.errors import InvalidRequestError
from kernel.domain.scopes import SCOPE_PATTERN, normalise

DEFAULT_TIMEOUT_S = 60
MAX_TIMEOUT_S = 86_400
DEFAULT_TOP_K = 5
MAX_TOP_K = 100
MAX_QUERY = 10_000
MAX_DIMENSION = 4_096

ImplementationType = Literal["agent_call", "rag_retrieval"]
Scope = Annotated[str, StringConstraints(pattern=SCOPE_PATTERN)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
# Strict, since "NaN" would pass for a number otherwise.
Embedding = Annotated[
    tuple[Annotated[float, Field(strict=True, allow_inf_nan=False)], ...], Field(min_length=1, max_length=MAX_DIMENSION)
]
Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """The base of configurations: an unknown field is a mistake, and is told; null is as good as no field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class Execution(Config):
    """How a call is carried out. `timeout_s` is how long the caller waits; then the child is cancelled."""

    timeout_s: int = Field(DEFAULT_TIMEOUT_S, ge=1, le=MAX_TIMEOUT_S)


class AgentCallConfig(Config):
    """Whom an agent_call calls, by exactly one of id and slug; `scope_subset` is by default all that the caller has."""

    target_agent_id: UUID | None = None
    target_agent_slug: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    execution: Execution = Execution()
    scope_subset: Annotated[tuple[Scope, ...], Field(max_length=256), AfterValidator(normalise)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.target_agent_id is None) == (self.target_agent_slug is None):
            raise ValueError("exactly one of target_agent_id and target_agent_slug is needed")
        return self


class RagRetrievalConfig(Config):
    """Which pipeline a rag_retrieval searches, and how many pieces it answers with unless a call says otherwise."""

    pipeline_id: UUID
    top_k: TopK = DEFAULT_TOP_K


class RetrievalInput(Config):
    """What a retrieval is asked: by words (`query`, in the syntax of web searches), by an embedding, or by both.

    `mode` is by default what is there to go by; `filter` is what the metadata of a document must contain.
    """

    query: Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)] | None = None
    embedding: Embedding | None = None
    mode: Literal["text", "vector", "hybrid"] | None = None
    top_k: TopK | None = None
    filter: dict[str, object] | None = None

    @model_validator(mode="after")
    def _something_to_go_by(self) -> Self:
        for name, modes in (("query", {"text", "hybrid"}), ("embedding", {"vector", "hybrid"})):
            if getattr(self, name) is None and self.effective_mode in modes:
                raise ValueError(f"{name} is needed for a search by {self.effective_mode}")
        return self

    @property
    def effective_mode(self) -> str:
        """How it is searched."""
        if self.mode is not None:
            return self.mode
        if self.embedding is None:
            return "text"
        return "vector" if self.query is None else "hybrid"


CONFIGS: dict[ImplementationType, type[AgentCallConfig] | type[RagRetrievalConfig]] = {
    "agent_call": AgentCallConfig,
    "rag_retrieval": RagRetrievalConfig,
}


def check(model: type[Model], value: object, *, where: str) -> Model:
    """Read a value.

    Args:
        where: the name on the wire of what is read, with which the paths of what is wrong begin.

    Raises:
        InvalidRequestError: naming each field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        findings = [
            {"field": place(where, item["loc"]), "message": item["msg"].removeprefix("Value error, ")}
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        said = "; ".join(f"{finding['field']}: {finding['message']}" for finding in findings[:5])
        raise InvalidRequestError(said, errors=findings) from error


def place(where: str, path: tuple[int | str, ...]) -> str:
    """A path as the wire shows it: `input.targets[2].name`."""
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
