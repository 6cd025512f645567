"""Groups that nobody works on: their timeouts have to decide them."""

from collections.abc import Callable

import gevent

from load.storms.client import Client, Tenant
from load.storms.tally import Tally

SIZE = 3
TIMEOUT_S = 2
PATIENCE_S = 20.0


class Overdue:
    """Groups of a root of their own, which nothing cancels and whose members nobody ends.

    Args:
        waiters: the client that waits for decisions.
        later: does something beside the arrivals, which the end of the storm waits for.
    """

    def __init__(
        self, client: Client, waiters: Client, tally: Tally, tenant: Tenant, later: Callable[..., None]
    ) -> None:
        self._client = client
        self._waiters = waiters
        self._tally = tally
        self._tenant = tenant
        self._later = later
        self._root = client.start(tenant)

    def plant(self, due: float) -> None:
        """Spawn a group, and see to it that it times out."""
        assert self._root is not None
        # Its members are left to the caller, so that no worker ends them.
        terms = {"timeout_s": TIMEOUT_S, "start_background": False}
        answer = self._client.spawn_group(self._tenant, self._root, SIZE, terms=terms, due=due, stream="overdue")
        if answer.ok:
            self._later(self._hear, self._root, answer.body["orchestration_group_id"])

    def _hear(self, root: str, group_id: str) -> None:
        gevent.sleep(TIMEOUT_S)
        answer = self._waiters.join(self._tenant, root, group_id, wait_s=PATIENCE_S)
        if not answer.ok:
            return
        if answer.body["status"] == "timed_out":
            self._tally.count("groups timed out")
        else:
            status = answer.body["status"]
            self._tally.find("overdue", f"group {group_id} is {status}, {TIMEOUT_S + PATIENCE_S:g} s after its start")
