"""What is compared with what, and how a row of the table comes about. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum


class Unit(StrEnum):
    """What a figure counts. Of times the shorter is better, of rates the higher."""

    MILLISECONDS = "ms"
    CHILDREN = "children/s"
    RUNS = "runs/s"
    DECISIONS = "decisions/s"


class Contender(StrEnum):
    """Who does the work, and how where there is more than one way."""

    REMIT = "Remit"
    DBOS = "DBOS Transact"
    DBOS_TWO = "DBOS Transact, two processes"
    DBOS_FLAT = "DBOS Transact, one transaction, without a parent"
    TEMPORAL = "Temporal"
    TEMPORAL_COOPERATIVE = "Temporal, workers acknowledge"
    KITE_LOGIK = "Kite Logik, the same rules"
    KITE_LOGIK_SHIPPED = "Kite Logik, the rules it ships"
    PLAIN_INSERT = "plain INSERT"
    PLAIN_UPDATE = "plain UPDATE"
    OPA_BENCH = "opa bench"
    OPA_BENCH_SERVER = "opa bench --e2e"


class Work(Enum):
    """What is measured: in words, and in which unit."""

    SINGLES = ("single spawns, 32 at once", Unit.CHILDREN)
    SINGLE_COST = ("single spawns: processor time of each", Unit.MILLISECONDS)
    GROUPS = ("spawns in groups of 1,000", Unit.CHILDREN)
    ACKNOWLEDGED = ("cancel 1,000 children: acknowledged", Unit.MILLISECONDS)
    CANCELLED = ("cancel 1,000 children: all cancelled", Unit.MILLISECONDS)
    DRAIN = ("cancel 1,000 children: drain", Unit.RUNS)
    LARGE_DRAIN = ("cancel 100,000 runs: drain", Unit.RUNS)
    DECISION = ("decisions, one at a time", Unit.MILLISECONDS)
    DECISIONS = ("decisions, 32 at once", Unit.DECISIONS)
    DRY_RUN = ("dry runs over HTTP, one at a time", Unit.MILLISECONDS)
    DRY_RUNS = ("dry runs over HTTP, 32 at once", Unit.DECISIONS)

    def __init__(self, words: str, unit: Unit) -> None:
        self.words = words
        self.unit = unit


@dataclass(frozen=True)
class Comparison:
    """Our figure of a work beside theirs, of the same work unless said otherwise.

    `aim` is how many times better ours should be at least.
    """

    work: Work
    peer: Contender
    aim: float | None = None
    their_work: Work | None = None

    @property
    def theirs(self) -> tuple[Work, Contender]:
        """The figure that ours is held against."""
        return self.their_work or self.work, self.peer


COMPARISONS = (
    Comparison(Work.SINGLES, Contender.DBOS, aim=3),
    Comparison(Work.SINGLES, Contender.DBOS_TWO, aim=3),
    Comparison(Work.SINGLES, Contender.TEMPORAL, aim=8),
    Comparison(Work.SINGLE_COST, Contender.DBOS),
    Comparison(Work.SINGLE_COST, Contender.TEMPORAL),
    Comparison(Work.GROUPS, Contender.DBOS),
    Comparison(Work.GROUPS, Contender.DBOS_FLAT),
    Comparison(Work.GROUPS, Contender.TEMPORAL),
    Comparison(Work.GROUPS, Contender.PLAIN_INSERT, aim=0.5),
    Comparison(Work.ACKNOWLEDGED, Contender.DBOS),
    Comparison(Work.ACKNOWLEDGED, Contender.TEMPORAL),
    Comparison(Work.CANCELLED, Contender.DBOS),
    Comparison(Work.CANCELLED, Contender.TEMPORAL),
    Comparison(Work.CANCELLED, Contender.TEMPORAL_COOPERATIVE),
    Comparison(Work.DRAIN, Contender.DBOS),
    Comparison(Work.DRAIN, Contender.TEMPORAL, aim=300),
    Comparison(Work.DRAIN, Contender.PLAIN_UPDATE),
    Comparison(Work.LARGE_DRAIN, Contender.TEMPORAL, aim=300, their_work=Work.DRAIN),
    Comparison(Work.LARGE_DRAIN, Contender.PLAIN_UPDATE),
    Comparison(Work.DECISION, Contender.KITE_LOGIK),
    Comparison(Work.DECISION, Contender.KITE_LOGIK_SHIPPED),
    Comparison(Work.DECISION, Contender.OPA_BENCH),
    Comparison(Work.DECISION, Contender.OPA_BENCH_SERVER),
    Comparison(Work.DECISIONS, Contender.KITE_LOGIK),
    Comparison(Work.DECISIONS, Contender.KITE_LOGIK_SHIPPED),
    Comparison(Work.DRY_RUN, Contender.KITE_LOGIK, their_work=Work.DECISION),
    Comparison(Work.DRY_RUNS, Contender.KITE_LOGIK, their_work=Work.DECISIONS),
)

Samples = Mapping[tuple[Work, Contender], Sequence[float]]


@dataclass
class Measurements:
    """What has been measured so far, run by run."""

    samples: dict[tuple[Work, Contender], list[float]] = field(default_factory=dict)

    def add(self, work: Work, contender: Contender, *figures: float) -> None:
        """Take down what one run gave: the median, where it did the work more than once."""
        self.samples.setdefault((work, contender), []).append(statistics.median(figures))


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over the runs."""

    work: str
    unit: Unit
    ours: float
    peer: str
    theirs: float
    ratio: float
    aim: float | None
    runs: int

    @property
    def reached(self) -> bool | None:
        """Whether ours is as many times better as was aimed at; None without an aim."""
        return None if self.aim is None else self.ratio >= self.aim


def rows(samples: Samples, comparisons: Sequence[Comparison] = COMPARISONS) -> list[Row]:
    """Hold the medians against each other.

    The ratio says how many times better ours is: above 1 we are faster, in times as in rates. A comparison of which
    either side was not measured makes no row.
    """
    made = []
    for comparison in comparisons:
        ours, theirs = samples.get((comparison.work, Contender.REMIT)), samples.get(comparison.theirs)
        if not ours or not theirs:
            continue
        our_median, their_median = statistics.median(ours), statistics.median(theirs)
        better, than = our_median, their_median
        if comparison.work.unit is Unit.MILLISECONDS:
            better, than = than, better
        peer = comparison.peer.value
        if comparison.their_work is not None:
            peer += f" ({comparison.their_work.words})"
        made.append(
            Row(
                work=comparison.work.words,
                unit=comparison.work.unit,
                ours=our_median,
                peer=peer,
                theirs=their_median,
                ratio=better / than,
                aim=comparison.aim,
                runs=min(len(ours), len(theirs)),
            )
        )
    return made
