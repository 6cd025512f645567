"""The event types of a tree, and the surfaces that cause them."""

from enum import StrEnum


class Surface(StrEnum):
    """Through which of the two surfaces work came in."""

    GRAPHSPEC_V2 = "option_a_graphspec_v2"
    RUNTIME_PRIMITIVES = "option_b_runtime_primitives"


class EventType(StrEnum):
    """CloudEvents types; one stored event consumes one sequence number of its tree."""

    SPAWN_DECISION = "orchestration.spawn_decision"
    CHILD_LIFECYCLE = "orchestration.child_lifecycle"
    JOIN_DECISION = "orchestration.join_decision"
    POLICY_DENY = "orchestration.policy_deny"
    CANCELLATION_PROPAGATION = "orchestration.cancellation_propagation"
