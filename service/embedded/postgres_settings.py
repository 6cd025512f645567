"""Settings of the embedded PostgreSQL, fitted to the machine. Pure, but for the two functions that look at it."""

import os
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB

# Given on the command line, where no file and no ALTER SYSTEM can override them: what has been acknowledged is on disk,
# and there is no way in but the socket in the cluster's own directory ('.' is the server's working directory).
UNALTERABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "port": "5432",
}


@dataclass(frozen=True)
class Machine:
    """What there is to use, in bytes."""

    memory: int
    disk_free: int
    shared_memory: int


def settings_for(machine: Machine, max_connections: int) -> dict[str, str]:
    """Choose settings that leave half of the memory to the API, OPA and the page cache."""
    max_wal = _clamp(machine.disk_free // 8, 256 * _MIB, 4 * _GIB)
    settings = {
        "max_connections": str(max_connections),
        "shared_buffers": _size(_clamp(machine.memory // 8, 32 * _MIB, 2 * _GIB)),
        "effective_cache_size": _size(max(machine.memory // 2, 128 * _MIB)),
        "work_mem": _size(_clamp(machine.memory // (8 * max_connections), 4 * _MIB, 16 * _MIB)),
        "maintenance_work_mem": _size(_clamp(machine.memory // 32, 32 * _MIB, 512 * _MIB)),
        "jit": "off",
        "random_page_cost": "1.1",
        # A crash is recovered from within seconds to a minute; a page is written whole to the WAL once in this time.
        "checkpoint_timeout": "10min",
        "checkpoint_completion_target": "0.9",
        "max_wal_size": _size(max_wal),
        "min_wal_size": _size(max_wal // 4),
        "wal_compression": "on",
        # Small tables whose rows are updated thousands of times a second bloat within seconds, not minutes.
        "autovacuum_naptime": "5s",
        "autovacuum_vacuum_threshold": "200",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_insert_scale_factor": "0.1",
        "autovacuum_analyze_threshold": "200",
        "autovacuum_analyze_scale_factor": "0.05",
        "autovacuum_vacuum_cost_delay": "1ms",
        "autovacuum_vacuum_cost_limit": "2000",
        "log_destination": "stderr",
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
        "log_file_mode": "0600",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_lock_waits": "on",
        "log_autovacuum_min_duration": "10s",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "lc_messages": "C",
        "cluster_name": "remit",
    }
    if machine.shared_memory < 256 * _MIB:
        # A container's /dev/shm of 64 MB is too small for parallel queries; files in the cluster do.
        settings["dynamic_shared_memory_type"] = "mmap"
    return settings


def render(settings: dict[str, str]) -> str:
    """Write the settings as a configuration file."""
    lines = (f"{name} = '{value}'\n" for name, value in settings.items())
    return (
        "# Written by Remit at every start, for the machine as it is then. Changes belong in postgresql.conf.\n"
        + "".join(lines)
    )


def machine_of(directory: Path) -> Machine:
    """Look at the machine, or at the container, and at the disk that holds the directory."""
    disk = os.statvfs(directory)
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108 - only its size is asked
    return Machine(
        memory=min([_physical_memory(), *_cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]),
        disk_free=disk.f_bavail * disk.f_frsize,
        shared_memory=shm.f_blocks * shm.f_frsize if shm else 0,
    )


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_limits(membership: Path, hierarchy: Path) -> list[int]:
    """Return the memory limits of the process's control group and of all above it, of either version of cgroups."""
    try:
        entries = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for _, controllers, path in entries:
        if controllers == "":
            root, name = hierarchy, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = hierarchy / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():
                limits.append(int(text))
    return limits


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))


def _size(size: int) -> str:
    return f"{size // _KIB}kB"
