package orchestration.spawn_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.spawn

decide(question) := decision if {
	decision := spawn.decision with input as question
}

changed(path, value) := decide(questions.changed(questions.spawn, path, value))

test_an_allowed_spawn_says_what_is_left if {
	decide(questions.spawn) == {
		"allow": true,
		"reasons": [],
		"effective_scopes": ["read", "write"],
		"policy": questions.policy,
		"limits": {"max_depth": 3, "max_fanout": 8, "max_children_total": 32},
		"headroom": {"depth": 2, "fanout": 5, "children_total": 26},
	}
}

test_a_denied_spawn_leaves_what_there_was if {
	decision := changed("/allowlist", [])
	decision.effective_scopes == []
	decision.limits == {"max_depth": 3, "max_fanout": 8, "max_children_total": 32}
	decision.headroom == {"depth": 3, "fanout": 6, "children_total": 27}
}

test_headroom_is_never_below_nothing if {
	changed("/caller/depth", 9).headroom.depth == 0
	changed("/caller/children_count", 9).headroom.fanout == 0
	changed("/tree/children_total", 99).headroom.children_total == 0
}

test_denials[name] if {
	some name, case in {
		"surface off": ["/tenant/flags/option_b_runtime_primitives", false, "surface_disabled"],
		"surface unknown": ["/surface", "option_c", "surface_disabled"],
		"no flags": ["/tenant/flags", {}, "surface_disabled"],
		"of no one knows whom": ["/tenant", {"flags": {}, "platform_flags": "yes"}, "surface_disabled"],
		"another run's token": ["/principal", {"kind": "run", "run_id": "another"}, "outside_remit"],
		"no kind of principal": ["/principal", {}, "outside_remit"],
		"no scopes": ["/request/scopes", [], "scope_required"],
		"scope not held": ["/caller/effective_scopes", ["read"], "scope_exceeds_caller"],
		"scope not in policy": ["/orchestrator_policy/allowed_scope_subset", ["read"], "scope_exceeds_policy"],
		"depth": ["/caller/depth", 3, "max_depth_exceeded"],
		"fan-out": ["/caller/children_count", 8, "max_fanout_exceeded"],
		"total": ["/tree/children_total", 32, "max_children_total_exceeded"],
		"too few targets": ["/request/count", 2, "targets_incomplete"],
		"no targets": ["/targets", [], "targets_incomplete"],
		"target of a negative count": ["/targets/0/count", -1, "targets_incomplete"],
		"allowlist empty": ["/allowlist", [], "allowlist_empty"],
		"not listed": ["/allowlist", [{"target_agent_slug": "other"}], "target_not_allowlisted"],
		"draft": ["/targets/0/status", "draft", "target_not_published"],
	}
	decision := changed(case[0], case[1])
	not decision.allow
	questions.codes(decision) == [case[2]]
}

test_what_is_allowed_at_the_edge[name] if {
	some name, case in {
		"last level": ["/caller/depth", 2],
		"last child": ["/caller/children_count", 7],
		"last run of the tree": ["/tree/children_total", 31],
		"a huge limit": ["/orchestrator_policy/max_children_total", 9007199254740991],
		"own token": ["/principal", {"kind": "run", "run_id": questions.caller.run_id}],
		"admin": ["/principal", {"kind": "admin"}],
		"scopes in policy": ["/orchestrator_policy/allowed_scope_subset", ["read", "write", "more"]],
		"listed by id": ["/allowlist", [{"target_agent_id": questions.worker.agent_id}]],
		"listed by tag": ["/allowlist", [{"capability_tag": "other"}, {"capability_tag": "search"}]],
	}
	changed(case[0], case[1]).allow
}

test_the_numbers_are_told if {
	spread := questions.changed(questions.changed(questions.spawn, "/request/count", 3), "/targets/0/count", 3)
	decide(questions.changed(spread, "/caller/children_count", 6)).reasons == [{
		"code": "max_fanout_exceeded",
		"message": "max_fanout is 8: the caller has 6 children and asked for 3 more",
		"limit": 8,
		"observed": 6,
		"requested": 3,
	}]
	changed("/caller/depth", 3).reasons == [{
		"code": "max_depth_exceeded",
		"message": "max_depth is 3: the caller is at depth 3 and its child would be at 4",
		"limit": 3,
		"observed": 3,
		"requested": 4,
	}]
}

test_a_wrong_fact_is_told_once_and_targets_each_on_their_own if {
	other := object.union(questions.worker, {"slug": "other", "status": "draft"})
	two := questions.changed(questions.changed(questions.spawn, "/targets/-", other), "/request/count", 2)
	three := questions.changed(questions.changed(two, "/targets/0/status", "draft"), "/request/scopes", ["more"])
	[object.get(reason, "target", reason.code) | some reason in decide(three).reasons] == [
		"scope_exceeds_caller",
		"other",
		"other",
		"worker",
	]
	questions.codes(decide(questions.changed(three, "/allowlist", []))) == [
		"allowlist_empty",
		"scope_exceeds_caller",
		"target_not_published",
		"target_not_published",
	]
}

test_a_group_without_members_is_a_group if {
	decide(questions.changed(questions.changed(questions.spawn, "/targets", []), "/request/count", 0)).allow
}

test_drafts_are_spawned_where_policy_lifts_the_rule if {
	lifted := questions.changed(questions.spawn, "/orchestrator_policy/enforce_published_only", false)
	draft := questions.changed(lifted, "/targets/0/status", "draft")
	decide(draft).allow
	questions.codes(decide(questions.changed(draft, "/action", "agent_call"))) == ["target_not_published"]
}

test_an_entry_that_says_two_things_lists_nothing if {
	entry := {"target_agent_slug": "worker", "capability_tag": "search"}
	questions.codes(changed("/allowlist", [entry])) == ["target_not_allowlisted"]
}
