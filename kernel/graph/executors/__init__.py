"""What each type of node does. All orchestration goes through the kernel's commands, as the primitives' does."""
