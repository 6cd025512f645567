"""Whom a fence covers: held against a plain reading of the tree, over generated trees."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.domain import fences as domain
from kernel.domain.fences import Fence, FenceScope, StandingFences, Step, covering

Tree = list[Step]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Runs in the order of their spawning: each has a parent before it, and perhaps a group and an end."""
    runs = [Step(UUID(int=1), None, None, 1, draw(ends(1)))]
    for number in range(2, draw(st.integers(2, 12))):
        parent = draw(st.sampled_from(runs))
        group = draw(st.sampled_from([None, UUID(int=1000 + parent.run_id.int)]))
        runs.append(Step(UUID(int=number), parent.run_id, group, number * 2, draw(ends(number * 2))))
    return runs


def ends(spawned_seq: int) -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.integers(spawned_seq, 40))


def path(tree: Tree, run: Step) -> list[Step]:
    by_id = {step.run_id: step for step in tree}
    way = [run]
    while way[-1].parent_run_id is not None:
        way.append(by_id[way[-1].parent_run_id])
    return way


def below(tree: Tree, starts: set[UUID]) -> set[UUID]:
    """The starts and all below them."""
    found = set(starts)
    for step in tree:  # parents come first
        if step.parent_run_id in found:
            found.add(step.run_id)
    return found


def expected(tree: Tree, fence: Fence) -> set[UUID]:
    """What the contract says a fence covers, in words turned into sets."""
    match fence.scope:
        case FenceScope.RUN:
            return below(tree, {fence.run_id})
        case FenceScope.CHILDREN:
            earlier = {s.run_id for s in tree if s.parent_run_id == fence.run_id and s.spawned_seq < fence.fence_seq}
            return below(tree, earlier)
        case FenceScope.GROUP:
            losers = {
                s.run_id
                for s in tree
                if s.group_id == fence.group_id
                and not (s.finalized_seq is not None and s.finalized_seq < fence.fence_seq)
            }
            return below(tree, losers)


@st.composite
def fences(draw: st.DrawFn, tree: Tree, number: int = 99) -> Fence:
    scope = draw(st.sampled_from(list(FenceScope)))
    run = draw(st.sampled_from(tree))
    return Fence(
        cancellation_id=UUID(int=number),
        run_id=run.run_id,
        scope=scope,
        fence_seq=draw(st.integers(1, 40)),
        reason="test",
        group_id=UUID(int=1000 + run.run_id.int) if scope is FenceScope.GROUP else None,
    )


@st.composite
def fenced_trees(draw: st.DrawFn) -> tuple[Tree, Fence]:
    tree = draw(trees())
    return tree, draw(fences(tree))


@st.composite
def much_fenced_trees(draw: st.DrawFn) -> tuple[Tree, list[Fence]]:
    """Trees with many fences, on some runs and groups several."""
    tree = draw(trees())
    return tree, [draw(fences(tree, 100 + number)) for number in range(draw(st.integers(0, 10)))]


@given(fenced_trees())
def test_a_fence_covers_what_the_contract_says(case: tuple[Tree, Fence]) -> None:
    tree, fence = case
    covered = {step.run_id for step in tree if covering([fence], path(tree, step)) is not None}
    assert covered == expected(tree, fence)


@given(fenced_trees(), st.integers(1, 40))
def test_of_several_fences_the_first_is_named(case: tuple[Tree, Fence], seq: int) -> None:
    tree, fence = case
    root = Fence(UUID(int=98), tree[0].run_id, FenceScope.RUN, seq, "root")
    for step in tree:
        hits = [item for item in (fence, root) if covering([item], path(tree, step)) is not None]
        assert covering([fence, root], path(tree, step)) == min(hits, key=lambda item: item.fence_seq)


@given(much_fenced_trees())
def test_fences_by_what_they_stand_on_cover_what_each_of_them_covers(case: tuple[Tree, list[Fence]]) -> None:
    tree, standing = case
    by_place = StandingFences(standing)
    for step in tree:
        way = path(tree, step)
        over = by_place.over(way)
        assert {fence.cancellation_id for fence in over} == {
            fence.cancellation_id for fence in standing if covering([fence], way) is not None
        }
        assert len(over) == len(set(over))
        first, expected_first = by_place.covering(way), covering(standing, way)
        assert (first and first.fence_seq) == (expected_first and expected_first.fence_seq)
        on_run = [fence for fence in standing if fence.scope is FenceScope.RUN and fence.run_id == step.run_id]
        assert by_place.on_run(step.run_id) == min(on_run, key=lambda fence: fence.fence_seq, default=None)


def test_a_run_is_held_against_no_more_fences_than_stand_on_its_way_up(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Fence] = []
    stands_on = domain._stands_on

    def counted(fence: Fence, step: Step) -> bool:
        held.append(fence)
        return stands_on(fence, step)

    monkeypatch.setattr(domain, "_stands_on", counted)
    root = Step(UUID(int=1), None, None, 1, None)
    runs = [Step(UUID(int=number), root.run_id, None, number, None) for number in range(2, 500)]
    standing = [Fence(UUID(int=1000 + s.spawned_seq), s.run_id, FenceScope.RUN, 1000, "each") for s in runs]
    by_place = StandingFences(standing)
    for run, fence in zip(runs, standing, strict=True):
        assert by_place.over([run, root]) == [fence]
    assert len(held) == len(runs)


def test_without_fences_nothing_is_covered() -> None:
    way = [Step(UUID(int=1), None, None, 1, None)]
    assert covering([], way) is None
    assert StandingFences().covering(way) is None
