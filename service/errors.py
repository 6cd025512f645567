"""Refusals as RFC 9457 problem documents: the one place where an error gets its HTTP status."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kernel.domain import errors
from kernel.domain.errors import RemitError

PROBLEM_JSON = "application/problem+json"
TYPE_BASE = "urn:remit:problem:"

STATUS_OF: Mapping[type[RemitError], HTTPStatus] = {
    errors.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    errors.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    errors.ForbiddenError: HTTPStatus.FORBIDDEN,
    errors.PolicyDeniedError: HTTPStatus.FORBIDDEN,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.SpawnKeyConflictError: HTTPStatus.CONFLICT,
    errors.CallerNotActiveError: HTTPStatus.CONFLICT,
    errors.RunCancelledError: HTTPStatus.CONFLICT,
    errors.IllegalTransitionError: HTTPStatus.CONFLICT,
    errors.LeaseLostError: HTTPStatus.CONFLICT,
    errors.FactsChangedError: HTTPStatus.CONFLICT,
    errors.ConflictError: HTTPStatus.CONFLICT,
    errors.PayloadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.GraphInvalidError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TenantSaturatedError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.PolicyUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.LockTimeoutError: HTTPStatus.SERVICE_UNAVAILABLE,
}

# What a status that no command chose is called, such as an unknown path's.
CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}

log = structlog.get_logger()


class FieldError(BaseModel):
    """What is wrong with one field; `field` is its path in the body, the query, the path or the headers."""

    field: str
    message: str


class DenialReason(BaseModel):
    """One fact for which policy refused."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    limit: int | None = None
    observed: int | None = None
    requested: int | None = None
    target: str | None = None
    scopes: list[str] | None = None


class Problem(BaseModel):
    """A refusal: `code` is for programs, `detail` for people. `reasons` and `decision_id` come with a denial."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = None
    reasons: list[DenialReason] | None = None
    decision_id: str | None = None


def problem(
    status: int, code: str, detail: str, members: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> Response:
    """A problem document as an answer."""
    body = {
        "type": TYPE_BASE + code,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **members,
    }
    return Response(orjson.dumps(body), status, dict(headers or {}), PROBLEM_JSON)


def render(error: RemitError) -> Response:
    """The answer that a refusal becomes."""
    # For the line that the log has of the request: a 503 alone does not say whose it is.
    structlog.contextvars.bind_contextvars(code=error.code)
    headers: dict[str, str] = {}
    retry_after = getattr(error, "retry_after_s", None)
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if isinstance(error, errors.UnauthenticatedError):
        headers["WWW-Authenticate"] = 'Bearer realm="remit"'
    return problem(STATUS_OF[type(error)], error.code, error.detail, error.members, headers)


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document."""
    app.add_exception_handler(RemitError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RemitError):
        raise error
    decision_id = error.members.get("decision_id")
    if decision_id is not None:
        structlog.contextvars.bind_contextvars(decision_id=str(decision_id))
    return render(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    findings = [{"field": _place(item), "message": _say(item)} for item in error.errors()]
    detail = "; ".join(f"{finding['field']}: {finding['message']}" for finding in findings[:5])
    return problem(400, errors.InvalidRequestError.code, detail, {"errors": findings})


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = CODE_OF_STATUS.get(error.status_code, "invalid_request")
    detail, headers, path = str(error.detail), dict(error.headers or {}), request.scope["path"]
    if detail == HTTPStatus(error.status_code).phrase:
        # Starlette's own, which says no more than the title.
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = _allowed(request) or headers["Allow"]
            detail = f"{path} takes {headers['Allow']}, not {request.method}"
        elif error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is no route to {path}"
    return problem(error.status_code, code, detail, {}, headers)


def _allowed(request: Request) -> str:
    """The methods of the path. Starlette names only those of the first route that has it."""
    template = getattr(request.scope.get("route"), "path_format", None)
    return ", ".join(sorted(method.upper() for method in request.app.openapi()["paths"].get(template, ())))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.scope.get("path"), exc_info=error)
    return problem(500, "internal_error", "the service failed to answer; the log has the cause", {})


def _place(item: Mapping[str, Any]) -> str:
    """Where a finding is: `targets[2].mapped_input_payload`, `X-Tenant-ID`; of what is no JSON, the body."""
    loc: tuple[int | str, ...] = item["loc"]
    parts = loc[1:] if loc and loc[0] in {"body", "query", "path", "header"} else loc
    if item["type"] == "json_invalid":
        parts = ()
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place or "body"


def _say(item: Mapping[str, Any]) -> str:
    if item["type"] == "json_invalid":
        context = item.get("ctx")
        cause = context.get("error") if isinstance(context, dict) else None
        return f"the body is not valid JSON: {cause or item['msg']}{_position(item['loc'])}"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = item.get("input")
    if isinstance(given, bytes):  # the body, as it came
        return "Content-Type must be application/json"
    if isinstance(given, str | int | float | bool) and len(str(given)) <= 100 and item["type"] != "missing":  # noqa: PLR2004
        return f"{message} (observed: {given!r})"
    return message


def _position(loc: object) -> str:
    *_, last = loc if isinstance(loc, tuple) and loc else ("",)
    return f", at character {last}" if isinstance(last, int) else ""
