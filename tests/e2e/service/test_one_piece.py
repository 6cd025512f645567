"""Answers leave in one piece, whole and in their order."""

import asyncio
import socket
from urllib.parse import urlsplit

from service.one_piece import MOST_GATHERED

CALLS = 200
REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def first_reads(url: str) -> list[bytes]:
    """What the first read of each answer has; the whole answer, unless it came in pieces."""
    with connected(url) as client:
        seen = []
        for _ in range(CALLS):
            client.sendall(REQUEST)
            seen.append(client.recv(MOST_GATHERED))
            if not seen[-1].endswith(b"}"):
                break
        return seen


def read_to_the_end(url: str, request: bytes) -> bytes:
    with connected(url) as client:
        client.sendall(request)
        parts = []
        while part := client.recv(MOST_GATHERED):
            parts.append(part)
        return b"".join(parts)


def split(answer: bytes) -> tuple[dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]), body


async def test_the_head_of_an_answer_comes_with_its_body(api_url: str) -> None:
    seen = await asyncio.to_thread(first_reads, api_url)
    assert len(seen) == CALLS
    for answer in seen:
        headers, body = split(answer)
        assert len(body) == int(headers[b"content-length"]) > 0


async def test_requests_that_are_sent_together_are_answered_in_their_order(api_url: str) -> None:
    ids = [b"first", b"second", b"third"]
    requests = [REQUEST.replace(b"\r\n\r\n", b"\r\nX-Request-ID: " + each + b"\r\n\r\n") for each in ids]
    requests[-1] = requests[-1].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answers = (await asyncio.to_thread(read_to_the_end, api_url, b"".join(requests))).split(b"HTTP/1.1 ")[1:]
    assert [split(answer)[0][b"x-request-id"] for answer in answers] == ids


async def test_a_long_answer_is_whole_when_the_connection_closes(api_url: str) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    headers, body = split(await asyncio.to_thread(read_to_the_end, api_url, request))
    assert len(body) == int(headers[b"content-length"]) > 2 * MOST_GATHERED


async def test_what_is_no_request_is_told_before_the_connection_closes(api_url: str) -> None:
    assert b" 400 " in await asyncio.to_thread(read_to_the_end, api_url, b"NOT HTTP\r\n\r\n")
