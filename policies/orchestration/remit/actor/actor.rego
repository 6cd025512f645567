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
	not acts_as(input.principal, input.caller)
	reason := lib.reason(rego.metadata.rule(), [], {})
}

acts_as(principal, caller) if {
	principal.kind in {"admin", "tenant"}
	is_string(caller.run_id)
}

acts_as(principal, caller) if {
	principal.kind == "run"
	is_string(caller.run_id)
	principal.run_id == caller.run_id
}
