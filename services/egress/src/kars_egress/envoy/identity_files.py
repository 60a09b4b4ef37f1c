"""Keeps the files fresh that an Envoy reads its identity from.

Envoy watches the directory and takes a renewed certificate for its next connection. The key is in a file that
only its user can read; it is replaced whole.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from kars_common import files
from kars_common.svid import Svid, SvidSource

from kars_egress.xds import types

_SECRET = f"{types.PREFIX}envoy.extensions.transport_sockets.tls.v3.Secret"


def write(directory: Path, svid: Svid) -> None:
    """Replace both files. Blocks for a few fsyncs."""
    identity = {
        "certificate_chain": {"inline_bytes": _base64(svid.certificate_chain_pem)},
        "private_key": {"inline_bytes": _base64(svid.private_key_pem)},
    }
    roots = {"trusted_ca": {"inline_bytes": _base64(svid.trust_bundle_pem)}}
    files.replace(directory / "roots.json", _secret("roots", "validation_context", roots))
    files.replace(directory / "identity.json", _secret("identity", "tls_certificate", identity))


async def keep_fresh(directory: Path, source: SvidSource, written: Svid) -> None:
    """Rewrite the files at every renewal, for ever."""
    while True:
        written = await source.wait_changed(written)
        write(directory, written)


def _secret(name: str, kind: str, value: Mapping[str, object]) -> bytes:
    return json.dumps({"resources": [{"@type": _SECRET, "name": name, kind: value}]}).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
