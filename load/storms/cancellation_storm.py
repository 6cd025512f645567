"""Trees of hundreds and thousands of runs, cancelled at the root, midway, by overlapping fences, while they spawn."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import gevent

from load.storms.arrivals import IdleError, Stream, deck
from load.storms.client import CANCELLED, Answer, Tenant, child_of
from load.storms.overdue import Overdue
from load.storms.repeats import Repeats
from load.storms.scenario import Scenario

SIZES = (100, 300, 600, 1_000, 3_000)
BRANCHES, TWIGS = 4, 2
MOST_TREES = 30
SURGE = 8
GRACE_S = 1
# How trees are cancelled, each as often as it is here. The first ones come in this order, so that all come early.
KINDS = ("midway", "root", "overlapping", "below", "grace", *("midway", "root", "overlapping") * 2)
# The share of fences that may hit a tree whose root is under one.
AGAIN = 0.2


@dataclass
class Tree:
    """A tree as its client knows it: the orchestrators in it by their parents, and where fences stand.

    `fenced` are those with all below them; `touched` are all, also those whose fence spares the run itself, or waits.
    """

    root: str
    parents: dict[str, str | None]
    size: int
    fenced: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)

    def is_covered(self, run_id: str) -> bool:
        """Whether a fence that was answered stands over the run."""
        return self.is_below(self.fenced, run_id)

    def is_below(self, run_ids: Collection[str], run_id: str) -> bool:
        """Whether a run is one of some, or below one."""
        above: str | None = run_id
        while above is not None:
            if above in run_ids:
                return True
            above = self.parents[above]
        return False


class CancellationStorm(Scenario):
    """Plants trees, spawns into them and cancels them, all at the same time."""

    abstract = False
    name = "cancellation_storm"
    careless = True
    waiting = 12
    happens = (
        "cancelled root",
        "cancelled midway",
        "cancelled overlapping",
        "refused a spawn that raced a fence",
        "logs heard as they are",
    )

    def prepare(self) -> None:
        self.kinds = self.storming.shared(f"{self.name} kinds", lambda: cycle(KINDS))
        self.tenant = self.stage.tenant(self.name)
        self.repeats = Repeats(self.client, self.tally)
        self.followers = self.follow()
        self.overdue = Overdue(self.client, self.waiters, self.tally, self.tenant, self.later)
        self.trees: list[Tree] = []
        self.sizes = deck(SIZES, self.dice)
        # There is something to cancel from the first moment on.
        self._plant(self.scaled(min(SIZES), least=BRANCHES))

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("plant", 0.4, self.plant, evenly=True),
            Stream("spawn", 12.0, self.spawn),
            Stream("cancel", 0.8, self.cancel, evenly=True),
            Stream("look", 4.0, self.look),
            Stream("overdue", 0.3, self.overdue.plant),
        ]

    def worked(self) -> Sequence[Tenant]:
        return [self.tenant]

    def plant(self, due: float) -> None:
        self._plant(self.scaled(next(self.sizes), least=BRANCHES), due=due, stream="plant")

    def _plant(self, size: int, *, due: float | None = None, stream: str | None = None) -> None:
        root = self.client.start(self.tenant, due=due, stream=stream)
        if root is None:
            return
        tree = Tree(root, {root: None}, size)
        # It may be cancelled from here on, while it grows.
        self.trees.append(tree)
        if stream is not None:
            self.followers.take(self.tenant, root)
        branches = [root]
        for _ in range(BRANCHES):
            branches += self._branch(tree, root)
        for branch in branches[1 : TWIGS + 1]:
            branches += self._branch(tree, branch)
        for branch in branches:
            covered = tree.is_covered(branch)
            answer = self.client.spawn_group(self.tenant, branch, max(1, size // len(branches)), expect=CANCELLED)
            self._hold(tree, branch, covered, ok=answer.ok, what="spawned a group")
        if len(self.trees) > MOST_TREES:
            self.trees.pop(0)

    def spawn(self, due: float) -> None:
        tree = self._tree()
        self._spawn_below(tree, self.dice.choice(list(tree.parents)), due=due)

    def cancel(self, due: float) -> None:
        tree = self._tree(standing=self.dice.random() > AGAIN)
        others = [run_id for run_id in tree.parents if run_id != tree.root]
        if not others:
            raise IdleError
        midway = self.dice.choice(others)
        surge = [gevent.spawn(self._race, tree) for _ in range(SURGE)]
        kind = next(self.kinds)
        match kind:
            case "root":
                cancelled = self._fence(tree, tree.root, due=due)
            case "midway":
                cancelled = self._fence(tree, midway, due=due)
            case "below":
                # The run itself stays active, and what it spawns from now on stays, too.
                cancelled = self._fence(tree, midway, due=due, include_root=False)
            case "overlapping":
                above = tree.parents[midway] or tree.root
                fences = [gevent.spawn(self._fence, tree, run_id) for run_id in (tree.root, above, midway)]
                cancelled = self._fence(tree, midway, due=due)
                gevent.joinall(fences, raise_error=True)
                cancelled += sum(fence.value for fence in fences)
            case _:
                cancelled = self._fence(tree, midway, due=due, grace_s=GRACE_S)
        gevent.joinall(surge, raise_error=True)
        if cancelled:
            self.tally.count(f"cancelled {kind}")

    def look(self, due: float) -> None:
        tree = self._tree()
        run_id = self.dice.choice(list(tree.parents))
        covered = tree.is_covered(run_id)
        answer = self.client.run(self.tenant, run_id, due=due, stream="look")
        if covered and answer.ok and answer.body["status"] in ("queued", "running", "paused"):
            self.tally.find("effective status", f"{run_id} reads as {answer.body['status']} under a fence")

    def _tree(self, *, standing: bool = False) -> Tree:
        """A tree; `standing` prefers those whose root no fence covers."""
        if not self.trees:
            raise IdleError
        stand = [tree for tree in self.trees if standing and tree.root not in tree.fenced]
        return self.dice.choice(stand or self.trees)

    def _branch(self, tree: Tree, parent: str) -> list[str]:
        covered = tree.is_covered(parent)
        answer = self.client.spawn(self.tenant, parent, "orchestrator", expect=CANCELLED)
        self._hold(tree, parent, covered, ok=answer.ok, what="spawned a branch")
        if not answer.ok:
            return []
        tree.parents[child_of(answer)] = parent
        return [child_of(answer)]

    def _race(self, tree: Tree) -> None:
        """Spawn beside a fence; either may come first."""
        parent = self.dice.choice(list(tree.parents))
        touched = tree.is_below(tree.touched, parent)
        if self._spawn_below(tree, parent).code in CANCELLED and not touched:
            self.tally.count("refused a spawn that raced a fence")

    def _spawn_below(self, tree: Tree, parent: str, *, due: float | None = None) -> Answer:
        covered = tree.is_covered(parent)
        stream, key = "spawn" if due is not None else None, uuid.uuid4().hex
        answer = self.client.spawn(self.tenant, parent, key=key, due=due, stream=stream, expect=CANCELLED)
        self._hold(tree, parent, covered, ok=answer.ok, what="spawned a run")
        if answer.ok:
            self.repeats.follow(self.tenant, parent, key, answer)
        return answer

    def _fence(
        self, tree: Tree, run_id: str, *, due: float | None = None, include_root: bool = True, grace_s: int = 0
    ) -> int:
        """Put up a fence; how many runs it has cancelled by its answer."""
        terms = {"include_root": include_root, "grace_s": grace_s}
        stream = "cancel" if due is not None else None
        answer = self.client.cancel(
            self.tenant, tree.root, run_id, terms=terms, due=due, stream=stream, expect=CANCELLED
        )
        if not answer.ok:
            return 0
        tree.touched.add(run_id)
        if include_root and not grace_s:
            tree.fenced.add(run_id)
        return int(answer.body["cancelled_count"])

    def _hold(self, tree: Tree, run_id: str, covered: bool, *, ok: bool, what: str) -> None:
        """What was sent after a fence over it had been answered must have been refused."""
        if covered and ok:
            self.tally.find("escape", f"{run_id} of tree {tree.root} {what} under a fence that had been answered")
