"""What `OpaEngine` makes of a server that speaks HTTP and is not well: every answer but a good one is refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import perf_counter

import orjson
import pytest

from kernel.domain.errors import PolicyUnavailableError
from kernel.policy.opa import OpaAddress, OpaEngine
from tests.policy.engine.questions import spawn

PROVENANCE = {"bundles": {"orchestration": {"revision": "r1"}}}
DECISION = {"allow": True, "reasons": [], "effective_scopes": []}
TIMEOUT_S = 0.5
# More than a machine in a hurry takes for an answer of whatever kind.
PATIENCE_S = 20.0

JSON = "application/json"
Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


def respond(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {JSON}\r\n{headers}"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


def answer(result: object, provenance: object = PROVENANCE) -> bytes:
    return respond(orjson.dumps({"result": result, "provenance": provenance}))


class Server:
    """Answers each request with whatever `reply` is, and keeps what it was asked."""

    def __init__(self) -> None:
        self.reply: bytes | Handler = b""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.address = OpaAddress("127.0.0.1", 0, tls=False)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((head, headers, body))
                if isinstance(self.reply, bytes):
                    writer.write(self.reply)
                    await writer.drain()
                else:
                    await self.reply(writer)
                if writer.is_closing():
                    return
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.address = OpaAddress("127.0.0.1", listener.sockets[0].getsockname()[1], tls=False)
    try:
        yield server
    finally:
        listener.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening() as server:
        yield server


@pytest.fixture
def causes() -> list[str]:
    return []


@asynccontextmanager
async def asking(server: Server, causes: list[str], timeout_s: float) -> AsyncIterator[OpaEngine]:
    async with OpaEngine(
        server.address,
        token="a-secret",
        timeout_s=timeout_s,
        max_in_flight=4,
        max_answer_bytes=100_000,
        on_failure=causes.append,
    ) as engine:
        yield engine


@pytest.fixture
async def engine(server: Server, causes: list[str]) -> AsyncIterator[OpaEngine]:
    async with asking(server, causes, TIMEOUT_S) as engine:
        yield engine


async def no_answer(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(TIMEOUT_S * 2)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def hang_up_amid_the_body(writer: asyncio.StreamWriter) -> None:
    writer.write(respond(b'{"result": {"allow": true', length=1000))
    await writer.drain()
    writer.close()


async def stall_amid_the_body(writer: asyncio.StreamWriter) -> None:
    writer.write(respond(b'{"result": {"allow": true', length=1000))
    await writer.drain()
    await asyncio.sleep(TIMEOUT_S * 2)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(respond(b"", length=10_000))
    with suppress(ConnectionError):
        for _ in range(100):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await writer.drain()


FAULTS: dict[str, tuple[bytes | Handler, str]] = {
    "undefined": (respond(orjson.dumps({"provenance": PROVENANCE})), "undefined"),
    "an empty object": (respond(b"{}"), "unknown_revision"),
    "an empty body": (respond(b""), "malformed"),
    "no JSON": (respond(b"<html>"), "malformed"),
    "half of the JSON": (respond(b'{"result": {"allow": true'), "malformed"),
    "no UTF-8": (respond(b'{"result": "\xff\xfe"}'), "malformed"),
    "JSON too deep": (respond(b"[" * 50_000), "malformed"),
    "a list": (respond(b"[]"), "malformed"),
    "null": (respond(b"null"), "malformed"),
    "an empty decision": (answer({}), "malformed"),
    "a null decision": (answer(None), "malformed"),
    "a decision that is a boolean": (answer(True), "malformed"),
    "allow as text": (answer(DECISION | {"allow": "true"}), "malformed"),
    "allow as a number": (answer(DECISION | {"allow": 1}), "malformed"),
    "no reasons": (answer({"allow": True}), "malformed"),
    "a reason without code": (answer(DECISION | {"reasons": [{"message": "no"}]}), "malformed"),
    "limits as text": (
        answer(DECISION | {"limits": {"max_depth": "3", "max_fanout": 8, "max_children_total": 32}}),
        "malformed",
    ),
    "a limit too few": (answer(DECISION | {"limits": {"max_depth": 3, "max_fanout": 8}}), "malformed"),
    "a list for one question": (answer([DECISION]), "malformed"),
    "no provenance": (respond(orjson.dumps({"result": DECISION})), "unknown_revision"),
    "no bundle": (answer(DECISION, {"bundles": {}}), "unknown_revision"),
    "an empty revision": (answer(DECISION, {"bundles": {"orchestration": {"revision": ""}}}), "unknown_revision"),
    "a revision that is no text": (
        answer(DECISION, {"bundles": {"orchestration": {"revision": 1}}}),
        "unknown_revision",
    ),
    "a provenance that is text": (answer(DECISION, "r1"), "unknown_revision"),
    "status 400": (respond(b"{}", status="400 Bad Request"), "status"),
    "status 401": (respond(b"{}", status="401 Unauthorized"), "status"),
    "status 404": (respond(b"{}", status="404 Not Found"), "status"),
    "status 500": (respond(b"{}", status="500 Internal Server Error"), "status"),
    "status 503": (respond(b"{}", status="503 Service Unavailable"), "status"),
    "status 204": (b"HTTP/1.1 204 No Content\r\n\r\n", "status"),
    "too long by its length": (respond(b" " * 200_000), "malformed"),
    "too long without end": (endless, "malformed"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "unreachable"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000, "unreachable"),
    "false gzip": (respond(b"not gzip", headers="Content-Encoding: gzip\r\n"), "malformed"),
    "no answer": (no_answer, "timeout"),
    "a body that stalls": (stall_amid_the_body, "timeout"),
    "a body that drips": (drip, "timeout"),
    "a closed connection": (hang_up, "unreachable"),
    "a connection closed amid the body": (hang_up_amid_the_body, "malformed"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_refused_in_time_counted_and_over_with_the_next_answer(
    server: Server, causes: list[str], fault: str
) -> None:
    reply, cause = FAULTS[fault]
    server.reply = reply
    timeout_s = TIMEOUT_S if cause == "timeout" else PATIENCE_S
    async with asking(server, causes, timeout_s) as engine:
        for _ in range(6):  # more than there are connections: none may be lost
            started = perf_counter()
            with pytest.raises(PolicyUnavailableError) as refusal:
                await engine.decide(spawn())
            assert perf_counter() - started < TIMEOUT_S + 5
            assert "a-secret" not in str(refusal.value)
            if cause == "timeout":
                break
        assert set(causes) == {cause}
        server.reply = answer(DECISION)
        assert (await engine.decide(spawn())).decision.allow


async def test_while_the_bundle_is_not_active_the_refusal_says_so(engine: OpaEngine, server: Server) -> None:
    # What an OPA answers that has started and not loaded its bundle yet.
    server.reply = respond(orjson.dumps({"provenance": {"version": "1.0"}}))
    with pytest.raises(PolicyUnavailableError, match=r"'orchestration'.* not active there yet.*try again") as refusal:
        await engine.decide(spawn())
    assert (refusal.value.retry_after_s, refusal.value.members["cause"]) == (1, "unknown_revision")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_refused_and_the_token_stays_here(engine: OpaEngine, server: Server, status: str) -> None:
    async with listening() as elsewhere:
        elsewhere.reply = answer(DECISION)
        server.reply = respond(b"", status=status, headers=f"Location: {elsewhere.address}/v1/data\r\n")
        with pytest.raises(PolicyUnavailableError, match=status[:3]):
            await engine.decide(spawn())
        assert elsewhere.requests == []


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_list_of_another_length_is_refused(engine: OpaEngine, server: Server, count: int) -> None:
    server.reply = answer([DECISION] * count)
    with pytest.raises(PolicyUnavailableError, match=f"{count} decisions for 2"):
        await engine.decide_all([spawn(), spawn()])


async def test_one_malformed_decision_of_many_refuses_all(engine: OpaEngine, server: Server) -> None:
    server.reply = answer([DECISION, {}])
    with pytest.raises(PolicyUnavailableError, match=r"result\.1\.allow"):
        await engine.decide_all([spawn(), spawn()])


async def test_a_question_carries_its_facts_and_the_token(engine: OpaEngine, server: Server) -> None:
    server.reply = answer(DECISION)
    question = spawn()
    assert (await engine.decide(question)).revision == "r1"
    head, headers, body = server.requests[0]
    assert head == "POST /v1/data/orchestration/main/decision?provenance=True HTTP/1.1"
    assert headers["authorization"] == "Bearer a-secret"
    assert headers["accept-encoding"] == "identity"
    assert orjson.loads(body) == {"input": question.model_dump(mode="json", exclude_none=True)}


async def test_what_policy_adds_to_a_decision_is_ignored(engine: OpaEngine, server: Server) -> None:
    server.reply = answer(DECISION | {"obligations": [1]})
    assert (await engine.decide(spawn())).decision.allow


async def test_no_more_questions_are_in_flight_than_allowed_and_waiting_counts(
    engine: OpaEngine, server: Server, causes: list[str]
) -> None:
    server.reply = no_answer
    started = perf_counter()
    answers = await asyncio.gather(*(engine.decide(spawn()) for _ in range(20)), return_exceptions=True)
    # One batch of turns after the other would take five times as long.
    assert perf_counter() - started < TIMEOUT_S * 4
    assert all(isinstance(given, PolicyUnavailableError) for given in answers)
    assert len(causes) == 20
    assert len(server.requests) <= 8


async def test_connections_are_kept_alive(engine: OpaEngine, server: Server) -> None:
    connections: set[object] = set()

    async def remember(writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        writer.write(answer(DECISION))

    server.reply = remember
    for _ in range(10):
        await engine.decide(spawn())
    assert len(connections) == 1
