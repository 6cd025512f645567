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
import data.orchestration.surface

# METADATA
# title: Decision
# description: The answer to one question, and whether the surface that it came through is on.
# entrypoint: true
decision := object.union(answer, {"surface_enabled": surface.on})

# METADATA
# title: Answer
# description: What the action's package answers. A question that none answers is denied.
# scope: document
default answer := {
	"allow": false,
	"reasons": [{"code": "unknown_action", "message": "no rule decides about this action"}],
	"effective_scopes": [],
}

answer := start.decision if input.action == "start_run"

answer := spawn.decision if input.action == "spawn_run"

answer := spawn.decision if input.action == "spawn_group"

answer := spawn.decision if input.action == "agent_call"

answer := join.decision if input.action == "join"

answer := cancel.decision if input.action == "cancel_subtree"

answer := replan.decision if input.action == "evaluate_and_replan"

answer := query.decision if input.action == "query_tree"

answer := graph.decision if input.action == "compile_graph"

answer := retrieve.decision if input.action == "retrieve"

# METADATA
# title: Decisions
# description: The answers to several questions, in their order.
# entrypoint: true
# schemas:
#   - input: schema.inputs
decisions := [answered |
	some question in input.requests
	answered := decision with input as question
]
