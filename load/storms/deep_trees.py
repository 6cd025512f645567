"""Chains down to depth 1,000: grown at their ends, with leaves at every depth, read, and cut off midway."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from load.storms.arrivals import BusyError, IdleError, Stream
from load.storms.client import CANCELLED, Tenant, child_of
from load.storms.scenario import Scenario
from load.storms.stage import UNLIMITED
from load.storms.storming import Storming

DEPTH, LEAST = 1_000, 5
# One chain grows by one link per answer: so many keep up with the arrivals, as long as an answer takes a third of a
# second.
CHAINS = 12
PLANTED = 0.95
PAGE = 50


@dataclass
class Chain:
    """A root and its descendants, one below the other; the last of them is being extended, or is free to be."""

    links: list[str]
    busy: bool = False
    # Cuts that were sent, and those that were answered: between the two any call may be refused.
    sent: int = 0
    answered: int = 0
    gone: set[str] = field(default_factory=set)


class DeepTrees(Scenario):
    """Grows the deepest chain that is free, until policy says that it is deep enough."""

    abstract = False
    name = "deep_trees"

    def prepare(self) -> None:
        self.depth = self.scaled(DEPTH, least=LEAST)
        self.tenant = self.stage.tenant(self.name, {**UNLIMITED, "max_depth": self.depth})
        self.chains = [Chain([root]) for _ in range(CHAINS) if (root := self.client.start(self.tenant))]
        # A chain grows by one link per answer, so a short storm, or one on a busy machine, would not get deep.
        first = self.chains[0]
        while len(first.links) < PLANTED * self.depth and not self.storming.over.is_set():
            answer = self.client.spawn(self.tenant, first.links[-1], "orchestrator")
            first.links.append(child_of(answer))
            self._note_depth(answer.body["lineage"]["depth"])

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("grow", 35.0, self.grow),
            Stream("leaf", 5.0, self.leaf),
            Stream("look", 2.0, self.look),
            Stream("page", 0.5, self.page),
            # The first cuts come when there is something to cut.
            Stream("cut", 0.4, self.cut, begins=0.5),
        ]

    def worked(self) -> Sequence[Tenant]:
        return [self.tenant]

    def grow(self, due: float) -> None:
        chain = max((chain for chain in self.chains if not chain.busy), key=_length, default=None)
        if chain is None:
            raise BusyError
        chain.busy = True
        try:
            self._extend(chain, due)
        finally:
            chain.busy = False

    def leaf(self, due: float) -> None:
        chain = self._chain()
        above = self.dice.choice(chain.links[: self.depth])
        answer = self.client.spawn(self.tenant, above, due=due, stream="leaf", expect=CANCELLED)
        if answer.ok:
            self._note_depth(answer.body["lineage"]["depth"])

    def look(self, due: float) -> None:
        chain = self._chain()
        run_id = self.dice.choice(sorted(chain.gone)) if chain.gone and self.dice.random() < 0.5 else chain.links[-1]
        gone = run_id in chain.gone
        answer = self.client.run(self.tenant, run_id, due=due, stream="look")
        if gone and answer.ok and answer.body["status"] in ("queued", "running", "paused"):
            self.tally.find("effective status", f"{run_id} reads as {answer.body['status']} under a fence far above")

    def page(self, due: float) -> None:
        chain = self._chain()
        self.client.query(self.tenant, chain.links[0], terms={"limit": PAGE, "rollup": True}, due=due, stream="page")

    def cut(self, due: float) -> None:
        chain = self._chain()
        if len(chain.links) < 3:
            raise IdleError
        at = self.dice.randrange(1, len(chain.links) - 1)
        lost = chain.links[at:]
        chain.sent += 1
        answer = self.client.cancel(self.tenant, chain.links[0], lost[0], due=due, stream="cut", expect=CANCELLED)
        chain.answered += 1
        if answer.ok:
            chain.gone.update(lost)
            # What has been added below meanwhile is lost as well; above the cut all goes on.
            keep = chain.links.index(lost[0]) if lost[0] in chain.links else len(chain.links)
            chain.gone.update(chain.links[keep:])
            del chain.links[keep:]

    @classmethod
    def promise(cls, storming: Storming) -> None:
        super().promise(storming)
        tally, depth = storming.tally(cls.name), storming.scaled(DEPTH, least=LEAST)
        deepest = tally.notes.get("deepest", 0)
        if deepest < depth:
            tally.find("promise", f"the deepest run is at depth {deepest:.0f}, wanted {depth}")

    def _extend(self, chain: Chain, due: float) -> None:
        answered, end = chain.answered, chain.links[-1]
        deep_enough = len(chain.links) > self.depth
        answer = self.client.spawn(
            self.tenant, end, "orchestrator", due=due, stream="grow", expect=CANCELLED | {"policy_denied"}
        )
        if answer.code == "policy_denied":
            codes = [reason["code"] for reason in answer.body["reasons"]]
            if not deep_enough or codes != ["max_depth_exceeded"]:
                self.tally.find("depth", f"a link at depth {len(chain.links)} of {self.depth} was refused as {codes}")
            self._begin_anew(chain)
        elif answer.ok:
            if deep_enough:
                self.tally.find("depth", f"a link at depth {len(chain.links)} was let through, limit {self.depth}")
            self._note_depth(answer.body["lineage"]["depth"])
            if chain.links[-1] == end:
                chain.links.append(child_of(answer))
        elif answer.code in CANCELLED and chain.sent == answered:
            self.tally.find("refused", f"{end} was refused as {answer.code}, and nothing above it was cut")

    def _begin_anew(self, chain: Chain) -> None:
        root = self.client.start(self.tenant)
        if root is not None:
            # Who acts on the old chain keeps it.
            self.chains[self.chains.index(chain)] = Chain([root])

    def _note_depth(self, depth: int) -> None:
        self.tally.notes["deepest"] = max(self.tally.notes.get("deepest", 0), depth)

    def _chain(self) -> Chain:
        """Any chain, a deep one sooner than a short one."""
        return self.dice.choices(self.chains, [len(chain.links) for chain in self.chains])[0]


def _length(chain: Chain) -> int:
    return len(chain.links)
