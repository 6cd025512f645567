# METADATA
# title: Subject
# description: Which runs a call may be about.
package orchestration.remit.subject

import data.orchestration.lib

# METADATA
# title: Outside the principal's remit
# description: A run token reaches its own run and those below it.
# custom:
#   short_name: outside_remit
#   message: a run token acts at or below its own run
deny contains reason if {
	not input.subject.within_principal == true
	reason := lib.reason(rego.metadata.rule(), [], {})
}
