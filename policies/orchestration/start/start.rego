# METADATA
# title: Start
# description: Whether a root run may be started.
package orchestration.start

import data.orchestration.lib
import data.orchestration.surface

# METADATA
# title: Decision
# description: The scopes of a root run come from its token; it has no orchestrator, so no limits.
decision := lib.granting(deny, input.request.scopes)

# METADATA
# title: Surface disabled
# description: Runs of graph agents come through the graph surface; those of external agents through none.
deny contains reason if {
	not input.surface == "option_b_runtime_primitives"
	some reason in surface.deny
}

# METADATA
# title: Root runs are for tenants
# description: A root run is below no run, so it is beyond the reach of a run token.
# custom:
#   short_name: outside_remit
#   message: a run token acts at or below its own run, and a root run is below none
deny contains reason if {
	not for_a_tenant
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: For a tenant
# description: Whether the token is not bound to a run.
for_a_tenant if input.principal.kind in {"admin", "tenant"}

# METADATA
# title: Target not published
# description: Only published agents run.
# custom:
#   short_name: target_not_published
#   message: agent %v is not published
deny contains reason if {
	not input.targets[0].status == "published"
	reason := lib.about_target(rego.metadata.rule(), object.get(input, ["targets", 0], {}))
}

# METADATA
# title: Scope exceeds caller
# description: A root run gets no scope that its token may not delegate; an empty list needs no grant.
# custom:
#   short_name: scope_exceeds_caller
#   message: the token may not delegate %v
deny contains reason if {
	not delegable
	reason := lib.about_scopes(
		rego.metadata.rule(),
		object.get(input, ["request", "scopes"], null),
		object.get(input, ["principal", "delegable_scopes"], null),
	)
}

# METADATA
# title: Delegable
# description: Whether the token may give every scope asked for to a root run; `*` stands for any.
# scope: document
delegable if lib.within(input.request.scopes, input.principal.delegable_scopes)

delegable if {
	lib.within(input.request.scopes, input.request.scopes)
	is_array(input.principal.delegable_scopes)
	"*" in input.principal.delegable_scopes
}
