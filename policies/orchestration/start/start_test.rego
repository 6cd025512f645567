package orchestration.start_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.start

decide(question) := decision if {
	decision := start.decision with input as question
}

test_a_root_run_gets_the_scopes_asked_for if {
	decide(questions.start) == {"allow": true, "reasons": [], "effective_scopes": ["read", "write"]}
}

test_scopes_may_be_granted_by_name_and_may_be_none[name] if {
	some name, question in {
		"named": questions.changed(questions.start, "/principal/delegable_scopes", ["read", "write", "more"]),
		"none asked": questions.changed(
			questions.changed(questions.start, "/request/scopes", []),
			"/principal/delegable_scopes",
			[],
		),
		"admin": questions.changed(questions.start, "/principal/kind", "admin"),
	}
	decide(question).allow
}

test_denials[name] if {
	some name, case in {
		"draft": {"path": "/targets/0/status", "value": "draft", "codes": ["target_not_published"]},
		"no target": {"path": "/targets", "value": [], "codes": ["target_not_published"]},
		"run token": {"path": "/principal/kind", "value": "run", "codes": ["outside_remit"]},
		"scope": {"path": "/principal/delegable_scopes", "value": ["read"], "codes": ["scope_exceeds_caller"]},
		"no list": {"path": "/principal/delegable_scopes", "value": "*", "codes": ["scope_exceeds_caller"]},
		"no scopes": {"path": "/request/scopes", "value": null, "codes": ["scope_exceeds_caller"]},
		"scope of another type": {"path": "/request/scopes", "value": [1], "codes": ["scope_exceeds_caller"]},
	}
	decision := decide(questions.changed(questions.start, case.path, case.value))
	not decision.allow
	decision.effective_scopes == []
	questions.codes(decision) == case.codes
}

test_a_reason_names_what_is_wrong if {
	refused := questions.changed(questions.start, "/principal/delegable_scopes", ["read"])
	decide(questions.changed(refused, "/targets/0/status", "draft")).reasons == [
		{
			"code": "scope_exceeds_caller",
			"message": "the token may not delegate write",
			"scopes": ["write"],
		},
		{
			"code": "target_not_published",
			"message": "agent worker is not published",
			"target": "worker",
		},
	]
}

graph_run := questions.changed(questions.start, "/surface", "option_a_graphspec_v2")

test_the_graph_surface_can_be_switched_off if {
	off := questions.changed(graph_run, "/tenant/flags/option_a_graphspec_v2", false)
	decide(graph_run).allow
	questions.codes(decide(off)) == ["surface_disabled"]
}

test_an_external_agent_starts_whatever_the_flags if {
	flags := {"option_a_graphspec_v2": false, "option_b_runtime_primitives": false}
	decide(questions.changed(questions.start, "/tenant/flags", flags)).allow
}
