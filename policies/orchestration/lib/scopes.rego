package orchestration.lib

# METADATA
# title: Within
# description: Whether every scope asked for is among those granted.
within(asked, granted) if {
	is_array(asked)
	is_array(granted)
	every scope in asked {
		is_string(scope)
		scope in granted
	}
}

# METADATA
# title: Excess
# description: The scopes that were asked for and not granted, sorted. Grants that are no list grant nothing.
excess(asked, granted) := sort({scope |
	some scope in asked
	is_string(scope)
	not among(scope, granted)
})

# METADATA
# title: Distinct
# description: The scopes sorted, each once.
distinct(scopes) := sort({scope | some scope in scopes})

among(scope, granted) if {
	is_array(granted)
	scope in granted
}
