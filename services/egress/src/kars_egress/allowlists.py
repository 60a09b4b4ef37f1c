"""Where signed allowlists are kept: a directory in OCI image layout for each repository.

`<directory>/<registry>/<repository>/blobs/sha256/<hex>` holds manifests and layers by their digest, and
`sha256-<hex>.sig` beside `blobs` the signature of a manifest. `oras copy --to-oci-layout` writes the former.
Pulling is whoever's business puts files there; what they are worth is decided here, at every use.
"""

import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars_common.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from kars_common.policy.signing import load_keys

from kars_egress.policy import artefacts
from kars_egress.policy.artefacts import Allowlist

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:-]{0,127}")


class AllowlistStore:
    """Verified reading. Blocks for file input."""

    def __init__(self, directory: Path | None, keys_file: Path | None) -> None:
        """Read the trusted keys.

        Raises:
            InvalidInputError: `policy_keys_invalid`.
        """
        self._directory = directory
        self._keys: dict[str, Ed25519PublicKey] = load_keys(keys_file) if keys_file is not None else {}

    def read(self, registry: str, repository: str, digest: str, least_generation: int) -> Allowlist:
        """Return an allowlist that a trusted key signed.

        Args:
            registry: host of the registry that it came from.
            repository: path within it.
            digest: of its manifest.
            least_generation: an older one is a rollback.

        Raises:
            FailedPreconditionError: `allowlists_not_configured`, `allowlist_rollback`.
            NotFoundError: `allowlist_not_found`.
            InvalidInputError: `allowlist_ref_invalid`, `allowlist_digest_mismatch`,
                `allowlist_manifest_invalid`, `allowlist_not_canonical`.
            PermissionDeniedError: `allowlist_signature_invalid`.
        """
        layout = self._layout(registry, repository)
        manifest = _blob(layout, digest)
        signature = _bounded(layout / f"{digest.replace(':', '-')}.sig")
        artefacts.verify(manifest, signature, self._keys)
        found = artefacts.parse(_blob(layout, artefacts.layer_digest(manifest)))
        if found.generation < least_generation:
            raise FailedPreconditionError(
                "allowlist_rollback",
                f"generation {found.generation} is older than {least_generation} in force",
            )
        return found

    def _layout(self, registry: str, repository: str) -> Path:
        if self._directory is None or not self._keys:
            raise FailedPreconditionError(
                "allowlists_not_configured", "signed allowlists need ALLOWLISTS_DIR and ALLOWLIST_KEYS_FILE"
            )
        parts = (registry, *repository.split("/"))
        if not all(_PART.fullmatch(part) for part in parts):
            raise InvalidInputError("allowlist_ref_invalid", "registry and repository are plain names")
        return self._directory.joinpath(*parts)


def _blob(layout: Path, digest: str) -> bytes:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInputError("allowlist_ref_invalid", "a digest is sha256: and 64 hexadecimal digits")
    data = _bounded(layout / "blobs" / "sha256" / digest.removeprefix("sha256:"))
    if artefacts.digest(data) != digest:
        raise InvalidInputError("allowlist_digest_mismatch", "the bytes are not those that the digest names")
    return data


def _bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as reader:
            return reader.read(artefacts.MAX_BYTES + 1)
    except OSError as exc:
        raise NotFoundError("allowlist_not_found", f"{path.name} is not in the allowlist directory") from exc
