package orchestration.replan

decision := {}
