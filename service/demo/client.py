"""A small client of Remit's HTTP API, as any agent runtime would have one."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeVar

import httpx2
from pydantic import BaseModel, JsonValue, ValidationError

from service.demo.wire import Problem

AnswerT = TypeVar("AnswerT", bound=BaseModel)

_ATTEMPTS = 6
_RETRIED = frozenset({httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE})
_LONGEST_PAUSE_S = 5.0
# A long poll is answered after its own wait; the rest is for the network and a busy machine.
PATIENCE_S = 60.0


class RefusedError(Exception):
    """Remit refused; `problem` says why."""

    def __init__(self, request: str, problem: Problem) -> None:
        codes = ", ".join(reason.code for reason in problem.reasons)
        super().__init__(
            f"{request}: {problem.status} {problem.code} {problem.detail or problem.title} {codes}".strip()
        )
        self.problem = problem


class Client:
    """One connection pool, and one token for all calls that name none of their own."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        # Well below what the service works on at once for one tenant.
        limits = httpx2.Limits(max_connections=64)
        # No proxy of the environment stands between an agent and a service on loopback.
        timeout = httpx2.Timeout(PATIENCE_S, pool=None)
        self._http = httpx2.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str, answer: type[AnswerT], *, token: str | None = None) -> AnswerT:
        """Read something.

        Raises:
            RefusedError: when the answer is not a 2xx.
        """
        return await self._call("GET", path, None, answer, token)

    async def post(
        self,
        path: str,
        body: Mapping[str, JsonValue],
        answer: type[AnswerT],
        *,
        token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> AnswerT:
        """Ask for something to be done. Repeated when the service is busy or a connection breaks: calls are idempotent.

        Args:
            patience_s: how long to wait for an answer.

        Raises:
            RefusedError: when the answer is not a 2xx.
        """
        return await self._call("POST", path, body, answer, token, patience_s)

    async def put(self, path: str, body: Mapping[str, JsonValue], *, token: str | None = None) -> None:
        """Replace something.

        Raises:
            RefusedError: when the answer is not a 2xx.
        """
        await self._call("PUT", path, body, _Anything, token)

    async def follow(self, path: str, *, token: str) -> None:
        """Follow a stream of events to its end.

        Raises:
            RefusedError: when there is no such stream.
            httpx2.HTTPError: when it breaks again and again.
        """
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._http.stream("GET", path, headers=headers) as response:
                    if not response.is_success:
                        await response.aread()
                        raise RefusedError(f"GET {path}", _read_problem(response))
                    async for line in response.aiter_lines():
                        if line == "event: end":
                            return
            except httpx2.TransportError:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(0.1 * 2**attempt)
        raise httpx2.RemoteProtocolError(f"{path} broke off {_ATTEMPTS} times")

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, JsonValue] | None,
        answer: type[AnswerT],
        token: str | None,
        patience_s: float = PATIENCE_S,
    ) -> AnswerT:
        headers = {"Authorization": f"Bearer {token or self._token}"}
        timeout = httpx2.Timeout(PATIENCE_S, read=patience_s, pool=None)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await self._http.request(method, path, json=body, headers=headers, timeout=timeout)
            except httpx2.TransportError:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            if response.status_code in _RETRIED and attempt < _ATTEMPTS:
                await asyncio.sleep(min(float(response.headers.get("Retry-After", "1")), _LONGEST_PAUSE_S))
                continue
            break
        else:
            raise AssertionError("the last attempt returns or raises")
        if not response.is_success:
            raise RefusedError(f"{method} {path}", _read_problem(response))
        return answer.model_validate_json(response.content or b"{}")


class _Anything(BaseModel):
    """An answer that nobody reads."""


def _read_problem(response: httpx2.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return Problem(status=response.status_code, title=response.reason_phrase, detail=response.text[:500])
