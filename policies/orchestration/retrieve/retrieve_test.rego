package orchestration.retrieve_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.retrieve

decide(question) := decision if {
	decision := retrieve.decision with input as question
}

test_an_active_pipeline_is_searched if {
	decide(questions.retrieve) == {"allow": true, "reasons": [], "effective_scopes": ["read", "write"]}
	decide(questions.changed(questions.retrieve, "/request/scopes", [])).allow
	decide(questions.changed(questions.retrieve, "/tenant/flags/option_b_runtime_primitives", false)).allow
}

test_denials[name] if {
	some name, case in {
		"inactive": ["/retrieval/is_active", false, "pipeline_inactive"],
		"null": ["/retrieval/is_active", null, "pipeline_inactive"],
		"no pipeline": ["/retrieval", {}, "pipeline_inactive"],
		"scope not held": ["/request/scopes", ["more"], "scope_exceeds_caller"],
		"no scopes": ["/request/scopes", null, "scope_exceeds_caller"],
		"another run's token": ["/principal", {"kind": "run", "run_id": "another"}, "outside_remit"],
	}
	decision := decide(questions.changed(questions.retrieve, case[0], case[1]))
	not decision.allow
	questions.codes(decision) == [case[2]]
}
