"""PostgreSQL says which row it refuses, with all that is in it: the log does not repeat that."""

import subprocess
import sys

import pytest

PROGRAM = """
import asyncpg, logging, structlog, sys
from service import logs
from service.settings import Settings

logs.configure(Settings(log_format=sys.argv[1], log_level="debug"))
error = asyncpg.CheckViolationError("new row violates a constraint")
error.detail = "Failing row contains (marker)."
assert "marker" in str(error)
try:
    raise error
except asyncpg.CheckViolationError:
    structlog.get_logger().exception("refused")
    logging.getLogger("a.library").exception("refused, too")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_error_of_the_database_is_logged_without_the_row(form: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, check=True, timeout=60
    ).stderr
    assert said.count("new row violates a constraint") == 2
    assert said.count("DETAIL:  (withheld") == 2
    assert "marker" not in said
