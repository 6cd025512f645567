# METADATA
# title: Query
# description: Whether a tree may be looked at.
package orchestration.query

import data.orchestration.lib
import data.orchestration.remit.subject

# METADATA
# title: Decision
# description: Allowed within the remit of the principal.
decision := lib.answer(deny)

# METADATA
# title: Outside the remit
# description: The denials of the principal's remit.
deny contains reason if some reason in subject.deny
