"""What a storm amounts to, as a person reads it: on the terminal, in a page, and on top of locust's report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Self

# The exit code of a storm, or of a judge, that came to no verdict.
NOT_JUDGED = 2
OBSERVED, VERDICT, HTML = "observed.json", "verdict.json", "verdict.html"

STYLE = """<style>
#verdict { font: 14px/1.5 system-ui, sans-serif; color: #222; background: #fff; padding: 1em 2em; }
#verdict.passed { border-bottom: 4px solid #2a7d2a; }
#verdict.failed { border-bottom: 4px solid #b00020; }
#verdict h1 { font-size: 1.5em; margin: 0 0 .5em; }
#verdict td, #verdict th { padding: 1px 16px 1px 0; text-align: left; font-variant-numeric: tabular-nums; }
#verdict table { margin: 1em 0; border-collapse: collapse; }
</style>"""
FIGURES = (
    ("intended/s", "intended_per_s", ".1f"),
    ("achieved/s", "achieved_per_s", ".1f"),
    ("done", "done", ".0f"),
    ("refused", "refused", ".0f"),
    ("missed", "missed", ".0f"),
    ("idle", "idle", ".0f"),
    ("p50 ms", "p50_ms", ".1f"),
    ("p95 ms", "p95_ms", ".1f"),
    ("p99 ms", "p99_ms", ".1f"),
    ("p99 ms from sending", "p99_from_sending_ms", ".1f"),
)
SATURATED, MAY_BE_SATURATED = "tenant_saturated", 0.01
# One alone is no share of anything, however few there were.
FEW = 1


@dataclass(frozen=True)
class Verdict:
    """What the storm observed, and what the audit found. It has passed when neither found a fault."""

    observed: Mapping[str, Any]
    audited_runs: int
    audit_s: float
    findings: Sequence[str]

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """A verdict from what `told` gave."""
        return cls(told, told["audited_runs"], told["audit_s"], told["audit_findings"])

    @property
    def faults(self) -> list[str]:
        """Everything for which the storm fails: findings of the audit and of the clients, and unexpected answers."""
        faults = [f"audit: {finding}" for finding in self.findings]
        for name, scenario in self.observed["scenarios"].items():
            faults += [f"{name}: {finding}" for finding in scenario["findings"]]
            faults += [f"{name}: unexpected: {error}" for error in scenario["errors"]]
            faults += _saturated(name, scenario["answers"])
        for name, stream, figures in self._streams():
            faults += self._short_of(f"{name}: {stream}", figures)
        if not any(figures["done"] for _, _, figures in self._streams()):
            faults.append("nothing was done")
        return faults

    @property
    def passed(self) -> bool:
        return not self.faults

    def told(self) -> dict[str, object]:
        """All of it, for programs."""
        return {
            "passed": self.passed,
            "faults": self.faults,
            "audit_findings": list(self.findings),
            "audited_runs": self.audited_runs,
            "audit_s": self.audit_s,
            **self.observed,
        }

    def text(self) -> str:
        """For a terminal."""
        lines = [self._headline(), ""]
        heads = ("storm", "arrivals", *(head for head, _, _ in FIGURES))
        lines += _columns([heads, *self._figures()])
        lines += ["", *_columns([("storm", "call", "answer", "count"), *self._answers()])]
        lines += ["", self._setting(), self._service(), *self._notes()]
        lines += [f"FAULT {fault}" for fault in self.faults]
        return "\n".join(["", *lines, f"verdict: {'passed' if self.passed else 'FAILED'}{self._interruption()}", ""])

    def section(self) -> str:
        """A section of HTML."""
        heads = ("storm", "arrivals", *(head for head, _, _ in FIGURES))
        faults = "".join(f"<li><code>{escape(fault)}</code></li>" for fault in self.faults)
        notes = "".join(f"<li>{escape(note)}</li>" for note in self._notes())
        return (
            f"{STYLE}<section id='verdict' class='{'passed' if self.passed else 'failed'}'>"
            f"<h1>{escape(self._headline())}</h1>"
            + (f"<ul>{faults}</ul>" if faults else "")
            + f"<p>{escape(self._setting())}<br>{escape(self._service())}</p>"
            + (f"<ul>{notes}</ul>" if notes else "")
            + _table(heads, self._figures())
            + "<p>Latency counts from when a call was due, whether or not it could be sent then.</p>"
            + _table(("storm", "call", "answer", "count"), self._answers())
            + "</section>"
        )

    def page(self) -> str:
        """A page of its own."""
        return f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Storm</title><body>{self.section()}</body>"

    def atop(self, report: str) -> str:
        """Locust's report, with the verdict before it."""
        head, found, rest = report.partition('<div id="root">')
        return f"{head}{self.section()}{found}{rest}" if found else f"{report}{self.section()}"

    def _headline(self) -> str:
        names = ", ".join(self.observed["scenarios"]) or "nothing"
        return f"{names}: {'passed' if self.passed else 'FAILED'}{self._interruption()}"

    def _interruption(self) -> str:
        # A report of an earlier day does not say.
        after = self.observed.get("interrupted_after_s")
        return "" if after is None else f", interrupted after {after:.1f} s of {self.observed['seconds']:g}"

    def _setting(self) -> str:
        seen = self.observed
        return (
            f"Profile {seen['profile']}: {seen['users']} users, {seen['workers']} workers, {seen['in_flight']} calls in"
            f" flight per user, {round(seen.get('ran_s', seen['seconds']), 1):g} s at pace"
            f" {seen['pace']:g} and scale {seen['scale']:g}."
            f" The audit read {self.audited_runs:,} runs and {seen['acknowledged_calls']:,} acknowledged calls in"
            f" {self.audit_s:.1f} s."
        )

    def _service(self) -> str:
        service = self.observed["service"]
        if not service:
            return "The service's process was not to be seen from here."
        return (
            f"The service's process took at most {service['rss_mib_max']:.0f} MiB ({service['rss_mib_first']:.0f} at"
            f" first, {service['rss_mib_last']:.0f} at last) and {service['api_cpu_s']:.1f} s of CPU, PostgreSQL and"
            f" OPA {service['postgres_and_opa_cpu_s']:.1f} s."
        )

    def _notes(self) -> list[str]:
        return [
            f"{name}: {what} {value:g}."
            for name, scenario in self.observed["scenarios"].items()
            for what, value in scenario["notes"].items()
        ]

    def _short_of(self, stream: str, figures: Mapping[str, float]) -> list[str]:
        """By what a stream fell short of what the storm says that it sent."""
        intended, missed, may_miss = figures["intended"], figures["missed"], self.observed["may_miss"]
        faults = []
        if intended and not figures["done"]:
            faults.append(f"{stream}: none of {intended:.0f} arrivals was done")
        if missed > max(FEW, may_miss * intended):
            faults.append(f"{stream}: missed {missed:.0f} of {intended:.0f} arrivals, may miss {may_miss:.0%}")
        return faults

    def _streams(self) -> Iterable[tuple[str, str, Mapping[str, float]]]:
        for name, scenario in self.observed["scenarios"].items():
            for stream, figures in scenario["arrivals"].items():
                yield name, stream, figures

    def _figures(self) -> list[tuple[str, ...]]:
        return [
            (name, stream, *(format(figures[key], form) for _, key, form in FIGURES))
            for name, stream, figures in self._streams()
        ]

    def _answers(self) -> list[tuple[str, ...]]:
        return [
            (name, answer["call"], answer["answer"], f"{answer['count']:,}")
            for name, scenario in self.observed["scenarios"].items()
            for answer in scenario["answers"]
        ]


def _saturated(name: str, answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The calls of which too many were told that their tenant asks for too much at once; no storm is about that."""
    told: Counter[str] = Counter()
    saturated: Counter[str] = Counter()
    for answer in answers:
        told[answer["call"]] += answer["count"]
        if answer["answer"] == SATURATED:
            saturated[answer["call"]] += answer["count"]
    return [
        f"{name}: {call}: {count} of {told[call]} answered {SATURATED}, at most {MAY_BE_SATURATED:.0%} may be"
        for call, count in saturated.items()
        if count > max(FEW, MAY_BE_SATURATED * told[call])
    ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{body}</table>"
