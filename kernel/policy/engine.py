"""The port: what the kernel needs of a policy engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kernel.policy.contract import Decision, DecisionInput


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer with its provenance: the question as it was sent, the bundle's revision, the seconds that it took."""

    decision: Decision
    revision: str
    seconds: float
    asked: str


class PolicyEngine(Protocol):
    """Answers questions, or raises: an engine never guesses.

    Every failure (unreachable, late, undefined, malformed, an unknown or stale bundle) is a `PolicyUnavailableError`.
    """

    async def decide(self, question: DecisionInput) -> Evaluated:
        """Answer one question."""
        ...

    async def decide_all(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        """Answer up to 64 questions in one round trip, in their order."""
        ...
