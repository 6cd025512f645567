package orchestration.surface_test

import data.orchestration.lib.questions_test as questions
import data.orchestration.main
import data.orchestration.surface

a := "option_a_graphspec_v2"

unset := questions.changed(questions.changed(questions.compile, "/tenant/flags", {}), "/tenant/platform_flags", true)

codes(question, platform) := found if {
	found := {reason.code | some reason in surface.deny} with input as question
		with data.orchestration.surfaces as platform
}

test_a_tenant_without_flags_goes_by_the_platforms if {
	codes(unset, {a: true}) == set()
	codes(unset, {a: false}) == {"surface_disabled"}
	codes(unset, {}) == {"surface_disabled"}
}

test_a_tenants_own_flags_go_before_the_platforms if {
	codes(questions.changed(questions.compile, "/tenant/flags", {a: true}), {a: false}) == set()
	codes(questions.changed(questions.compile, "/tenant/flags", {a: false}), {a: true}) == {"surface_disabled"}
}

test_every_answer_tells_whether_its_surface_is_on[name] if {
	off := questions.changed(questions.about, "/tenant/flags", {})
	some name, [question, on] in {
		"on": [questions.about, true],
		"off, though what is asked for is allowed": [off, false],
		"unknown action": [questions.changed(questions.about, "/action", "nothing"), true],
		"no question": [null, false],
	}
	decision := main.decision with input as question
	decision.surface_enabled == on
}
