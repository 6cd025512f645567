"""Groups of 100 to 10,000 members, spawned in one call, sent again, joined, worked on and cancelled."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from load.storms.arrivals import IdleError, Stream, deck
from load.storms.client import CANCELLED, Tenant
from load.storms.scenario import Scenario

SIZES = (*(100,) * 8, *(300,) * 5, *(1_000,) * 4, *(3_000,) * 2, 10_000)
LARGEST = max(SIZES)
ROOTS = 4
MOST_GROUPS = 100


@dataclass(frozen=True)
class Group:
    """A group that was acknowledged."""

    caller: str
    prefix: str
    size: int
    group_id: str
    run_ids: list[str]


class HighFanout(Scenario):
    """Fans out from a few roots, so that large groups meet in one tree."""

    abstract = False
    name = "high_fanout"
    happens = ("decided groups", "repeats")

    def prepare(self) -> None:
        self.tenant = self.stage.tenant(self.name)
        self.roots = [root for _ in range(ROOTS) if (root := self.client.start(self.tenant))]
        self.sizes = deck(SIZES, self.dice)
        self.groups: list[Group] = []
        self.largest_came = False
        # The workers are at these first, so that some groups are decided before the largest is through.
        for root in self.roots:
            self._fan_out(root, self.scaled(min(SIZES)))

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("fan out", 0.5, self.fan_out),
            Stream("repeat", 0.25, self.repeat, evenly=True),
            Stream("join", 2.0, self.join),
            Stream("cancel", 0.2, self.cancel),
        ]

    def worked(self) -> Sequence[Tenant]:
        return [self.tenant]

    def fan_out(self, due: float) -> None:
        # However short the storm, the largest comes.
        size = next(self.sizes) if self.largest_came else LARGEST
        self.largest_came = True
        self._fan_out(self.dice.choice(self.roots), self.scaled(size), due=due, stream="fan out")

    def _fan_out(self, caller: str, size: int, *, due: float | None = None, stream: str | None = None) -> None:
        prefix = uuid.uuid4().hex
        answer = self.client.spawn_group(
            self.tenant, caller, size, prefix=prefix, due=due, stream=stream, expect=CANCELLED
        )
        if answer.ok:
            self.groups.append(
                Group(caller, prefix, size, answer.body["orchestration_group_id"], answer.body["spawned_run_ids"])
            )
            del self.groups[:-MOST_GROUPS]

    def repeat(self, due: float) -> None:
        group = self._any_group()
        answer = self.client.spawn_group(
            self.tenant, group.caller, group.size, prefix=group.prefix, due=due, stream="repeat", expect=CANCELLED
        )
        if answer.ok:
            self.tally.count("repeats")
            if not answer.body["idempotent"] or answer.body["spawned_run_ids"] != group.run_ids:
                self.tally.find("repeat", f"group {group.group_id} sent again was answered with other runs")

    def join(self, due: float) -> None:
        group = self._any_group()
        answer = self.client.join(self.tenant, group.caller, group.group_id, due=due, stream="join", expect=CANCELLED)
        if answer.ok and answer.body["complete"]:
            self.tally.count("decided groups")
        elif answer.ok:
            counted = sum(answer.body[f"{kind}_count"] for kind in ("success", "failure", "running"))
            if counted != group.size:
                self.tally.find("join counts", f"group {group.group_id} of {group.size} counts {counted} members")

    def cancel(self, due: float) -> None:
        group = self._any_group()
        self.groups = [other for other in self.groups if other.caller != group.caller]
        # The root stays, and fans out anew beside the drain.
        self.client.cancel(
            self.tenant, group.caller, group.caller, terms={"include_root": False}, due=due, stream="cancel"
        )

    def _any_group(self) -> Group:
        if not self.groups:
            raise IdleError
        return self.dice.choice(self.groups)
