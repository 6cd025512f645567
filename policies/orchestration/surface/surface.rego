# METADATA
# title: Surface
# description: What a tenant's flags switch off.
package orchestration.surface

import data.orchestration.lib

# METADATA
# title: Surface disabled
# description: Nothing new is spawned or compiled through a surface that the tenant has not switched on.
# custom:
#   short_name: surface_disabled
#   message: the surface %v is not enabled for this tenant
deny contains reason if {
	not input.tenant.flags[input.surface] == true
	reason := lib.reason(rego.metadata.rule(), [object.get(input, "surface", "unknown")], {})
}
