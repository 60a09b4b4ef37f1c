"""A load generator on raw sockets: closed loop over keep-alive connections, and streams that are held open.

Its own cost must not be taken for that of a subject, so it parses only what HTTP/1.1 needs.
"""

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson


@dataclass
class Samples:
    """What one load saw."""

    latencies_s: list[float] = field(default_factory=list)
    wrong: int = 0

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else 0.0


class Target:
    """Where requests go, and the headers that they carry."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in {"Content-Type": "application/json", **headers}.items()
        )

    def request(self, method: str, text: str) -> bytes:
        """Return one request, with a message of its own."""
        body = orjson.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": method,
                "params": {
                    "message": {
                        "messageId": str(uuid.uuid4()),
                        "role": "ROLE_USER",
                        "parts": [{"text": text}],
                    }
                },
            }
        )
        return self._head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def closed_loop(
    target: Target, *, method: str, text: str, expect: bytes, connections: int, seconds: float
) -> Samples:
    """Send as fast as answers come, on a number of connections."""
    samples = Samples()
    end_at = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            while (started := time.perf_counter()) < end_at:
                writer.write(target.request(method, text))
                answer = await read_answer(reader)
                samples.latencies_s.append(time.perf_counter() - started)
                samples.wrong += expect not in answer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(connections)))
    return samples


async def hold_streams(target: Target, count: int, text: str) -> list[asyncio.StreamWriter]:
    """Open streams and return them when each has said its first event."""
    writers: list[asyncio.StreamWriter] = []
    gate = asyncio.Semaphore(32)

    async def one() -> None:
        async with gate:
            reader, writer = await asyncio.open_connection(target.host, target.port)
            writer.write(target.request("SendStreamingMessage", text))
            head = await reader.readuntil(b"\r\n\r\n")
            if b"text/event-stream" not in head:
                writer.close()
                return
            await reader.readuntil(b"\n\n")
            writers.append(writer)

    await asyncio.gather(*(one() for _ in range(count)))
    return writers


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer, whole or chunked."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    at = head.find(b"content-length: ")
    if at >= 0:
        length = int(head[at + 16 : head.index(b"\r\n", at)])
        return await reader.readexactly(length)
    body = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        chunk = await reader.readexactly(size + 2)
        if size == 0:
            return body
        body += chunk[:-2]
