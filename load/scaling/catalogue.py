"""What is measured, and along what."""

from dataclasses import dataclass
from enum import StrEnum


class Dimension(StrEnum):
    """What grows."""

    TREE_SIZE = "tree_size"
    DEPTH = "depth"
    TENANTS = "tenants"
    PROCESSES = "processes"
    FINISHED_RUNS = "finished_runs"


class Figure(StrEnum):
    """What is looked at while it grows."""

    SPAWN = "spawn"
    GROUP = "group"
    FENCE = "fence"
    DRAIN = "drain"
    DECISION = "decision"
    WORK = "work"
    TREE_PAGE = "tree_page"
    SCRAPE = "scrape"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Axis:
    """How a dimension is shown; `points` are those of an ordinary measurement."""

    label: str
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How a figure is shown; `counted` is what its CPU time is divided by, if anything."""

    title: str
    unit: str
    counted: str | None = None


AXES = {
    Dimension.TREE_SIZE: Axis("runs in the tree", (10, 1_000, 100_000, 1_000_000)),
    Dimension.DEPTH: Axis("depth of the caller,\nanother fence open", (1, 10, 100, 1_000)),
    Dimension.TENANTS: Axis("tenants at work", (1, 10, 100, 1_000)),
    Dimension.PROCESSES: Axis("API processes\non two cores", (1, 2)),
    # The largest is asked for by a flag: ten million take minutes to be written.
    Dimension.FINISHED_RUNS: Axis("finished runs present", (0, 100_000, 1_000_000)),
}

SCALES = {
    Figure.SPAWN: Scale("Single spawns", "spawns/s", "spawn"),
    Figure.GROUP: Scale("Groups of 1,000", "children/s", "child"),
    Figure.FENCE: Scale("Fence acknowledged", "ms"),
    Figure.DRAIN: Scale("Drain", "runs/s", "run"),
    Figure.DECISION: Scale("Dry-run decisions", "decisions/s", "decision"),
    Figure.WORK: Scale("Claim and complete", "runs/s", "run"),
    Figure.TREE_PAGE: Scale("First page of a tree query", "ms", "page"),
    Figure.SCRAPE: Scale("Scrape of /metrics", "ms", "scrape"),
    Figure.MEMORY: Scale("Memory of the largest API process", "MiB"),
}
