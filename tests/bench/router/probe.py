"""One careful look at a subject before it is measured: does it really carry the conversation?

Slow and thorough (the load generator is fast and shallow): reads the answer as
JSON, joins the stream's tokens, wants the usage.
"""

import http.client
import json
from collections.abc import Iterator
from typing import Any

from tests.bench.router import wire


class ProbeError(Exception):
    """The subject answered, but not with the conversation."""


def check(port: int) -> None:
    """Ask once buffered, once streamed and once streamed with pacing, and compare with what upstream says.

    Raises:
        ProbeError: an answer is not 200, or not what upstream sent.
        OSError: the subject does not accept connections yet.
        http.client.HTTPException: the subject does not speak HTTP.
    """
    answer = json.loads(_ask(port, stream=False, paced=False))
    _expect("answer", answer["choices"][0]["message"]["content"], wire.ANSWER)
    _expect("usage", answer["usage"]["total_tokens"], wire.USAGE["total_tokens"])
    for paced in (False, True):
        events = list(_events(_ask(port, stream=True, paced=paced)))
        text = "".join(
            choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())
        )
        _expect("streamed answer", text, wire.ANSWER)
        usage = [event["usage"]["total_tokens"] for event in events if event.get("usage")]
        _expect("streamed usage", usage[-1:], [wire.USAGE["total_tokens"]])


def _ask(port: int, *, stream: bool, paced: bool) -> bytes:
    head, _, body = wire.request(f"127.0.0.1:{port}", stream=stream, paced=paced).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    headers = dict(line.split(": ", 1) for line in lines if not line.startswith(("Host", "Content-Length")))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
        response = connection.getresponse()
        payload = response.read()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ProbeError(f"status {response.status}: {payload[:300].decode(errors='replace')}")
    return payload


def _events(payload: bytes) -> Iterator[dict[str, Any]]:
    lines = [line[6:] for line in payload.split(b"\n") if line.startswith(b"data: ")]
    _expect("last event", lines[-1:], [b"[DONE]"])
    for line in lines[:-1]:
        yield json.loads(line)


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ProbeError(f"{what}: got {got!r:.200}, expected {expected!r:.200}")
