# METADATA
# title: Spawn
# description: |
#   Whether a run may spawn children: one, a group of them, or one by a tool. What depends on the counters and scopes of
#   a run is decided here; what can be known when a graph is compiled, in the packages below.
package orchestration.spawn

import data.orchestration.lib
import data.orchestration.policy
import data.orchestration.remit.actor
import data.orchestration.spawn.allowlist
import data.orchestration.spawn.published
import data.orchestration.spawn.shape
import data.orchestration.surface

# METADATA
# title: Decision
# description: |
#   With the policy in force and what is left of its limits: after the spawn where it is allowed, as it is where it is
#   denied. Where a fact that these need is malformed, the denials alone.
decision := {
	"allow": true,
	"reasons": [],
	"effective_scopes": sort({scope | some scope in input.request.scopes}),
	"policy": effective,
	"limits": {
		"max_depth": effective.max_depth,
		"max_fanout": effective.max_fanout,
		"max_children_total": effective.max_children_total,
	},
	"headroom": {"depth": shape.depth_left, "fanout": shape.fanout_left, "children_total": total_left},
} if {
	denials == set()
	effective := policy.effective
} else := {
	"allow": false,
	"reasons": lib.ordered(denials),
	"effective_scopes": [],
	"policy": policy.effective,
	"limits": limits,
	"headroom": room,
} if {
	limits := policy.limits
	room := lib.headroom(limits, input.caller, input.tree)
} else := lib.answer(denials)

# METADATA
# title: Denials
# description: Every reason against, of this package and of those that it asks.
denials := ((((deny | surface.deny) | actor.deny) | shape.deny) | published.deny) | allowlist.deny
