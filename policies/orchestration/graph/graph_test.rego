package orchestration.graph_test

import data.orchestration.graph
import data.orchestration.lib.questions_test as questions

decide(question) := decision if {
	decision := graph.decision with input as question
}

of(spawns) := decide(questions.changed(questions.compile, "/graph/spawns", spawns))

node(facts) := object.union(questions.node, facts)

test_a_graph_within_its_limits_is_compiled if {
	second := node({"node_id": "again", "depth": 2, "count": 3})
	of([questions.node, second]) == {
		"allow": true,
		"reasons": [],
		"effective_scopes": [],
		"policy": questions.policy,
		"limits": {"max_depth": 3, "max_fanout": 8, "max_children_total": 32},
		"headroom": {"depth": 1, "fanout": 5, "children_total": 27},
	}
}

test_a_graph_without_spawns_leaves_everything if {
	decision := of([])
	decision.allow
	decision.headroom == {"depth": 3, "fanout": 8, "children_total": 32}
}

test_denials_name_their_node[name] if {
	draft := object.union(questions.worker, {"status": "draft"})
	some name, case in {
		"no scopes": [{"scopes": []}, "scope_required"],
		"depth": [{"depth": 4}, "max_depth_exceeded"],
		"fan-out": [{"count": 9}, "max_fanout_exceeded"],
		"draft": [{"targets": [draft]}, "target_not_published"],
		"not listed": [
			{"targets": [object.union(questions.worker, {"slug": "other"})]},
			"target_not_allowlisted",
		],
	}
	decision := of([questions.node, node(object.union({"node_id": "bad"}, case[0]))])
	not decision.allow
	[[reason.code, reason.node_id] | some reason in decision.reasons] == [[case[1], "bad"]]
	decision.headroom == {"depth": 3, "fanout": 8, "children_total": 32}
}

test_scopes_beyond_the_policy_are_denied if {
	narrow := questions.changed(questions.compile, "/orchestrator_policy/allowed_scope_subset", ["write"])
	decide(narrow).reasons == [{
		"code": "scope_exceeds_policy",
		"message": "the orchestrator's policy does not allow read",
		"scopes": ["read"],
		"node_id": "fan_out",
	}]
}

test_all_spawns_together_stay_within_the_total if {
	of([node({"node_id": id, "count": 7}) | some id in ["a", "b", "c", "d", "e"]]).reasons == [{
		"code": "max_children_total_exceeded",
		"message": "max_children_total is 32: a fresh tree has 0 children and the graph spawns 35",
		"limit": 32,
		"observed": 0,
		"requested": 35,
	}]
}

test_an_empty_allowlist_is_told_of_each_node if {
	decision := decide(questions.changed(questions.compile, "/allowlist", []))
	[[reason.code, reason.node_id] | some reason in decision.reasons] == [["allowlist_empty", "fan_out"]]
}

test_what_is_not_at_hand_is_not_asked if {
	unknown := object.union(questions.worker, {"slug": "other"})
	decide(questions.without(questions.changed(questions.compile, "/graph/spawns/0/targets/0", unknown), "/allowlist")).allow
	decide(questions.without(questions.changed(questions.compile, "/allowlist", []), "/graph/spawns/0/targets")).allow
}

test_a_surface_that_is_off_compiles_nothing if {
	off := questions.changed(questions.compile, "/tenant/flags/option_a_graphspec_v2", false)
	questions.codes(decide(off)) == ["surface_disabled"]
}

test_without_a_policy_the_defaults_hold if {
	decide(questions.without(questions.compile, "/orchestrator_policy")).limits.max_depth == 3
}

test_a_malformed_policy_denies if {
	decision := decide(questions.changed(questions.compile, "/orchestrator_policy/max_fanout", null))
	not decision.allow
	not decision.limits
}

test_malformed_graphs_are_denied[name] if {
	some name, question in {
		"no graph": questions.without(questions.compile, "/graph"),
		"no spawns": questions.without(questions.compile, "/graph/spawns"),
		"null": questions.changed(questions.compile, "/graph/spawns", null),
		"no list": questions.changed(questions.compile, "/graph/spawns", "none"),
		"no spawn": questions.changed(questions.compile, "/graph/spawns", [5]),
	}
	decision := decide(question)
	not decision.allow
	"graph_unknown" in questions.codes(decision)
}

test_facts_of_a_spawn_that_are_none_deny[fact] if {
	some fact in ["count", "depth"]
	every value in questions.no_counts {
		not of([node({fact: value})]).allow
	}
	not of([node({fact: 1e300})]).allow
	not of([object.remove(questions.node, [fact])]).allow
}

test_lists_of_a_spawn_that_are_none_deny if {
	every value in questions.no_lists {
		not of([node({"scopes": value})]).allow
		not decide(questions.changed(questions.compile, "/allowlist", value)).allow
	}
	not of([object.remove(questions.node, ["scopes"])]).allow
	not of([object.remove(questions.node, ["node_id"])]).allow
}

test_denials_of_a_spawn_without_a_node_are_kept if {
	nameless := object.remove(node({"scopes": []}), ["node_id"])
	questions.codes(of([nameless])) == ["graph_unknown", "scope_required"]
}
