# METADATA
# title: Caller
# description: Which runs a call on behalf of a run may change or wait for.
package orchestration.remit.caller

import data.orchestration.lib

# METADATA
# title: Outside the caller's remit
# description: A caller reaches its own run and those below it. Without a caller there is nobody to exceed.
# custom:
#   short_name: outside_remit
#   message: a caller acts at or below its own run
deny contains reason if {
	"caller" in object.keys(input)
	not input.subject.within_caller == true
	reason := lib.reason(rego.metadata.rule(), [], {})
}
