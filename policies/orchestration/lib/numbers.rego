# METADATA
# title: Library
# description: What the rules share. Helpers take arguments, and are undefined for facts that are missing or malformed.
package orchestration.lib

# METADATA
# title: Is count
# description: |
#   Whether a value is an integer from 0 to 2^53 - 1, beyond which JSON numbers are not exact everywhere. One call does
#   it: bits.and takes integers only, and keeps nothing of a sign or of higher bits.
is_count(value) if bits.and(value, 9007199254740991) == value

# METADATA
# title: Told
# description: A count as it is told to a person.
told(value) := value if {
	is_count(value)
} else := "unknown"

# METADATA
# title: Counted
# description: A count as it is told to a machine; null where it is none.
counted(value) := value if {
	is_count(value)
} else := null

# METADATA
# title: Next
# description: One level further down; null where the level is unknown.
next(depth) := depth + 1 if {
	is_count(depth)
} else := null
