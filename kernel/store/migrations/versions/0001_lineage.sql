-- tenant_id leads every primary, unique and foreign key, so that the tables can be distributed by tenant; `tenants`
-- itself is the reference table that the others hang on.

CREATE TABLE tenants (
    tenant_id       uuid PRIMARY KEY,
    slug            text NOT NULL UNIQUE,
    name            text NOT NULL,
    time_zone       text NOT NULL DEFAULT 'UTC',
    max_active_runs bigint CHECK (max_active_runs > 0),
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tenant_flags (
    tenant_id                   uuid PRIMARY KEY REFERENCES tenants,
    option_a_graphspec_v2       boolean NOT NULL DEFAULT true,
    option_b_runtime_primitives boolean NOT NULL DEFAULT true,
    updated_at                  timestamptz NOT NULL DEFAULT now()
);

-- `revision` is raised by every change of the agent's status, policy or allowlist: a spawn that was decided on an older
-- one is asked about again.
CREATE TABLE agents (
    tenant_id        uuid NOT NULL REFERENCES tenants,
    agent_id         uuid NOT NULL,
    slug             text NOT NULL,
    name             text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('external', 'graph')),
    status           text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'published')),
    capability_tags  text[] NOT NULL DEFAULT '{}',
    graph_definition json,
    revision         bigint NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, agent_id),
    UNIQUE (tenant_id, slug),
    CHECK (kind = 'graph' OR graph_definition IS NULL)
);
-- Whose runs graph workers execute.
CREATE INDEX agents_graphs ON agents (tenant_id, agent_id) WHERE kind = 'graph';

CREATE TABLE orchestrator_policies (
    tenant_id              uuid NOT NULL,
    agent_id               uuid NOT NULL,
    max_depth              integer NOT NULL CHECK (max_depth >= 0),
    max_fanout             integer NOT NULL CHECK (max_fanout >= 0),
    max_children_total     integer NOT NULL CHECK (max_children_total >= 0),
    join_timeout_s         integer NOT NULL CHECK (join_timeout_s > 0),
    default_failure_policy text NOT NULL CHECK (default_failure_policy IN ('best_effort', 'fail_fast')),
    enforce_published_only boolean NOT NULL,
    allowed_scope_subset   text[] NOT NULL,
    parent_close_policy    text NOT NULL CHECK (parent_close_policy IN ('continue', 'cancel')),
    is_active              boolean NOT NULL,
    updated_at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, agent_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents
);

CREATE TABLE orchestrator_allowlist (
    tenant_id         uuid NOT NULL,
    agent_id          uuid NOT NULL,
    ordinal           integer NOT NULL,
    target_agent_id   uuid,
    target_agent_slug text,
    capability_tag    text,
    PRIMARY KEY (tenant_id, agent_id, ordinal),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents,
    FOREIGN KEY (tenant_id, target_agent_id) REFERENCES agents,
    CHECK (num_nonnulls(target_agent_id, target_agent_slug, capability_tag) = 1)
);

