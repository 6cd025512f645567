package orchestration.lib

# METADATA
# title: Headroom
# description: What a run may still spend of limits that are counts; undefined where one of the counters is none.
headroom(limits, run, tree) := {
	"depth": max([0, limits.max_depth - run.depth]),
	"fanout": max([0, limits.max_fanout - run.children_count]),
	"children_total": max([0, limits.max_children_total - tree.children_total]),
} if {
	is_count(run.depth)
	is_count(run.children_count)
	is_count(tree.children_total)
}
