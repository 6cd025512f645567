"""Who plays a part in the demo: its agents, its tools, and the scopes that they hold."""

from enum import StrEnum

SPAWN_SCOPE = "agents.execute"
READ_SCOPE = "source.read"
# Held by the survey so that it can be handed to the one agent that writes documents.
KEEP_SCOPE = "catalog.write"
# Held by no run of the demo: what a caller asks for beyond its own.
FOREIGN_SCOPE = "secrets.read"
# What whoever spawns readers holds, and the survey, which has its report kept, besides.
ORCHESTRATOR_SCOPES = (SPAWN_SCOPE, READ_SCOPE)
SURVEY_SCOPES = (*ORCHESTRATOR_SCOPES, KEEP_SCOPE)


class Role(StrEnum):
    """The agents, by slug."""

    SURVEY = "survey"
    FOLDER = "folder-survey"
    FILE = "file-survey"
    LIBRARIAN = "librarian"
    ANALYST = "analyst"
    PLANNER = "planner"
    SLOW = "slow-task"
    DRAFT = "unpublished-agent"
    OUTSIDER = "outsider"


class Tool(StrEnum):
    """The tools, by slug: two call an agent, the third searches what the first has kept."""

    KEEP = "keep-report"
    ASK = "ask-report"
    SEARCH = "search-report"
