# METADATA
# title: Graph
# description: |
#   Whether a graph may be compiled: every spawn in it is asked about as it would be at run time, with what is known of it
#   before it runs. The caller's scopes and the tree's counters are not: those are asked about when it does.
package orchestration.graph

import data.orchestration.lib
import data.orchestration.policy
import data.orchestration.surface

# METADATA
# title: Decision
# description: With the policy in force and what the graph leaves of its limits, where it is allowed.
decision := object.union(lib.answer(deny), {"policy": policy.effective, "limits": limits, "headroom": room}) if {
	limits := policy.limits
	room := _headroom(limits, deny, input.graph.spawns)
} else := lib.answer(deny)

# METADATA
# title: Surface disabled
# description: Graphs are compiled for a surface that is switched on.
deny contains reason if some reason in surface.deny

# METADATA
# title: Graph unknown
# description: A graph is a list of spawns, each with a node.
# custom:
#   short_name: graph_unknown
#   message: the spawns of the graph are not known
deny contains reason if {
	not known
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Known
# description: Whether every spawn is told with its node, depth and count.
known if {
	is_array(input.graph.spawns)
	every spawn in input.graph.spawns {
		is_string(spawn.node_id)
		lib.is_count(spawn.depth)
		lib.is_count(spawn.count)
	}
}

_headroom(limits, denials, _) := {
	"depth": limits.max_depth,
	"fanout": limits.max_fanout,
	"children_total": limits.max_children_total,
} if {
	count(denials) > 0
}

_headroom(limits, denials, spawns) := {
	"depth": limits.max_depth - max({0} | {spawn.depth | some spawn in spawns}),
	"fanout": limits.max_fanout - max({0} | {spawn.count | some spawn in spawns}),
	"children_total": limits.max_children_total - sum([spawn.count | some spawn in spawns]),
} if {
	count(denials) == 0
}
