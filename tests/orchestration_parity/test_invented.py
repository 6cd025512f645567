"""What Hypothesis invents is done alike by both surfaces, too."""

import asyncio
from collections.abc import Sequence

import pytest
import yaml
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from service.dependencies import Services
from tests.faults.scale import TORTURE
from tests.kit import Api
from tests.orchestration_parity.comparing import play_both, side_by_side
from tests.orchestration_parity.inventing import Document, scenario_documents
from tests.orchestration_parity.story import Scenario, load, scenario_of, tell, walk

AT_ONCE = 6
BATCHES = 160 if TORTURE else 16


class DifferentError(AssertionError):
    """Two plays of an invented scenario differ."""


@pytest.mark.torture
@pytest.mark.timeout(1_800 if TORTURE else 300)
@settings(
    max_examples=BATCHES,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    verbosity=Verbosity.quiet,
    phases=(Phase.generate, Phase.shrink) if TORTURE else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(documents=st.lists(scenario_documents(), min_size=1, max_size=AT_ONCE, unique_by=str))
async def test_both_surfaces_do_the_same_with_what_nobody_thought_of(
    api: Api, services: Services, documents: Sequence[Document]
) -> None:
    found = await asyncio.gather(*(difference(api, services, document) for document in documents))
    if differences := [told for told in found if told is not None]:
        raise DifferentError("\n\n".join(differences))


async def difference(api: Api, services: Services, document: Document) -> str | None:
    """Where the plays of a scenario part, with the scenario as it can be added to those that are written down."""
    scenario = scenario_of(document)
    try:
        by_calls, by_graph = await play_both(api, services, scenario)
    except Exception as error:
        error.add_note(written(scenario))
        raise
    if by_calls == by_graph:
        return None
    return f"{written(scenario)}\n{side_by_side(by_calls, by_graph)}"


class Plain(yaml.SafeDumper):
    """Writes what occurs twice twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def written(scenario: Scenario) -> str:
    """A scenario as it can be added to those that are written down."""
    text: str = yaml.dump([tell(scenario)], Dumper=Plain, sort_keys=False)
    return text


@settings(max_examples=100, deadline=None)
@given(document=scenario_documents())
def test_a_scenario_can_be_written_down(document: Document) -> None:
    scenario = scenario_of(document)
    again = scenario_of(*yaml.safe_load(written(scenario)))
    assert again == scenario
    ids = [step.id for agent in scenario.agents.values() for step in walk(agent.steps)]
    assert len(set(ids)) == len(ids)


def test_those_that_are_written_down_are_told_as_they_are() -> None:
    for scenario in load():
        assert scenario_of(tell(scenario)) == scenario
