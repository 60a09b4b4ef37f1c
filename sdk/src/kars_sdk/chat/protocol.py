"""`kars.chat/1`: one JSON object a line over a byte stream, UTF-8, LF at the end.

    server  {"type":"hello","protocol":"kars.chat/1","agent":"...","runtime":"..."}
    client  {"type":"message","text":"...","session":"..."}      session may be left out
    server  {"type":"delta","text":"..."}                        any number
    server  {"type":"tool_call","name":"..."}                    any number
    server  {"type":"tool_result","name":"...","ok":true}        any number
    server  {"type":"done"}                                      or
    server  {"type":"error","reason":"...","message":"..."}      one of the two ends the turn

The client sends the next message after the turn has ended. Closing the connection cancels the turn.
Lines are at most 64 KiB; a longer one, or one that is no message, is answered with an error and a close.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

PROTOCOL = "kars.chat/1"
MAX_LINE_BYTES = 64 * 1024
MAX_TEXT_CHARS = 32 * 1024
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_DELTA_CHARS = 4096


class ProtocolError(Exception):
    """A line is no message of this protocol; `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Message:
    """What a person says."""

    text: str
    session: str = ""
    """Empty: the connection's own session."""


@dataclass(frozen=True)
class Delta:
    """A piece of the agent's reply."""

    text: str


@dataclass(frozen=True)
class ToolCalled:
    """The agent calls a tool."""

    name: str


@dataclass(frozen=True)
class ToolReturned:
    """A tool has answered."""

    name: str
    ok: bool = True


@dataclass(frozen=True)
class Done:
    """The turn is complete."""


@dataclass(frozen=True)
class Failed:
    """The turn ended without a reply."""

    reason: str
    message: str


ChatEvent = Delta | ToolCalled | ToolReturned | Done | Failed


def decode(line: bytes) -> Message:
    """Read one line of a client.

    Raises:
        ProtocolError: `line_too_long`, `not_json`, `not_a_message`, `text_invalid`, `session_invalid`.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError("line_too_long", f"a line has at most {MAX_LINE_BYTES} bytes")
    try:
        document = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("not_json", "a line must be one JSON object") from exc
    if not isinstance(document, dict) or document.get("type") != "message":
        raise ProtocolError("not_a_message", 'expected {"type":"message","text":"..."}')
    text, session = document.get("text"), document.get("session", "")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT_CHARS:
        raise ProtocolError("text_invalid", f"text must have 1 to {MAX_TEXT_CHARS} characters")
    if session != "" and not (isinstance(session, str) and _SESSION.fullmatch(session)):
        raise ProtocolError("session_invalid", "a session has 1 to 64 of A-Z a-z 0-9 . _ -")
    return Message(text=text, session=session)


def hello(agent: str, runtime: str) -> bytes:
    """Return the first line of a server."""
    return _line({"type": "hello", "protocol": PROTOCOL, "agent": agent, "runtime": runtime})


def encode(event: ChatEvent) -> bytes:
    """Return the lines of one event; a long delta becomes several."""
    match event:
        case Delta(text=text):
            pieces = range(0, len(text), _MAX_DELTA_CHARS)
            return b"".join(
                _line({"type": "delta", "text": text[at : at + _MAX_DELTA_CHARS]}) for at in pieces
            )
        case ToolCalled(name=name):
            return _line({"type": "tool_call", "name": name[:256]})
        case ToolReturned(name=name, ok=ok):
            return _line({"type": "tool_result", "name": name[:256], "ok": ok})
        case Done():
            return _line({"type": "done"})
        case Failed(reason=reason, message=message):
            return _line({"type": "error", "reason": reason[:64], "message": message[:2000]})


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
