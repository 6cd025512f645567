"""Pure rules of runs, lineages, joins, fences, scopes and events: no database, no clock, no web."""
