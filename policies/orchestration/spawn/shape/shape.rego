# METADATA
# title: Shape
# description: What a spawn must look like under the orchestrator's policy, wherever it stands.
package orchestration.spawn.shape

import data.orchestration.lib
import data.orchestration.policy

# METADATA
# title: Scope required
# description: A child is given at least one scope, by name.
# custom:
#   short_name: scope_required
#   message: a spawn names at least one scope
deny contains reason if {
	not input.request.scopes[0]
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Scope exceeds policy
# description: Where the orchestrator's policy names scopes, its children get no other.
# custom:
#   short_name: scope_exceeds_policy
#   message: the orchestrator's policy does not allow %v
deny contains reason if {
	not permitted
	reason := lib.about_scopes(
		rego.metadata.rule(),
		object.get(input, ["request", "scopes"], null),
		object.get(policy.effective, "allowed_scope_subset", null),
	)
}

# METADATA
# title: Permitted
# description: Whether the orchestrator's policy permits the scopes; one that names none permits any.
# scope: document
permitted if policy.effective.allowed_scope_subset == []

permitted if lib.within(input.request.scopes, policy.effective.allowed_scope_subset)
