# ruff: noqa: INP001
"""Rollout: which tenants use which surface, and whom a flag keeps out."""

from panels import FULL, RATE, Board, Panel, Query, Row, gained, or_zero

SELECTED = 'tenant=~"$tenant", surface=~"$surface"'
ON = f'{{{SELECTED}, enabled="true"}}'
OFF = f'{{{SELECTED}, enabled="false"}}'
REQUESTS = "remit_surface_requests_total"

# What only ends or reads something is permitted whatever the flag.
REFUSED = f'remit_denials_total{{{SELECTED}, reason="surface_disabled"}}'

ALL_RATE = f"sum by (tenant, surface) (rate({REQUESTS}{{{SELECTED}}}[{RATE}]))"
REFUSED_RATE = f"sum by (tenant, surface) (rate({REFUSED}[{RATE}]))"
REFUSED_IN_RANGE = f"sum by (tenant, surface) ({gained(REFUSED)})"
ALL_IN_RANGE = f"sum by (tenant, surface) ({gained(f'{REQUESTS}{{{SELECTED}}}')})"
# Every process shows the totals of all tenants.
ACTIVE = 'remit_runs_active{tenant=~"$tenant"}'

BOARD = Board(
    uid="remit-rollout",
    title="Remit / Rollout",
    description="Which tenants use which surface, and whom a flag keeps out.",
    variables=[("tenant", REQUESTS), ("surface", REQUESTS)],
    rows=[
        Row(
            "Requests",
            [
                Panel(
                    "Requests by surface",
                    "Normal: follows the working day; both surfaces are used once both are rolled out.",
                    "A surface that drops to zero while the other one does not: see the panel on refusals, then the"
                    " tenants' flags (GET /tenants/{tenant_id}/flags).",
                    [Query(f"sum by (surface) (rate({REQUESTS}{{{SELECTED}}}[{RATE}]))", "{{surface}}")],
                    unit="reqps",
                    kind="stack",
                ),
                Panel(
                    "Requests by tenant",
                    "Normal: a few tenants make most of it. `other` are the tenants beyond the first 200 of a process.",
                    "One tenant that grows out of all proportion: see its spawns and denials before it is saturated"
                    " (429), and lower its `max_active_runs` if need be.",
                    [Query(f"topk(10, {ALL_RATE})", "{{tenant}} {{surface}}")],
                    unit="reqps",
                ),
                Panel(
                    "Requests with the flag on and off, and refused",
                    "Normal: `off` is zero, or small before a tenant's rollout; what ends or reads something is"
                    " permitted then, too.",
                    "`refused` above zero: runtimes call a surface that their tenant does not have. See the table below"
                    " for whom, and turn the flag on or the caller off.",
                    [
                        Query(f"sum by (surface) (rate({REQUESTS}{ON}[{RATE}]))", "{{surface}} on"),
                        Query(
                            or_zero(
                                f"sum by (surface) (rate({REQUESTS}{OFF}[{RATE}]))",
                                f"sum by (surface) (rate({REQUESTS}{{{SELECTED}}}[{RATE}]))",
                            ),
                            "{{surface}} off",
                        ),
                        Query(
                            or_zero(
                                f"sum by (surface) (rate({REFUSED}[{RATE}]))",
                                f"sum by (surface) (rate({REQUESTS}{{{SELECTED}}}[{RATE}]))",
                            ),
                            "{{surface}} refused",
                        ),
                    ],
                    unit="reqps",
                ),
                Panel(
                    "Share of a tenant's requests that its flag refuses",
                    "Normal: 0 for tenants that are rolled out, near 1 for those that are not and try.",
                    "A tenant that steps up from 0: its flag was turned off with traffic on it. The runbook has the"
                    " section `RemitFlagOffWithTraffic`.",
                    [Query(f"({or_zero(REFUSED_RATE, ALL_RATE)}) / ({ALL_RATE} > 0)", "{{tenant}} {{surface}}")],
                    unit="percentunit",
                ),
            ],
        ),
        Row(
            "Adoption",
            [
                Panel(
                    "Tenants with traffic on a surface",
                    "Normal: grows with the rollout and never steps down. Tenants beyond the first 200 of a process"
                    " count as one.",
                    "A step down: a tenant left, or was turned off. Compare with the share above.",
                    [
                        Query(
                            f"count by (surface) (sum by (tenant, surface) (rate({REQUESTS}{ON}[1h])) > 0)",
                            "{{surface}}",
                        )
                    ],
                    unit="none",
                ),
                Panel(
                    "Runs spawned by surface",
                    "Normal: in proportion to the requests; one request of a group spawns many runs.",
                    "Requests without spawns: see the denials. Spawns far beyond the requests: large groups, see the"
                    " tenants' limits.",
                    [
                        Query(
                            f"sum by (surface) (rate(remit_spawned_runs_total{{{SELECTED}}}[{RATE}]))",
                            "{{surface}}",
                        )
                    ],
                    unit="ops",
                    kind="stack",
                ),
                Panel(
                    "Active runs by tenant",
                    "Normal: rises and falls with the work; far below the tenant's bound (1,000,000 unless set).",
                    "Rises and never falls: nobody completes. See claims and leases on the storms' dashboard, and"
                    " whether the tenant's workers are up.",
                    [
                        Query(
                            f"topk(10, sum by (tenant) (max by (tenant, status) ({ACTIVE})))",
                            "{{tenant}}",
                        )
                    ],
                    unit="none",
                ),
                Panel(
                    "Requests in this time range, and those that a flag refused",
                    "Normal: the last column is 0.",
                    "Anything else names the tenants to talk to before their flag is turned on, or who lost it.",
                    [
                        Query(ALL_IN_RANGE, "requests"),
                        Query(or_zero(REFUSED_IN_RANGE, ALL_IN_RANGE), "refused by the flag"),
                    ],
                    kind="table",
                ),
            ],
        ),
        Row(
            "What runs do",
            [
                Panel(
                    "Statuses reached",
                    "Normal: queued, running and completed run side by side; failed is a small part.",
                    "Failed above a tenth: the tenant's agents fail, not Remit; their `error` payloads say why."
                    " Queued without running: no workers.",
                    [
                        Query(
                            f'sum by (status) (rate(remit_run_transitions_total{{tenant=~"$tenant"}}[{RATE}]))',
                            "{{status}}",
                        )
                    ],
                    unit="ops",
                    width=FULL,
                )
            ],
        ),
    ],
)
