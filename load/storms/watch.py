"""The service's process during a storm: its memory and its CPU, where it runs on this machine."""

import csv
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import gevent
import orjson
import psutil

EVERY_S = 1.0
MIB = 1 << 20


class Sample(NamedTuple):
    """Seconds since the start, memory, and CPU so far: of the API process, and of PostgreSQL and OPA beneath it."""

    at_s: float
    rss_mib: float
    api_cpu_s: float
    below_cpu_s: float


class Watch:
    """Samples once a second, into `service.csv`. Without a process to be seen it has none."""

    def __init__(self, service_file: Path, directory: Path) -> None:
        self._path = directory / "service.csv"
        self._start = time.perf_counter()
        self._process = None
        self._samples: list[Sample] = []
        self._greenlet: gevent.Greenlet | None = None
        if service_file.exists():
            self._process = psutil.Process(orjson.loads(service_file.read_bytes())["pid"])

    def start(self) -> None:
        """Begin to look."""
        if self._process is not None:
            self._greenlet = gevent.spawn(self._look)

    def stop(self) -> None:
        """Look a last time, and write down what was seen."""
        if self._greenlet is None:
            return
        self._greenlet.kill()
        self._sample()
        with self._path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample._fields)
            writer.writerows([round(value, 3) for value in sample] for sample in self._samples)

    def told(self) -> dict[str, float]:
        """The figures of the report."""
        if not self._samples:
            return {}
        first, last = self._samples[0], self._samples[-1]
        # A middle third beside a last one: what leaks goes on growing after it is warm. By medians, for one
        # sample may be high because of one answer.
        third = max(1, len(self._samples) // 3)
        return {
            "rss_mib_first": first.rss_mib,
            "rss_mib_max": max(sample.rss_mib for sample in self._samples),
            "rss_mib_middle": median(sample.rss_mib for sample in self._samples[third:-third] or self._samples),
            "rss_mib_last": median(sample.rss_mib for sample in self._samples[-third:]),
            "api_cpu_s": last.api_cpu_s - first.api_cpu_s,
            "postgres_and_opa_cpu_s": last.below_cpu_s - first.below_cpu_s,
        }

    def _look(self) -> None:
        while True:
            self._sample()
            gevent.sleep(EVERY_S)

    def _sample(self) -> None:
        assert self._process is not None
        try:
            own = self._process.cpu_times()
            below = own.children_user + own.children_system
            for child in self._process.children(recursive=True):
                times = child.cpu_times()
                below += times.user + times.system
            rss = self._process.memory_info().rss / MIB
        except psutil.NoSuchProcess:
            # A backend has ended between being listed and being asked, or the service itself; the next look tells.
            return
        self._samples.append(Sample(time.perf_counter() - self._start, rss, own.user + own.system, below))
