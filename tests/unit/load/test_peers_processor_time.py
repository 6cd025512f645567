"""What the comparison takes for the cost of something: the processor time of all who have a part in it."""

import os
import subprocess
import sys
import time

from load.peers.processor_time import milliseconds_each, spent

BUSY = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True)\ninput()"


def test_a_process_counts_with_those_below_it() -> None:
    before = spent(os.getpid())
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        after = spent(os.getpid())
        child.communicate(b"\n")
    assert child.pid not in before
    assert after[child.pid] >= 0.19
    assert milliseconds_each(before, after, 10) >= 19


def test_waiting_costs_next_to_nothing() -> None:
    before = spent(os.getpid())
    time.sleep(0.2)
    assert milliseconds_each(before, spent(os.getpid()), 1) < 150


def test_a_process_that_has_ended_takes_nothing_away() -> None:
    assert milliseconds_each({1: 5.0, 2: 1.0}, {2: 3.0}, 4) == 500.0
