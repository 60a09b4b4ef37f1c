"""The bytes of a policy bundle: canonical JSON out, and back in only if nothing is left over.

One bundle has exactly one payload (RFC 8785 over the protobuf JSON mapping), so a digest names it.
Knows nothing of keys, versions or what the rules mean.
"""

import hashlib
import re

import rfc8785
from google.protobuf import json_format
from kars.policy.v1 import policy_pb2

from kars_common.policy.errors import PolicyRefusedError, Refusal

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_JSON_DEPTH = 16
"""The deepest bundle that the contract allows nests half as deep."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"{}[]")


def canonical_payload(bundle: policy_pb2.PolicyBundle) -> bytes:
    """Return the one payload of a bundle.

    Raises:
        PolicyRefusedError: `too_large` above 4 MiB.
    """
    payload = rfc8785.dumps(json_format.MessageToDict(bundle))
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(payload))
    return payload


def digest(payload: bytes) -> str:
    """Return `sha256:<64 hex>`, the name of a payload."""
    return f"sha256:{hashlib.sha256(payload).hexdigest()}"


def parse_payload(payload: bytes) -> policy_pb2.PolicyBundle:
    """Read a payload, refusing everything that is not the canonical form of what was understood.

    Raises:
        PolicyRefusedError: `too_large`, `malformed`, `unknown_field` (an unknown enum value too), or
            `not_canonical`.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(payload))
    _check_shape(payload)
    bundle = policy_pb2.PolicyBundle()
    try:
        json_format.Parse(payload, bundle, max_recursion_depth=MAX_JSON_DEPTH)
    except (json_format.ParseError, ValueError) as exc:
        raise _parse_refusal(payload) from exc
    if canonical_payload(bundle) != payload:
        raise PolicyRefusedError(Refusal.NOT_CANONICAL, "payload is not the canonical JSON of its bundle")
    return bundle


def _check_shape(payload: bytes) -> None:
    """Refuse what is no object, and deep nesting, before a recursive parser meets it."""
    if not payload.lstrip().startswith(b"{"):
        raise PolicyRefusedError(Refusal.MALFORMED, "payload is not a JSON object")
    depth = 0
    for byte in _STRING.sub(b"", payload).translate(None, delete=_NOT_BRACKETS):
        depth += 1 if byte in b"{[" else -1
        if depth > MAX_JSON_DEPTH:
            raise PolicyRefusedError(Refusal.MALFORMED, f"payload nests deeper than {MAX_JSON_DEPTH}")


def _parse_refusal(payload: bytes) -> PolicyRefusedError:
    # Asked twice instead of reading the parser's prose: what passes only leniently has unknown parts.
    try:
        json_format.Parse(
            payload,
            policy_pb2.PolicyBundle(),
            ignore_unknown_fields=True,
            max_recursion_depth=MAX_JSON_DEPTH,
        )
    except (json_format.ParseError, ValueError):
        return PolicyRefusedError(Refusal.MALFORMED, "payload is not the JSON of a policy bundle")
    return PolicyRefusedError(
        Refusal.UNKNOWN_FIELD, "payload has a field or value that this version does not understand"
    )


def _too_large(size: int) -> PolicyRefusedError:
    return PolicyRefusedError(
        Refusal.TOO_LARGE, f"payload must have at most {MAX_PAYLOAD_BYTES} bytes, got {size}"
    )
