package orchestration.replan_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.replan

decide(outcomes) := decision if {
	decision := replan.decision with input as questions.changed(questions.replan, "/outcomes", outcomes)
}

outcomes(failed, cancelled, attempts) := object.union(questions.replan.outcomes, {
	"completed_children": (4 - failed) - cancelled,
	"failed_children": failed,
	"cancelled_children": cancelled,
	"attempts": attempts,
})

test_verdicts[name] if {
	some name, case in {
		"all well": [0, 0, 0, "continue"],
		"all well at last": [0, 0, 9, "continue"],
		"one failed": [1, 0, 0, "replan"],
		"one cancelled": [0, 1, 0, "replan"],
		"all failed at first": [4, 0, 0, "replan"],
		"last attempt": [1, 0, 2, "replan"],
		"attempts exhausted": [1, 2, 3, "escalate"],
		"nothing left": [2, 2, 3, "stop"],
	}
	decision := decide(outcomes(case[0], case[1], case[2]))
	decision.allow
	decision.verdict.suggested_action == case[3]
	needed := case[3] == "replan"
	decision.verdict.needs_replan == needed
}

test_the_threshold_of_a_stop_is_data if {
	half := {"max_attempts": 3, "stop_failed_share": 0.5}
	question := questions.changed(questions.replan, "/outcomes", outcomes(2, 0, 3))
	decision := replan.decision with input as question with data.orchestration.thresholds as half
	decision.verdict.suggested_action == "stop"
}

test_the_verdict_tells_its_grounds if {
	decide(outcomes(0, 0, 3)).verdict.reasons == []
	decide(outcomes(1, 1, 3)).verdict.reasons == [
		{
			"code": "attempts_exhausted",
			"message": "max_attempts is 3: 3 replans were tried",
			"limit": 3,
			"observed": 3,
		},
		{
			"code": "children_failed",
			"message": "2 of 4 children failed or were cancelled",
			"observed": 2,
		},
	]
}

facts := ["total_children", "failed_children", "cancelled_children", "attempts"]

test_outcomes_that_are_no_counts_are_denied[fact] if {
	some fact in facts
	every value in questions.no_counts {
		decision := decide(object.union(outcomes(1, 0, 0), {fact: value}))
		not decision.allow
		questions.codes(decision) == ["outcomes_unknown"]
		not decision.verdict
	}
}

test_huge_and_missing_outcomes_are_denied[fact] if {
	some fact in facts
	not decide(object.union(outcomes(1, 0, 0), {fact: 1e300})).allow
	not decide(object.remove(outcomes(1, 0, 0), [fact])).allow
}

test_no_outcomes_are_denied if {
	decision := replan.decision with input as questions.without(questions.replan, "/outcomes")
	questions.codes(decision) == ["outcomes_unknown"]
}

test_the_headroom_is_what_the_run_may_still_spend[name] if {
	some name, case in {
		"plenty": [0, 4, 5, [3, 4, 27]],
		"at the limits": [3, 8, 32, [0, 0, 0]],
		"beyond limits that were lowered since": [4, 9, 40, [0, 0, 0]],
	}
	question := json.patch(questions.replan, [
		{"op": "replace", "path": "/subject/depth", "value": case[0]},
		{"op": "replace", "path": "/subject/children_count", "value": case[1]},
		{"op": "replace", "path": "/tree/children_total", "value": case[2]},
	])
	decision := replan.decision with input as question
	decision.headroom == {"depth": case[3][0], "fanout": case[3][1], "children_total": case[3][2]}
	decision.limits == {"max_depth": 3, "max_fanout": 8, "max_children_total": 32}
	decision.policy.join_timeout_s == 60
}

test_without_a_policy_of_its_own_the_defaults_are_left if {
	tight := {"max_depth": 1, "max_fanout": 5, "max_children_total": 9}
	defaults := object.union(data.orchestration.defaults, tight)
	left := {"depth": 1, "fanout": 1, "children_total": 4}
	decision := replan.decision with input as questions.without(questions.replan, "/orchestrator_policy")
		with data.orchestration.defaults as defaults
	decision.headroom == left
	inactive := questions.changed(questions.replan, "/orchestrator_policy/is_active", false)
	again := replan.decision with input as inactive with data.orchestration.defaults as defaults
	again.headroom == left
}

test_counters_and_limits_that_are_no_counts_are_denied[path] if {
	some path in [
		"/subject/depth",
		"/subject/children_count",
		"/tree/children_total",
		"/orchestrator_policy/max_depth",
		"/orchestrator_policy/max_fanout",
		"/orchestrator_policy/max_children_total",
	]
	every value in questions.no_counts {
		decision := replan.decision with input as questions.changed(questions.replan, path, value)
		not decision.allow
		questions.codes(decision) == ["headroom_unknown"]
		not decision.headroom
	}
	missing := replan.decision with input as questions.without(questions.replan, path)
	questions.codes(missing) == ["headroom_unknown"]
}

test_without_counters_of_the_tree_it_is_denied if {
	decision := replan.decision with input as questions.without(questions.replan, "/tree")
	questions.codes(decision) == ["headroom_unknown"]
}
