"""The machine that a figure was taken on, for whoever holds it against another's or another day's."""

import os
import platform
import subprocess
import time
from pathlib import Path

from load.subject import REPOSITORY

ADDITIONS = "x = 0\nfor i in range(10_000_000): x += i"
CPU_INFO = Path("/proc/cpuinfo")


def described() -> dict[str, str]:
    """Processor, load and pace of just now, and the commit that is measured."""
    return {
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "pace": pace(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
    }


def pace() -> str:
    """How fast it is just now."""
    started = time.perf_counter()
    # In a module's names, as load/README.md's figures of other days were taken.
    exec(ADDITIONS, {})
    return f"{time.perf_counter() - started:.2f} s for ten million additions in Python"


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines(CPU_INFO) if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
