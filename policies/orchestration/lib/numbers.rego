# METADATA
# title: Library
# description: What the rules share. Helpers take arguments, and are undefined for facts that are missing or malformed.
package orchestration.lib

# Beyond this a JSON number is no longer an exact integer everywhere it is read.
largest := 9007199254740991

# METADATA
# title: Fits
# description: Whether what was observed and what is requested stay within a limit; all three must be counts.
fits(limit, observed, requested) if {
	is_count(limit)
	is_count(observed)
	is_count(requested)
	observed + requested <= limit
}

# METADATA
# title: Is count
# description: Whether a value is an integer that counts something. Of other types `<=` would be true or false by rank.
is_count(value) if {
	is_number(value)
	value >= 0
	value <= largest
	floor(value) == value
}
