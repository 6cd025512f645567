"""The PostgreSQL processes that work in a cluster's directory, found by their working directory."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClusterProcesses:
    """Process ids. A postmaster is a server; without one, the rest are what it left behind."""

    postmasters: tuple[int, ...]
    others: tuple[int, ...]


def cluster_processes(cluster: Path) -> ClusterProcesses:
    """Look through /proc. Processes of users whom we may not inspect are not seen."""
    try:
        status = cluster.stat()
    except FileNotFoundError:
        return ClusterProcesses((), ())
    postmasters: list[int] = []
    others: list[int] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if (process / "comm").read_text() != "postgres\n":
                continue
            directory = (process / "cwd").stat()
            title = (process / "cmdline").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if not os.path.samestat(directory, status):
            continue
        # A server keeps the command line it was started with, its children write their task over it.
        (others if title.startswith((b"postgres: ", b"\0")) or not title else postmasters).append(int(process.name))
    return ClusterProcesses(tuple(postmasters), tuple(others))


def postmaster_file(cluster: Path) -> tuple[int | None, str]:
    """Return the process id and the status (`starting`, `ready`, `stopping`) that `postmaster.pid` gives, if any."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None, ""
    pid = int(lines[0]) if lines and lines[0].strip().isdecimal() else None
    return pid, lines[7].strip() if len(lines) > 7 else ""  # noqa: PLR2004 - PostgreSQL's LOCK_FILE_LINE_PM_STATUS
