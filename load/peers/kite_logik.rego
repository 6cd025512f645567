# What Remit's bundle asks of a spawn, in the shape that Kite Logik's client reads: the caller is active, has an active
# policy and holds the scopes, the target is on the allowlist and published, and depth, fan-out and total stay within
# their limits. The facts come in `input.args`, as Kite Logik hands over whatever the caller of its gate knows.
package kitelogik.main

default allow := false

allow if count(deny_reason) == 0

deny if count(deny_reason) > 0

deny_reason contains "surface_disabled" if not input.args.surface_enabled == true

deny_reason contains "caller_not_active" if not input.args.caller_status in {"queued", "running"}

deny_reason contains "policy_inactive" if not input.args.policy.is_active == true

deny_reason contains "scope_required" if count(input.requested_capabilities) == 0

deny_reason contains "scope_exceeds_caller" if {
	some scope in input.requested_capabilities
	not scope in input.context.session_scopes
}

deny_reason contains "scope_exceeds_policy" if {
	count(input.args.policy.allowed_scope_subset) > 0
	some scope in input.requested_capabilities
	not scope in input.args.policy.allowed_scope_subset
}

deny_reason contains "allowlist_empty" if count(input.args.allowlist) == 0

deny_reason contains "target_not_allowlisted" if not input.delegation_target in input.args.allowlist

deny_reason contains "target_not_published" if {
	input.args.policy.enforce_published_only
	not input.args.target_status == "published"
}

deny_reason contains "max_depth_exceeded" if not within(input.context.delegation_depth + 1, input.args.policy.max_depth)

deny_reason contains "max_fanout_exceeded" if {
	not within(input.args.children_count + input.args.count, input.args.policy.max_fanout)
}

deny_reason contains "max_children_total_exceeded" if {
	not within(input.args.children_total + input.args.count, input.args.policy.max_children_total)
}

within(observed, limit) if {
	is_number(observed)
	is_number(limit)
	observed <= limit
}
