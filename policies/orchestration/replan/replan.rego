# METADATA
# title: Replan
# description: Whether a run's children may be judged, and the verdict on them.
package orchestration.replan

import data.orchestration.lib
import data.orchestration.remit.caller
import data.orchestration.remit.subject

# METADATA
# title: Decision
# description: Allowed within the remit of the principal and of the caller; the verdict comes with an allow only.
decision := object.union(lib.answer(deny), {"verdict": verdict}) if {
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
