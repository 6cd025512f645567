"""One tenant that is refused at a high rate, and others that work: what they wait must not grow for it."""

from collections.abc import Sequence

from load.storms.arrivals import Stream
from load.storms.client import Tenant
from load.storms.scenario import Scenario
from load.storms.stage import UNLIMITED
from load.storms.storming import Storming
from load.storms.tally import percentile

ALONE, BESIDE = "others alone", "others beside refusals"
# The first third of the storm is the others' own; what they wait then is the measure.
PEACE = 1 / 3
FANOUT = 3
OTHERS = 3
# Two latencies this near to each other are the same on a machine that runs the storm as well.
SLACK_MS = 60.0
FEWEST = 20
# What a single spawn is refused for here.
FULL, DRAFT, STRANGER, BEYOND, NOTHING = CODES = (
    "max_fanout_exceeded",
    "target_not_published",
    "target_not_allowlisted",
    "scope_exceeds_caller",
    "scope_required",
)


class DeniedCalls(Scenario):
    """Sends what policy refuses, for every reason that a single spawn can be refused for."""

    abstract = False
    name = "denied_calls"
    happens = tuple(f"refused as {code}" for code in CODES)

    def prepare(self) -> None:
        # One tenant, refused all that the users send together.
        self.loud = self.stage.shared(
            "loud", 1, {**UNLIMITED, "max_fanout": FANOUT}, drafts=["draft"], strangers=["stranger"]
        )[0]
        self.others = self.stage.shared("quiet", OTHERS)
        self.roots = [(tenant, root) for tenant in self.others if (root := self.client.start(tenant))]
        first = self.client.start(self.loud)
        full = self.client.start(self.loud)
        assert first is not None
        assert full is not None
        for _ in range(FANOUT):
            self.client.spawn(self.loud, full)
        # Whose call it is, what it asks for, and for what it is refused.
        self.refused: Sequence[tuple[str, str, list[str], str]] = (
            (full, "worker", ["read"], FULL),
            (first, "draft", ["read"], DRAFT),
            (first, "stranger", ["read"], STRANGER),
            (first, "worker", ["write"], BEYOND),
            (first, "worker", [], NOTHING),
        )

    def streams(self) -> Sequence[Stream]:
        return [
            Stream(ALONE, 12.0, self._work_in_peace, ends=PEACE),
            Stream(BESIDE, 12.0, self._work_beside, begins=PEACE),
            Stream("refused", 40.0, self.ask_in_vain, begins=PEACE),
        ]

    def worked(self) -> Sequence[Tenant]:
        return self.others

    def ask_in_vain(self, due: float) -> None:
        caller, target, scopes, expected = self.dice.choice(self.refused)
        answer = self.client.spawn(
            self.loud, caller, target, scopes=scopes, due=due, stream="refused", sought="policy_denied"
        )
        if answer.ok:
            self.tally.find("let through", f"a spawn of {target} with {scopes}")
        elif answer.code == "policy_denied":
            codes = [reason["code"] for reason in answer.body["reasons"]]
            if codes == [expected]:
                self.tally.count(f"refused as {expected}")
            else:
                self.tally.find("reasons", f"a spawn of {target} with {scopes} was refused for {codes}")

    @classmethod
    def promise(cls, storming: Storming) -> None:
        super().promise(storming)
        tally = storming.tally(cls.name)
        alone, beside = (sorted(tally.of(stream).from_due) for stream in (ALONE, BESIDE))
        if min(len(alone), len(beside)) < FEWEST:
            return
        for share in (0.5, 0.95):
            before, after = percentile(alone, share), percentile(beside, share)
            limit = storming.tolerance * before + SLACK_MS
            if after > limit:
                tally.find(
                    "fairness",
                    f"others wait {after:.0f} ms beside refusals at the {share:.0%}, and {before:.0f} ms alone:"
                    f" at most {limit:.0f} ms may be",
                )

    def _work_in_peace(self, due: float) -> None:
        self._spawn(due, ALONE)

    def _work_beside(self, due: float) -> None:
        self._spawn(due, BESIDE)

    def _spawn(self, due: float, stream: str) -> None:
        tenant, root = self.dice.choice(self.roots)
        self.client.spawn(tenant, root, due=due, stream=stream)
