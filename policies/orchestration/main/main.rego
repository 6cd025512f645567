# METADATA
# title: Main
# description: The entrypoints. They dispatch on the action; each action's package decides.
package orchestration.main

import data.orchestration.cancel
import data.orchestration.graph
import data.orchestration.join
import data.orchestration.query
import data.orchestration.replan
import data.orchestration.retrieve
import data.orchestration.spawn
import data.orchestration.start

# METADATA
# title: Decision
# description: The answer to one question. One that no action's package answers is denied.
# scope: document
# entrypoint: true
default decision := {
	"allow": false,
	"reasons": [{"code": "unknown_action", "message": "no rule decides about this action"}],
	"effective_scopes": [],
}

decision := start.decision if input.action == "start_run"

decision := spawn.decision if input.action == "spawn_run"

decision := spawn.decision if input.action == "spawn_group"

decision := spawn.decision if input.action == "agent_call"

decision := join.decision if input.action == "join"

decision := cancel.decision if input.action == "cancel_subtree"

decision := replan.decision if input.action == "evaluate_and_replan"

decision := query.decision if input.action == "query_tree"

decision := graph.decision if input.action == "compile_graph"

decision := retrieve.decision if input.action == "retrieve"

# METADATA
# title: Decisions
# description: The answers to several questions, in their order.
# entrypoint: true
# schemas:
#   - input: schema.inputs
decisions := [answer |
	some question in input.requests
	answer := decision with input as question
]
