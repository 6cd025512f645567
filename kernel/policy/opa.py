"""The adapter to OPA: `opa-python-client`, with every failure told as one error."""

import asyncio
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from time import perf_counter
from types import TracebackType
from typing import ClassVar, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from opa_client.opa_async import AsyncOpaClient
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kernel import metrics
from kernel.domain.errors import PolicyUnavailableError
from kernel.policy.contract import Decision, DecisionInput
from kernel.policy.engine import Evaluated

MAX_QUESTIONS = 64

Cause = Literal[
    "closed", "saturated", "timeout", "unreachable", "status", "malformed", "undefined", "unknown_revision", "stale"
]
"""The word under which a failure is counted."""

_PACKAGE = "orchestration.main"
_PROVENANCE = {"provenance": True}
_OK = 200
_HEADERS = {
    # Over loopback, the time that OPA would spend on gzip is worth more than the bytes.
    "Accept-Encoding": "identity",
}


class OpaAddress(NamedTuple):
    """Where an OPA listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def from_url(url: str) -> OpaAddress:
    """Read the address out of a URL such as `http://127.0.0.1:8181`.

    Without a port it is the scheme's own (80, 443).

    Raises:
        ValueError: it is no http or https URL, or has a path, a query or credentials, which would not be used.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"The URL of OPA must look like http://host:port or https://host:port, not {url!r}.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("The URL of OPA must not carry credentials; its token is a setting of its own.")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"The URL of OPA must have no path and no query: {url!r}.")
    tls = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return OpaAddress(host=host, port=parts.port or (443 if tls else 80), tls=tls)


