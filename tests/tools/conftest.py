"""How many calls wait at once: all of them only where somebody wants to break it."""

import os

import pytest


@pytest.fixture
def calls_at_once() -> int:
    return 1_000 if os.environ.get("REMIT_TORTURE") == "1" else 200
