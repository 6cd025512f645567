# METADATA
# title: Cancel
# description: Whether a run and what is below it may be cancelled.
package orchestration.cancel

import data.orchestration.lib
import data.orchestration.remit.caller
import data.orchestration.remit.subject

# METADATA
# title: Decision
# description: Allowed within the remit of the principal and of the caller, whatever the surface's flag.
decision := lib.answer(deny)

# METADATA
# title: Outside the remit
# description: The denials of the two remits.
deny contains reason if some reason in (subject.deny | caller.deny)
