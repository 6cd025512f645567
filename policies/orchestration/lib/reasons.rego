package orchestration.lib

# METADATA
# title: Reason
# description: |
#   One denial: its code and the form of its message come from the metadata of the rule that denies. A rule without
#   them still denies, under a code that shows what it lacks. `facts` that are null are left out.
reason(annotations, arguments, facts) := object.union(
	{name: value | some name, value in facts; value != null},
	{
		"code": object.get(annotations, ["custom", "short_name"], "undocumented_rule"),
		"message": sprintf(object.get(annotations, ["custom", "message"], "a rule without metadata denies"), arguments),
	},
)

# METADATA
# title: Exceeded
# description: The reason of a limit, with its numbers; those that are no counts are left out, and told as unknown.
exceeded(annotations, limit, observed, requested) := reason(
	annotations,
	[told(limit), told(observed), told(requested)],
	{"limit": counted(limit), "observed": counted(observed), "requested": counted(requested)},
)

# METADATA
# title: Ordered
# description: The reasons as a list, by code, target and node.
ordered(reasons) := [reason |
	some entry in {[r.code, object.get(r, "target", ""), object.get(r, "node_id", ""), r] | some r in reasons}
	reason := entry[3]
]

told(value) := value if {
	is_count(value)
} else := "unknown"

counted(value) := value if {
	is_count(value)
} else := null

# METADATA
# title: Named
# description: A name as it is told to a person.
named(slug) := slug if {
	is_string(slug)
} else := "unknown"

# METADATA
# title: Next
# description: One level further down; null where the level is unknown.
next(depth) := depth + 1 if {
	is_count(depth)
} else := null
