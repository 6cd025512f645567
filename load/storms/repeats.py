"""Spawns that are sent again, or several times at once, as clients do that hear no answer, and as they should not."""

import uuid
from itertools import cycle

import gevent

from load.storms.client import CANCELLED, Answer, Client, Tenant, child_of
from load.storms.tally import Tally

# Of fifty spawns, five are sent again as they were, one with another payload, and five are followed by one that is sent
# several times at the same moment; early, for a storm may be short.
TURNS = ("alike", "at once", "otherwise", *("once",) * 7, *("alike", *("once",) * 4, "at once", *("once",) * 4) * 4)
TWINS = 3
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
            case "at once":
                self._at_once(tenant, caller)

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

    def _at_once(self, tenant: Tenant, caller: str) -> None:
        key = uuid.uuid4().hex
        twins = [gevent.spawn(self._client.spawn, tenant, caller, key=key, expect=CANCELLED) for _ in range(TWINS)]
        answers = [twin.value for twin in gevent.joinall(twins, raise_error=True)]
        done = [answer for answer in answers if answer.ok]
        if not done:
            return
        self._tally.count("spawns sent several times at once")
        # One of them may have been lost on its way, so that only the others were heard.
        anew = sum(not answer.body["idempotent"] for answer in done)
        if len({child_of(answer) for answer in done}) > 1 or anew > 1 or (len(done) == TWINS and not anew):
            self._tally.find("twins", f"{len(done)} spawns at once by key {key} of {caller}: {anew} were told as new")
