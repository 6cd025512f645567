# METADATA
# title: Published
# description: Whether the targets of a spawn are published.
package orchestration.spawn.published

import data.orchestration.lib
import data.orchestration.policy

# METADATA
# title: Target not published
# description: Only published agents are spawned, unless the orchestrator's policy lifts this; of calls it never does.
# custom:
#   short_name: target_not_published
#   message: agent %v is not published
deny contains reason if {
	some target in input.targets
	not target.status == "published"
	not lifted
	reason := lib.about_target(rego.metadata.rule(), target)
}

# METADATA
# title: Lifted
# description: Whether the orchestrator's policy lets drafts be spawned.
lifted if {
	policy.effective.enforce_published_only == false
	input.action != "agent_call"
}
