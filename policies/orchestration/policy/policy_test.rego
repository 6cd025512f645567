package orchestration.policy_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.policy
import data.orchestration.spawn

effective(question) := value if {
	value := policy.effective with input as question
}

test_the_stored_policy_holds_where_it_is_active if {
	effective(questions.changed(questions.spawn, "/orchestrator_policy/max_depth", 7)).max_depth == 7
}

test_the_platform_defaults_hold[name] if {
	tight := questions.changed(questions.spawn, "/orchestrator_policy/max_depth", 0)
	some name, question in {
		"without a policy": questions.without(tight, "/orchestrator_policy"),
		"with an inactive one": questions.changed(tight, "/orchestrator_policy/is_active", false),
	}
	effective(question) == {
		"max_depth": 3,
		"max_fanout": 8,
		"max_children_total": 32,
		"join_timeout_s": 60,
		"default_failure_policy": "best_effort",
		"enforce_published_only": true,
		"allowed_scope_subset": [],
		"parent_close_policy": "continue",
	}
}

test_a_malformed_policy_is_nobodys[name] if {
	some name, question in {
		"null": questions.changed(questions.spawn, "/orchestrator_policy", null),
		"a list": questions.changed(questions.spawn, "/orchestrator_policy", []),
		"empty": questions.changed(questions.spawn, "/orchestrator_policy", {}),
		"neither active nor not": questions.changed(questions.spawn, "/orchestrator_policy/is_active", "yes"),
		"timeout": questions.changed(questions.spawn, "/orchestrator_policy/join_timeout_s", null),
		"failure policy": questions.changed(questions.spawn, "/orchestrator_policy/default_failure_policy", null),
		"published only": questions.changed(questions.spawn, "/orchestrator_policy/enforce_published_only", null),
		"close policy": questions.without(questions.spawn, "/orchestrator_policy/parent_close_policy"),
	}
	effective(question) == {}
	decision := spawn.decision with input as question
	object.keys(decision) == {"allow", "reasons", "effective_scopes"}
	not decision.allow
}
