# ruff: noqa: INP001
"""Service: requests, policy, the database and the loops of the processes."""

from panels import RATE, Board, Panel, Query, Row, or_zero, quantile

# Streams and long polls last as long as they are meant to.
SERVED = '{route!~"/metrics|/livez|/readyz|/policies/.*"}'
FAILED = '{route!~"/metrics|/livez|/readyz|/policies/.*", status=~"5.."}'
ANSWERED = '{route!~"/metrics|/livez|/readyz|/policies/.*|/agents/runs/{run_id}/events|/work/claim"}'
COUNT = "remit_http_request_seconds_count"
SELECTED = '{tenant=~"$tenant", surface=~"$surface"}'
REFUSED = '{tenant=~"$tenant", surface=~"$surface", outcome="error"}'

BOARD = Board(
    uid="remit-service",
    title="Remit / Service",
    description="Requests, policy, the database and the loops of the processes.",
    variables=[("tenant", "remit_decisions_total"), ("surface", "remit_decisions_total")],
    rows=[
        Row(
            "Requests",
            [
                Panel(
                    "Requests per second by route",
                    "Normal: heartbeats, claims and spawns lead.",
                    "All routes at zero: no traffic reaches the processes; see the balancer. `unmatched`: somebody"
                    " calls paths that do not exist.",
                    [Query(f"sum by (route) (rate({COUNT}{SERVED}[{RATE}]))", "{{route}}")],
                    unit="reqps",
                ),
                Panel(
                    "Share of answers that are 5xx, by route",
                    "Normal: 0. Denials (403), conflicts (409) and saturation (429) are no errors of the service.",
                    "All routes: the database, see `the database does not answer` in the log. Spawns only: policy, see"
                    " the panels below. The runbook has the section `RemitAvailabilityBurn`.",
                    [
                        Query(
                            "({}) / (sum by (route) (rate({}{}[{}])) > 0)".format(
                                or_zero(
                                    f"sum by (route) (rate({COUNT}{FAILED}[{RATE}]))",
                                    f"sum by (route) (rate({COUNT}{SERVED}[{RATE}]))",
                                ),
                                COUNT,
                                SERVED,
                                RATE,
                            ),
                            "{{route}}",
                        )
                    ],
                    unit="percentunit",
                ),
                Panel(
                    "Duration by route, 99 %",
                    "Normal: tens of milliseconds. Joins and cancels with `wait_s` take as long as their callers want.",
                    "All routes slow: the machine or the database. Spawns only: see the latency of decisions and the"
                    " pool.",
                    [
                        Query(quantile(0.99, "remit_http_request_seconds", "route", ANSWERED), "{{route}}"),
                        Query(quantile(0.5, "remit_http_request_seconds", "", ANSWERED), "median of all"),
                    ],
                    unit="s",
                ),
                Panel(
                    "Answers by status",
                    "Normal: 200, 201 and 204; some 403 (denials) and 409.",
                    "401 grows: tokens have run out or the key was changed. 429: a tenant has reached its bound."
                    " 503: policy or the database, see the code in the answers.",
                    [Query(f"sum by (status) (rate({COUNT}{SERVED}[{RATE}]))", "{{status}}")],
                    unit="reqps",
                    kind="stack",
                ),
            ],
        ),
        Row(
            "Policy",
            [
                Panel(
                    "Policy engine up, by process",
                    "Normal: 1 for each.",
                    "0: that process refuses every spawn (503). The runbook has the section `RemitOpaDown`.",
                    [Query("min by (instance) (remit_policy_engine_up)", "{{instance}}")],
                    unit="none",
                    kind="stat",
                ),
                Panel(
                    "Time that decisions take",
                    "Normal: about a millisecond, a few under load; the time for a batch counts for each question.",
                    "Near REMIT_OPA_TIMEOUT_S (1 s): OPA lacks CPU, or a rule became slow; compare with the time of the"
                    " last revision, and profile it with `opa eval --profile`.",
                    [
                        Query(quantile(0.99, "remit_decision_seconds", "action"), "{{action}} 99 %"),
                        Query(quantile(0.5, "remit_decision_seconds"), "median of all"),
                    ],
                    unit="s",
                ),
                Panel(
                    "Share of decisions that failed closed",
                    "Normal: 0.",
                    "Above it: calls are refused because policy gave no answer. The cause is in the next panel; the"
                    " runbook has the section `RemitFailClosedBurn`.",
                    [
                        Query(
                            "({}) / (sum by (tenant) (rate(remit_decisions_total{}[{}])) > 0)".format(
                                or_zero(
                                    f"sum by (tenant) (rate(remit_decisions_total{REFUSED}[{RATE}]))",
                                    f"sum by (tenant) (rate(remit_decisions_total{SELECTED}[{RATE}]))",
                                ),
                                SELECTED,
                                RATE,
                            ),
                            "{{tenant}}",
                        )
                    ],
                    unit="percentunit",
                ),
                Panel(
                    "Why policy gave no answer",
                    "Normal: 0 for every cause.",
                    "`timeout`, `saturated`: OPA is too slow. `unreachable`, `status`: it is down or its token is"
                    " wrong. `stale`, `unknown_revision`: it does not fetch its bundle. `malformed`, `undefined`: the"
                    " bundle's rules do not answer as the contract has it; go back a revision.",
                    [Query(f"sum by (cause) (rate(remit_policy_failures_total[{RATE}]))", "{{cause}}")],
                    unit="ops",
                ),
                Panel(
                    "Bundle revision of each OPA",
                    "Normal: one revision, for a minute after a change two. The first table is what the OPAs have"
                    " activated, the second what each process serves.",
                    "Two for longer: the runbook has the section `RemitBundleRevisionsDiffer`.",
                    [
                        Query("sum by (instance, opa, revision) (remit_opa_bundle_info)", "activated"),
                        Query("sum by (instance, revision) (remit_policy_bundle_info == 1)", "served"),
                    ],
                    kind="table",
                ),
                Panel(
                    "Time since an OPA last fetched its bundle",
                    "Normal: up to the length of its long poll, half a minute. An OPA that ended, say with its pod,"
                    " rises for an hour beside the one that took its place, and is then forgotten.",
                    "Minutes, and no other at that instance: it cannot reach the service, or does not trust what it"
                    " gets; its log says which. See the section `RemitBundleStale` of the runbook. `refused` is 1"
                    " where new sources do not compile or fail their tests, and the old revision stays.",
                    [
                        Query("max by (instance, opa) (remit_opa_bundle_age_seconds)", "{{instance}} {{opa}}"),
                        Query("max by (instance) (remit_policy_bundle_refused)", "{{instance}} refused"),
                    ],
                    unit="s",
                ),
            ],
        ),
        Row(
            "Database and loops",
            [
                Panel(
                    "Database connections in use",
                    "Normal: below the pool's size (REMIT_DATABASE_POOL_SIZE, 12 unless set), with short peaks at it.",
                    "At the size for long: requests queue for connections. See the duration by route, and long drains;"
                    " then raise the size, within what PostgreSQL accepts.",
                    [Query("max by (instance) (remit_db_pool_in_use)", "{{instance}}")],
                    unit="none",
                ),
                Panel(
                    "Time since each loop's last success",
                    "Normal: a second or two; up to five minutes for `prune_records`.",
                    "More: the runbook has the section `RemitReconcilerStalled`.",
                    [
                        Query(
                            "time() - max by (loop) (remit_reconciler_last_run_seconds > 0)",
                            "{{loop}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Rows that loops have set aside",
                    "Normal: 0.",
                    "More: a loop fails on these rows and tries them again each minute; its log names them and the"
                    " error. See the section `RemitReconcilerSetAside` of the runbook.",
                    [Query("sum by (loop) (remit_reconciler_set_aside_rows)", "{{loop}}")],
                    unit="none",
                ),
                Panel(
                    "Active runs by status",
                    "Normal: running follows the number of workers; queued is short.",
                    "Queued grows: too few workers, or none for some agent.",
                    [
                        Query(
                            'sum by (status) (max by (tenant, status) (remit_runs_active{tenant=~"$tenant"}))',
                            "{{status}}",
                        )
                    ],
                    unit="none",
                    kind="stack",
                ),
            ],
        ),
    ],
)
