# METADATA
# title: Actor
# description: On behalf of which run a principal may act.
package orchestration.remit.actor

import data.orchestration.lib

# METADATA
# title: Acting for another run
# description: A run token acts as its own run only; those of tenants and admins act for any run of the tenant.
# custom:
#   short_name: outside_remit
#   message: a run token acts as its own run only
deny contains reason if {
	not acts_for_caller
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Acts for the caller
# description: Whether the principal may act as the run on whose behalf the call is made.
# scope: document
acts_for_caller if {
	input.principal.kind == "tenant"
	is_string(input.caller.run_id)
}

acts_for_caller if {
	input.principal.kind == "admin"
	is_string(input.caller.run_id)
}

acts_for_caller if {
	input.principal.kind == "run"
	is_string(input.caller.run_id)
	input.principal.run_id == input.caller.run_id
}
