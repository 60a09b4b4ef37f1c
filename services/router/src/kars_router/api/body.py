"""Read a request's body within its limit and check what it claims to be."""

from kars_router.api.wire import Receive, Scope, bad_request
from kars_router.limits.room import Lease, NoRoomError
from kars_router.pipeline.verdicts import Decision, Deny

_NO_ROOM = Deny(
    status=503,
    error_type="rate_limit_error",
    code="too_many_bytes_in_flight",
    message="the requests of this sandbox that are in flight are too large together",
    decision=Decision.RATE_LIMITED,
    retry_after_s=1.0,
    gate="door",
)


class BodyError(Exception):
    """The body is refused; carries the denial."""

    def __init__(self, denial: Deny) -> None:
        super().__init__(denial.code)
        self.denial = denial


class DisconnectedError(Exception):
    """The caller hung up before its request was complete."""


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int, lease: Lease) -> bytes:
    """Return the body of a JSON request.

    Slow senders are the protocol's business (`protocol.DoorProtocol`).

    Raises:
        BodyError: wrong media type, an encoding, more than `max_bytes`, or more than the door has room for.
        DisconnectedError: the caller hung up.
    """
    _check_head(scope, max_bytes)
    try:
        return await _read(receive, max_bytes, lease)
    except NoRoomError:
        raise BodyError(_NO_ROOM) from None


async def read_binary_body(
    scope: Scope, receive: Receive, max_bytes: int, lease: Lease, kind: bytes
) -> bytes:
    """Return the body of a request of exactly one media type, which has no parameters.

    Raises:
        As read_json_body.
    """
    if [value for name, value in scope["headers"] if name == b"content-type"] != [kind]:
        raise BodyError(bad_request(415, "unsupported_media_type", f"the body must be {kind.decode()}"))
    _check_size_and_encoding(scope, max_bytes)
    try:
        return await _read(receive, max_bytes, lease)
    except NoRoomError:
        raise BodyError(_NO_ROOM) from None


async def _read(receive: Receive, max_bytes: int, lease: Lease) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        first: bytes = message.get("body", b"")
        if len(first) > max_bytes:
            raise BodyError(_too_large(max_bytes))
        lease.grow(len(first))
        return first
    body = bytearray()
    while True:
        if message["type"] != "http.request":
            raise DisconnectedError
        piece: bytes = message.get("body", b"")
        lease.grow(len(piece))
        body += piece
        if len(body) > max_bytes:
            raise BodyError(_too_large(max_bytes))
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def _check_head(scope: Scope, max_bytes: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind, _, parameters = value.partition(b";")
            charset = parameters.strip().lower().replace(b'"', b"").replace(b" ", b"")
            if kind.strip().lower() != b"application/json" or charset not in {b"", b"charset=utf-8"}:
                raise BodyError(
                    bad_request(415, "unsupported_media_type", "the body must be application/json, UTF-8")
                )
            break
    else:
        raise BodyError(
            bad_request(415, "unsupported_media_type", "Content-Type: application/json is required")
        )
    _check_size_and_encoding(scope, max_bytes)


def _check_size_and_encoding(scope: Scope, max_bytes: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value[:20]) > max_bytes:
            raise BodyError(_too_large(max_bytes))
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise BodyError(
                bad_request(415, "unsupported_content_encoding", "compressed bodies are not accepted")
            )


def _too_large(max_bytes: int) -> Deny:
    return bad_request(413, "request_too_large", f"the body is larger than {max_bytes} bytes")
