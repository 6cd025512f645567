# METADATA
# description: |
#   What a client of an OPA of Remit's may do, embedded or deployed: ask for decisions, and ask how OPA is; with the one
#   token that this OPA answers to.
#   The token is compared by its digest, so how long the comparison takes says nothing about the token.
package system.authz

default allow := false

allow if {
	crypto.sha256(input.identity) == data.system.credentials.token_sha256
	permitted
}

permitted if {
	input.method == "POST"
	input.path in [
		["v1", "data", "orchestration", "main", "decision"],
		["v1", "data", "orchestration", "main", "decisions"],
	]
}

permitted if {
	input.method == "GET"
	input.path in [["health"], ["v1", "status"]]
}
