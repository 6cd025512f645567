"""Everything that one demonstration found, and what of it is not as it must be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.demo.archive import QUESTIONS, Question, wrong_answers
from service.demo.cancellation import CancellationProof
from service.demo.catalog import LARGEST_ANSWER, TOOL_RUNS
from service.demo.count import Survey
from service.demo.refusals import Refusal
from service.demo.survey import SurveyResult, differences
from service.demo.tasks import Answered, KeptReport
from service.demo.wire import Called

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
        return [*self._wrong_figures(), *self._wrong_answers(), *self._wrong_refusals(), *self.proof.problems]

    @property
    def answered(self) -> list[tuple[Question, Answered | None]]:
        """What was asked about the report, with what was found; nothing where nobody answered."""
        answers = [*self.result.answers, *[None] * len(QUESTIONS)]
        return [(question, _read(answer)) for question, answer in zip(QUESTIONS, answers, strict=False)]

    def _wrong_figures(self) -> Iterator[str]:
        wrong = differences(self.result.survey, self.counted)
        if wrong and self.changed_meanwhile:
            shown = ", ".join(self.changed_meanwhile[:_CHANGES_SHOWN])
            yield f"{len(self.changed_meanwhile)} files changed while they were surveyed: {shown}. Run it again"
        yield from wrong
        yield from (f"no answer for {name}" for name in self.result.missing)
        expected = 1 + len(self.result.survey.folders) + self.result.survey.total.files + TOOL_RUNS
        if self.runs_by_status != {"completed": expected}:
            yield f"{expected} runs were to be completed; the tree has {self.runs_by_status}"

    def _wrong_answers(self) -> Iterator[str]:
        kept, wanted = self.result.kept, len(self.result.survey.folders) + 1
        if kept is None or kept.status != "completed":
            yield f"the report was not kept: {_how_it_ended(kept)}"
        elif (count := KeptReport.model_validate(kept.output).documents) != wanted:
            yield f"{wanted} documents were to be kept, {count} are"
        for (question, found), answer in zip(self.answered, self.result.answers, strict=False):
            if found is None:
                yield f"{question.text} There was no answer: {_how_it_ended(answer)}"
                continue
            passages = [(passage.document_id, passage.metadata) for passage in found.passages]
            yield from wrong_answers(question, passages, LARGEST_ANSWER, self.result.survey)
        if len(self.result.answers) != len(QUESTIONS):
            yield f"{len(QUESTIONS)} questions were to be asked, {len(self.result.answers)} were"

    def _wrong_refusals(self) -> Iterator[str]:
        for refusal in self.refusals:
            if not refusal.as_expected:
                got = ", ".join(refusal.codes) or refusal.message
                yield f"{refusal.attempt}: expected {refusal.expected} with a decision id, got {refusal.status} {got}"
        if self.runs_beside_refusals:
            yield f"the refused spawns left {self.runs_beside_refusals} runs behind"


def _read(answer: Called | None) -> Answered | None:
    if answer is None or answer.status != "completed":
        return None
    return Answered.model_validate(answer.output)


def _how_it_ended(called: Called | None) -> str:
    return "nobody was asked" if called is None else f"{called.target_agent_slug} {called.status}, {called.error}"
