package orchestration.replan

import data.orchestration.lib

# METADATA
# title: Verdict
# description: |
#   `continue` where no child failed; `replan` while attempts are left; after that `stop` where too many failed for the
#   rest to be worth it, and else `escalate`. A cancelled child counts as a failure, as it does for a join.
verdict := {
	"suggested_action": action,
	"needs_replan": action == "replan",
	"reasons": lib.ordered(grounds),
} if {
	action := _suggestion(data.orchestration.thresholds, input.outcomes)
}

_suggestion(thresholds, outcomes) := "continue" if {
	_failures(outcomes) == 0
} else := "replan" if {
	not _exhausted(thresholds, outcomes)
} else := "stop" if {
	_failures(outcomes) >= thresholds.stop_failed_share * outcomes.total_children
} else := "escalate"

_exhausted(thresholds, outcomes) if outcomes.attempts >= thresholds.max_attempts

# METADATA
# title: Children failed
# description: Some children failed or were cancelled.
# custom:
#   short_name: children_failed
#   message: "%v of %v children failed or were cancelled"
grounds contains reason if {
	failed := _failures(input.outcomes)
	failed > 0
	total := input.outcomes.total_children
	reason := lib.reason(rego.metadata.rule(), [failed, total], {"observed": failed})
}

# METADATA
# title: Attempts exhausted
# description: The children were replanned as often as the thresholds allow.
# custom:
#   short_name: attempts_exhausted
#   message: "max_attempts is %v: %v replans were tried"
grounds contains reason if {
	_failures(input.outcomes) > 0
	_exhausted(data.orchestration.thresholds, input.outcomes)
	limit := data.orchestration.thresholds.max_attempts
	observed := input.outcomes.attempts
	reason := lib.reason(rego.metadata.rule(), [limit, observed], {"limit": limit, "observed": observed})
}

_failures(outcomes) := outcomes.failed_children + outcomes.cancelled_children
