"""Signed allowlists: the one form of their bytes, and whether a signature makes them count.

The form is YAML that can be written in one way only: what is read is written again and compared, so a
signature covers a meaning and not merely bytes. Pure functions; where artefacts are kept is
`kars_egress.allowlists`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from kars_common.errors import InvalidInputError, PermissionDeniedError
from kars_common.policy.signing import key_id

from kars_egress.policy.entries import Entry
from kars_egress.policy.sandboxes import MAX_ENTRIES

MEDIA_TYPE = "application/vnd.kars.egress-allowlist.v1+yaml"
MAX_BYTES = 1024 * 1024

_SIGNED_PREFIX = b"kars.egress-allowlist.v1\x00"
_HEAD = re.compile(
    r"apiVersion: kars\.dev/v1alpha1\nkind: EgressAllowlist\nmetadata:\n  generation: ([1-9][0-9]{0,17})\n"
    r"spec:\n  endpoints:(?: \[\])?\n"
)
_ENDPOINT = re.compile(r"    - host: ([a-z0-9.-]{1,253})\n      port: ([1-9][0-9]{0,4})\n")


@dataclass(frozen=True, slots=True)
class Allowlist:
    """What an artefact says."""

    generation: int
    endpoints: tuple[tuple[str, int], ...]

    def entries(self) -> tuple[Entry, ...]:
        """Return what it allows: https to each endpoint.

        Raises:
            InvalidInputError: an endpoint means too much; reasons as `Entry.build`.
        """
        return tuple(Entry.build(host, port=port) for host, port in self.endpoints)


def serialise(allowlist: Allowlist) -> bytes:
    """Return the one form."""
    lines = [
        "apiVersion: kars.dev/v1alpha1",
        "kind: EgressAllowlist",
        "metadata:",
        f"  generation: {allowlist.generation}",
        "spec:",
        "  endpoints:" if allowlist.endpoints else "  endpoints: []",
    ]
    for host, port in sorted(set(allowlist.endpoints)):
        lines += [f"    - host: {host}", f"      port: {port}"]
    return ("\n".join(lines) + "\n").encode()


def parse(data: bytes) -> Allowlist:
    """Return what the bytes say.

    Raises:
        InvalidInputError: `allowlist_not_canonical`.
    """
    try:
        text = data.decode("ascii") if len(data) <= MAX_BYTES else ""
    except UnicodeDecodeError as exc:
        raise _not_canonical() from exc
    head = _HEAD.match(text)
    if head is None:
        raise _not_canonical()
    endpoints = [(match[1], int(match[2])) for match in _ENDPOINT.finditer(text, head.end())]
    found = Allowlist(int(head[1]), tuple(endpoints))
    if len(endpoints) > MAX_ENTRIES or serialise(found) != data:
        raise _not_canonical()
    found.entries()
    return found


def manifest(layer: bytes) -> bytes:
    """Return the OCI manifest of an artefact with this one layer."""
    empty = b"{}"
    value = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": MEDIA_TYPE,
        "config": _descriptor("application/vnd.oci.empty.v1+json", empty),
        "layers": [_descriptor(MEDIA_TYPE, layer)],
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def layer_digest(manifest_bytes: bytes) -> str:
    """Return the digest of the one layer that a manifest names.

    Raises:
        InvalidInputError: `allowlist_manifest_invalid`.
    """
    try:
        value = json.loads(manifest_bytes)
        layers: Sequence[Mapping[str, str]] = value["layers"]
        if value["artifactType"] != MEDIA_TYPE or len(layers) != 1 or layers[0]["mediaType"] != MEDIA_TYPE:
            raise InvalidInputError("allowlist_manifest_invalid", f"the artefact is no {MEDIA_TYPE}")
        return str(layers[0]["digest"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InvalidInputError("allowlist_manifest_invalid", "the manifest cannot be read") from exc


def sign(manifest_bytes: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signature document that is kept beside a manifest."""
    signature = key.sign(_SIGNED_PREFIX + manifest_bytes).hex()
    return json.dumps({"keyId": key_id(key.public_key()), "signature": signature}).encode()


def verify(manifest_bytes: bytes, document: bytes, keys: Mapping[str, Ed25519PublicKey]) -> None:
    """Pass if a trusted key signed the manifest.

    Raises:
        PermissionDeniedError: `allowlist_signature_invalid`.
    """
    try:
        value = json.loads(document)
        keys[value["keyId"]].verify(bytes.fromhex(value["signature"]), _SIGNED_PREFIX + manifest_bytes)
    except (ValueError, KeyError, TypeError, RecursionError, InvalidSignature) as exc:
        raise PermissionDeniedError(
            "allowlist_signature_invalid", "no key that is trusted here signed this allowlist"
        ) from exc


def digest(data: bytes) -> str:
    """Return `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def _not_canonical() -> InvalidInputError:
    return InvalidInputError(
        "allowlist_not_canonical", "the allowlist is not in its one form (order, spacing, bounds, hosts)"
    )
