"""Several requests, or half of one, in the bytes of one connection."""

import re
import socket
from typing import Any

import orjson
import pytest
from kars_router_testkit import FakeProvider, RouterProcess, bundle, sse_completion
from kars_router_testkit.fixtures import StartRouter

BODY = orjson.dumps({"messages": [{"role": "user", "content": "hi"}]})
DENIED = orjson.dumps({"model": "other", "messages": [{"role": "user", "content": "hi"}]})
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def post(body: bytes, extra: bytes = b"") -> bytes:
    """One request."""
    return POST + extra + b"content-length: %d\r\n\r\n" % len(body) + body


def talk(router: RouterProcess, *pieces: bytes, until: bytes = b"") -> bytes:
    """Send pieces, say that this was all, and return everything that comes back."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        said = b""
        while not (until and until in said) and (data := connection.recv(65536)):
            said += data
        return said


def test_pipelined_calls_are_each_governed_and_answered_in_order(
    router: RouterProcess, provider: FakeProvider
) -> None:
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = talk(router, post(BODY) + post(DENIED) + post(BODY) + last)
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3})", answer)
    assert statuses == [b"200", b"403", b"200", b"200"]
    assert len(provider.received) == 2
    assert len(router.records("call.settled")) == 2
    assert [record["reason"] for record in router.records("call.denied")] == ["policy_denied"]


def test_a_request_behind_a_stream_waits_and_ends_it_not(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.reply(sse_completion(["a"] * 50))
    streamed = orjson.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True})
    answer = talk(router, post(streamed) + post(DENIED, b"connection: close\r\n"))
    assert answer.index(b"[DONE]") < answer.index(b"policy_denied")
    assert router.records("call.settled")[-1]["ending"] == "completed"


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + post(BODY),
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n" + post(BODY),
        POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + post(BODY),
        POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + post(BODY),
        POST + b"content-length: +5\r\n\r\nhello" + post(BODY),
        POST + b"content-length: 5, 5\r\n\r\nhello" + post(BODY),
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello" + post(BODY),
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n" + post(BODY),
        POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + post(BODY),
        POST + b"transfer-encoding: chunked\r\n\r\n1;x\n2\r\n\r\n" + post(BODY),
        b"POST http://evil/v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n" + post(BODY),
        b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n" + post(BODY),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + post(BODY),
        POST + b"upgrade: h2c\r\nconnection: upgrade\r\n\r\n" + post(BODY),
    ],
)
def test_nothing_hides_behind_a_request_whose_length_is_not_certain(
    router: RouterProcess, provider: FakeProvider, request_bytes: bytes
) -> None:
    answer = talk(router, request_bytes)
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not provider.received


def test_expecting_a_word_before_the_body_changes_nothing(
    router: RouterProcess, provider: FakeProvider
) -> None:
    head = POST + b"expect: 100-continue\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(DENIED)
    answer = talk(router, head, DENIED)
    assert answer.startswith(b"HTTP/1.1 100")
    assert b"policy_denied" in answer
    assert not provider.received


def test_bytes_after_a_refused_body_are_no_request(start_router: StartRouter, provider: FakeProvider) -> None:
    router = start_router(env={"MAX_REQUEST_BYTES": "2000"}, policy=bundle())
    inner = post(BODY)
    padded: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 3000 + inner.decode()}]}
    answer = talk(router, post(orjson.dumps(padded)))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"request_too_large" in answer
    assert not provider.received
