"""The mesh through the router's door: the only way that an agent has.

The contract is the router's `MESH.md`: protobuf bodies, one long `deliver`, `submit` and `ack` beside it. The
router governs each call and cannot read what it carries. Whose door it is, the listener knows; this module
sends no name and no credential.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import httpx2
from google.protobuf.message import DecodeError, Message
from kars.mesh.v1 import identity_pb2, relay_pb2

from kars_sdk.mesh.errors import TransportError
from kars_sdk.mesh.transport import (
    FATAL_REASONS,
    MAX_FRAME_BYTES,
    Outgoing,
    Prove,
    Refused,
    refusals,
    submissions,
)

DEFAULT_URL = "http://127.0.0.1:8443"
_CALL_TIMEOUT_S = 15.0
_SUBMIT_TIMEOUT_S = 45.0
_HELLO_TIMEOUT_S = 30.0
_PROTOBUF = "application/x-protobuf"
_Response = TypeVar("_Response", bound=Message)


class Door:
    """Transport and Registry over the router's HTTP door."""

    def __init__(self, url: str = DEFAULT_URL, *, http: httpx2.AsyncClient | None = None) -> None:
        """Take the door's address; nothing is connected yet. No proxy of the environment is used."""
        self._http = http or httpx2.AsyncClient(
            base_url=url,
            timeout=_CALL_TIMEOUT_S,
            trust_env=False,
            limits=httpx2.Limits(max_connections=8, max_keepalive_connections=4),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        """See `transport.Registry`."""
        return await self._post(f"/mesh/v1/registry/{method}", request, response)

    async def issue_statement(
        self, request: identity_pb2.IssueStatementRequest
    ) -> identity_pb2.IssueStatementResponse:
        """See `transport.Registry`."""
        return await self._post("/mesh/v1/identity", request, identity_pb2.IssueStatementResponse)

    async def policy(self) -> bytes:
        """Return the trust policy in force, as `TrustPolicy.from_json` reads it."""
        answer = await self._bounded(self._http.build_request("GET", "/mesh/v1/policy"))
        if answer.status_code != 200:
            raise _refused(answer)
        return answer.content

    @contextlib.asynccontextmanager
    async def attach(self, prove: Prove) -> AsyncIterator["DoorLink"]:
        """See `transport.Transport`."""
        timeout = httpx2.Timeout(_CALL_TIMEOUT_S, read=None)
        try:
            async with self._http.stream("GET", "/mesh/v1/deliver", timeout=timeout) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise _refused(answer)
                link = DoorLink(self, _frames(answer.aiter_raw()), prove)
                async with asyncio.timeout(_HELLO_TIMEOUT_S):
                    await link.greet()
                yield link
        except TimeoutError as exc:
            raise TransportError("mesh_not_attached", "the relay did not answer through the door") from exc
        except httpx2.HTTPError as exc:
            raise _unreachable(exc) from exc

    async def last_end(self) -> TransportError:
        """Return why the router ended `deliver`."""
        try:
            answer = await self._bounded(self._http.build_request("GET", "/mesh/v1/status"))
            end = answer.json().get("lastEnd") or {} if answer.status_code == 200 else {}
        except (TransportError, ValueError, AttributeError):
            end = {}
        reason = str(end.get("reason") or "deliver_ended")[:64]
        message = str(end.get("message") or "the router ended the delivery")[:256]
        return TransportError(reason, message, fatal=reason in FATAL_REASONS)

    async def submit(self, request: relay_pb2.AttachRequest) -> relay_pb2.AttachResponse:
        """Post one frame whose answer is a frame."""
        return await self._post("/mesh/v1/submit", request, relay_pb2.AttachResponse, _SUBMIT_TIMEOUT_S)

    async def ack(self, request: relay_pb2.AttachRequest) -> None:
        """Post one frame that has no answer."""
        await self._send("/mesh/v1/ack", request, _CALL_TIMEOUT_S)

    async def _post(
        self, path: str, request: Message, response: type[_Response], timeout_s: float = _CALL_TIMEOUT_S
    ) -> _Response:
        answer = await self._send(path, request, timeout_s)
        try:
            return response.FromString(answer.content)
        except DecodeError as exc:
            raise TransportError("answer_malformed", f"{path} answered with something else") from exc

    async def _send(self, path: str, request: Message, timeout_s: float) -> httpx2.Response:
        outgoing = self._http.build_request(
            "POST",
            path,
            content=request.SerializeToString(),
            headers={"content-type": _PROTOBUF},
            timeout=timeout_s,
        )
        answer = await self._bounded(outgoing)
        if answer.status_code not in {200, 204}:
            raise _refused(answer)
        return answer

    async def _bounded(self, outgoing: httpx2.Request) -> httpx2.Response:
        """Read an answer whole, up to a frame's size."""
        try:
            answer = await self._http.send(outgoing, stream=True)
            try:
                content = bytearray()
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_FRAME_BYTES:
                        raise TransportError(
                            "answer_too_large", f"an answer has over {MAX_FRAME_BYTES} bytes"
                        )
            finally:
                await answer.aclose()
        except httpx2.HTTPError as exc:
            raise _unreachable(exc) from exc
        headers = {"retry-after": answer.headers.get("retry-after", "")}
        return httpx2.Response(answer.status_code, headers=headers, content=bytes(content))


class DoorLink:
    """See `transport.Link`. A new hello in the stream (the router connected again) is answered here."""

    def __init__(self, door: Door, frames: AsyncIterator[relay_pb2.AttachResponse], prove: Prove) -> None:
        self._door = door
        self._frames = frames
        self._prove = prove
        self._welcome = relay_pb2.Welcome()

    @property
    def welcome(self) -> relay_pb2.Welcome:
        """See `transport.Link`."""
        return self._welcome

    async def greet(self) -> None:
        """Wait for the first hello and answer it."""
        async for frame in self._frames:
            if frame.HasField("hello"):
                await self._connect(frame.hello)
                return
        raise await self._door.last_end()

    async def frames(self) -> AsyncIterator[relay_pb2.AttachResponse]:
        """See `transport.Link`."""
        async for frame in self._frames:
            if frame.HasField("hello"):
                await self._connect(frame.hello)
            else:
                yield frame
        raise await self._door.last_end()

    async def submit(self, batch: Sequence[Outgoing]) -> list[Refused]:
        """See `transport.Link`."""
        answer = await self._door.submit(relay_pb2.AttachRequest(submissions=submissions(batch)))
        if answer.receipt.decided_through < len(batch):
            raise TransportError(
                "receipt_incomplete", "the router's receipt does not cover what was handed in"
            )
        return refusals(answer.receipt, first=1, count=len(batch))

    async def ack(self, through: int) -> None:
        """See `transport.Link`."""
        await self._door.ack(relay_pb2.AttachRequest(ack_through=through))

    async def _connect(self, hello: relay_pb2.Hello) -> None:
        answer = await self._door.submit(relay_pb2.AttachRequest(connect=self._prove(hello)))
        if not answer.HasField("welcome"):
            raise TransportError("answer_malformed", "the relay did not welcome us")
        self._welcome = answer.welcome


async def _frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[relay_pb2.AttachResponse]:
    """Cut a byte stream into frames: four bytes of length, then that many bytes."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[:4], "big")
            if length > MAX_FRAME_BYTES:
                raise TransportError("frame_too_large", f"a frame announces {length} bytes")
            if len(buffer) < 4 + length:
                break
            try:
                frame = relay_pb2.AttachResponse.FromString(bytes(buffer[4 : 4 + length]))
            except DecodeError as exc:
                raise TransportError("frame_malformed", "a frame of the door is none") from exc
            del buffer[: 4 + length]
            yield frame


def _refused(answer: httpx2.Response) -> TransportError:
    reason, message = f"http_{answer.status_code}", f"the router answered {answer.status_code}"
    try:
        error = answer.json()["error"]
        reason, message = str(error["code"])[:64], str(error["message"])[:512]
    except (ValueError, KeyError, TypeError):
        pass  # not the door's usual form: the status says it
    retry = answer.headers.get("retry-after", "")
    return TransportError(
        reason,
        message,
        fatal=reason in FATAL_REASONS,
        retry_after_s=float(retry) if retry.isdecimal() and len(retry) < 6 else 0,
    )


def _unreachable(exc: Exception) -> TransportError:
    return TransportError("door_unreachable", f"the router's door does not answer: {type(exc).__name__}")
