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
# description: With the policy in force and what it leaves. Where a fact that these need is malformed, only the denials.
decision := {
	"allow": count(denials) == 0,
	"reasons": lib.ordered(denials),
	"effective_scopes": lib.granted(denials, input.request.scopes),
	"policy": policy.effective,
	"limits": limits,
	"headroom": room,
} if {
	limits := policy.limits
	room := headroom
} else := lib.answer(denials)

# METADATA
# title: Denials
# description: Every reason against, of this package and of those that it asks.
denials := ((((deny | surface.deny) | actor.deny) | shape.deny) | published.deny) | allowlist.deny

# METADATA
# title: Headroom
# description: What is left of the limits when this spawn is granted, or as it is when this is denied.
# scope: document
headroom := left(policy.limits, input.caller, input.tree, 1, input.request.count) if count(denials) == 0

headroom := left(policy.limits, input.caller, input.tree, 0, 0) if count(denials) > 0

left(limits, caller, tree, levels, children) := {
	"depth": max([0, (limits.max_depth - caller.depth) - levels]),
	"fanout": max([0, (limits.max_fanout - caller.children_count) - children]),
	"children_total": max([0, (limits.max_children_total - tree.children_total) - children]),
}
