# METADATA
# title: Policy
# description: The orchestrator's policy in force.
package orchestration.policy

import data.orchestration.lib

# METADATA
# title: Effective
# description: |
#   The stored policy of the orchestrator's agent; the platform's defaults where there is none or it is inactive. A
#   malformed one gives way to nothing: it is empty, so that whatever needs it denies.
# scope: document
default effective := {}

effective := data.orchestration.defaults if not "orchestrator_policy" in object.keys(input)

effective := data.orchestration.defaults if input.orchestrator_policy.is_active == false

effective := well_formed(input.orchestrator_policy) if input.orchestrator_policy.is_active == true

# METADATA
# title: Limits
# description: The limits that the kernel holds against its counters once more, under the lock of the tree.
limits := {
	"max_depth": effective.max_depth,
	"max_fanout": effective.max_fanout,
	"max_children_total": effective.max_children_total,
}

# METADATA
# title: Well-formed
# description: The policy without its switch; undefined where a part is missing or of another type.
well_formed(stored) := object.remove(stored, ["is_active"]) if {
	lib.is_count(stored.max_depth)
	lib.is_count(stored.max_fanout)
	lib.is_count(stored.max_children_total)
	lib.is_count(stored.join_timeout_s)
	is_string(stored.default_failure_policy)
	is_boolean(stored.enforce_published_only)
	is_array(stored.allowed_scope_subset)
	is_string(stored.parent_close_policy)
}
