# METADATA
# scope: subpackages
# title: Orchestration
# description: Decides what an agent may do to other agents. The kernel enforces what is decided here.
# schemas:
#   - input: schema.input
package orchestration
