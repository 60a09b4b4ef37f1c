"""The agent's side of the door to the mesh, as small as it can be: frames over HTTP, no keys, no sessions."""

import os
import struct
from collections.abc import Iterable
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import orjson
from kars.mesh.v1 import relay_pb2

from kars_router_testkit.router import HttpAnswer, RouterProcess

PROTOBUF = {"content-type": "application/x-protobuf"}


class MeshAgent:
    """Blocking; use it from threads."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self._connection: HTTPConnection | None = None
        self._stream: HTTPResponse | None = None

    def open(self, timeout_s: float = 10.0) -> int:
        """Open `deliver`; returns the status."""
        self.hang_up()
        self._connection = HTTPConnection("127.0.0.1", self._router.port, timeout=timeout_s)
        self._connection.request("GET", "/mesh/v1/deliver")
        self._stream = self._connection.getresponse()
        return self._stream.status

    def next(self) -> relay_pb2.AttachResponse | None:
        """Return the next frame; None at the end."""
        assert self._stream is not None
        while True:
            head = self._stream.read(4)
            if len(head) < 4:
                return None
            (length,) = struct.unpack(">I", head)
            if length:
                return relay_pb2.AttachResponse.FromString(self._stream.read(length))

    def hang_up(self) -> None:
        """Close `deliver`."""
        if self._stream is not None:
            self._stream.close()
        if self._connection is not None:
            self._connection.close()
        self._stream = self._connection = None

    def post(self, name: str, message: Any) -> HttpAnswer:  # noqa: ANN401 - a protobuf message or bytes
        """Send one request."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return self._router.request("POST", f"/mesh/v1/{name}", body, PROTOBUF)

    def connect(self, peer: str = "spiffe://kars.local/ns/team/sandbox/agent") -> HttpAnswer:
        """Answer a hello."""
        return self.post("submit", relay_pb2.AttachRequest(connect=relay_pb2.Connect(peer=peer)))

    def attach(self) -> None:
        """Open, take the hello, connect."""
        assert self.open() == 200
        hello = self.next()
        assert hello is not None
        assert hello.HasField("hello")
        answer = self.connect()
        assert answer.status == 200, answer.body

    def send(self, *runs: tuple[str, Iterable[bytes]]) -> HttpAnswer:
        """Submit payloads, a run a recipient."""
        submissions = [
            relay_pb2.Submission(
                to=to, envelopes=[relay_pb2.Envelope(id=os.urandom(16), payload=item) for item in payloads]
            )
            for to, payloads in runs
        ]
        return self.post("submit", relay_pb2.AttachRequest(submissions=submissions))

    def status(self) -> dict[str, Any]:
        """Return what the router says of the connection."""
        found: dict[str, Any] = orjson.loads(self._router.request("GET", "/mesh/v1/status").body)
        return found


def receipt(answer: HttpAnswer) -> relay_pb2.Receipt:
    """Return the receipt in an answer."""
    assert answer.status == 200, answer.body
    return relay_pb2.AttachResponse.FromString(answer.body).receipt
