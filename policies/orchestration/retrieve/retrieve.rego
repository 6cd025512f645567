# METADATA
# title: Retrieve
# description: Whether a run may search a pipeline.
package orchestration.retrieve

import data.orchestration.lib
import data.orchestration.remit.actor

# METADATA
# title: Decision
# description: Allowed whatever the surface's flag, so that what is running can end.
decision := lib.granting(deny, input.request.scopes)

# METADATA
# title: Acting for another run
# description: The denials of the actor's remit.
deny contains reason if some reason in actor.deny

# METADATA
# title: Pipeline inactive
# description: Only an active pipeline is searched.
# custom:
#   short_name: pipeline_inactive
#   message: the pipeline is not active
deny contains reason if {
	not input.retrieval.is_active == true
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Scope exceeds caller
# description: A search takes no scope that the caller does not hold; most take none.
# custom:
#   short_name: scope_exceeds_caller
#   message: the caller does not hold %v
deny contains reason if {
	not held
	reason := lib.about_scopes(
		rego.metadata.rule(),
		object.get(input, ["request", "scopes"], null),
		object.get(input, ["caller", "effective_scopes"], null),
	)
}

# METADATA
# title: Held
# description: Whether the caller holds every scope asked for.
held if lib.within(input.request.scopes, input.caller.effective_scopes)
