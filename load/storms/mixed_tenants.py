"""Two hundred tenants that do a little of everything, a few of them most of it (by Zipf's law)."""

import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from load.storms.arrivals import IdleError, Stream
from load.storms.client import CANCELLED, Tenant
from load.storms.scenario import Scenario

TENANTS = 200
ZIPF = 1.1
MOST_TREES = 6
# What a tenant tries upon another's.
WAYS = ("read", "spawn", "spawn group", "cancel", "join", "complete", "report")


@dataclass
class Forest:
    """What this user has of one tenant: roots, and groups with their callers."""

    tenant: Tenant
    roots: list[str] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)


class MixedTenants(Scenario):
    """Every arrival is some tenant's; each tenant sees its own only."""

    abstract = False
    name = "mixed_tenants"
    happens = tuple(f"refused trespasses by {way}" for way in WAYS)

    def prepare(self) -> None:
        self.forests = [Forest(tenant) for tenant in self.stage.shared(self.name, self.scaled(TENANTS, least=5))]
        ranks = range(1, len(self.forests) + 1)
        self.ways = self.storming.shared(f"{self.name} ways", lambda: itertools.cycle(WAYS))
        self.weights = list(itertools.accumulate(1 / rank**ZIPF for rank in ranks))
        # What is read, joined and cancelled first.
        for forest in self.forests[:2]:
            root = self.client.start(forest.tenant)
            if root is not None:
                forest.roots.append(root)
                self._spawn_group(forest, root)

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("start", 2.0, self.begin_tree),
            Stream("spawn", 16.0, self.spawn),
            Stream("group", 1.5, self.group),
            Stream("work", 4.0, self.work),
            Stream("join", 3.0, self.join),
            Stream("read", 4.0, self.read),
            Stream("cancel", 0.5, self.cancel),
            Stream("trespass", 2.0, self.trespass, evenly=True),
        ]

    def begin_tree(self, due: float) -> None:
        forest = self._draw()
        root = self.client.start(forest.tenant, due=due, stream="start")
        if root is not None:
            forest.roots.append(root)
            if len(forest.roots) > MOST_TREES:
                self.client.report(forest.tenant, forest.roots.pop(0), "completed")

    def spawn(self, due: float) -> None:
        forest = self._draw()
        self.client.spawn(forest.tenant, self._root(forest), due=due, stream="spawn", expect=CANCELLED)

    def group(self, due: float) -> None:
        forest = self._draw()
        self._spawn_group(forest, self._root(forest), due=due, stream="group")

    def _spawn_group(self, forest: Forest, root: str, *, due: float | None = None, stream: str | None = None) -> None:
        size = self.scaled(self.dice.choice((2, 5, 20, 100)))
        answer = self.client.spawn_group(forest.tenant, root, size, due=due, stream=stream, expect=CANCELLED)
        if answer.ok:
            forest.groups = [*forest.groups[-MOST_TREES:], (root, answer.body["orchestration_group_id"])]

    def work(self, due: float) -> None:
        forest = self._draw()
        for run in self.client.claim(forest.tenant, at_most=5, due=due, stream="work"):
            self.client.complete(forest.tenant, run, "completed")

    def join(self, due: float) -> None:
        forest = self._draw_with(lambda each: bool(each.groups))
        caller, group_id = self.dice.choice(forest.groups)
        self.client.join(forest.tenant, caller, group_id, due=due, stream="join", expect=CANCELLED)

    def read(self, due: float) -> None:
        forest = self._draw_with(lambda each: bool(each.roots))
        root = self.dice.choice(forest.roots)
        self.client.query(forest.tenant, root, terms={"limit": 50}, due=due, stream="read")

    def cancel(self, due: float) -> None:
        forest = self._draw_with(lambda each: bool(each.roots))
        root = forest.roots.pop(self.dice.randrange(len(forest.roots)))
        self.client.cancel(forest.tenant, root, root, due=due, stream="cancel", expect=CANCELLED)

    def trespass(self, due: float) -> None:
        """Another tenant's run, or group, is one that does not exist, whatever it is asked for."""
        forest = self._draw_with(lambda each: bool(each.groups))
        stranger = self.dice.choice([each for each in self.forests if each is not forest])
        root, group_id = self.dice.choice(forest.groups)
        # Those who ask may have a run of their own to ask for.
        own = self.dice.choice([root, *stranger.roots])
        way = next(self.ways)
        terms: dict[str, Any] = {"due": due, "stream": "trespass", "sought": "not_found"}
        match way:
            case "spawn":
                answer = self.client.spawn(stranger.tenant, root, **terms)
            case "spawn group":
                answer = self.client.spawn_group(stranger.tenant, root, 2, **terms)
            case "cancel":
                answer = self.client.cancel(stranger.tenant, own, root, **terms)
            case "join":
                answer = self.client.join(stranger.tenant, own, group_id, **terms)
            case "complete":
                run = {"run_id": root, "lease": str(uuid.uuid4())}
                answer = self.client.complete(stranger.tenant, run, "completed", expect=(), **terms)
            case "report":
                answer = self.client.report(stranger.tenant, root, "completed", expect=(), **terms)
            case _:
                answer = self.client.run(stranger.tenant, root, **terms)
        if answer.code == "not_found":
            self.tally.count(f"refused trespasses by {way}")
        elif answer.ok:
            self.tally.find("tenancy", f"{way} of run {root} by tenant {stranger.tenant.tenant_id}, which is another's")

    def _draw(self) -> Forest:
        return self.dice.choices(self.forests, cum_weights=self.weights)[0]

    def _draw_with(self, has: Callable[[Forest], bool]) -> Forest:
        """A tenant that has what is acted on; where a first one has not, the others are asked."""
        forest = self._draw()
        if not has(forest):
            forest = next((each for each in self.forests if has(each)), forest)
        if not has(forest):
            raise IdleError
        return forest

    def _root(self, forest: Forest) -> str:
        """One of the tenant's roots; the first time it is started."""
        if not forest.roots:
            root = self.client.start(forest.tenant)
            if root is None:
                raise IdleError
            forest.roots.append(root)
        return self.dice.choice(forest.roots)
