"""The OpenAPI document: FastAPI's, with the refusals as they are really answered."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import PROBLEM_JSON, Problem

# What any call may be refused with, and what only some are.
EVERYWHERE = {
    "400": "The request is malformed; `errors` names the fields.",
    "413": "The body is too large.",
    "500": "The service failed to answer.",
    "503": "The database or the policy engine does not answer; `Retry-After` says when to try again.",
}
AUTHENTICATED = {
    "401": "No valid token.",
    "403": "The token's authority does not reach this far, or policy refused (`reasons`, `decision_id`).",
    "404": "There is no such thing in this tenant.",
    "429": "The tenant is saturated; `Retry-After` says when to try again.",
}
WRITING = {"409": "The state of the run, the key or the lease does not permit it; `code` says which."}
TENANT_HEADER = {
    "name": "X-Tenant-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "format": "uuid"},
    "description": "The tenant that an admin's call is for; a tenant's token needs none.",
}
WITHOUT_TOKEN = {"/livez", "/readyz", "/metrics"}
INVALID_GRAPH = {"422": "The graph does not compile; `diagnostics` has every finding."}
COMPILING = {("post", "/agents/{agent_id}/publish"): INVALID_GRAPH, ("patch", "/agents/{agent_id}"): INVALID_GRAPH}


def install(app: FastAPI) -> None:
    """Serve the document with every error response declared."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_refusals(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI's documented way to extend the document


def _with_refusals(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An admin's, a tenant's or a run's token."}
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)
            refusals = dict(EVERYWHERE)
            if path not in WITHOUT_TOKEN:
                refusals |= AUTHENTICATED
                operation["security"] = [{"bearer": []}]
                operation.setdefault("parameters", []).append(TENANT_HEADER)
            if method != "get":
                refusals |= WRITING
            refusals |= COMPILING.get((method, path), {})
            for status, description in refusals.items():
                # What the route declares itself stays: /readyz says what is not ready in its own shape.
                own = responses.get(status, {}).get("content", {})
                responses[status] = {
                    "description": description,
                    "content": {**own, PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
    return document
