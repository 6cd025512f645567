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
held if {
	granted := input.caller.effective_scopes
	is_array(granted)
	every scope in input.request.scopes {
		is_string(scope)
		scope in granted
	}
}

# METADATA
# title: Total of children exceeded
# description: All runs below a root, over the life of the tree, stay within the limit.
# custom:
#   short_name: max_children_total_exceeded
#   message: "max_children_total is %v: the tree has %v children and %v more were asked for"
deny contains reason if {
	not total_left
	reason := lib.exceeded(
		rego.metadata.rule(),
		object.get(policy.effective, "max_children_total", null),
		object.get(input, ["tree", "children_total"], null),
		object.get(input, ["request", "count"], null),
	)
}

# METADATA
# title: Total left
# description: How many more children the tree may get after this spawn; undefined where it does not fit.
total_left := left if {
	input.tree.children_total >= 0
	left := (policy.effective.max_children_total - input.tree.children_total) - input.request.count
	bits.and(left, 9007199254740991) == left
}

# METADATA
# title: Targets incomplete
# description: Every run that would be made is accounted for by an agent that is to run it.
# custom:
#   short_name: targets_incomplete
#   message: the targets do not account for the %v runs asked for
deny contains reason if {
	not accounted_for
	reason := lib.reason(rego.metadata.rule(), [lib.told(object.get(input, ["request", "count"], null))], {})
}

# METADATA
# title: Accounted for
# description: Whether the targets' counts add up to what was asked for.
accounted_for if {
	is_array(input.targets)
	sum([target.count | some target in input.targets; target.count >= 1]) == input.request.count
}
