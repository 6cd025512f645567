"""Readers of event streams who are cut off again and again, come back, and want each event once."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

from load.storms.client import Client, Tenant
from load.storms.tally import Tally

# Without a line for so long, a reader hangs up and comes back.
QUIET_S = 2.0
# A stream is cut after so many lines at most: within an event as often as between two.
MOST_LINES = 1_500
PAGE = 1_000
OK = 200


class Followers:
    """Follows one tree at a time from its beginning, and holds what it heard against the pages of the log.

    Args:
        host: the URL of the service.
        client: reads the pages.
        later: does something beside the arrivals, which the end of the storm waits for.
        over: whether the storm is over; who follows then stops.
    """

    def __init__(
        self,
        host: str,
        client: Client,
        tally: Tally,
        dice: random.Random,
        *,
        later: Callable[..., None],
        over: Callable[[], bool],
    ) -> None:
        self._address = urlsplit(host).netloc
        self._client = client
        self._tally = tally
        self._dice = dice
        self._later = later
        self._over = over
        self._busy = False

    def take(self, tenant: Tenant, root: str) -> None:
        """Follow a tree, unless another is being followed."""
        if not self._busy:
            self._busy = True
            self._later(self._follow, tenant, root)

    def _follow(self, tenant: Tenant, root: str) -> None:
        heard: list[str] = []
        ended = False
        try:
            while not ended and not self._over():
                ended = self._listen(tenant, root, heard)
            self._compare(tenant, root, heard, ended=ended)
        finally:
            self._busy = False

    def _listen(self, tenant: Tenant, root: str, heard: list[str]) -> bool:
        """Read on after what was heard, for a while; whether the stream has said that nothing follows."""
        headers = {"Authorization": f"Bearer {tenant.token}", "Accept": "text/event-stream"}
        if heard:
            headers["Last-Event-ID"] = heard[-1]
        # Not the client's: a stream that is cut takes its connection along.
        connection = HTTPConnection(self._address, timeout=QUIET_S)
        try:
            connection.request("GET", f"/agents/runs/{root}/events", headers=headers)
            for event in _events(connection.getresponse(), self._dice.randint(1, MOST_LINES)):
                if event.get("event") == "end":
                    return True
                if "id" in event:
                    heard.append(event["id"])
                if self._over():
                    break
        except TimeoutError:
            pass
        except (OSError, HTTPException) as error:
            self._tally.errors[f"events: {type(error).__name__}: {error}"] += 1
            time.sleep(QUIET_S)
        finally:
            connection.close()
        self._tally.count("streams cut")
        return False

    def _compare(self, tenant: Tenant, root: str, heard: list[str], *, ended: bool) -> None:
        """Hold what was heard against the log, as far as it was heard."""
        log: list[str] = []
        position, over = None, False
        while not over and len(log) < len(heard) + ended:
            after = f"&after={position}" if position else ""
            page = self._client.call(
                "events", "GET", f"/agents/runs/{root}/events?limit={PAGE}{after}", token=tenant.token
            )
            if not page.ok:
                return
            log += [event["id"] for event in page.body["events"]]
            position, over = page.body["next"], page.body["end"] or not page.body["events"]
        wanted = log if ended else log[: len(heard)]
        if heard != wanted:
            at = next((n for n, pair in enumerate(zip(heard, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
            self._tally.find(
                "events",
                f"of {root}, number {at} of {len(heard)} heard is {heard[at : at + 1]}, of {len(wanted)} in the log"
                f" {wanted[at : at + 1]}",
            )
        elif heard:
            self._tally.count("logs heard as they are")


def _events(response: HTTPResponse, lines: int) -> Iterator[Mapping[str, str]]:
    """The events of so many lines, each by its fields; one whose last line is not among them is none."""
    if response.status != OK:
        raise HTTPException(f"{response.status} {response.read(200).decode(errors='replace')}")
    event: dict[str, str] = {}
    for _ in range(lines):
        line = response.readline()
        if not line:
            return
        field, _, value = line.decode().rstrip("\r\n").partition(": ")
        if field:
            event[field] = value
        else:
            yield event
            event = {}
