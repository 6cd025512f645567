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
