"""Tools: what an agent's run may call, in the two ways of carrying a call out."""
