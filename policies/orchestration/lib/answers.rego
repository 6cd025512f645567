package orchestration.lib

# METADATA
# title: Answer
# description: The decision that follows from a set of denials; none of them is an allow.
answer(denials) := {"allow": count(denials) == 0, "reasons": ordered(denials), "effective_scopes": []}

# METADATA
# title: Granted
# description: The scopes that a decision grants; none where it denies.
granted(denials, scopes) := distinct(scopes) if {
	count(denials) == 0
} else := []
