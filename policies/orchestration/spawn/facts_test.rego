package orchestration.spawn_test

import data.orchestration.lib.questions_test as questions

counts := {
	"/caller/depth": "max_depth_exceeded",
	"/caller/children_count": "max_fanout_exceeded",
	"/tree/children_total": "max_children_total_exceeded",
	"/request/count": "max_fanout_exceeded",
	"/orchestrator_policy/max_depth": "max_depth_exceeded",
	"/orchestrator_policy/max_fanout": "max_fanout_exceeded",
	"/orchestrator_policy/max_children_total": "max_children_total_exceeded",
}

lists := {
	"/request/scopes": "scope_required",
	"/caller/effective_scopes": "scope_exceeds_caller",
	"/orchestrator_policy/allowed_scope_subset": "scope_exceeds_policy",
	"/allowlist": "allowlist_empty",
	"/targets": "targets_incomplete",
}

test_a_count_that_is_none_denies[path] if {
	some path, code in counts
	every value in questions.no_counts {
		decision := changed(path, value)
		not decision.allow
		code in questions.codes(decision)
	}
}

test_a_count_that_is_huge_denies[path] if {
	some path in ["/caller/depth", "/caller/children_count", "/tree/children_total", "/request/count"]
	every value in [9007199254740991, 1e300] {
		decision := changed(path, value)
		not decision.allow
		counts[path] in questions.codes(decision)
	}
}

test_a_list_that_is_none_denies[path] if {
	some path, code in lists
	every value in questions.no_lists {
		decision := changed(path, value)
		not decision.allow
		code in questions.codes(decision)
	}
}

test_a_missing_fact_denies[path] if {
	some path, code in object.union(counts, lists)
	decision := decide(questions.without(questions.spawn, path))
	not decision.allow
	code in questions.codes(decision)
}

test_a_missing_group_of_facts_denies[path] if {
	some path in ["/tenant", "/principal", "/request", "/caller", "/tree", "/allowlist", "/targets"]
	not decide(questions.without(questions.spawn, path)).allow
}

test_a_target_without_its_facts_is_not_spawned[path] if {
	some path in ["/targets/0/status", "/targets/0/count", "/targets/0/slug"]
	not decide(questions.without(questions.spawn, path)).allow
}

test_a_target_without_a_slug_is_denied_without_one if {
	decide(questions.without(questions.spawn, "/targets/0/slug")).reasons == [{
		"code": "target_not_allowlisted",
		"message": "agent unknown is not on the orchestrator's allowlist",
	}]
}

test_numbers_that_are_none_are_not_told if {
	changed("/caller/depth", null).reasons == [{
		"code": "max_depth_exceeded",
		"message": "max_depth is 3: the caller is at depth unknown and its child would be at unknown",
		"limit": 3,
	}]
}

test_null_matches_no_null[path] if {
	some path, entry in {
		"/targets/0/agent_id": {"target_agent_id": null},
		"/targets/0/slug": {"target_agent_slug": null},
		"/targets/0/capability_tags": {"capability_tag": null},
	}
	value := {"/targets/0/capability_tags": [null]}
	question := questions.changed(questions.spawn, path, object.get(value, path, null))
	questions.codes(decide(questions.changed(question, "/allowlist", [entry]))) == ["target_not_allowlisted"]
}
