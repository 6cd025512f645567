"""What something costs, whoever else is using the cores meanwhile."""

from contextlib import suppress

import psutil


def spent(*pids: int) -> dict[int, float]:
    """Seconds of processor time so far, by process: those named and all below them."""
    seconds = {}
    for pid in pids:
        above = psutil.Process(pid)
        for process in (above, *above.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                seconds[process.pid] = used.user + used.system
    return seconds


def milliseconds_each(before: dict[int, float], after: dict[int, float], count: float) -> float:
    """Processor time from one look to another, per thing done. What has ended in between is not counted."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items()) / count * 1000
