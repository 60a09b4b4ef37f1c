"""Trust domains whose meshes ours exchanges mail with, from one file of the operator.

Both sides name each other, and both sides' edges decide. What is believed about a domain's peers (its roots,
its statement keys) is written here by a person and learned from nobody. The file is read once, at start.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cryptography import x509
from kars.mesh.v1 import identity_pb2
from kars.mesh.v1 import policy_pb2 as mesh_policy_pb2
from kars_common.errors import InvalidInputError
from kars_common.policy import key_id
from kars_common.spiffe import SpiffeId
from pydantic import Field, ValidationError

from kars_controller.api_types.base import ApiModel
from kars_controller.mesh.statements import check_identity_key

_MAX_BYTES = 1024 * 1024


class StatementKeyEntry(ApiModel):
    """A key that signs a foreign domain's identity statements."""

    key_id: str
    public_key: str
    """Raw, base64url without padding, as in that domain's trust-keys.json."""


class DomainEntry(ApiModel):
    """One foreign trust domain."""

    trust_domain: str
    endpoint: str = ""
    """`host:port` of its relay's federation listener; empty: it connects to us."""
    trust_bundle_file: str
    """PEM roots of that domain; a path relative to this file."""
    statement_keys: Annotated[list[StatementKeyEntry], Field(min_length=1, max_length=16)]


class FederationFile(ApiModel):
    """The whole file."""

    domains: Annotated[list[DomainEntry], Field(max_length=64)] = Field(default_factory=list)


class Federation:
    """What the file says, as policy carries it."""

    def __init__(
        self,
        domains: tuple[mesh_policy_pb2.FederatedDomain, ...] = (),
        keys: tuple[identity_pb2.StatementKey, ...] = (),
    ) -> None:
        self.domains = domains
        self.keys = keys

    @classmethod
    def read(cls, path: Path | None, trust_domain: str) -> "Federation":
        """Read the file; without one, nobody is federated.

        Raises:
            InvalidInputError: `mesh_federation_invalid`, with what is wrong; nothing of it is used then.
        """
        if path is None:
            return cls()
        try:
            with path.open("rb") as file:
                parsed = FederationFile.model_validate_json(file.read(_MAX_BYTES))
            _check_names([trust_domain, *(entry.trust_domain for entry in parsed.domains)])
            domains = tuple(_domain(entry, path.parent) for entry in parsed.domains)
            keys = tuple(key for entry in parsed.domains for key in _keys(entry))
        except ValidationError as exc:
            where = ".".join(str(step) for step in exc.errors()[0]["loc"])
            raise _invalid(path, f"{where}: {exc.errors()[0]['msg']}") from exc
        except (OSError, ValueError, InvalidInputError) as exc:
            raise _invalid(path, str(exc)) from exc
        return cls(domains, keys)


def _check_names(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("a domain is our own or named twice")


def _domain(entry: DomainEntry, directory: Path) -> mesh_policy_pb2.FederatedDomain:
    SpiffeId(entry.trust_domain, ())  # a trust domain, or refused
    pem = (directory / entry.trust_bundle_file).read_bytes()[:_MAX_BYTES]
    if not x509.load_pem_x509_certificates(pem):
        raise ValueError(f"{entry.trust_bundle_file} holds no roots")
    return mesh_policy_pb2.FederatedDomain(
        trust_domain=entry.trust_domain,
        endpoint=entry.endpoint,
        trust_bundle_pem=pem.decode(),
        quota=mesh_policy_pb2.MeshQuota(),
    )


def _keys(entry: DomainEntry) -> Iterator[identity_pb2.StatementKey]:
    for item in entry.statement_keys:
        try:
            raw = base64.b64decode(item.public_key + "=" * (-len(item.public_key) % 4), b"-_", validate=True)
        except binascii.Error as exc:
            raise ValueError(f"key {item.key_id} of {entry.trust_domain} is not base64url") from exc
        if key_id(check_identity_key(raw)) != item.key_id:
            raise ValueError(f"key {item.key_id} of {entry.trust_domain} does not fit its id")
        yield identity_pb2.StatementKey(key_id=item.key_id, public_key=raw, trust_domain=entry.trust_domain)


def _invalid(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError("mesh_federation_invalid", f"{path.name}: {what}")
