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
	not some_scope(input.request.scopes)
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Scope exceeds policy
# description: Where the orchestrator's policy names scopes, its children get no other.
# custom:
#   short_name: scope_exceeds_policy
#   message: the orchestrator's policy does not allow %v
deny contains reason if {
	not permitted(input.request.scopes, policy.effective.allowed_scope_subset)
	excess := lib.excess(
		object.get(input, ["request", "scopes"], []),
		object.get(policy.effective, "allowed_scope_subset", []),
	)
	reason := lib.reason(rego.metadata.rule(), [concat(", ", excess)], {"scopes": excess})
}

# METADATA
# title: Depth exceeded
# description: A child is one level below its parent.
# custom:
#   short_name: max_depth_exceeded
#   message: "max_depth is %v: the caller is at depth %v and its child would be at %v"
deny contains reason if {
	not lib.fits(policy.limits.max_depth, input.caller.depth, 1)
	depth := object.get(input, ["caller", "depth"], null)
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_depth", null),
		depth,
		lib.next(depth),
	)
}

# METADATA
# title: Fan-out exceeded
# description: A parent's children, over its lifetime, stay within the limit.
# custom:
#   short_name: max_fanout_exceeded
#   message: "max_fanout is %v: the caller has %v children and asked for %v more"
deny contains reason if {
	not lib.fits(policy.limits.max_fanout, input.caller.children_count, input.request.count)
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_fanout", null),
		object.get(input, ["caller", "children_count"], null),
		object.get(input, ["request", "count"], null),
	)
}

some_scope(scopes) if {
	is_array(scopes)
	count(scopes) > 0
}

permitted(_, subset) if {
	is_array(subset)
	count(subset) == 0
}

permitted(scopes, subset) if lib.within(scopes, subset)
