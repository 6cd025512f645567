# METADATA
# title: Orchestration
# description: Decides what an agent may do to other agents. The kernel enforces what is decided here.

# METADATA
# scope: subpackages
# title: The question
# description: Every package below reads the same input; `opa check` holds each path against its schema.
# schemas:
#   - input: schema.input
package orchestration
