package orchestration.spawn

import data.orchestration.lib
import data.orchestration.policy

# METADATA
# title: Scope exceeds caller
# description: A child holds no scope that its parent does not hold.
# custom:
#   short_name: scope_exceeds_caller
#   message: the caller does not hold %v
deny contains reason if {
	not lib.within(input.request.scopes, input.caller.effective_scopes)
	excess := lib.excess(object.get(input, ["request", "scopes"], []), object.get(input, ["caller", "effective_scopes"], []))
	reason := lib.reason(rego.metadata.rule(), [concat(", ", excess)], {"scopes": excess})
}

# METADATA
# title: Total of children exceeded
# description: All runs below a root, over the life of the tree, stay within the limit.
# custom:
#   short_name: max_children_total_exceeded
#   message: "max_children_total is %v: the tree has %v children and %v more were asked for"
deny contains reason if {
	not lib.fits(policy.limits.max_children_total, input.tree.children_total, input.request.count)
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_children_total", null),
		object.get(input, ["tree", "children_total"], null),
		object.get(input, ["request", "count"], null),
	)
}

# METADATA
# title: Targets incomplete
# description: Every run that would be made is accounted for by an agent that is to run it.
# custom:
#   short_name: targets_incomplete
#   message: the targets do not account for the %v runs asked for
deny contains reason if {
	not accounted(input.targets, input.request.count)
	reason := lib.reason(rego.metadata.rule(), [lib.told(object.get(input, ["request", "count"], null))], {})
}

accounted(targets, requested) if {
	is_array(targets)
	every target in targets {
		target.count >= 1
	}
	sum([target.count | some target in targets]) == requested
}
