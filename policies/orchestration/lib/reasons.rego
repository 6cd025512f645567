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
	[limit, observed, requested],
	{"limit": limit, "observed": observed, "requested": requested},
) if {
	is_count(limit)
	is_count(observed)
	is_count(requested)
} else := reason(
	annotations,
	[told(limit), told(observed), told(requested)],
	{"limit": counted(limit), "observed": counted(observed), "requested": counted(requested)},
)

# METADATA
# title: About target
# description: The reason of an agent that may not run, told by its slug.
about_target(annotations, target) := reason(annotations, [slug], {"target": slug}) if {
	slug := target.slug
	is_string(slug)
} else := reason(annotations, ["unknown"], {})

# METADATA
# title: About scopes
# description: The reason of scopes that were asked for and not granted. Where either is no list, it tells of no scope.
about_scopes(annotations, asked, granted) := reason(annotations, [concat(", ", excess)], {"scopes": excess}) if {
	is_array(asked)
	is_array(granted)
	excess := sort({scope |
		some scope in asked
		is_string(scope)
		not scope in granted
	})
	count(excess) > 0
} else := reason(annotations, ["an unknown scope"], {})
