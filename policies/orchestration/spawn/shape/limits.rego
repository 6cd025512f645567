package orchestration.spawn.shape

import data.orchestration.lib
import data.orchestration.policy

# METADATA
# title: Depth exceeded
# description: A child is one level below its parent.
# custom:
#   short_name: max_depth_exceeded
#   message: "max_depth is %v: the caller is at depth %v and its child would be at %v"
deny contains reason if {
	not depth_left
	depth := object.get(input, ["caller", "depth"], null)
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_depth", null),
		depth,
		lib.next(depth),
	)
}

# METADATA
# title: Depth left
# description: How many levels are left below the child; undefined where it does not fit.
depth_left := left if {
	input.caller.depth >= 0
	left := (policy.effective.max_depth - input.caller.depth) - 1
	bits.and(left, 9007199254740991) == left
}

# METADATA
# title: Fan-out exceeded
# description: A parent's children, over its lifetime, stay within the limit.
# custom:
#   short_name: max_fanout_exceeded
#   message: "max_fanout is %v: the caller has %v children and asked for %v more"
deny contains reason if {
	not fanout_left
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_fanout", null),
		object.get(input, ["caller", "children_count"], null),
		object.get(input, ["request", "count"], null),
	)
}

# METADATA
# title: Fan-out left
# description: How many more children the caller may have after this spawn; undefined where it does not fit.
fanout_left := left if {
	input.caller.children_count >= 0
	input.request.count >= 0
	left := (policy.effective.max_fanout - input.caller.children_count) - input.request.count
	bits.and(left, 9007199254740991) == left
}