-- The tree lock, and the counters it guards. Every state change in a tree locks this row first. No index on anything
-- that a spawn changes, and half-empty pages, so that its updates stay heap-only.
CREATE TABLE run_trees (
    tenant_id      uuid NOT NULL REFERENCES tenants,
    root_run_id    uuid NOT NULL,
    children_total integer NOT NULL DEFAULT 0 CHECK (children_total >= 0),
    seq            bigint NOT NULL DEFAULT 0 CHECK (seq >= 0),
    open_fences    integer NOT NULL DEFAULT 0 CHECK (open_fences >= 0),
    queued_runs    integer NOT NULL DEFAULT 0 CHECK (queued_runs >= 0),
    running_runs   integer NOT NULL DEFAULT 0 CHECK (running_runs >= 0),
    paused_runs    integer NOT NULL DEFAULT 0 CHECK (paused_runs >= 0),
    is_active      boolean NOT NULL GENERATED ALWAYS AS (queued_runs + running_runs + paused_runs > 0) STORED,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, root_run_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
-- Tenant totals are sums over the trees that have something active.
CREATE INDEX run_trees_active ON run_trees (tenant_id) WHERE is_active;

CREATE TABLE orchestration_groups (
    tenant_id           uuid NOT NULL,
    group_id            uuid NOT NULL,
    root_run_id         uuid NOT NULL,
    orchestrator_run_id uuid NOT NULL,
    parent_node_id      text,
    spawn_key_prefix    text NOT NULL,
    surface             text NOT NULL,
    status              text NOT NULL CHECK (status IN ('running', 'completed', 'completed_with_errors', 'failed',
                                                        'timed_out', 'cancelled', 'empty')),
    join_mode           text NOT NULL CHECK (join_mode IN ('all', 'best_effort', 'fail_fast', 'quorum',
                                                           'first_success')),
    failure_policy      text NOT NULL CHECK (failure_policy IN ('best_effort', 'fail_fast')),
    quorum_threshold    integer CHECK (quorum_threshold >= 1),
    timeout_s           integer NOT NULL CHECK (timeout_s > 0),
    size                integer NOT NULL CHECK (size >= 0),
    success_count       integer NOT NULL DEFAULT 0 CHECK (success_count >= 0),
    failure_count       integer NOT NULL DEFAULT 0 CHECK (failure_count >= 0),
    spawned_seq         bigint NOT NULL,
    decided_seq         bigint,
    propagation_reason  text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    deadline            timestamptz NOT NULL,
    decided_at          timestamptz,
    decision_id         uuid NOT NULL,
    request_digests     json NOT NULL,
    policy_snapshot     json NOT NULL,
    effective_scopes    text[] NOT NULL,
    PRIMARY KEY (tenant_id, group_id),
    CONSTRAINT orchestration_groups_spawn_key UNIQUE (tenant_id, orchestrator_run_id, spawn_key_prefix),
    FOREIGN KEY (tenant_id, root_run_id) REFERENCES run_trees,
    CHECK (success_count + failure_count <= size),
    CHECK (quorum_threshold <= size),
    CHECK (join_mode <> 'quorum' OR quorum_threshold IS NOT NULL),
    -- What is decided has the number that triggered it; what closed without a decision, or had nothing to wait for,
    -- has none.
    CHECK ((status IN ('completed', 'completed_with_errors', 'failed', 'timed_out')) = (decided_seq IS NOT NULL)),
    CHECK ((status = 'running') = (decided_at IS NULL))
) WITH (fillfactor = 80);
CREATE INDEX orchestration_groups_deadline ON orchestration_groups (deadline) WHERE status = 'running';

CREATE TABLE agent_runs (
    tenant_id              uuid NOT NULL,
    run_id                 uuid NOT NULL,
    root_run_id            uuid NOT NULL,
    parent_run_id          uuid,
    parent_node_id         text,
    depth                  integer NOT NULL,
    spawn_key              text,
    orchestration_group_id uuid,
    ordinal                integer NOT NULL DEFAULT 0,
    agent_id               uuid NOT NULL,
    surface                text NOT NULL CHECK (surface IN ('option_a_graphspec_v2', 'option_b_runtime_primitives')),
    status                 text NOT NULL CHECK (status IN ('queued', 'running', 'paused', 'completed', 'failed',
                                                           'cancelled')),
    -- Whether a worker executes it (by claim and lease) or whoever started it (by status reports).
    background             boolean NOT NULL,
    effective_scopes       text[] NOT NULL,
    failure_policy         text NOT NULL CHECK (failure_policy IN ('best_effort', 'fail_fast')),
    children_count         integer NOT NULL DEFAULT 0 CHECK (children_count >= 0),
    replan_attempts        integer NOT NULL DEFAULT 0 CHECK (replan_attempts >= 0),
    timeout_s              integer CHECK (timeout_s > 0),
    spawned_seq            bigint NOT NULL,
    started_seq            bigint,
    finalized_seq          bigint,
    created_at             timestamptz NOT NULL DEFAULT now(),
    started_at             timestamptz,
    finalized_at           timestamptz,
    PRIMARY KEY (tenant_id, run_id),
    CONSTRAINT agent_runs_spawn_key UNIQUE (tenant_id, parent_run_id, spawn_key),
    FOREIGN KEY (tenant_id, root_run_id) REFERENCES run_trees,
    FOREIGN KEY (tenant_id, parent_run_id) REFERENCES agent_runs,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents,
    FOREIGN KEY (tenant_id, orchestration_group_id) REFERENCES orchestration_groups,
    CHECK ((parent_run_id IS NULL) = (run_id = root_run_id)),
    CHECK ((parent_run_id IS NULL) = (depth = 0)),
    CHECK (parent_run_id IS NULL OR spawn_key IS NOT NULL),
    CHECK ((status IN ('completed', 'failed', 'cancelled')) = (finalized_seq IS NOT NULL)),
    CHECK ((finalized_seq IS NULL) = (finalized_at IS NULL)),
    CHECK ((started_seq IS NULL) = (started_at IS NULL)),
    CHECK (status NOT IN ('running', 'paused', 'completed') OR started_seq IS NOT NULL)
) WITH (fillfactor = 85);
ALTER TABLE orchestration_groups
    ADD FOREIGN KEY (tenant_id, orchestrator_run_id) REFERENCES agent_runs DEFERRABLE INITIALLY IMMEDIATE;
-- At most five indexes here: every change of status is a new version of the row in each.
CREATE INDEX agent_runs_tree_order ON agent_runs (tenant_id, root_run_id, spawned_seq, ordinal);
CREATE INDEX agent_runs_group ON agent_runs (tenant_id, orchestration_group_id, ordinal)
    WHERE orchestration_group_id IS NOT NULL;
CREATE INDEX agent_runs_queued ON agent_runs (tenant_id, agent_id, root_run_id, spawned_seq, ordinal)
    WHERE status = 'queued';

CREATE TABLE root_run_keys (
    tenant_id       uuid NOT NULL,
    agent_id        uuid NOT NULL,
    idempotency_key text NOT NULL,
    run_id          uuid NOT NULL,
    request_digests json NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT root_run_keys_pkey PRIMARY KEY (tenant_id, agent_id, idempotency_key),
    -- The key is taken before the run is made, so that a second caller waits for the first one's commit.
    FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs DEFERRABLE INITIALLY DEFERRED
);

-- What a run was given and what it gave back; beside the run, so that a change of status does not copy it.
CREATE TABLE run_payloads (
    tenant_id       uuid NOT NULL,
    run_id          uuid NOT NULL,
    input           json NOT NULL,
    output          json,
    error           json,
    -- The graph that a run of a graph agent began with: what becomes of the agent does not change it.
    graph           json,
    request_digests json,
    policy_snapshot json,
    decision_id     uuid,
    trace_parent    text,
    PRIMARY KEY (tenant_id, run_id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs
);

-- A run that must have ended by a certain time, while it is active.
CREATE TABLE run_deadlines (
    tenant_id   uuid NOT NULL,
    run_id      uuid NOT NULL,
    root_run_id uuid NOT NULL,
    deadline    timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs
);
CREATE INDEX run_deadlines_due ON run_deadlines (deadline);

-- The row stays when the lease ends: its attempt number fences whoever held it before.
CREATE TABLE run_leases (
    tenant_id    uuid NOT NULL,
    run_id       uuid NOT NULL,
    root_run_id  uuid NOT NULL,
    attempt      integer NOT NULL CHECK (attempt >= 1),
    max_attempts integer NOT NULL DEFAULT 3 CHECK (max_attempts >= 1),
    -- The lease while it is held, and the last one that was granted: its holder may repeat what ended the run.
    lease        uuid,
    granted      uuid NOT NULL,
    expires_at   timestamptz,
    token_expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs,
    CHECK ((lease IS NULL) = (expires_at IS NULL)),
    CHECK (lease = granted)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX run_leases_expiry ON run_leases (expires_at) WHERE lease IS NOT NULL;

CREATE TABLE cancellations (
    tenant_id       uuid NOT NULL,
    cancellation_id uuid NOT NULL,
    root_run_id     uuid NOT NULL,
    run_id          uuid NOT NULL,
    scope           text NOT NULL CHECK (scope IN ('run', 'children', 'group')),
    group_id        uuid,
    reason          text NOT NULL,
    fence_seq       bigint NOT NULL,
    fenced_at       timestamptz NOT NULL DEFAULT now(),
    grace_until     timestamptz,
    drained_at      timestamptz,
    cancelled_count integer NOT NULL DEFAULT 0 CHECK (cancelled_count >= 0),
    scanned_count   integer NOT NULL DEFAULT 0 CHECK (scanned_count >= 0),
    PRIMARY KEY (tenant_id, cancellation_id),
    FOREIGN KEY (tenant_id, root_run_id) REFERENCES run_trees,
    FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs,
    FOREIGN KEY (tenant_id, group_id) REFERENCES orchestration_groups,
    CHECK ((scope = 'group') = (group_id IS NOT NULL))
);
CREATE INDEX cancellations_open ON cancellations (tenant_id, root_run_id) WHERE drained_at IS NULL;
-- Which fences, drained ones too, stand on a run: the reason for which it was cancelled, and what a repeat finds.
CREATE INDEX cancellations_run ON cancellations (tenant_id, run_id);

-- One row consumes one number of its tree's sequence; `subjects` are the runs that it tells of, in order.
CREATE TABLE run_events (
    tenant_id   uuid NOT NULL,
    root_run_id uuid NOT NULL,
    seq         bigint NOT NULL,
    type        text NOT NULL,
    surface     text NOT NULL,
    run_id      uuid NOT NULL,
    subjects    uuid[] NOT NULL,
    data        json NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, root_run_id, seq, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE run_events_default PARTITION OF run_events DEFAULT;

CREATE TABLE policy_decisions (
    tenant_id     uuid NOT NULL,
    decision_id   uuid NOT NULL,
    action        text NOT NULL,
    surface       text NOT NULL,
    outcome       text NOT NULL CHECK (outcome IN ('allow', 'deny', 'error')),
    reasons       json NOT NULL,
    revision      text NOT NULL,
    caller_run_id uuid,
    root_run_id   uuid,
    input         json NOT NULL,
    result        json NOT NULL,
    duration_us   integer NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, decision_id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE policy_decisions_default PARTITION OF policy_decisions DEFAULT;
-- What was decided in a tree, and for a run below its root; a root's own are among its tree's, so most records have
-- an entry in one of the two only.
CREATE INDEX policy_decisions_tree ON policy_decisions (tenant_id, root_run_id, decision_id)
    WHERE root_run_id IS NOT NULL;
CREATE INDEX policy_decisions_caller ON policy_decisions (tenant_id, caller_run_id, decision_id)
    WHERE caller_run_id IS NOT NULL AND caller_run_id IS DISTINCT FROM root_run_id;
CREATE INDEX policy_decisions_denied ON policy_decisions (tenant_id, decision_id) WHERE outcome <> 'allow';
