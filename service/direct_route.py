"""Routes whose bodies are strict JSON, and which spend little on a call that is as it should be.

FastAPI resolves the parameters of a handler anew at each call, over all that they could be; for the busiest routes that
was half of what HTTP costs. Here a handler's parameters are looked through once, when the route is made. A call that
brings just what they need is resolved in a few steps; every other call (an unusual query, another content type, a body
that is not valid) is left to FastAPI, whose answer it gets. What a handler sees, and what OpenAPI says of it, are the
same either way.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kernel.domain.errors import InvalidRequestError
from service.dependencies import Holding, Services, authenticate, services_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

JSON_TYPES = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})


class _StrictRequest(Request):
    """Reads JSON as RFC 8259 has it: no NaN, no infinity, no lone surrogates, valid UTF-8."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a handler wants, by the names of its parameters; `queries` are the query strings that are known here."""

    call: Callable[..., Coroutine[Any, Any, Response]]
    body: tuple[str, type[BaseModel]]
    request: str | None
    services: str | None
    principal: tuple[str, Holding] | None
    queries: Mapping[bytes, Mapping[str, bool]]

    async def answer(self, request: Request, body: BaseModel) -> Response:
        """Call the handler."""
        services: Services = request.app.state.services
        values: dict[str, object] = {self.body[0]: body, **self.queries[request.scope["query_string"]]}
        if self.request is not None:
            values[self.request] = request
        if self.services is not None:
            values[self.services] = services
        if self.principal is not None:
            name, holding = self.principal
            values[name] = await holding(await authenticate(request, services))
        return await self.call(**values)


class DirectRoute(APIRoute):
    """A route whose bodies are strict JSON; a handler that wants nothing unusual is called directly."""

    def get_route_handler(self) -> Handler:
        """The handler of a request, made once."""
        by_fastapi = super().get_route_handler()
        plan = plan_of(self)

        async def usual(request: Request) -> Response:
            try:
                return await by_fastapi(request)
            except RequestValidationError as error:
                # FastAPI reads the body first, and would tell anybody what is wrong with it.
                if any(finding["type"] == "json_invalid" for finding in error.errors()):
                    await self._check_caller(request)
                raise

        async def handle(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            try:
                # Read here, because FastAPI calls whatever goes wrong while it reads "an error parsing the body".
                body = await strict.body()
            except ClientDisconnect as error:
                raise InvalidRequestError("body: the connection ended before it did", field="body") from error
            if plan is None or request.scope["query_string"] not in plan.queries or not _is_json(request.scope):
                return await usual(strict)
            try:
                given = orjson.loads(body)
            except orjson.JSONDecodeError:
                return await usual(strict)
            return await _directly(plan, strict, given) or await usual(strict)

        return handle

    async def _check_caller(self, request: Request) -> None:
        for dependency in self.dependant.dependencies:
            if dependency.call is authenticate or isinstance(dependency.call, Holding):
                caller = await authenticate(request, request.app.state.services)
                if isinstance(dependency.call, Holding):
                    await dependency.call(caller)


async def _directly(plan: _Plan, request: Request, given: object) -> Response | None:
    """The handler's answer; None where the body is not valid, which FastAPI will tell once it knows who is calling."""
    try:
        body = plan.body[1].model_validate(given)
    except ValidationError:
        return None
    return await plan.answer(request, body)


def _is_json(scope: Mapping[str, Any]) -> bool:
    """Whether a request says that its body is JSON."""
    return any(name == b"content-type" and value in JSON_TYPES for name, value in scope["headers"])


def plan_of(route: APIRoute) -> _Plan | None:
    """How to call a route's handler directly; None for one that takes no body, or anything that is not known here."""
    if "{" in route.path:
        return None
    call = route.endpoint
    hints = get_type_hints(call, include_extras=True)
    body: tuple[str, type[BaseModel]] | None = None
    request = services = None
    principal: tuple[str, Holding] | None = None
    queries: dict[bytes, dict[str, bool]] = {b"": {}}
    for name, parameter in inspect.signature(call).parameters.items():
        hint = hints[name]
        depends = next((item.dependency for item in get_args(hint)[1:] if isinstance(item, Depends)), None)
        if hint is Request:
            request = name
        elif depends is services_of:
            services = name
        elif isinstance(depends, Holding):
            principal = (name, depends)
        elif isinstance(hint, type) and issubclass(hint, BaseModel) and body is None:
            body = (name, hint)
        elif isinstance(parameter.default, bool):
            queries |= {f"{name}={str(flag).lower()}".encode(): {name: flag} for flag in (True, False)}
        elif depends is not None or parameter.default is inspect.Parameter.empty:
            return None
    return _Plan(call, body, request, services, principal, queries) if body is not None else None
