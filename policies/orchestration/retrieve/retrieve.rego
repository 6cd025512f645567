package orchestration.retrieve

decision := {}
