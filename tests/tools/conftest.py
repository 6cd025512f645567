"""How many calls wait at once: all of them only where somebody wants to break it."""

import pytest

from tests.faults.scale import TORTURE


@pytest.fixture
def calls_at_once() -> int:
    return 1_000 if TORTURE else 200
