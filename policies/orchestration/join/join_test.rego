package orchestration.join_test

import data.orchestration.cancel
import data.orchestration.join
import data.orchestration.lib.questions_test as questions
import data.orchestration.query
import data.orchestration.replan

decisions(question) := found if {
	found := {"join": join.decision, "cancel": cancel.decision, "query": query.decision, "replan": replan.decision} with input as question
}

about := object.union(questions.replan, {"action": "any"})

test_at_or_below_is_allowed_whatever_the_flags if {
	flags := {"option_a_graphspec_v2": false, "option_b_runtime_primitives": false}
	every decision in decisions(questions.changed(about, "/tenant/flags", flags)) {
		decision.allow
	}
}

test_beyond_the_principal_is_denied[name] if {
	some name, question in {
		"beyond": questions.changed(about, "/subject/within_principal", false),
		"null": questions.changed(about, "/subject/within_principal", null),
		"missing": questions.without(about, "/subject/within_principal"),
	}
	every decision in decisions(question) {
		questions.codes(decision) == ["outside_remit"]
		not decision.allow
	}
}

test_beyond_the_caller_is_denied_but_may_be_looked_at[name] if {
	some name, question in {
		"beyond": questions.changed(about, "/subject/within_caller", false),
		"null": questions.changed(about, "/subject/within_caller", null),
		"missing": questions.without(about, "/subject/within_caller"),
	}
	decided := decisions(question)
	decided.query.allow
	every action in ["join", "cancel", "replan"] {
		questions.codes(decided[action]) == ["outside_remit"]
		not decided[action].allow
	}
}

test_without_a_caller_nobody_is_exceeded if {
	alone := questions.changed(questions.without(about, "/caller"), "/subject/within_caller", false)
	every decision in decisions(alone) {
		decision.allow
	}
}

test_without_a_subject_all_is_denied if {
	every decision in decisions(questions.without(about, "/subject")) {
		not decision.allow
	}
}
