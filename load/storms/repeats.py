"""Spawns that are sent again, as clients do that have not heard the answer, and as they should not."""

from itertools import cycle

from load.storms.client import Answer, Client, Tenant, child_of
from load.storms.tally import Tally

# Of fifty spawns, five are sent again as they were, and one with another payload; early, for a storm may be short.
TURNS = ("alike", "once", "otherwise", *("once",) * 7, *("alike", *("once",) * 9) * 4)
CONFLICT = "spawn_key_conflict"


class Repeats:
    """Holds a service to the keys of its spawns: the same run for the same call, whatever has become of the tree."""

    def __init__(self, client: Client, tally: Tally) -> None:
        self._client = client
        self._tally = tally
        self._turns = cycle(TURNS)

    def follow(self, tenant: Tenant, caller: str, key: str, first: Answer) -> None:
        """Send a spawn of `worker` that was acknowledged once more, if its turn has come."""
        match next(self._turns):
            case "alike":
                self._alike(tenant, caller, key, first)
            case "otherwise":
                self._otherwise(tenant, caller, key)

    def _alike(self, tenant: Tenant, caller: str, key: str, first: Answer) -> None:
        again = self._client.spawn(tenant, caller, key=key)
        if again.ok:
            self._tally.count("spawns sent again")
            if child_of(again) != child_of(first) or not again.body["idempotent"] or not again.reused:
                self._tally.find("repeat", f"key {key} of {caller} was answered with {child_of(first)}, then as anew")

    def _otherwise(self, tenant: Tenant, caller: str, key: str) -> None:
        again = self._client.spawn(tenant, caller, key=key, payload={"another": True}, sought=CONFLICT)
        if again.code == CONFLICT:
            self._tally.count("keys refused for another payload")
        elif again.ok:
            self._tally.find("conflict", f"key {key} of {caller} was taken with another payload")
