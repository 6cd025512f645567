# METADATA
# title: Replan
# description: Whether a run's children may be judged, and the verdict on them.
package orchestration.replan

import data.orchestration.lib
import data.orchestration.policy
import data.orchestration.remit.caller
import data.orchestration.remit.subject

# METADATA
# title: Decision
# description: |
#   Allowed within the remit of the principal and of the caller. The verdict, and what a new plan may still spend under
#   the policy in force for the run, come with an allow only.
decision := {
	"allow": true,
	"reasons": [],
	"effective_scopes": [],
	"verdict": verdict,
	"policy": policy.effective,
	"limits": policy.limits,
	"headroom": headroom,
} if {
	count(deny) == 0
} else := lib.answer(deny)

# METADATA
# title: Outside the remit
# description: The denials of the two remits.
deny contains reason if some reason in (subject.deny | caller.deny)

# METADATA
# title: Outcomes unknown
# description: There is no verdict on children whose outcomes are not all counted.
# custom:
#   short_name: outcomes_unknown
#   message: the outcomes of the children are not known
deny contains reason if {
	not counted
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Counted
# description: Whether every number that the verdict rests on is a count.
counted if {
	lib.is_count(input.outcomes.total_children)
	lib.is_count(input.outcomes.failed_children)
	lib.is_count(input.outcomes.cancelled_children)
	lib.is_count(input.outcomes.attempts)
}

# METADATA
# title: Headroom unknown
# description: There is no telling what a new plan may spend where a limit or a counter is none.
# custom:
#   short_name: headroom_unknown
#   message: the limits of the run, or what it has spent of them, are not known
deny contains reason if {
	not headroom
	reason := lib.reason(rego.metadata.rule(), [], {})
}

# METADATA
# title: Headroom
# description: What the run whose children are judged may still spend; its tree is the caller's, as it is within reach.
headroom := lib.headroom(policy.limits, input.subject, input.tree)
