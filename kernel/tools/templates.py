"""The catalogue of what tools can be made of. It is code: there are no built-in instances, and nothing to manage."""

from dataclasses import dataclass

from kernel.tools.configs import CONFIGS, ImplementationType, RetrievalInput

AGENT_ID = "0193a5e0-7c1f-7b6e-9d43-5a1f4c2b8e70"
PIPELINE_ID = "0193a5e1-02d4-7f3a-8c55-6b7d9e1f2a30"


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of tool, the schema of its configuration, and an example as `POST /tools` takes it."""

    name: str
    description: str
    implementation_type: ImplementationType
    example: dict[str, object]
    input_schema: dict[str, object] | None = None

    def render(self) -> dict[str, object]:
        """The template as the wire shows it."""
        return {
            "name": self.name,
            "description": self.description,
            "implementation_type": self.implementation_type,
            "config_schema": CONFIGS[self.implementation_type].model_json_schema(),
            "input_schema": self.input_schema,
            "example": self.example,
        }


CATALOGUE = (
    Template(
        name="Agent call",
        description="Runs another agent as a child of the caller, waits for it, and answers with its output.",
        implementation_type="agent_call",
        example={
            "slug": "ask-researcher",
            "name": "Ask the researcher",
            "implementation_type": "agent_call",
            "config": {"target_agent_slug": "researcher", "execution": {"timeout_s": 60}},
            "input_schema": {
                "type": "object",
                "properties": {"question": {"type": "string", "minLength": 1}},
                "required": ["question"],
                "additionalProperties": False,
            },
        },
    ),
    Template(
        name="Agent call with less authority",
        description="The same, with fewer scopes than the caller has, and the target named by its id.",
        implementation_type="agent_call",
        example={
            "slug": "review",
            "name": "Review a text",
            "implementation_type": "agent_call",
            "config": {
                "target_agent_id": AGENT_ID,
                "execution": {"timeout_s": 300},
                "scope_subset": ["docs.read"],
            },
        },
    ),
    Template(
        name="Retrieval",
        description="Searches a pipeline's documents by words, by an embedding, or by both, and answers with passages.",
        implementation_type="rag_retrieval",
        example={
            "slug": "handbook",
            "name": "Search the handbook",
            "implementation_type": "rag_retrieval",
            "config": {"pipeline_id": PIPELINE_ID, "top_k": 5},
        },
        input_schema=RetrievalInput.model_json_schema(),
    ),
)
