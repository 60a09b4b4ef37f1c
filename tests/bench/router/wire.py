"""The exact bytes of the benchmark's conversation: what is asked and what is answered.

Chat-completions wire, fixed content, so that every subject carries the same
work. Both ends import this module; nothing else knows the format.
"""

import json
import re

MODEL = "bench-model"
PACED_MODEL = "bench-paced"
CHUNKS = 20
PACE_S = 0.002

CONTENT = re.compile(rb'"content":\s*"[^"]')
"""Matches the first token that a reader of a stream would see; the role delta before it is empty."""

_QUESTION = [
    {"role": "system", "content": "You are a careful assistant. Answer in one short paragraph."},
    {"role": "user", "content": "Summarise what a reverse proxy adds to a request, and where its time goes."},
]
ANSWER = "A reverse proxy reads the request, decides on it, forwards it and relays the answer to the caller."
USAGE = {"prompt_tokens": 42, "completion_tokens": CHUNKS, "total_tokens": 42 + CHUNKS}


def request(host: str, *, stream: bool, paced: bool = False) -> bytes:
    """Return one whole POST, headers included."""
    fields: dict[str, object] = {
        "model": PACED_MODEL if paced else MODEL,
        "messages": _QUESTION,
        "max_tokens": 64,
        "temperature": 0.2,
    }
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(fields, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nAuthorization: Bearer bench\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def buffered_answer() -> bytes:
    """Return one whole 200 response with a completion of some 400 bytes."""
    body = _compact(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1700000000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": ANSWER},
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
        }
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def stream_head() -> bytes:
    """Return the status line and headers of a streamed answer."""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


def stream_chunks() -> tuple[bytes, ...]:
    """Return the answer as HTTP chunks: the role and first token, further tokens, then the end with usage."""
    words = [ANSWER[i * 5 : i * 5 + 5] for i in range(CHUNKS)]
    events = [_event(delta={"role": "assistant", "content": words[0]})]
    events += [_event(delta={"content": word}) for word in words[1:]]
    events[-1] += _event(delta={}, finish_reason="stop") + _event(usage=USAGE) + b"data: [DONE]\n\n"
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
    chunks[-1] += b"0\r\n\r\n"
    return tuple(chunks)


def _event(
    *,
    delta: dict[str, str] | None = None,
    finish_reason: str | None = None,
    usage: dict[str, int] | None = None,
) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    event: dict[str, object] = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": MODEL,
        "choices": choices,
    }
    if usage is not None:
        event["usage"] = usage
    return b"data: " + _compact(event) + b"\n\n"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
