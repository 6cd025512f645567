"""What a storm intended, sent and heard."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# What the report shows of one kind of fault; the rest is counted.
EXAMPLES = 20


def percentile(milliseconds: Sequence[float], share: float) -> float:
    """The value below which that share of the sorted values lies; 0 of none."""
    return milliseconds[min(len(milliseconds) - 1, int(len(milliseconds) * share))] if milliseconds else 0.0


@dataclass
class Arrivals:
    """One kind of arrival. Every intended one was missed (too much in flight), idle (nothing to act on) or sent.

    What was sent is `done` when its first call got what it came for, and `refused` when it got any other answer.
    """

    intended: int = 0
    missed: int = 0
    idle: int = 0
    done: int = 0
    refused: int = 0
    seconds: float = 0.0
    last_answer_s: float = 0.0
    # Milliseconds until the answer of an arrival's first call, from when it should have been sent and from when it was.
    from_due: "array[float]" = field(default_factory=lambda: array("d"))
    from_sent: "array[float]" = field(default_factory=lambda: array("d"))

    def heard(self, *, done: bool, from_due_ms: float, from_sent_ms: float) -> None:
        """Count the answer to an arrival's first call."""
        self.done += done
        self.refused += not done
        self.from_due.append(from_due_ms)
        self.from_sent.append(from_sent_ms)

    def told(self) -> dict[str, float]:
        """The figures of the report."""
        due, sent = sorted(self.from_due), sorted(self.from_sent)
        return {
            "intended": self.intended,
            "missed": self.missed,
            "idle": self.idle,
            "done": self.done,
            "refused": self.refused,
            "intended_per_s": self.intended / self.seconds if self.seconds else 0.0,
            # To the last answer: what was only queued up has not been achieved, nor what was refused.
            "achieved_per_s": self.done / max(self.seconds, self.last_answer_s) if self.seconds else 0.0,
            "p50_ms": percentile(due, 0.5),
            "p95_ms": percentile(due, 0.95),
            "p99_ms": percentile(due, 0.99),
            "p99_from_sending_ms": percentile(sent, 0.99),
        }


@dataclass
class Tally:
    """The counts of one run of one scenario, by all its users."""

    arrivals: dict[str, Arrivals] = field(default_factory=dict)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    notes: dict[str, float] = field(default_factory=dict)

    def of(self, stream: str) -> Arrivals:
        """The arrivals of a stream."""
        return self.arrivals.setdefault(stream, Arrivals())

    def count(self, what: str) -> None:
        """Note that something happened once more."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def find(self, kind: str, what: str) -> None:
        """Record that something happened which never may; the storm has failed."""
        self.findings[kind] += 1
        if self.findings[kind] <= EXAMPLES:
            self.findings[f"{kind}: {what}"] = 1

    def told(self) -> dict[str, object]:
        """All of it, for the report."""
        counts = {kind: count for kind, count in self.findings.items() if ": " not in kind}
        return {
            "arrivals": {name: stream.told() for name, stream in self.arrivals.items()},
            "answers": [
                {"call": call, "answer": answer, "count": count}
                for (call, answer), count in sorted(self.answers.items())
            ],
            "errors": [f"{error} ({count} times)" for error, count in self.errors.most_common(EXAMPLES)],
            "findings": [
                *(finding for finding in self.findings if ": " in finding),
                *(f"{kind}: {count} in all" for kind, count in counts.items() if count > EXAMPLES),
            ],
            "notes": self.notes,
        }
