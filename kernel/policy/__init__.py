"""The port to the policy engine: what is asked, what is answered, and how it is recorded."""
