package orchestration.lib

# METADATA
# title: Answer
# description: The decision that follows from a set of denials; none of them is an allow.
answer(denials) := {"allow": count(denials) == 0, "reasons": ordered(denials), "effective_scopes": []}

# METADATA
# title: Granting
# description: The same for a question about scopes; a denial grants none.
granting(denials, scopes) := {"allow": true, "reasons": [], "effective_scopes": distinct(scopes)} if {
	count(denials) == 0
} else := answer(denials)

# METADATA
# title: Distinct
# description: The scopes sorted, each once.
distinct(scopes) := sort({scope | some scope in scopes})

# METADATA
# title: Ordered
# description: The reasons as a list, by code, target and node.
ordered(reasons) := [reason |
	some entry in {[r.code, object.get(r, "target", ""), object.get(r, "node_id", ""), r] | some r in reasons}
	reason := entry[3]
]
