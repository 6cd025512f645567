# METADATA
# title: Join
# description: Whether a group may be waited for. The subject is the run that spawned it.
package orchestration.join

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
