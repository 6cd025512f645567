# ruff: noqa: INP001
"""Storms: cancellations in number, how fast they take hold, and what they keep from escaping."""

from panels import RATE, Board, Panel, Query, Row, gained, or_zero, quantile

TENANT = '{tenant=~"$tenant"}'
# Of what is shown here only spawns are told by surface: a fence covers whatever is below it.
SPAWNED = 'remit_spawned_runs_total{tenant=~"$tenant", surface=~"$surface"}'
CLAIMS = f'sum by (tenant) (rate(remit_run_transitions_total{{tenant=~"$tenant", status="running"}}[{RATE}]))'
# A worker that dies loses all its leases at once.
EXPIRED = f"sum by (tenant) ({gained('remit_leases_expired_total' + TENANT, '10m')})"

BOARD = Board(
    uid="remit-storms",
    title="Remit / Storms",
    description="Cancellations in number: how fast they take hold, and what they keep from escaping.",
    variables=[("tenant", "remit_run_transitions_total"), ("surface", "remit_spawned_runs_total")],
    rows=[
        Row(
            "Fences",
            [
                Panel(
                    "Fences per second by reason",
                    "Normal: `join_…` follows the groups that are decided; `cancelled_by_orchestration` is people and"
                    " agents who cancel. Reasons of the callers' own are `other`.",
                    "A burst of `other` or `cancelled_by_orchestration`: somebody cancels in a loop. The denials and"
                    " escapes of the same minute say who.",
                    [Query(f"sum by (reason) (rate(remit_cancellations_total{TENANT}[{RATE}]))", "{{reason}}")],
                    unit="ops",
                    kind="stack",
                ),
                Panel(
                    "Time to set a fence",
                    "Normal: a few milliseconds, whatever the size of the subtree.",
                    "Above 100 ms: the tree's lock is waited for, or the database is slow. See the pool and the"
                    " duration of the other routes.",
                    [
                        Query(quantile(0.5, "remit_cancel_fence_seconds"), "median"),
                        Query(quantile(0.99, "remit_cancel_fence_seconds"), "99 %"),
                    ],
                    unit="s",
                ),
                Panel(
                    "Time from a fence to the end of its drain",
                    "Normal: under a second for small subtrees, seconds for hundreds of thousands of runs; a grace"
                    " counts in full.",
                    "Minutes: see the backlog, and whether the loop `drain_cancellations` goes round. What a fence"
                    " covers is cancelled at once, drained or not.",
                    [
                        Query(quantile(0.5, "remit_cancel_drain_seconds"), "median"),
                        Query(quantile(0.99, "remit_cancel_drain_seconds"), "99 %"),
                    ],
                    unit="s",
                ),
                Panel(
                    "Backlog, and runs drained per second",
                    "Normal: the backlog rises in one step with a large fence and falls steadily to 0.",
                    "A backlog that does not shrink: the runbook has the section `RemitDrainBacklogStuck`.",
                    [
                        Query("sum(remit_cancel_backlog_runs)", "backlog (runs)"),
                        Query(f"sum(rate(remit_cancelled_runs_total{TENANT}[{RATE}]))", "cancelled per second"),
                    ],
                    unit="none",
                ),
            ],
        ),
        Row(
            "Escapes prevented",
            [
                Panel(
                    "Calls refused under a fence, by action",
                    "Normal: a short burst after each fence: workers and agents that had not heard of it yet.",
                    "Goes on for minutes: a runtime ignores `run_cancelled` and the `cancel` of its heartbeats. It"
                    " does no harm here, and pays for work that nobody will take.",
                    [Query(f"sum by (action) (rate(remit_fenced_calls_total{TENANT}[{RATE}]))", "{{action}}")],
                    unit="reqps",
                    kind="stack",
                ),
                Panel(
                    "Calls refused under a fence, by tenant",
                    "Normal: in proportion to the tenant's cancellations.",
                    "One tenant far ahead: its runtime does not stop on `cancel`. Give them the run ids from their"
                    " event stream.",
                    [
                        Query(
                            f"topk(10, sum by (tenant) (rate(remit_fenced_calls_total{TENANT}[{RATE}])))",
                            "{{tenant}}",
                        )
                    ],
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Leases",
            [
                Panel(
                    "Leases that ran out within ten minutes, by tenant",
                    "Normal: near 0; a worker that is deployed anew loses what it held.",
                    "More: workers die or stall, or their leases are shorter than their heartbeats. The runbook has the"
                    " section `RemitLeasesExpiring`.",
                    [Query(or_zero(EXPIRED, CLAIMS), "{{tenant}}")],
                    unit="none",
                ),
                Panel(
                    "Calls by workers that hold the lease no more",
                    "Normal: follows the leases that ran out, a moment later.",
                    "More than those: two workers share a lease, or one repeats an old completion. Nothing changes by"
                    " such a call (409 `lease_lost`).",
                    [Query(f"sum by (action) (rate(remit_leases_lost_total{TENANT}[{RATE}]))", "{{action}}")],
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Load",
            [
                Panel(
                    "Runs spawned and cancelled per second",
                    "Normal: far more spawned than cancelled, but for groups that take the first success. The surface"
                    " narrows the spawns only.",
                    "Cancelled above spawned for long: trees are torn down faster than they grow. Ask the tenant"
                    " before anything else.",
                    [
                        Query(f"sum(rate({SPAWNED}[{RATE}]))", "spawned"),
                        Query(f"sum(rate(remit_cancelled_runs_total{TENANT}[{RATE}]))", "cancelled"),
                    ],
                    unit="ops",
                ),
                Panel(
                    "Groups decided, by mode and outcome",
                    "Normal: `completed` leads in every mode.",
                    "`timed_out` grows: members wait for workers or take longer than the group's `timeout_s`.",
                    [
                        Query(
                            f"sum by (mode, outcome) (rate(remit_joins_total{TENANT}[{RATE}]))",
                            "{{mode}} {{outcome}}",
                        )
                    ],
                    unit="ops",
                ),
            ],
        ),
    ],
)
