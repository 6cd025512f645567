# METADATA
# title: Allowlist
# description: Whether the orchestrator's agent may spawn the targets.
package orchestration.spawn.allowlist

import data.orchestration.lib

# METADATA
# title: Allowlist empty
# description: Without an entry nothing may be spawned; that is one reason, whatever the targets.
# custom:
#   short_name: allowlist_empty
#   message: the orchestrator's allowlist has no entry
deny contains reason if {
	not input.allowlist[0]
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Target not allowlisted
# description: A target is listed by its id, its slug or one of its tags.
# custom:
#   short_name: target_not_allowlisted
#   message: agent %v is not on the orchestrator's allowlist
deny contains reason if {
	allowlist := input.allowlist
	allowlist[0]
	some target in input.targets
	not _listed(target, allowlist)
	reason := lib.about_target(rego.metadata.rule(), target)
}

# An entry names by exactly one of the three: one that says anything else is equal to none of these, and lists nothing.
_listed(target, allowlist) if {
	is_string(target.slug)
	{"target_agent_slug": target.slug} in allowlist
}

_listed(target, allowlist) if {
	is_string(target.agent_id)
	{"target_agent_id": target.agent_id} in allowlist
}

_listed(target, allowlist) if {
	some tag in target.capability_tags
	is_string(tag)
	{"capability_tag": tag} in allowlist
}