class OpaEngine:
    """A `PolicyEngine` that asks an OPA over HTTP.

    Args:
        address: where the OPA listens; see `from_url`.
        token: the bearer token that its `system.authz` policy asks for.
        bundle: the name of the bundle in OPA's configuration.
        timeout_s: seconds for one question, the wait for its turn included.
        max_in_flight: questions that are under way at once; each has a kept-alive connection.
        max_answer_bytes: a longer answer is refused before it is read to its end.
        known_revisions: the revisions that may answer; None means any that has a name.
        bundle_age_s: seconds since this OPA last heard from the bundle's server, None when it never did.
        max_bundle_age_s: refuse to ask above this age; needs `bundle_age_s`.
        on_failure: called with a word for the cause, once for each failure.
    """

    def __init__(
        self,
        address: OpaAddress,
        *,
        token: str | None = None,
        bundle: str = "orchestration",
        timeout_s: float = 1.0,
        max_in_flight: int = 64,
        max_answer_bytes: int = 4 * 1024 * 1024,
        known_revisions: Callable[[], Collection[str]] | None = None,
        bundle_age_s: Callable[[], float | None] | None = None,
        max_bundle_age_s: float | None = None,
        on_failure: Callable[[Cause], None] | None = None,
    ) -> None:
        self._address = address
        self._bundle = bundle
        self._timeout_s = timeout_s
        self._known_revisions = known_revisions
        self._bundle_age_s = bundle_age_s
        self._max_bundle_age_s = max_bundle_age_s
        self._on_failure = on_failure
        self._turns = asyncio.Semaphore(max_in_flight)
        self._client = _Client(address, token=token, max_answer_bytes=max_answer_bytes)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the connection pool; nothing is asked yet."""
        await self._client.open()

    async def close(self) -> None:
        """Close the connections; what is asked later is refused."""
        await self._client.close()

    async def is_ready(self) -> bool:
        """Tell whether the OPA answers and has activated its bundle."""
        if not self._client.is_open:
            return False
        try:
            async with asyncio.timeout(self._timeout_s):
                return bool(await self._client.check_health(query={"bundles": True}))
        except TimeoutError:
            return False

    async def decide(self, question: DecisionInput) -> Evaluated:
        """Answer one question.

        Raises:
            PolicyUnavailableError: there is no well-formed answer of a bundle that may answer.
        """
        asked = _json(question)
        with _timed([question]):
            envelope, seconds = await self._ask(orjson.Fragment(asked), "decision")
        revision = self._revision(envelope)
        try:
            decision = Decision.model_validate(self._result(envelope))
        except ValidationError as error:
            raise self._malformed(error) from error
        return Evaluated(decision, revision, seconds, asked)

    async def decide_all(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        """Answer up to 64 questions in one round trip, in their order.

        Raises:
            ValueError: there are more than 64.
            PolicyUnavailableError: there is no well-formed answer to each of them.
        """
        if len(questions) > MAX_QUESTIONS:
            raise ValueError(f"{len(questions)} questions at once; at most {MAX_QUESTIONS} are answered together.")
        if not questions:
            return []
        asked = [_json(question) for question in questions]
        with _timed(questions):
            envelope, seconds = await self._ask({"requests": [orjson.Fragment(each) for each in asked]}, "decisions")
        revision = self._revision(envelope)
        try:
            decisions = _DECISIONS.validate_python(self._result(envelope))
        except ValidationError as error:
            raise self._malformed(error) from error
        if len(decisions) != len(questions):
            raise self._failure(
                "malformed", f"OPA gave {len(decisions)} decisions for {len(questions)} questions, so none is used."
            )
        return [Evaluated(decision, revision, seconds, each) for decision, each in zip(decisions, asked, strict=True)]

    async def _ask(self, question: object, rule: str) -> tuple[Mapping[str, object], float]:
        self._refuse_when_stale()
        started = perf_counter()
        has_turn = False
        try:
            # One clock for the wait and the work, so that a caller never waits longer than it was told.
            async with asyncio.timeout(self._timeout_s), self._turns:
                has_turn = True
                envelope = await self._client.ask(question, rule)
        except TimeoutError as error:
            if has_turn:
                raise self._failure(
                    "timeout", f"OPA at {self._address} did not answer within {self._timeout_s:g} s."
                ) from error
            raise self._failure(
                "saturated", f"OPA has so many questions in flight that none had its turn within {self._timeout_s:g} s."
            ) from error
        except _ClosedError as error:
            raise self._failure("closed", "The client of the policy engine is closed.") from error
        except _StatusError as error:
            raise self._failure("status", f"OPA at {self._address} answered with status {error.status}.") from error
        except (_MalformedError, aiohttp.ContentTypeError, aiohttp.ClientPayloadError) as error:
            raise self._failure("malformed", f"OPA's answer cannot be read: {error}.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure("unreachable", f"OPA at {self._address} cannot be asked: {error}.") from error
        return envelope, perf_counter() - started

    def _refuse_when_stale(self) -> None:
        if self._max_bundle_age_s is None or self._bundle_age_s is None:
            return
        age_s = self._bundle_age_s()
        if age_s is None:
            raise self._failure("stale", "OPA has not yet reported that it fetched its bundle.")
        if age_s > self._max_bundle_age_s:
            raise self._failure(
                "stale",
                f"OPA last fetched its bundle {age_s:.0f} s ago; more than {self._max_bundle_age_s:g} s is stale.",
            )

    def _result(self, envelope: Mapping[str, object]) -> object:
        if "result" not in envelope:
            raise self._failure("undefined", "OPA's answer is undefined: no rule answered the question.")
        return envelope["result"]

    def _malformed(self, error: ValidationError) -> PolicyUnavailableError:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, ("result", *first["loc"])))
        return self._failure("malformed", f"OPA's answer is malformed at {where}: {first['msg']}.")

    def _revision(self, envelope: Mapping[str, object]) -> str:
        try:
            revision = _Provenance.model_validate(envelope.get("provenance", {})).bundles[self._bundle].revision
        except (ValidationError, KeyError):
            revision = ""
        if not revision:
            raise self._failure(
                "unknown_revision",
                f"OPA names no revision of bundle {self._bundle!r}: the bundle is not active there yet,"
                " for example because OPA has just started; try again.",
            )
        if self._known_revisions is not None and revision not in self._known_revisions():
            raise self._failure("unknown_revision", f"OPA answered with bundle revision {revision!r}, unknown here.")
        return revision

    def _failure(self, cause: Cause, message: str) -> PolicyUnavailableError:
        if self._on_failure is not None:
            self._on_failure(cause)
        return PolicyUnavailableError(message, cause=cause)


def _json(question: DecisionInput) -> str:
    """The question as it is sent, and kept: written once."""
    return question.model_dump_json(exclude_none=True)


@contextmanager
def _timed(questions: Sequence[DecisionInput]) -> Iterator[None]:
    """Measure how long each question waited for its answer, or for the end of the patience."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds = perf_counter() - started
        for question in questions:
            metrics.DECISION_SECONDS.labels(question.action.value).observe(seconds, metrics.exemplar())


