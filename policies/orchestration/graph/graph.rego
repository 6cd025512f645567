package orchestration.graph

decision := {}
