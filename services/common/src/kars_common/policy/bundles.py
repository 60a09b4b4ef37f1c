"""The bytes of a policy bundle: canonical JSON out, and back in only if nothing is left over.

One bundle has exactly one payload (RFC 8785 over the protobuf JSON mapping), so a digest names it.
Knows nothing of keys, versions or what the rules mean.
"""

import hashlib

import rfc8785
from google.protobuf import json_format
from kars.policy.v1 import policy_pb2

from kars_common.policy.errors import PolicyRefusedError, Refusal

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_JSON_DEPTH = 16
"""The deepest bundle that the contract allows nests half as deep."""


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
    _check_depth(payload)
    bundle = policy_pb2.PolicyBundle()
    try:
        json_format.Parse(payload, bundle, max_recursion_depth=MAX_JSON_DEPTH)
    except (json_format.ParseError, ValueError) as exc:
        raise _parse_refusal(payload) from exc
    if canonical_payload(bundle) != payload:
        raise PolicyRefusedError(Refusal.NOT_CANONICAL, "payload is not the canonical JSON of its bundle")
    return bundle


def _check_depth(payload: bytes) -> None:
    """Refuse deep nesting before a recursive parser meets it; text inside strings does not count."""
    depth, in_string, escaped = 0, False, False
    for byte in payload.translate(None, delete=_UNSTRUCTURED):
        if escaped:
            escaped = False
        elif in_string:
            escaped = byte == 0x5C
            in_string = byte != 0x22
        elif byte == 0x22:
            in_string = True
        elif byte in b"{[":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise PolicyRefusedError(Refusal.MALFORMED, f"payload nests deeper than {MAX_JSON_DEPTH}")
        elif byte in b"}]":
            depth -= 1


# Only these bytes bear on nesting: quotes, backslashes and the character behind one, brackets.
_UNSTRUCTURED = bytes(b for b in range(256) if b not in b'"\\{}[]bfnrtu/')


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
