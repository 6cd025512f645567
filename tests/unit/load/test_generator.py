"""What is read of the load generator: rates and percentiles, or that it did not get through."""

import pytest

from load.generator import Answers, read

OUT = """Running 2s test @ http://127.0.0.1:1
  1 threads and 32 connections
  Latency Distribution
     50%   21.00ms
     75%   25.00ms
     90%  900.00us
     99%    1.50s
  2814 requests in 2.00s, 2.71MB read
Requests/sec:   1406.31
Transfer/sec:      1.35MB
"""


def test_rates_and_percentiles_are_read_in_milliseconds() -> None:
    assert read(OUT) == Answers(count=2814, rate=1406.31, median_ms=21.0, p99_ms=1500.0)


@pytest.mark.parametrize(
    "trouble", ["  Non-2xx or 3xx responses: 1\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"]
)
def test_what_it_could_not_do_is_no_figure(trouble: str) -> None:
    with pytest.raises(RuntimeError, match="requests in"):
        read(OUT + trouble)


def test_an_answer_beyond_its_patience_is_an_answer() -> None:
    assert read(OUT + "  Socket errors: connect 0, read 0, write 0, timeout 3\n").count == 2814


def test_nothing_that_was_answered_is_no_figure() -> None:
    with pytest.raises(RuntimeError):
        read("")
