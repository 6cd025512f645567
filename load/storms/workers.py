"""Workers, who claim runs and complete them; some are careless, as some always are."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import gevent

from load.storms.client import Client, Tenant
from load.storms.tally import Tally

WAIT_S = 0.5
RUNS_AT_ONCE = 10
FAILED_SHARE = 0.05
LEASE_S = 120
# What is left to its lease is claimed anew within a short storm.
SHORT_LEASE_S, FEW_RUNS = 2, 2
# By so much a late worker is late, by its own clock: the lease began before it heard of it.
LATE_S = 0.5
# How a claim is dealt with. Of twenty, three are kept by a heartbeat first, one is left, and one is completed too late.
# The seldom ones come early: a storm may be short.
MANNERS = ("left", "late", "kept", *("plainly",) * 5, "kept", *("plainly",) * 5, "kept", *("plainly",) * 5)


class Worker:
    """One that does one thing after the other, as a runtime does.

    Args:
        later: does something beside it, which the end of the storm waits for.
        careless: whether it has other manners than to complete what it claims.
    """

    def __init__(
        self, client: Client, tally: Tally, dice: random.Random, later: Callable[..., None], *, careless: bool
    ) -> None:
        self._client = client
        self._tally = tally
        self._dice = dice
        self._later = later
        self._manners = cycle(MANNERS if careless else ("plainly",))

    def run(self, tenants: Sequence[Tenant], over: Callable[[], bool]) -> None:
        """Work for tenants in turn, until it is over."""
        turn, manner = self._dice.randrange(len(tenants)), next(self._manners)
        while not over():
            tenant = tenants[turn % len(tenants)]
            turn += 1
            brief = manner in {"left", "late"}
            runs = self._client.claim(
                tenant,
                at_most=FEW_RUNS if brief else RUNS_AT_ONCE,
                lease_s=SHORT_LEASE_S if brief else LEASE_S,
                wait_s=WAIT_S,
            )
            if runs:
                self._deal_with(tenant, runs, manner)
                manner = next(self._manners)

    def _deal_with(self, tenant: Tenant, runs: Sequence[Mapping[str, Any]], manner: str) -> None:
        for run in runs:
            if run["attempt"] > 1:
                self._tally.count("runs claimed anew")
        match manner:
            case "kept":
                self._keep(tenant, runs)
            case "left":
                self._tally.count("claims left to their leases")
            case "late":
                self._later(self._complete_late, tenant, runs)
            case _:
                for run in runs:
                    self._client.complete(tenant, run, self._status())

    def _keep(self, tenant: Tenant, runs: Sequence[Mapping[str, Any]]) -> None:
        told = self._client.heartbeat(tenant, runs, extend_s=LEASE_S)
        self._tally.count("heartbeats")
        for run in runs:
            answer = self._client.complete(tenant, run, self._status())
            if answer.ok and told.get(run["run_id"], "continue") != "continue":
                self._tally.find("lease", f"run {run['run_id']} was told {told[run['run_id']]}, and then completed")

    def _complete_late(self, tenant: Tenant, runs: Sequence[Mapping[str, Any]]) -> None:
        gevent.sleep(SHORT_LEASE_S + LATE_S)
        for run in runs:
            answer = self._client.complete(tenant, run, "completed")
            if answer.ok:
                self._tally.find("late", f"run {run['run_id']} was completed by a lease that had run out")
            elif answer.code == "lease_lost":
                self._tally.count("late completions refused")

    def _status(self) -> str:
        return "failed" if self._dice.random() < FAILED_SHARE else "completed"
