"""Everything that one demonstration found, and what of it is not as it must be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.demo.cancellation import CancellationProof
from service.demo.count import Survey
from service.demo.refusals import Refusal
from service.demo.survey import SurveyResult, differences

_CHANGES_SHOWN = 5


@dataclass(frozen=True)
class Findings:
    """What was found; `problems` is empty when all of it is as it must be."""

    result: SurveyResult
    counted: Survey
    changed_meanwhile: Sequence[str]
    runs_by_status: dict[str, int]
    refusals: Sequence[Refusal]
    runs_beside_refusals: int
    proof: CancellationProof
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is wrong, for a person to read."""
        return [*self._wrong_figures(), *self._wrong_refusals(), *self.proof.problems]

    def _wrong_figures(self) -> Iterator[str]:
        wrong = differences(self.result.survey, self.counted)
        if wrong and self.changed_meanwhile:
            shown = ", ".join(self.changed_meanwhile[:_CHANGES_SHOWN])
            yield f"{len(self.changed_meanwhile)} files changed while they were surveyed: {shown}. Run it again"
        yield from wrong
        yield from (f"no answer for {name}" for name in self.result.missing)
        expected = 1 + len(self.result.survey.folders) + self.result.survey.total.files
        if self.runs_by_status != {"completed": expected}:
            yield f"{expected} runs were to be completed; the tree has {self.runs_by_status}"

    def _wrong_refusals(self) -> Iterator[str]:
        for refusal in self.refusals:
            if not refusal.as_expected:
                got = ", ".join(refusal.codes) or refusal.message
                yield f"{refusal.attempt}: expected {refusal.expected} with a decision id, got {refusal.status} {got}"
        if self.runs_beside_refusals:
            yield f"the refused spawns left {self.runs_beside_refusals} runs behind"