class _BundleProvenance(BaseModel):
    model_config = ConfigDict(strict=True)

    revision: str = ""


class _Provenance(BaseModel):
    model_config = ConfigDict(strict=True)

    bundles: dict[str, _BundleProvenance]


_DECISIONS = TypeAdapter(list[Decision])


class _ClosedError(Exception):
    """The pool was not opened, or is closed again."""


class _StatusError(Exception):
    """Any status but 200; a redirect is one of them, because a decision is not fetched from elsewhere."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class _MalformedError(Exception):
    """The body is no JSON object, or too long to be read."""


async def _refuse_all_but_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != _OK:
        raise _StatusError(response.status)


class _Response(aiohttp.ClientResponse):
    """An answer of bounded length, decoded by orjson without the detour over `str`."""

    max_bytes: ClassVar[int]

    async def json(self, **_: object) -> dict[str, object]:
        body = bytearray()
        async for chunk in self.content.iter_any():
            body += chunk
            if len(body) > self.max_bytes:
                self.close()
                raise _MalformedError(f"it is longer than {self.max_bytes} bytes")
        try:
            envelope = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _MalformedError(f"it is not JSON: {error}") from error
        if not isinstance(envelope, dict):
            raise _MalformedError("it is not a JSON object")
        return envelope


class _Client(AsyncOpaClient):
    """The client with a session of its own making: other serializers, bounded answers, no redirects.

    Retries are off: a decision is asked for again by whoever still wants it.
    """

    def __init__(self, address: OpaAddress, *, token: str | None, max_answer_bytes: int) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # the client has no types here
            host=address.host, port=address.port, ssl=address.tls, headers=_HEADERS, token=token, retries=0
        )
        self._response_class = type("_BoundedResponse", (_Response,), {"max_bytes": max_answer_bytes})

    @property
    def is_open(self) -> bool:
        return self._session is not None

    async def open(self) -> None:
        if self._session is None:
            await self._init_session()

    async def close(self) -> None:
        await self.close_connection()  # type: ignore[no-untyped-call]  # the client has no types here

    async def ask(self, question: object, rule: str) -> dict[str, object]:
        if self._session is None:
            raise _ClosedError
        # The client says that a question is a dict, and leaves it to the session's serializer.
        envelope: dict[str, object] = await self.query_rule(question, _PACKAGE, rule, _PROVENANCE)  # type: ignore[arg-type]
        return envelope

    async def _init_session(self) -> None:
        self._session = aiohttp.ClientSession(
            headers=self.headers,
            connector=aiohttp.TCPConnector(
                # The engine's turns are the bound; a probe of its health needs none of them.
                limit=0,
                keepalive_timeout=60,
                ssl=ssl.create_default_context() if self.ssl else True,
            ),
            # The engine's clock covers the wait for a turn as well, and is the only one.
            timeout=aiohttp.ClientTimeout(total=None),
            raise_for_status=_refuse_all_but_ok,
            response_class=self._response_class,
            json_serialize_bytes=orjson.dumps,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _request(  # type: ignore[override]  # the client names contextlib's private class
        self, method: str, url: str, **kwargs: object
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        request: AbstractAsyncContextManager[aiohttp.ClientResponse] = super()._request(
            method, url, allow_redirects=False, **kwargs
        )
        return request
