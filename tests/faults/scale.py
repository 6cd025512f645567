"""How much a test of endurance does: a tenth in the test command, all of it under `poe torture`."""

import os

TORTURE = os.environ.get("REMIT_TORTURE") == "1"


def scaled(count: int) -> int:
    """The number of repetitions that this run is to do, of those that a full run does."""
    return count if TORTURE else max(1, count // 10)
