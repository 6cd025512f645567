# METADATA
# title: Questions
# description: Well-formed questions for the tests, each of them allowed, and ways to change one fact of them.
package orchestration.lib.questions_test

lead := "0190aaaa-0000-7000-8000-000000000001"

worker := {
	"agent_id": "0190aaaa-0000-7000-8000-000000000002",
	"slug": "worker",
	"kind": "external",
	"status": "published",
	"capability_tags": ["search"],
	"count": 1,
}

policy := {
	"max_depth": 3,
	"max_fanout": 8,
	"max_children_total": 32,
	"join_timeout_s": 60,
	"default_failure_policy": "best_effort",
	"enforce_published_only": true,
	"allowed_scope_subset": [],
	"parent_close_policy": "continue",
	"is_active": true,
}

common := {
	"surface": "option_b_runtime_primitives",
	"now": "2026-07-01T12:00:00Z",
	"tenant": {
		"tenant_id": "0190aaaa-0000-7000-8000-000000000003",
		"slug": "acme",
		"time_zone": "Europe/Berlin",
		"flags": {"option_a_graphspec_v2": true, "option_b_runtime_primitives": true},
	},
	"principal": {"kind": "tenant", "delegable_scopes": ["*"]},
	"request": {"scopes": ["write", "read"], "count": 1},
}

caller := {
	"run_id": "0190aaaa-0000-7000-8000-000000000004",
	"agent_id": lead,
	"agent_slug": "lead",
	"status": "running",
	"depth": 0,
	"effective_scopes": ["read", "write"],
	"children_count": 2,
}

start := object.union(common, {"action": "start_run", "targets": [worker]})

spawn := object.union(common, {
	"action": "spawn_run",
	"caller": caller,
	"tree": {"root_run_id": caller.run_id, "children_total": 5},
	"orchestrator_policy": policy,
	"allowlist": [{"target_agent_slug": "worker"}],
	"targets": [worker],
})

about := object.union(common, {
	"action": "join",
	"caller": caller,
	"subject": {
		"run_id": caller.run_id,
		"status": "running",
		"depth": 0,
		"within_principal": true,
		"within_caller": true,
		"children_count": 4,
	},
})

replan := object.union(about, {
	"action": "evaluate_and_replan",
	"tree": {"root_run_id": caller.run_id, "children_total": 5},
	"orchestrator_policy": policy,
	"outcomes": {
		"total_children": 4,
		"completed_children": 4,
		"failed_children": 0,
		"cancelled_children": 0,
		"active_children": 0,
		"attempts": 0,
	},
})

retrieve := object.union(common, {
	"action": "retrieve",
	"caller": caller,
	"retrieval": {"pipeline_id": "0190aaaa-0000-7000-8000-000000000005", "is_active": true},
})

node := {"node_id": "fan_out", "scopes": ["read"], "count": 2, "depth": 1, "targets": [worker]}

compile := object.union(common, {
	"action": "compile_graph",
	"surface": "option_a_graphspec_v2",
	"orchestrator_policy": policy,
	"allowlist": [{"target_agent_slug": "worker"}],
	"graph": {"spawns": [node]},
})

changed(question, path, value) := json.patch(question, [{"op": "add", "path": path, "value": value}])

without(question, path) := json.patch(question, [{"op": "remove", "path": path}])

codes(decision) := [reason.code | some reason in decision.reasons]

# What no count, and what no list, of the input may be without a denial.
no_counts := {
	"null": null,
	"a string": "1",
	"a boolean": true,
	"a list": [],
	"an object": {},
	"negative": -1,
	"a fraction": 0.5,
}

no_lists := {"null": null, "a string": "read", "a number": 1, "an object": {"read": "read"}}
