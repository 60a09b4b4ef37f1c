"""A chat-completions provider on a real socket, scripted by the test.

Runs on a thread of its own, so blocking tests and subprocesses can use it. Each
request takes the next scripted reply; without a script it answers "ok".
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

Json = dict[str, Any]


@dataclass(kw_only=True)
class Reply:
    """One scripted reply.

    Attributes:
        parts: what is written as the body, each part on its own; chunked when there is more than one.
        gate: waited for before the last part is written (a held answer).
        reset: close the connection without answering.
        cut: close the connection before the last part.
    """

    status: int = 200
    parts: Sequence[bytes] = (b"{}",)
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()
    gate: threading.Event | None = None
    reset: bool = False
    cut: bool = False


@dataclass(kw_only=True)
class Received:
    """One request as it arrived."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Json:
        """Return the body as JSON."""
        document: Json = orjson.loads(self.body)
        return document

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def completion(
    text: str | None = "ok",
    *,
    tools: Sequence[tuple[str, str]] = (),
    usage: tuple[int, int] | None = (10, 5),
    choices: Sequence[str] | None = None,
    extra: Json | None = None,
    choice_extra: Json | None = None,
) -> Reply:
    """Return a whole answer; `tools` are (name, arguments)."""
    texts: Sequence[str | None] = choices if choices is not None else [text]
    document: Json = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": content, **_tool_calls(tools)},
                "finish_reason": "tool_calls" if tools else "stop",
                **(choice_extra or {}),
            }
            for index, content in enumerate(texts)
        ],
        **(extra or {}),
    }
    if usage is not None:
        document["usage"] = _usage(usage)
    return Reply(parts=[orjson.dumps(document)])


def sse_completion(
    pieces: Sequence[str] = ("o", "k"),
    *,
    tools: Sequence[tuple[str, str]] = (),
    usage: tuple[int, int] | None = (10, 5),
    first: Json | None = None,
    done: bool = True,
    finish: bool = True,
    choice_extra: Json | None = None,
) -> Reply:
    """Return a streamed answer, one event a part."""
    events: list[Json] = [first] if first is not None else []
    events.append(_chunk({"role": "assistant", "content": ""}))
    events.extend(_chunk({"content": piece}, choice_extra=choice_extra) for piece in pieces)
    for index, (name, arguments) in enumerate(tools):
        head = {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        events.append(_chunk({"tool_calls": [head]}))
        middle = len(arguments) // 2
        halves = (arguments[:middle], arguments[middle:])
        events.extend(
            _chunk({"tool_calls": [{"index": index, "function": {"arguments": half}}]}) for half in halves
        )
    if finish:
        events.append(_chunk({}, finish="tool_calls" if tools else "stop"))
    if usage is not None:
        events.append({**_chunk({}), "choices": [], "usage": _usage(usage)})
    parts = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]
    if done:
        parts.append(b"data: [DONE]\n\n")
    return Reply(parts=parts, content_type="text/event-stream")


def _chunk(delta: Json, *, finish: str | None = None, choice_extra: Json | None = None) -> Json:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "served",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **(choice_extra or {})}],
    }


def _tool_calls(tools: Sequence[tuple[str, str]]) -> Json:
    if not tools:
        return {}
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(tools)
    ]
    return {"tool_calls": calls}


def _usage(usage: tuple[int, int]) -> Json:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


@dataclass(kw_only=True)
class FakeProvider:
    """The server. `with FakeProvider() as provider: ... provider.base_url`."""

    default: Callable[[Json], Reply] = lambda body: sse_completion() if body.get("stream") else completion()
    script: deque[Reply] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-provider", daemon=True)
        self._thread.start()
        if not self._started.wait(5):
            raise TimeoutError("the fake provider did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    @property
    def base_url(self) -> str:
        """Return the address to configure."""
        return f"http://127.0.0.1:{self.port}/v1"

    def reply(self, *replies: Reply) -> None:
        """Script the next replies."""
        self.script.extend(replies)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._track, "127.0.0.1", 0, limit=1024 * 1024, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _track(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the router, or the test, went away
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [
            (name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)
        ]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = await reader.readexactly(length)
        received = Received(path=head[0].split(" ")[1], headers=headers, body=body)
        self.received.append(received)
        reply = self.script.popleft() if self.script else self.default(received.json)
        if reply.reset:
            return False
        return await self._write(writer, reply)

    async def _write(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        chunked = len(reply.parts) != 1
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(reply.parts[0])}"
        lines = [f"HTTP/1.1 {reply.status} X", f"content-type: {reply.content_type}", framing]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for position, part in enumerate(reply.parts):
            if position == len(reply.parts) - 1:
                await writer.drain()
                if reply.gate is not None:
                    await asyncio.to_thread(reply.gate.wait, 20)
                if reply.cut:
                    return False
            writer.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
