# ruff: noqa: INP001
"""Denials: what policy refuses, to whom, and whether it was so before."""

from panels import FULL, RANGE, RATE, STEP, Board, Panel, Query, Row, gained, or_zero

SELECTED = 'tenant=~"$tenant", surface=~"$surface"'
DENIED = f'{{{SELECTED}, outcome="deny"}}'
ASKED = f"{{{SELECTED}}}"
DECISIONS = "remit_decisions_total"

DENIALS = f"remit_denials_total{ASKED}"
# Born with its first denials, a series has no rate yet.
RATE_OR_BIRTH = f"({DENIALS} unless {DENIALS} offset {RATE}) or rate({DENIALS}[{RATE}])"
GOING_ON = f"sum by (tenant, action, reason) ({RATE_OR_BIRTH}) > 0"


def seen(aggregate: str) -> str:
    """When a reason was given to a tenant within the time range, in the milliseconds that Grafana wants."""
    return f"{aggregate}_over_time(timestamp({GOING_ON})[{RANGE}:{STEP}]) * 1000"


def ratio(offset: str = "", by: str = "") -> str:
    """The share of decisions that are denials."""
    group = f"sum by ({by})" if by else "sum"
    asked = f"{group} (rate({DECISIONS}{ASKED}[{RATE}]{offset}))"
    denied = f"{group} (rate({DECISIONS}{DENIED}[{RATE}]{offset}))"
    return f"({or_zero(denied, asked)}) / ({asked} > 0)"


WEEK_AGO = f"({ratio(' offset 1w')}) or ({ratio()})"

BOARD = Board(
    uid="remit-denials",
    title="Remit / Denials",
    description="What policy refuses, to whom, and whether it was so a week ago.",
    variables=[("tenant", DECISIONS), ("surface", DECISIONS)],
    rows=[
        Row(
            "Who",
            [
                Panel(
                    "Top deniers in this time range",
                    "Normal: the order of the tenants by size.",
                    "A small tenant on top: an agent of theirs retries what will never be permitted. Tell them the"
                    " reason code; denials are not to be retried.",
                    [Query(f"topk(10, sum by (tenant) ({gained(DECISIONS + DENIED)}))", "{{tenant}}")],
                    unit="none",
                    kind="bars",
                ),
                Panel(
                    "Reasons of the tenants that are denied most",
                    "Normal: even lines, each a tenant and a reason of its own.",
                    "A line that begins or steps up: that is since when. Narrow the dashboard to the tenant, and go on"
                    " with the runbook's section `RemitTenantDenialsJump`.",
                    [
                        Query(
                            f"topk(10, sum by (tenant, reason) (rate(remit_denials_total{ASKED}[{RATE}])))",
                            "{{tenant}} {{reason}}",
                        )
                    ],
                    unit="reqps",
                ),
                Panel(
                    "Who is denied, why, and since when",
                    "Normal: each tenant has one or two reasons of its own, all day long. `first` and `last` are within"
                    " the time range: a reason whose `first` is its beginning may be older, so widen it.",
                    "A `first` that is recent: it is new. Compare it with the changes of policy (bundle revision, on"
                    " the service's dashboard), of the tenant's flags and of its catalog; then look up the single"
                    " decisions by tenant and reason (GET /policies/decisions), and of one what was asked and answered"
                    " (GET /policies/decisions/{decision_id}).",
                    [
                        Query(f"sum by (tenant, action, reason) ({gained(DENIALS)}) > 0", "denials"),
                        Query(seen("min"), "first", unit="dateTimeAsIso"),
                        Query(seen("max"), "last", unit="dateTimeAsIso"),
                    ],
                    unit="none",
                    kind="table",
                    width=FULL,
                ),
            ],
        ),
        Row(
            "Rates",
            [
                Panel(
                    "Denied calls by tenant",
                    "Normal: a low, even rate: agents try, are refused and go on.",
                    "A jump of one tenant: a changed policy, allowlist or agent of theirs; the runbook has the section"
                    " `RemitTenantDenialsJump`. A jump of all at once: the bundle was changed.",
                    [Query(f"topk(10, sum by (tenant) (rate({DECISIONS}{DENIED}[{RATE}])))", "{{tenant}}")],
                    unit="reqps",
                ),
                Panel(
                    "Denials by reason",
                    "Normal: limits (`max_…_exceeded`) and allowlists lead. A call with several reasons counts under"
                    " each.",
                    "`surface_disabled`: see the rollout. `scope_…`: somebody asks for more than they hold, which is"
                    " either a bug or an attempt. `policy_unavailable` is no denial by policy: see the service.",
                    [Query(f"sum by (reason) (rate(remit_denials_total{ASKED}[{RATE}]))", "{{reason}}")],
                    unit="reqps",
                    kind="stack",
                ),
                Panel(
                    "Denied calls by action",
                    "Normal: nearly all are spawns.",
                    "Denied `cancel_subtree` or `query_tree`: tokens are used on runs that are not theirs; look at the"
                    " decisions (GET /policies/decisions) of that tenant.",
                    [Query(f"sum by (action) (rate({DECISIONS}{DENIED}[{RATE}]))", "{{action}}")],
                    unit="reqps",
                    kind="stack",
                ),
                Panel(
                    "Share of decisions that are denials, by tenant",
                    "Normal: steady for each tenant, whatever its level.",
                    "Near 1: everything of a tenant is refused. It has no allowlist, no flag, or has used up its"
                    " limits in every tree.",
                    [Query(f"topk(10, {ratio(by='tenant')})", "{{tenant}}")],
                    unit="percentunit",
                ),
            ],
        ),
        Row(
            "Against a week ago",
            [
                Panel(
                    "Denial ratio, now and a week ago",
                    "Normal: the two lines run together. Where there is no history of a week, the second line is the"
                    " first one.",
                    "They part: compare with the time of the last policy change (bundle revision, on the service's"
                    " dashboard) and of the tenants' catalog changes.",
                    [Query(ratio(), "now"), Query(WEEK_AGO, "a week ago")],
                    unit="percentunit",
                ),
                Panel(
                    "Change of the denial ratio against a week ago",
                    "Normal: within five points of 0. Exactly 0 also where there is no history of a week.",
                    "More: something that was permitted is refused. Fewer: something that was refused is permitted,"
                    " which deserves as good a look.",
                    [Query(f"({ratio()}) - ({WEEK_AGO})", "change")],
                    unit="percentunit",
                    kind="stat",
                ),
            ],
        ),
    ],
)
