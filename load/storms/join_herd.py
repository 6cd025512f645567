"""Thousands of completions that come at once to groups with a quorum, or with room for one success."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gevent

from load.storms.arrivals import IdleError, Stream, deck
from load.storms.client import CANCELLED
from load.storms.scenario import Scenario

SIZES = (500, 1_000, 2_000)
SMALL = 30
QUORUM, FAILING = 0.6, 0.1
BURST = 50
WAITING = 3
# A reader asks again until the decision is there, or for so many times: the end of the storm waits for one answer.
WAIT_S, TIMES = 5.0, 3
MOST_HERDS = 12
CLAIMED_AT_ONCE = 100
# What a group is decided by; a quorum above what can be reached fails.
MODES = ("quorum", "first_success", "quorum", "fail_fast", "best_effort", "unreachable")


# The id of a run that its caller executes, or a run as it was claimed.
Member = str | Mapping[str, Any]
# The status, and the number of the event that decided.
Decision = tuple[str, int | None]


@dataclass
class Herd:
    """A group whose members this client ends, in no order: by reports, or those that it has claimed by their leases."""

    caller: str
    group_id: str
    mode: str
    left: list[Member]
    decided: Decision | None = None


class JoinHerd(Scenario):
    """Drives herds of members to their ends, while others wait for the decision and read it again."""

    abstract = False
    name = "join_herd"
    # Herds that are given up still have theirs.
    waiting = WAITING * (2 * MOST_HERDS)
    happens = tuple(f"decided by {mode}" for mode in sorted(set(MODES)))

    def prepare(self) -> None:
        self.tenant = self.stage.tenant(self.name)
        self.herds: list[Herd] = []
        self.sizes = deck(SIZES, self.dice)
        self.modes = deck(MODES, self.dice)
        # However short the storm, each mode decides a group: a small one, which is driven to its end soon.
        for mode in sorted(set(MODES)):
            if root := self.client.start(self.tenant):
                self._herd_together(root, self.scaled(SMALL, least=5), mode)

    def streams(self) -> Sequence[Stream]:
        return [
            Stream("herd", 0.15, self.gather, evenly=True),
            Stream("end", 40.0, self.end),
            Stream("burst", 0.3, self.burst, evenly=True),
            Stream("join", 3.0, self.join),
        ]

    def gather(self, due: float) -> None:
        root = self.client.start(self.tenant, due=due, stream="herd")
        if root is None:
            return
        herd = self._herd_together(root, self.scaled(next(self.sizes), least=5), next(self.modes))
        # They come as soon as there is someone to come to.
        if herd is not None:
            self._burst(herd)

    def _herd_together(self, root: str, size: int, mode: str) -> Herd | None:
        background = self.dice.random() < 0.5
        terms: dict[str, object] = {"start_background": background, "join_mode": mode}
        if mode == "unreachable":
            terms |= {"join_mode": "quorum", "quorum_threshold": size}
        elif mode == "quorum":
            terms["quorum_threshold"] = max(1, int(size * QUORUM))
        answer = self.client.spawn_group(self.tenant, root, size, terms=terms)
        if not answer.ok:
            return None
        members: list[Member] = list(self._claim_all() if background else answer.body["spawned_run_ids"])
        self.dice.shuffle(members)
        herd = Herd(root, answer.body["orchestration_group_id"], mode, members)
        for _ in range(WAITING):
            self.later(self._wait, herd)
        self.herds.append(herd)
        del self.herds[:-MOST_HERDS]
        return herd

    def end(self, due: float) -> None:
        herd = self._herd(unfinished=True)
        self._end(herd, herd.left.pop(), due=due, stream="end")

    def burst(self, due: float) -> None:
        # One that is undecided before any that is not: the burst is to decide it.
        undecided = [herd for herd in self.herds if herd.left and herd.decided is None]
        herd = self.dice.choice(undecided) if undecided else self._herd(unfinished=True)
        self._end(herd, herd.left.pop(), due=due, stream="burst")
        self._burst(herd)

    def join(self, due: float) -> None:
        herd = self._herd()
        known = herd.decided
        answer = self.client.join(self.tenant, herd.caller, herd.group_id, due=due, stream="join", expect=CANCELLED)
        if answer.ok:
            self._compare(herd, answer.body, known)

    def _burst(self, herd: Herd) -> None:
        members = [herd.left.pop() for _ in range(min(BURST, len(herd.left)))]
        gevent.joinall([gevent.spawn(self._end, herd, member) for member in members], raise_error=True)

    def _claim_all(self) -> Iterator[Mapping[str, Any]]:
        """Every run of this user's tenant that waits for a worker; of another herd, too, which then ends with this."""
        while runs := self.client.claim(self.tenant, at_most=CLAIMED_AT_ONCE):
            yield from runs

    def _end(self, herd: Herd, member: Member, *, due: float | None = None, stream: str | None = None) -> None:
        failing = FAILING if herd.mode in ("quorum", "best_effort", "unreachable") else 0.0
        status = "failed" if self.dice.random() < failing else "completed"
        if isinstance(member, str):
            self.client.report(self.tenant, member, status, due=due, stream=stream)
        else:
            self.client.complete(self.tenant, member, status, due=due, stream=stream)

    def _wait(self, herd: Herd) -> None:
        for _ in range(TIMES):
            known = herd.decided
            answer = self.waiters.join(self.tenant, herd.caller, herd.group_id, wait_s=WAIT_S, expect=CANCELLED)
            if answer.ok:
                self._compare(herd, answer.body, known)
            if not answer.ok or answer.body["complete"] or self._over():
                return

    def _compare(self, herd: Herd, told: Mapping[str, object], known: Decision | None) -> None:
        """A group is decided once, and every reader is told the same.

        `known` is the decision that had been heard when this reader asked: an answer that was given before another may
        be heard after it.
        """
        if not told["complete"]:
            if known is not None:
                self.tally.find("undecided again", f"group {herd.group_id}, which was {known}")
            return
        seq = told["decided_seq"]
        decided = (str(told["status"]), seq if isinstance(seq, int) else None)
        if herd.decided is None:
            self.tally.count(f"decided by {herd.mode}")
        herd.decided = herd.decided or decided
        if herd.decided != decided:
            self.tally.find("two decisions", f"group {herd.group_id} was {herd.decided}, and then {decided}")

    def _herd(self, *, unfinished: bool = False) -> Herd:
        herds = [herd for herd in self.herds if herd.left or not unfinished]
        if not herds:
            raise IdleError
        return self.dice.choice(herds)
