"""Settings of the relay: `KARS_RELAY_*` from the environment, nothing else."""

from pathlib import Path
from typing import Self

import pydantic
from kars_common.settings import ServiceSettings, service_config
from pydantic import Field


class RelaySettings(ServiceSettings):
    """What a relay can be told. Who may write to whom, and how much, is policy and not here."""

    model_config = service_config("KARS_RELAY_")

    trust_domain: str = "kars.local"
    """SPIFFE trust domain."""

    state_dir: Path
    """Directory of this relay alone: mailboxes, registry, logs, policy. Must survive restarts."""

    address: str = "127.0.0.1:0"
    """`host:port` of the mTLS listener for peers, operators and the controller."""

    sealed_address: str | None = None
    """`host:port` of the listener for sealed senders, which asks for no client certificate; None: no such
    listener."""

    federation_address: str | None = None
    """`host:port` of the listener for relays of federated trust domains; None: none may call."""

    metrics_address: str | None = None
    """`host:port` where Prometheus text is served over HTTP; None: nowhere."""

    ports_file: Path | None = None
    """Written when all listeners are bound: JSON of `main`, `sealed`, `federation`. For who chose port 0."""

    policy_keys_file: Path
    """Public keys that policy bundles must be signed with."""

    controller_endpoint: str | None = None
    """`host:port` of the controller's mTLS listener; None runs on the last known good policy alone."""

    bootstrap_endpoint: str | None = None
    """`host:port` where the first identity is obtained with the join token."""

    trust_bundle_file: Path | None = None
    """PEM roots that the bootstrap listener is verified with."""

    join_token_file: Path | None = None
    """One-time token for the first identity."""

    svid_dir: Path | None = None
    """Where somebody else keeps this relay's identity fresh (cert-manager); instead of bootstrap."""

    witness_key_file: Path | None = None
    """Verifier key line of the controller's audit witness; None leaves checkpoints unwitnessed."""

    nats_url: str | None = None
    """`nats://host:port` or `tls://host:port` of a NATS server with JetStream: mailboxes of several replicas.
    None keeps them in SQLite under `state_dir`."""

    nats_token_file: Path | None = None
    """File with the token that the NATS server asks for; None for a server that asks for none."""

    nats_ca_file: Path | None = None
    """PEM roots that the NATS server is verified with, for a `tls://` URL; None for the system's."""

    serve_registry: bool = True
    """Whether this replica serves the registry. Of several replicas exactly one does: its files are the
    registry and the log that proves it."""

    nats_replicas: int = Field(default=1, ge=1, le=5)
    """How many NATS servers keep each mailbox."""

    max_connections: int = Field(default=20_000, ge=1)
    """Attached peers at once; each idle one costs about 100 KiB."""

    connect_timeout_s: float = Field(default=10.0, gt=0, le=60)
    """A client that has not proved who it is within this is ended."""

    stall_s: float = Field(default=30.0, gt=0)
    """A client that does not read for this long is ended."""

    sweep_s: float = Field(default=30.0, gt=0)
    """How often expired envelopes are dropped."""

    prekey_caller_per_minute: int = Field(default=30, ge=1)
    """Prekey bundles that one peer may take in a minute."""

    prekey_peer_per_minute: int = Field(default=120, ge=1)
    """Prekey bundles of one peer that all others together may take in a minute."""

    prekey_window_s: float = Field(default=3600.0, gt=0)
    """One peer gets at most one one-time prekey of another in this time."""

    prekey_low_water: int = Field(default=10, ge=0, le=100)
    """With fewer one-time prekeys left, a peer is told to publish more."""

    drain_s: float = Field(default=10.0, ge=0)
    """At SIGTERM, calls in flight may go on for this long."""

    @pydantic.model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.bootstrap_endpoint is None) == (self.svid_dir is None):
            raise ValueError("exactly one of BOOTSTRAP_ENDPOINT and SVID_DIR must be set")
        needed = (self.controller_endpoint, self.trust_bundle_file, self.join_token_file)
        if self.bootstrap_endpoint is not None and None in needed:
            raise ValueError(
                "BOOTSTRAP_ENDPOINT needs CONTROLLER_ENDPOINT, TRUST_BUNDLE_FILE and JOIN_TOKEN_FILE"
            )
        return self
