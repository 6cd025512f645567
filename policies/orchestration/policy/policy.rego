# METADATA
# title: Policy
# description: The orchestrator's policy in force.
package orchestration.policy

# METADATA
# title: Effective
# description: |
#   The stored policy of the orchestrator's agent; the platform's defaults where there is none or it is inactive. A
#   malformed one gives way to nothing: it is empty, so that whatever needs it denies.
# scope: document
default effective := {}

effective := data.orchestration.defaults if not given

effective := data.orchestration.defaults if input.orchestrator_policy.is_active == false

effective := object.remove(stored, ["is_active"]) if {
	stored := input.orchestrator_policy
	stored.is_active == true
	is_number(stored.max_depth)
	is_number(stored.max_fanout)
	is_number(stored.max_children_total)
	is_number(stored.join_timeout_s)
	is_string(stored.default_failure_policy)
	is_boolean(stored.enforce_published_only)
	is_array(stored.allowed_scope_subset)
	is_string(stored.parent_close_policy)
}

# METADATA
# title: Given
# description: Whether the question has a policy at all, of whatever type.
given if type_name(input.orchestrator_policy)

# METADATA
# title: Limits
# description: The limits that the kernel holds against its counters once more, under the lock of the tree.
limits := {
	"max_depth": effective.max_depth,
	"max_fanout": effective.max_fanout,
	"max_children_total": effective.max_children_total,
}
