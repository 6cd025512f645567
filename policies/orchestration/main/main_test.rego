package orchestration.main_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.main

as_action(question, action) := questions.changed(question, "/action", action)

allowed := {
	"start_run": questions.start,
	"spawn_run": questions.spawn,
	"spawn_group": as_action(questions.spawn, "spawn_group"),
	"agent_call": as_action(questions.spawn, "agent_call"),
	"join": questions.about,
	"cancel_subtree": as_action(questions.about, "cancel_subtree"),
	"query_tree": as_action(questions.about, "query_tree"),
	"evaluate_and_replan": questions.replan,
	"compile_graph": questions.compile,
	"retrieve": questions.retrieve,
}

test_every_action_has_its_package[action] if {
	some action, question in allowed
	decision := main.decision with input as question
	decision.allow
	decision.reasons == []
}

test_a_bare_question_is_denied_under_every_action[action] if {
	some action, _ in allowed
	decision := main.decision with input as {"action": action}
	not decision.allow
	count(decision.reasons) > 0
}

test_an_unknown_action_is_denied[name] if {
	some name, question in {
		"another": as_action(questions.spawn, "spawn_runs"),
		"null": as_action(questions.spawn, null),
		"missing": {},
		"no object": "spawn_run",
	}
	decision := main.decision with input as question
	not decision.allow
	questions.codes(decision) == ["unknown_action"]
}

test_many_questions_are_answered_in_their_order if {
	decisions := main.decisions with input as {"requests": [
		questions.spawn,
		{"action": "nothing"},
		questions.without(questions.spawn, "/allowlist"),
		questions.start,
		null,
	]}
	[decision.allow | some decision in decisions] == [true, false, false, true, false]
	questions.codes(decisions[2]) == ["allowlist_empty"]
}

test_no_questions_are_no_answers if {
	decisions := main.decisions with input as {"requests": []}
	decisions == []
}
