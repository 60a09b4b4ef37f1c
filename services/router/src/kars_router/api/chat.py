"""`POST /v1/chat/completions`: decode the request, walk the path, write the answer."""

import asyncio
from typing import Any

import orjson

from kars_router.api import strict_json, wire
from kars_router.api.body import BodyError, read_json_body
from kars_router.inference import sse
from kars_router.inference.request import BadRequestError, parse_chat
from kars_router.limits.room import Lease
from kars_router.pipeline.call import CallerGoneError, InferenceCall
from kars_router.pipeline.door import Door
from kars_router.pipeline.path import Path
from kars_router.pipeline.verdicts import Decision, Deny

_WRITE_TIMEOUT_S = 60.0
_ALLOWED = (b"x-kars-decision", Decision.ALLOWED.value.encode())


class HttpRelease:
    """The way back to the caller of one HTTP request; `stream` chooses server-sent events."""

    def __init__(
        self, receive: wire.Receive, send: wire.Send, headers: wire.Headers, *, stream: bool
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._stream = stream
        self._started = False
        self._watcher: asyncio.Task[None] | None = None
        self.hung_up = False
        # Filled by dispatch before anything is released.
        self.provider_headers: wire.Headers = []

    async def partial(self, objects: list[dict[str, Any]]) -> None:
        """Send events of a stream now."""
        await self._write(b"".join(sse.event(orjson.dumps(item)) for item in objects), more=True)

    async def waiting(self, approval_id: str) -> None:
        """Send a comment on a stream that has begun; a response that has not stays undecided."""
        if self._started:
            await self._write(sse.comment(f"waiting for approval {approval_id}"), more=True)

    def watch(self) -> None:
        """Cancel the current task when the caller hangs up."""
        task = asyncio.current_task()
        if self._watcher is None and task is not None:
            self._watcher = asyncio.create_task(self._wait_gone(task), name="watch-caller")

    async def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def finish(self, objects: list[dict[str, Any]]) -> None:
        """Send the rest of an answer whose record is durable."""
        if not self._stream:
            head = [*self._headers, _ALLOWED, *self.provider_headers]
            await wire.respond(self._send, 200, orjson.dumps(objects[0]), head, b"application/json")
            return
        rest = b"".join(sse.event(orjson.dumps(item)) for item in objects)
        await self._write(rest + sse.DONE, more=False)

    async def refuse(self, denial: Deny) -> None:
        """Send a denial: as a response, or as the last event of a stream that has begun."""
        if not self._started:
            limits = [item for item in self.provider_headers if item[0] != b"retry-after"]
            await wire.refuse(self._send, denial, [*self._headers, *limits])
            return
        body = wire.error_body(denial.error_type, denial.code, denial.message)
        await self._write(sse.event(body) + sse.DONE, more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                if not self._started:
                    self._started = True
                    kind = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
                    head = [*kind, *self._headers, _ALLOWED, *self.provider_headers]
                    await self._send({"type": "http.response.start", "status": 200, "headers": head})
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise CallerGoneError from None

    async def _wait_gone(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        task.cancel()


class ChatEndpoint:
    """Serves chat completions of one door."""

    def __init__(self, door: Door, path: Path) -> None:
        self._door = door
        self._path = path

    async def __call__(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str
    ) -> Deny | None:
        """Serve one request.

        Returns:
            The denial of a request that never became a call, for the door to record; None otherwise.

        Raises:
            DisconnectedError: the caller hung up before its request was complete.
        """
        with self._door.room.lease() as lease:
            return await self._answer(scope, receive, send, trace, lease)

    async def _answer(
        self, scope: wire.Scope, receive: wire.Receive, send: wire.Send, trace: str, lease: Lease
    ) -> Deny | None:
        headers: wire.Headers = [(wire.TRACE_HEADER, trace.encode())]
        try:
            raw = await read_json_body(scope, receive, self._door.defaults.max_request_bytes, lease)
            request = parse_chat(strict_json.parse_object(raw), len(raw))
        except BodyError as exc:
            await wire.refuse(send, exc.denial, [*headers, (b"connection", b"close")])
            return exc.denial
        except (strict_json.MalformedJsonError, BadRequestError) as exc:
            denial = wire.bad_request(400, exc.code, str(exc))
            await wire.refuse(send, denial, headers, param=getattr(exc, "param", None))
            return denial
        release = HttpRelease(receive, send, headers, stream=request.stream)
        call = InferenceCall(door=self._door, release=release, trace_id=trace, request=request)
        call.provider_headers = release.provider_headers
        if request.stream:
            release.watch()
        try:
            await self._serve(call, release)
        except CallerGoneError:
            pass  # settled and recorded; nobody is there to be told
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not release.hung_up or task is None:
                raise
            task.uncancel()
        finally:
            await release.close()
        return None

    async def _serve(self, call: InferenceCall, release: HttpRelease) -> None:
        outcome = await self._path.run(call)
        if outcome.denial is not None or call.output is None:
            if outcome.denial is not None:
                await release.refuse(outcome.denial)
            return
        await release.finish(call.output.finish())
