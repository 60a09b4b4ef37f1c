"""Settings of the egress service: `KARS_EGRESS_*` from the environment, nothing else."""

import ipaddress
from pathlib import Path
from typing import Self

import pydantic
from kars_common.settings import ServiceSettings, service_config
from pydantic import Field


class EgressSettings(ServiceSettings):
    """What the service can be told."""

    model_config = service_config("KARS_EGRESS_")

    trust_domain: str = "kars.local"
    """SPIFFE trust domain."""

    state_dir: Path
    """Directory of this service alone: policies, feeds, audit log, Envoy's files. Must survive restarts."""

    svid_dir: Path
    """Where somebody keeps this service's identity fresh."""

    envoy_svid_dir: Path
    """Where somebody keeps the identity fresh that Envoy proves (`svc/egress-proxy`)."""

    control_address: str = "127.0.0.1:0"
    """Where operators and the controller are served (gRPC, mTLS)."""

    resolver: str = Field(pattern=r"^[0-9a-fA-F.:\[\]]+$")
    """`address:port` of the one name server that Envoy asks."""

    envoy_concurrency: int = Field(default=1, ge=1, le=64)
    """Worker threads of Envoy."""

    envoy_network_namespace: Path | None = None
    """Network namespace that Envoy connects from; None for this process's own."""

    gateway_address: str | None = None
    """`address:port` of a shared door for sandboxes that prove themselves by certificate; None for none."""

    max_approval_s: int = Field(default=86_400, ge=60, le=7 * 86_400)
    """Longest life of an approval."""

    max_learning_s: int = Field(default=4 * 3600, ge=60, le=7 * 86_400)
    """Longest time that a sandbox may learn."""

    allowlists_dir: Path | None = None
    """Signed allowlists in OCI image layout; None accepts none."""

    allowlist_keys_file: Path | None = None
    """Public keys that signed allowlists must be signed with."""

    credentials_file: Path | None = None
    """Secrets that the proxy puts into requests (JSON, see `credentials.py`); None for none."""

    upstream_roots_file: Path | None = None
    """PEM roots that hosts are verified with where the proxy speaks TLS; None for the public ones."""

    feeds_file: Path | None = None
    """Blocklist feeds (JSON); None blocks nothing."""

    feeds_interval_s: float = Field(default=6 * 3600.0, ge=60.0)
    """Time between two fetches of each feed."""

    @pydantic.model_validator(mode="after")
    def _resolver_is_an_address(self) -> Self:
        self.resolver_address()
        self.gateway()
        return self

    def gateway(self) -> tuple[str, int] | None:
        """Return address and port of the shared door."""
        return None if self.gateway_address is None else _address(self.gateway_address, "GATEWAY_ADDRESS")

    def resolver_address(self) -> tuple[str, int]:
        """Return address and port of the resolver."""
        return _address(self.resolver, "RESOLVER")


def _address(text: str, name: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{name} must be address:port")
    return str(ipaddress.ip_address(address.strip("[]"))), int(port)
