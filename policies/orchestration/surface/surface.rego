# METADATA
# title: Surface
# description: Which surfaces are on, by a tenant's flags or by the platform's.
package orchestration.surface

import data.orchestration.lib

# METADATA
# title: Surface disabled
# description: Nothing new is spawned or compiled through a surface that the tenant has not switched on.
# custom:
#   short_name: surface_disabled
#   message: the surface %v is not enabled for this tenant
deny contains reason if {
	not on
	reason := lib.reason(rego.metadata.rule(), [object.get(input, "surface", "unknown")], {})
}

# METADATA
# title: "On"
# description: Whether the surface is on. A tenant that has set no flags goes by the platform's.
# scope: document
default on := false

on if input.tenant.flags[input.surface] == true

on if {
	input.tenant.platform_flags == true
	data.orchestration.surfaces[input.surface] == true
}
