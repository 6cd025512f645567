# METADATA
# title: Policy
# description: The orchestrator's policy in force.
package orchestration.policy

# METADATA
# title: Effective
# description: |
#   The stored policy of the orchestrator's agent; the platform's defaults where there is none or it is inactive. A
#   malformed one gives way to nothing: it is empty, so that whatever needs it denies. The limits need no check here:
#   whoever subtracts from them finds out.
# scope: document
default effective := {}

# Of a fact that is not there, not even this is true.
effective := data.orchestration.defaults if not input.orchestrator_policy == input.orchestrator_policy

effective := data.orchestration.defaults if input.orchestrator_policy.is_active == false

effective := stored if {
	stored := input.orchestrator_policy
	stored.is_active == true
	is_number(stored.join_timeout_s)
	is_string(stored.default_failure_policy)
	is_boolean(stored.enforce_published_only)
	is_array(stored.allowed_scope_subset)
	is_string(stored.parent_close_policy)
}

# METADATA
# title: Limits
# description: The limits in force, for an answer about them; undefined where one is no count.
limits := found if {
	found := object.filter(effective, ["max_depth", "max_fanout", "max_children_total"])
	bits.and(found.max_depth, 9007199254740991) == found.max_depth
	bits.and(found.max_fanout, 9007199254740991) == found.max_fanout
	bits.and(found.max_children_total, 9007199254740991) == found.max_children_total
}
