package orchestration.graph

import data.orchestration.lib
import data.orchestration.policy
import data.orchestration.spawn.allowlist
import data.orchestration.spawn.published
import data.orchestration.spawn.shape

# METADATA
# title: Shape of a spawn
# description: The denials of each spawn's scopes, depth and fan-out, with its node.
deny contains reason if {
	some spawn in input.graph.spawns
	question := _asked(input, spawn)
	some denial in shape.deny with input as question
	reason := _at(denial, spawn)
}

# METADATA
# title: Target of a spawn
# description: The denials of each spawn's targets, with its node, where the catalog is at hand.
deny contains reason if {
	some spawn in input.graph.spawns
	spawn.targets
	question := _asked(input, spawn)
	some denial in published.deny with input as question
	reason := _at(denial, spawn)
}

# METADATA
# title: Allowlist of a spawn
# description: The denials of the allowlist, with each spawn's node, where catalog and allowlist are at hand.
deny contains reason if {
	some spawn in input.graph.spawns
	spawn.targets
	input.allowlist
	question := _asked(input, spawn)
	some denial in allowlist.deny with input as question
	reason := _at(denial, spawn)
}

# METADATA
# title: Total of children exceeded
# description: All the spawns of a graph together stay within the limit.
# custom:
#   short_name: max_children_total_exceeded
#   message: "max_children_total is %v: a fresh tree has %v children and the graph spawns %v"
deny contains reason if {
	total := sum([spawn.count | some spawn in input.graph.spawns; lib.is_count(spawn.count)])
	limit := object.get(policy.effective, "max_children_total", null)
	not _affordable(limit, total)
	reason := lib.exceeded(rego.metadata.rule(), limit, 0, total)
}

_affordable(limit, total) if {
	is_number(limit)
	total <= limit
}

# The question about one spawn, in the form of one at run time: a caller one level above it, without children yet.
_asked(question, spawn) := object.union(
	object.filter(question, ["action", "orchestrator_policy", "allowlist"]),
	{
		"caller": {"depth": _above(object.get(spawn, "depth", null)), "children_count": 0},
		"request": {"scopes": object.get(spawn, "scopes", null), "count": object.get(spawn, "count", null)},
		"targets": object.get(spawn, "targets", []),
	},
)

_above(depth) := depth - 1 if {
	is_number(depth)
} else := null

_at(denial, spawn) := object.union(denial, {"node_id": node}) if {
	node := spawn.node_id
	is_string(node)
} else := denial
