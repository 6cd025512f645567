"""Who is covered and who is below whom, found for many runs at once, is what it is for each of them alone."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from kernel.domain.fences import Fence, FenceScope, Step, covering
from kernel.domain.lineage import Ancestry

RUNS = 12


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """A tree: run 0 is the root, and every other run has an earlier one as its parent."""
    made = [Step(UUID(int=1), None, None, 1, None)]
    for number in range(1, draw(st.integers(1, RUNS))):
        parent = draw(st.integers(0, number - 1))
        group = draw(st.none() | st.integers(0, 2))
        ended = draw(st.none() | st.integers(1, 40))
        group_id = UUID(int=1000 + parent * 10 + group) if group is not None else None
        made.append(Step(UUID(int=number + 1), UUID(int=parent + 1), group_id, number + 1, ended))
    return made


@st.composite
def fences(draw: st.DrawFn) -> list[Fence]:
    made: list[Fence] = []
    for number in range(draw(st.integers(0, 5))):
        scope = draw(st.sampled_from(FenceScope))
        run = draw(st.integers(0, RUNS - 1))
        group_id = UUID(int=1000 + run * 10 + draw(st.integers(0, 2))) if scope is FenceScope.GROUP else None
        seq = draw(st.integers(1, 40))
        made.append(Fence(UUID(int=5000 + number), UUID(int=run + 1), scope, seq * 10 + number, "r", group_id))
    return made


def way_up(tree: list[Step], run: Step) -> list[Step]:
    by_id = {step.run_id: step for step in tree}
    path = [run]
    while (parent := path[-1].parent_run_id) is not None:
        path.append(by_id[parent])
    return path


@given(steps(), fences())
def test_coverage_of_many_is_the_coverage_of_each(tree: list[Step], standing: list[Fence]) -> None:
    known = Ancestry(standing)
    known.add(tree)
    for run in reversed(tree):
        assert known.fence_of(run.run_id) == covering(standing, way_up(tree, run))


@given(steps(), st.integers(1, RUNS))
def test_a_run_is_within_what_is_on_its_way_up(tree: list[Step], top: int) -> None:
    known = Ancestry()
    known.add(tree)
    remembered: dict[UUID, bool] = {}
    for run in tree:
        expected = UUID(int=top) in {step.run_id for step in way_up(tree, run)}
        assert known.is_within(run.run_id, UUID(int=top), remembered) == expected
